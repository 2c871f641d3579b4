"""Fields that many published configs carry whether or not their class declares them, and that no class sizes by."""

from __future__ import annotations

from estimator.readers.families import BOOKKEEPING

__all__ = ["is_neutral"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NAMES = _words(
    """
    act_fn activation activation_function attention_softmax_in_fp32 attn_logit_softcapping auto_map aux_loss_alpha
    bos_token cache_implementation compression_config dim_model_base directionality eos_token ep_size
    feature_extractor_type final_logit_softcapping flash_attn gradient_checkpointing
    gradient_checkpointing_use_reentrant hidden_act hidden_activation image_processor_type initial_context_length
    is_llama_config layer_rope_theta layerdrop logit_scale mask_token max_sequence_length mlp_hidden_act
    moe_layer_freq_loss n_ctx n_group norm_topk norm_topk_prob normalize_before normalize_embedding
    original_max_position_embeddings output_router_logits pad_token partial_rotary_factor pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type pretraining_tp processor_class
    quantization_config query_pre_attn_scalar reorder_and_upcast_attn rope_interleave rope_interleaved
    rope_local_base_freq rope_parameters rope_pct rope_ratio rope_scaling rope_theta rotary rotary_base rotary_dim
    rotary_emb_base rotary_pct routed_scaling_factor router_jitter_noise scale_attention_softmax_in_fp32
    scale_attn_by_inverse_layer_idx scale_depth scale_emb scale_embedding scoring_func seq_aux seq_length
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj swiglu_limit
    topk_group topk_method transformers_weights unk_token use_cache use_flash_attention_2 use_flash_attn
    """
)
_ENDINGS = (
    "dropout",
    "_dropout_prob",
    "_dropout_rate",
    "_pdrop",
    "_layerdrop",
    "drop_prob",
    "drop_path_rate",
    "_token_id",
    "_token_index",
    "_token_ids",
    "_std",
    "_eps",
    "_epsilon",
    "_loss",
    "_loss_weight",
    "_loss_coef",
    "_initializer_range",
    "_initializer_factor",
)


def is_neutral(name: str) -> bool:
    """Whether a field of that name changes no parameter, cache or FLOP of any family."""
    return name in _NAMES or name in BOOKKEEPING or name.endswith(_ENDINGS)
