"""Fields that many published configs carry whether or not their class declares them, and that no class sizes by."""

from __future__ import annotations

from estimator.readers.buildable_families import BOOKKEEPING

__all__ = ["SYNONYMS", "is_neutral"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NAMES = _words(
    """
    act_fn activation activation_function attention_softmax_in_fp32 attn_logit_softcapping auto_map aux_loss_alpha
    bos_token cache_implementation compression_config dim_model_base directionality eos_token ep_size
    feature_extractor_type final_logit_softcapping flash_attn gradient_checkpointing
    gradient_checkpointing_use_reentrant hidden_act hidden_activation ignore_index image_processor_type init_config
    init_device initial_context_length initializer_factor is_llama_config layer_rope_theta layerdrop logit_scale
    mask_token max_sequence_length mlp_hidden_act moe_layer_freq_loss n_ctx n_group norm_topk norm_topk_prob
    normalize_before normalize_embedding original_max_position_embeddings output_router_logits pad_token
    partial_rotary_factor pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
    pooler_type predict_special_tokens pretraining_tp processor_class quantization_config query_pre_attn_scalar
    reorder_and_upcast_attn rope_interleave rope_interleaved rope_local_base_freq rope_parameters rope_pct
    rope_ratio rope_scaling rope_theta rotary rotary_base rotary_dim rotary_emb_base rotary_pct
    routed_scaling_factor router_jitter_noise scale_attention_softmax_in_fp32 scale_attn_by_inverse_layer_idx
    scale_attn_weights scale_depth scale_emb scale_embedding scoring_func seq_aux seq_length summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj swiglu_limit tokenizer_name
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


# Parameters of generation that config.json carried before they had a file of their own.
_GENERATION = _words(
    """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind cache_config
    compile_config constraints continuous_batching_config disable_compile dola_layers encoder_repetition_penalty
    epsilon_cutoff eta_cutoff force_words_ids forced_decoder_ids generation_config guidance_scale is_assistant
    low_memory max_cache_len max_matching_ngram_size max_time min_new_tokens min_p num_assistant_tokens
    num_assistant_tokens_schedule output_logits penalty_alpha prefill_chunk_size prompt_lookup_num_tokens
    renormalize_logits sequence_bias speculation_type stop_strings target_lookbehind token_healing top_h
    use_model_defaults use_mtp watermarking_config
    """
)
# What a field says once more where another family's config was carried over: name -> the fields that it can repeat.
SYNONYMS = {
    "d_model": ("hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "max_seq_len": ("max_position_embeddings",),
    "model_max_length": ("max_position_embeddings",),
    "multi_query_group_num": ("num_key_value_heads",),
    "n_embd": ("hidden_size",),
    "n_embed": ("hidden_size",),
    "n_head": ("num_attention_heads",),
    "n_head_kv": ("num_key_value_heads", "num_kv_heads"),
    "n_heads": ("num_attention_heads",),
    "n_inner": ("intermediate_size",),
    "n_layer": ("num_hidden_layers",),
    "n_layers": ("num_hidden_layers",),
    "n_positions": ("max_position_embeddings",),
    "num_heads": ("num_attention_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "num_layers": ("num_hidden_layers",),
    "padded_vocab_size": ("vocab_size",),
}
# Of the fields that begin with _, only these choose what is built.
_PRIVATE = _words("_label_trainable_num_channels _out_features _out_indices _remove_final_layer_norm")


def is_neutral(name: str) -> bool:
    """Whether a field of that name changes no parameter, cache or FLOP of any family."""
    if name.startswith("_") and name not in _PRIVATE:
        return True
    return name in _NAMES or name in _GENERATION or name in BOOKKEEPING or name.endswith(_ENDINGS)
