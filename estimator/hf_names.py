"""Our names of weights to those of the Hugging Face classes, and back: one table for all families."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.errors import BuildError
from estimator.hf_config import hf_family
from estimator.weights import is_linear, weight_shapes

__all__ = ["from_hf_state_dict", "to_hf_state_dict"]

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Naming:
    """How one family names its modules.

    modules: ours -> theirs. Several of ours with one name of theirs are stored as one, one below the other.
    prefix: stands before the names of all modules but `heads`, in a class that has a head over the vocabulary.
    is_transposed: linear layers are stored as [in, out].
    copies: weights that a checkpoint may hold a second time: the copy's name -> the original's.
    buffers: patterns of what a checkpoint may hold beside its weights.
    """

    modules: Mapping[str, str]
    prefix: str
    heads: tuple[str, ...]
    is_transposed: bool = False
    copies: Mapping[str, str]
    buffers: tuple[str, ...]


_BLOCK = [f"layers.#.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
_BLOCK += [f"layers.#.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
_LLAMA = _Naming(
    modules={name: name for name in ("embed_tokens", "norm", "lm_head", *_BLOCK)}
    | {
        "layers.#.attention_norm": "layers.#.input_layernorm",
        "layers.#.mlp_norm": "layers.#.post_attention_layernorm",
    },
    prefix="model.",
    heads=("lm_head",),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    buffers=("*.rotary_emb.inv_freq",),
)
_GPT2 = _Naming(
    modules={
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "layers.#.attention_norm": "h.#.ln_1",
        "layers.#.self_attn.q_proj": "h.#.attn.c_attn",
        "layers.#.self_attn.k_proj": "h.#.attn.c_attn",
        "layers.#.self_attn.v_proj": "h.#.attn.c_attn",
        "layers.#.self_attn.o_proj": "h.#.attn.c_proj",
        "layers.#.mlp_norm": "h.#.ln_2",
        "layers.#.mlp.up_proj": "h.#.mlp.c_fc",
        "layers.#.mlp.down_proj": "h.#.mlp.c_proj",
        "norm": "ln_f",
        "lm_head": "lm_head",
    },
    prefix="transformer.",
    heads=("lm_head",),
    is_transposed=True,
    copies={"lm_head.weight": "transformer.wte.weight"},
    buffers=("*.attn.bias", "*.attn.masked_bias"),
)
_BERT = _Naming(
    modules={
        "embed_tokens": "embeddings.word_embeddings",
        "embed_positions": "embeddings.position_embeddings",
        "embed_token_types": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
        "layers.#.self_attn.q_proj": "encoder.layer.#.attention.self.query",
        "layers.#.self_attn.k_proj": "encoder.layer.#.attention.self.key",
        "layers.#.self_attn.v_proj": "encoder.layer.#.attention.self.value",
        "layers.#.self_attn.o_proj": "encoder.layer.#.attention.output.dense",
        "layers.#.attention_norm": "encoder.layer.#.attention.output.LayerNorm",
        "layers.#.mlp.up_proj": "encoder.layer.#.intermediate.dense",
        "layers.#.mlp.down_proj": "encoder.layer.#.output.dense",
        "layers.#.mlp_norm": "encoder.layer.#.output.LayerNorm",
        "pooler": "pooler.dense",
        "head.transform": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "lm_head": "cls.predictions",
    },
    prefix="bert.",
    heads=("cls.predictions",),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    buffers=("*embeddings.position_ids",),
)
_NAMINGS = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2, "bert": _BERT}


def to_hf_state_dict(config: TransformerConfig, weights: Mapping[str, NDArray[Any]]) -> Weights:
    """The weights by the names of the stock class that has this config, in fp32; tied weights stand once.

    Raises:
        BuildError: no stock class has this config, or a weight is missing.
    """
    naming = _naming(config)
    state_dict: Weights = {}
    for theirs, ours in _groups(config, naming).items():
        for name in ours:
            if name not in weights:
                raise BuildError(f"weight {name!r} is missing")
        together = np.concatenate([np.asarray(weights[name], np.float32) for name in ours])
        state_dict[theirs] = np.ascontiguousarray(_turned(naming, ours[0], together))
    return state_dict


def from_hf_state_dict(config: TransformerConfig, state_dict: Mapping[str, NDArray[Any]]) -> Weights:
    """Our weights from those of the stock class that has this config; the reverse of `to_hf_state_dict`.

    The class's prefix may be missing throughout, as in GPT-2's published file.

    Raises:
        BuildError: no stock class has this config, or a weight is missing, unknown or of the wrong shape.
    """
    naming, shapes = _naming(config), weight_shapes(config)
    groups = _groups(config, naming)
    if not any(name.startswith(naming.prefix) for name in state_dict):
        groups = {theirs.removeprefix(naming.prefix): ours for theirs, ours in groups.items()}
    _check_names(naming, groups, state_dict)
    weights: Weights = {}
    for theirs, ours in groups.items():
        together = _turned(naming, ours[0], np.asarray(state_dict[theirs], np.float32))
        num_rows = [shapes[name][0] for name in ours]
        if together.shape != (sum(num_rows), *shapes[ours[0]][1:]):
            raise BuildError(f"weight {theirs!r} has shape {np.shape(state_dict[theirs])}, which is not the config's")
        parts = np.split(together, np.cumsum(num_rows)[:-1])
        weights |= {name: np.ascontiguousarray(part) for name, part in zip(ours, parts, strict=True)}
    return {name: weights[name] for name in shapes}


def _naming(config: TransformerConfig) -> _Naming:
    family = hf_family(config)
    if family is None:
        raise BuildError("no Hugging Face class computes this config; its weights have no names there")
    return _NAMINGS[family]


def _groups(config: TransformerConfig, naming: _Naming) -> dict[str, tuple[str, ...]]:
    """Each stored weight's name of theirs, and the weights of ours that it holds."""
    groups: dict[str, tuple[str, ...]] = {}
    for name in weight_shapes(config):
        module, kind = name.rsplit(".", 1)
        index = re.search(r"\d+", module)
        theirs = naming.modules[re.sub(r"\d+", "#", module)]
        if config.head in ("causal_lm", "masked_lm") and not theirs.startswith(naming.heads):
            theirs = naming.prefix + theirs
        full_name = f"{theirs}.{kind}".replace("#", index.group() if index else "#")
        groups[full_name] = (*groups.get(full_name, ()), name)
    return groups


def _turned(naming: _Naming, our_name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To or from [in, out], where that is how the family stores linear layers."""
    is_turned = naming.is_transposed and is_linear(our_name) and our_name != "lm_head.weight"
    return values.T if is_turned else values


def _check_names(
    naming: _Naming, groups: Mapping[str, tuple[str, ...]], state_dict: Mapping[str, NDArray[Any]]
) -> None:
    for name in groups:
        if name not in state_dict:
            raise BuildError(f"weight {name!r} is missing")
    for name in state_dict:
        if name in groups or any(fnmatch(name, pattern) for pattern in naming.buffers):
            continue
        original = naming.copies.get(name, "")
        original = original if original in groups else original.removeprefix(naming.prefix)
        if original not in groups:
            raise BuildError(f"weight {name!r} is not one of this config's")
        if not np.array_equal(np.asarray(state_dict[name]), np.asarray(state_dict[original])):
            raise BuildError(f"weight {name!r} should be tied to {original!r}, but differs from it")
