"""The key-values of a GGUF file as a Hugging Face config, for the architectures where they say all that changes a size.

Source: convert_hf_to_gguf.py of ggml-org/llama.cpp, which writes these keys from config.json; read here the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from estimator.errors import CorruptFileError, UnsupportedModelError
from estimator.readers.files.weight_records import FileTensor, WeightFile, show_name

__all__ = ["GGUF_ARCHITECTURES", "config_of_gguf"]

# Key behind the architecture's name -> field of config.json. Those with ? may be missing.
_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv?": "num_key_value_heads",
    "context_length": "max_position_embeddings",
}
_RMS = {"attention.layer_norm_rms_epsilon?": "rms_norm_eps"}
_ROPE = {"rope.freq_base?": "rope_theta"}
_LLAMA = _SIZES | _RMS | _ROPE
_MOE = _LLAMA | {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_WITH_HEAD_DIM = {"attention.key_length?": "head_dim"}
_WINDOW = {"attention.sliding_window": "sliding_window"}


@dataclass(frozen=True, slots=True)
class _Gguf:
    """The header as the functions below ask for it."""

    path: str
    arch: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, FileTensor]

    def get(self, key: str) -> Any:
        """The value of {arch}.{key}, one for all layers; None if it is missing."""
        value = self.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, tuple) and value and all(item == value[0] for item in value):
            return value[0]
        if value is not None and type(value) not in (int, float, bool, str):
            raise UnsupportedModelError(
                f"{self.path}: {self.arch}.{key} differs from layer to layer, which is not read"
            )
        return value

    def size(self, key: str) -> int:
        """A positive integer that must be there."""
        value = self.get(key)
        if type(value) is not int or value < 1:
            what = "is missing" if value is None else f"must be a positive integer, not {value!r:.40}"
            raise CorruptFileError(f"{self.path}: {self.arch}.{key} {what}")
        return value

    def has(self, name: str) -> bool:
        """Whether the first layer, or the model, has a tensor of that name."""
        return name in self.tensors or f"blk.0.{name}" in self.tensors


def config_of_gguf(weight_file: WeightFile) -> dict[str, Any]:
    """What config.json would say of the model in a GGUF file, as far as it changes a size.

    Raises:
        UnsupportedModelError: the architecture is not one of those whose keys are known to say everything.
        CorruptFileError: a key that the architecture needs is missing or impossible.
    """
    path, arch = str(weight_file.paths[0]), weight_file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _ARCHITECTURES:
        what = f"architecture {show_name(arch)}" if isinstance(arch, str) else "no general.architecture"
        known = ", ".join(_ARCHITECTURES)
        raise UnsupportedModelError(
            f"{path}: {what}: the weights can be counted, but what else it needs is not known; known are {known}"
        )
    tensors = {tensor.name: tensor for tensor in weight_file.tensors}
    gguf = _Gguf(path, arch, weight_file.metadata, tensors)
    table = tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CorruptFileError(f"{path}: there is no token table, token_embd.weight of two dimensions")
    config = _ARCHITECTURES[arch](gguf)
    return config | {"vocab_size": table.shape[0], "tie_word_embeddings": "output.weight" not in tensors}


def _fields(gguf: _Gguf, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields by our table. The number of key-value heads is that of heads where it is missing."""
    fields: dict[str, Any] = {}
    for key, name in names.items():
        if not key.endswith("?"):
            fields[name] = gguf.size(key)
        elif (value := gguf.get(key.removesuffix("?"))) is not None:
            fields[name] = value if isinstance(value, float) else gguf.size(key.removesuffix("?"))
    if "attention.head_count_kv?" in names:
        fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    return fields


def _check_head_dim(gguf: _Gguf, *, fixed: bool) -> None:
    """Keys and values must be of one size; with `fixed` that of hidden_size / heads, as config.json has no field."""
    heads, hidden = gguf.size("attention.head_count"), gguf.size("embedding_length")
    key, value = gguf.get("attention.key_length"), gguf.get("attention.value_length")
    expected = hidden // heads if fixed else key
    if key != value or (key is not None and key != expected):
        raise UnsupportedModelError(
            f"{gguf.path}: {gguf.arch} with key_length {key!r} and value_length {value!r} of {heads} heads "
            f"and embedding_length {hidden} is not read"
        )


def _plain(model_type: str, names: Mapping[str, str], **facts: Any) -> Callable[[_Gguf], dict[str, Any]]:
    """An architecture that is a renaming; facts are fields that hold for every file of it."""

    def read(gguf: _Gguf) -> dict[str, Any]:
        _check_head_dim(gguf, fixed="attention.key_length?" not in names)
        return {"model_type": model_type, **_fields(gguf, names), **facts}

    return read


def _llama(gguf: _Gguf) -> dict[str, Any]:
    """Llama and Mistral; with experts, Mixtral."""
    _check_head_dim(gguf, fixed=False)
    fields = _fields(gguf, _LLAMA | _WITH_HEAD_DIM)
    if gguf.get("expert_count"):
        return {
            "model_type": "mixtral",
            **fields,
            "num_local_experts": gguf.size("expert_count"),
            "num_experts_per_tok": gguf.size("expert_used_count"),
        }
    attention_bias, mlp_bias = gguf.has("attn_q.bias"), gguf.has("ffn_up.bias")
    if attention_bias != gguf.has("attn_output.bias"):
        raise UnsupportedModelError(f"{gguf.path}: llama with biases of q, k and v, but not of the output, is not read")
    return {"model_type": "llama", **fields, "attention_bias": attention_bias, "mlp_bias": mlp_bias}


