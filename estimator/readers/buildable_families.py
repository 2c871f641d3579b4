"""The Hugging Face model families that can be read, as data: names of fields, defaults, facts, classes.

To add a family, add a row. Every field of a config.json must stand in exactly one place here: it is renamed into a
field of `TransformerConfig`, it must have the one value that can be represented, or it is known to change no size.
Source: the configuration classes of transformers 5.23; tests/estimator/test_readers.py compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BOOKKEEPING", "COMMON_REQUIRED", "FAMILIES", "Family"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One Hugging Face model type.

    fields: config.json's name -> ours. defaults: values of omitted fields, by config.json's name.
    facts: our fields that are fixed for the family.
    heads: class name -> our head; the first one is what a config without class means.
    required: field -> the only values that can be represented exactly. irrelevant: fields that change no size.
    windows: how sliding windows are given: "none", "all" (sliding_window holds for every layer), or "layer_types".
    bias_fields: our fields that `attention_bias` of config.json sets.
    may_untie: whether a head without tied weights can be represented.
    """

    fields: Mapping[str, str]
    defaults: Mapping[str, Any]
    facts: Mapping[str, Any]
    heads: Mapping[str, str]
    required: Mapping[str, tuple[Any, ...]]
    irrelevant: frozenset[str]
    windows: str = "none"
    bias_fields: tuple[str, ...] = ()
    may_untie: bool = True


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields of every config.json that describe how a checkpoint is loaded, trained or sampled from, never its shape.
BOOKKEEPING = _words(
    """
    _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset attn_implementation architectures
    model_type transformers_version torch_dtype dtype use_cache use_bfloat16 output_attentions output_hidden_states
    return_dict return_dict_in_generate output_scores tokenizer_class prefix problem_type finetuning_task
    task_specific_params id2label label2id num_labels _num_labels initializer_range gradient_checkpointing
    chunk_size_feed_forward
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id decoder_start_token_id
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tf_legacy_loss
    tie_last_hidden_states unsloth_fixed unsloth_version output_past _flash_attn_2_enabled
    _attn_implementation_internal transformers.js_config model_max_length sentence_transformers neuron
    export_model_type sbert_ce_default_activation_function
    """
)
# Fields that any config.json may carry and that change the network unless they have these values.
COMMON_REQUIRED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "torchscript": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "per_layer_config": (None,),
    "position_embedding_type": ("absolute",),  # what is not was dropped from transformers, and had weights of its own
    "auto_map": (None,),
}
_SIZES = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "hidden_act",
        "tie_word_embeddings",
    )
}
_LLAMA_FIELDS = _SIZES | {
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
_LLAMA_FACTS = {"norm_type": "rms_norm", "gated_mlp": True, "position_embedding": "rotary"}
_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_ROPE = frozenset(("rope_scaling", "rope_parameters"))  # read on their own; see huggingface.py
_QWEN_WINDOWS = frozenset(("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"))
_ALL_BIASES = ("attention_bias", "attention_output_bias")

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        fields=_LLAMA_FIELDS | {"mlp_bias": "mlp_bias"},
        defaults=_LLAMA_DEFAULTS | {"attention_bias": False, "mlp_bias": False},
        facts=_LLAMA_FACTS,
        heads={"LlamaForCausalLM": "causal_lm", "LlamaModel": "none"},
        required={"sliding_window": (None,), "rope_interleaved": (False,)},
        irrelevant=_words("attention_dropout pretraining_tp is_llama_config max_sequence_length") | _ROPE,
        bias_fields=_ALL_BIASES,
    ),
    "mistral": Family(
        fields=_LLAMA_FIELDS,
        defaults=_LLAMA_DEFAULTS
        | {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        facts=_LLAMA_FACTS,
        heads={"MistralForCausalLM": "causal_lm", "MistralModel": "none"},
        required={"attention_bias": (False,), "mlp_bias": (False,)},
        irrelevant=frozenset(("attention_dropout", "sliding_window")) | _ROPE,
        windows="all",
    ),
    "qwen2": Family(
        fields=_LLAMA_FIELDS,
        defaults=_QWEN_DEFAULTS,
        facts=_LLAMA_FACTS | {"attention_bias": True},
        heads={"Qwen2ForCausalLM": "causal_lm", "Qwen2Model": "none"},
        required={"attention_bias": (True,), "mlp_bias": (False,), "use_mrope": (False,)},
        irrelevant=frozenset(("attention_dropout",)) | _ROPE | _QWEN_WINDOWS,
        windows="layer_types",
    ),
    "qwen3": Family(
        fields=_LLAMA_FIELDS,
        defaults=_QWEN_DEFAULTS | {"head_dim": 128, "attention_bias": False},
        facts=_LLAMA_FACTS | {"qk_norm": True},
        heads={"Qwen3ForCausalLM": "causal_lm", "Qwen3Model": "none"},
        required={"mlp_bias": (False,), "use_mrope": (False,)},
        irrelevant=frozenset(("attention_dropout",)) | _ROPE | _QWEN_WINDOWS,
        windows="layer_types",
        bias_fields=_ALL_BIASES,
    ),
    "gpt2": Family(
        fields={
            "vocab_size": "vocab_size",
            "n_positions": "max_position_embeddings",
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "norm_eps",
            "tie_word_embeddings": "tie_word_embeddings",
            "max_position_embeddings": "max_position_embeddings",
            "hidden_size": "hidden_size",
            "num_hidden_layers": "num_hidden_layers",
            "num_attention_heads": "num_attention_heads",
        },
        defaults={
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
        },
        facts={
            "norm_type": "layer_norm",
            "gated_mlp": False,
            "position_embedding": "learned",
            "attention_bias": True,
            "attention_output_bias": True,
            "mlp_bias": True,
        },
        heads={"GPT2LMHeadModel": "causal_lm", "GPT2Model": "none"},
        # the three of attention change no size, but no config of ours computes what they ask for
        required={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
        },
        irrelevant=_words(
            """
            resid_pdrop embd_pdrop attn_pdrop n_ctx n_special predict_special_tokens summary_type summary_use_proj
            summary_activation summary_proj_to_labels summary_first_dropout
            """
        ),
    ),
    "bert": Family(
        fields=_SIZES | {"layer_norm_eps": "norm_eps", "type_vocab_size": "type_vocab_size"},
        defaults={
            "vocab_size": 30522,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "tie_word_embeddings": True,
        },
        facts={
            "architecture": "encoder",
            "norm_type": "layer_norm",
            "norm_placement": "post",
            "gated_mlp": False,
            "position_embedding": "learned",
            "embedding_norm": True,
            "attention_bias": True,
            "attention_output_bias": True,
            "mlp_bias": True,
        },
        heads={"BertModel": "pooler", "BertForMaskedLM": "masked_lm"},
        required={"position_embedding_type": ("absolute",)},
        # the pooler fields were written by BERT's first exporter and are read by no class
        irrelevant=_words(
            """
            hidden_dropout_prob attention_probs_dropout_prob classifier_dropout directionality pooler_fc_size
            pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
            """
        ),
        may_untie=False,
    ),
}
