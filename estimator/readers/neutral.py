"""Fields that many published configs carry whether or not their class declares them, and that no class sizes by."""

from __future__ import annotations

from estimator.readers.families import BOOKKEEPING

__all__ = ["is_neutral"]

_NAMES = frozenset(
    ["rope_theta", "rope_scaling", "rope_parameters", "rope_interleave", "rope_interleaved", "rope_pct", "rope_ratio", "rope_local_base_freq", "rotary_base", "rotary_emb_base", "rotary_pct", "partial_rotary_factor", "original_max_position_embeddings", "hidden_act", "hidden_activation", "activation", "activation_function", "act_fn", "mlp_hidden_act", "pretraining_tp", "use_cache", "layerdrop", "scale_embedding", "normalize_before", "normalize_embedding", "output_router_logits", "router_jitter_noise", "norm_topk_prob", "norm_topk", "topk_method", "scoring_func", "routed_scaling_factor", "n_group", "topk_group", "aux_loss_alpha", "seq_aux", "ep_size", "moe_layer_freq_loss", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "logit_scale", "cache_implementation", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "use_flash_attn", "use_flash_attention_2", "flash_attn", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "gradient_checkpointing", "gradient_checkpointing_use_reentrant", "max_sequence_length", "seq_length", "n_ctx", "unk_token", "bos_token", "eos_token", "pad_token", "mask_token", "is_llama_config", "quantization_config", "compression_config", "auto_map", "swiglu_limit", "initial_context_length", "transformers_weights", "processor_class", "image_processor_type", "feature_extractor_type", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "directionality"]
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