def _qwen2moe(gguf: _Gguf) -> dict[str, Any]:
    _check_head_dim(gguf, fixed=True)
    shared = gguf.size("expert_shared_feed_forward_length")
    return {"model_type": "qwen2_moe", **_fields(gguf, _MOE), "shared_expert_intermediate_size": shared}


def _gpt2(gguf: _Gguf) -> dict[str, Any]:
    _check_head_dim(gguf, fixed=True)
    names = {
        "block_count": "n_layer",
        "embedding_length": "n_embd",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "context_length": "n_positions",
    }
    return {"model_type": "gpt2", **_fields(gguf, names)}


def _phi3(gguf: _Gguf) -> dict[str, Any]:
    """`original_max_position_embeddings` is left out: it changes no size."""
    _check_head_dim(gguf, fixed=True)
    window = gguf.get("attention.sliding_window")
    return {"model_type": "phi3", **_fields(gguf, _LLAMA), "sliding_window": window or None}


def _falcon(gguf: _Gguf) -> dict[str, Any]:
    """The 7B kind with one key-value head and one norm, or the 40B kind with groups and two norms."""
    _check_head_dim(gguf, fixed=True)
    is_new, heads = gguf.has("attn_norm_2.weight"), gguf.get("attention.head_count_kv") or 1
    if not is_new and heads != 1:
        raise UnsupportedModelError(f"{gguf.path}: falcon with {heads} key-value heads and a single norm is not read")
    names = {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "ffn_hidden_size",
        "attention.head_count": "num_attention_heads",
        "context_length": "max_position_embeddings",
    } | _ROPE
    facts = {"new_decoder_architecture": is_new, "multi_query": True, "parallel_attn": True, "bias": False}
    return {"model_type": "falcon", **_fields(gguf, names), **facts, "alibi": False, "num_kv_heads": heads}


def _gpt_oss(gguf: _Gguf) -> dict[str, Any]:
    names = {key: name for key, name in _LLAMA.items() if name != "intermediate_size"} | _WITH_HEAD_DIM | _WINDOW
    _check_head_dim(gguf, fixed=False)
    return {
        "model_type": "gpt_oss",
        **_fields(gguf, names),
        "intermediate_size": gguf.size("expert_feed_forward_length"),
        "num_local_experts": gguf.size("expert_count"),
        "num_experts_per_tok": gguf.size("expert_used_count"),
    }


def _deepseek2(gguf: _Gguf) -> dict[str, Any]:
    """DeepSeek V2 and V3 (with its kin): latent attention. Newer files keep the true head sizes under _mla keys."""
    rotary = gguf.size("rope.dimension_count")
    suffix = "_mla" if gguf.get("attention.key_length_mla") is not None else ""
    key, value = gguf.size(f"attention.key_length{suffix}"), gguf.size(f"attention.value_length{suffix}")
    if key <= rotary:
        raise CorruptFileError(f"{gguf.path}: keys of {key} with {rotary} rotary dimensions leave nothing for the rest")
    dense = gguf.get("leading_dense_block_count") or 0
    has_bias = f"blk.{dense}.exp_probs_b.bias" in gguf.tensors
    names = _LLAMA | {
        "attention.q_lora_rank?": "q_lora_rank",
        "attention.kv_lora_rank": "kv_lora_rank",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "n_shared_experts",
    }
    fields = {"q_lora_rank": None, **_fields(gguf, names)}
    return {
        "model_type": "deepseek_v3" if has_bias else "deepseek_v2",
        **fields,
        "num_hidden_layers": fields["num_hidden_layers"] - (gguf.get("nextn_predict_layers") or 0),
        "num_key_value_heads": fields["num_attention_heads"],
        "qk_nope_head_dim": key - rotary,
        "qk_rope_head_dim": rotary,
        "v_head_dim": value,
        "first_k_dense_replace": dense,
    }


_ARCHITECTURES: dict[str, Callable[[_Gguf], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _plain("qwen2", _LLAMA, use_sliding_window=False),
    "qwen2moe": _qwen2moe,
    "qwen3": _plain("qwen3", _LLAMA | _WITH_HEAD_DIM, use_sliding_window=False, attention_bias=False),
    "qwen3moe": _plain("qwen3_moe", _MOE | _WITH_HEAD_DIM, use_sliding_window=False, attention_bias=False),
    "gemma": _plain("gemma", _LLAMA | _WITH_HEAD_DIM),
    "gemma2": _plain("gemma2", _LLAMA | _WITH_HEAD_DIM | _WINDOW),
    "gemma3": _plain("gemma3_text", _LLAMA | _WITH_HEAD_DIM | _WINDOW),
    "phi2": _plain("phi", _SIZES | _ROPE),
    "phi3": _phi3,
    "gpt2": _gpt2,
    "starcoder2": _plain("starcoder2", _SIZES | _ROPE, use_bias=True, sliding_window=None),
    "falcon": _falcon,
    "gpt-oss": _gpt_oss,
    "olmo2": _plain("olmo2", _LLAMA, attention_bias=False),
    "smollm3": _plain("smollm3", _LLAMA, attention_bias=False, mlp_bias=False, use_sliding_window=False),
    "deepseek2": _deepseek2,
}
GGUF_ARCHITECTURES = tuple(_ARCHITECTURES)
