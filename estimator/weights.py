"""The weights of a config by name: the one list that counting, building, training and exporting share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from estimator.config import Layer, TransformerConfig
from estimator.errors import BuildError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PARTS",
    "check_weights",
    "embedding_shapes",
    "is_linear",
    "layer_shapes",
    "output_shapes",
    "part_of",
    "random_weights",
    "weight_shapes",
]

PARTS = ("embedding", "attention", "feed_forward", "norm", "head")
NamedShapes = Iterator[tuple[str, tuple[int, ...]]]


def weight_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every stored weight by name, in the order it is used; matrices are [out, in] as in PyTorch.

    Tied embeddings and shared layers appear once, under the name of their owner.
    """
    shapes = dict(embedding_shapes(config))
    for layer in config.layers:
        if layer.owns_weights:
            shapes.update(layer_shapes(config, layer))
    return shapes | dict(output_shapes(config))


def is_linear(name: str) -> bool:
    """True for the matrices that int8 and int4 quantise: those of the linear layers in the blocks, and an untied head.

    Embeddings (a tied head with them), norms, biases, BERT's head transform and the pooler keep the activation type.
    """
    return name == "lm_head.weight" or (name.startswith("layers.") and name.endswith("_proj.weight"))


def part_of(name: str) -> str:
    """The part of the model that a weight belongs to: embedding, attention, feed_forward, norm or head."""
    if "norm" in name:
        return "norm"
    if name.startswith("embed_"):
        return "embedding"
    if ".self_attn." in name:
        return "attention"
    if ".mlp." in name:
        return "feed_forward"
    assert name.startswith(("lm_head.", "head.", "pooler.")), name
    return "head"


def random_weights(config: TransformerConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights by name in fp32: matrices N(0, 0.02), norm gains 1, biases 0.

    Constant or denormal weights would time differently from a trained model's.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith(".bias"):
            weights[name] = np.zeros(shape, np.float32)
        elif part_of(name) == "norm":
            weights[name] = np.ones(shape, np.float32)
        else:
            weights[name] = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return weights


def check_weights(config: TransformerConfig, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """The weights as fp32, in the order of `weight_shapes`.

    Raises:
        BuildError: a weight is missing, unknown, of the wrong shape, or holds values that are not finite.
    """
    import numpy as np

    shapes = weight_shapes(config)
    for name in weights:
        if name not in shapes:
            raise BuildError(f"weight {name!r} is not one of this config's")
    checked: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        if name not in weights:
            raise BuildError(f"weight {name!r} is missing")
        checked[name] = np.asarray(weights[name], np.float32)
        if checked[name].shape != shape:
            raise BuildError(f"weight {name!r} has shape {checked[name].shape}; this config needs {shape}")
        if not np.isfinite(checked[name]).all():
            raise BuildError(f"weight {name!r} holds values that are not finite")
    return checked


def _norm(config: TransformerConfig, name: str, size: int) -> NamedShapes:
    yield f"{name}.weight", (size,)
    if config.norm_type == "layer_norm":
        yield f"{name}.bias", (size,)


def _linear(name: str, in_size: int, out_size: int, bias: bool) -> NamedShapes:
    yield f"{name}.weight", (out_size, in_size)
    if bias:
        yield f"{name}.bias", (out_size,)


def embedding_shapes(config: TransformerConfig) -> NamedShapes:
    """Names and shapes of the weights in front of the layers."""
    yield "embed_tokens.weight", (config.vocab_size, config.hidden_size)
    if config.position_embedding == "learned":
        yield "embed_positions.weight", (config.max_position_embeddings, config.hidden_size)
    if config.type_vocab_size:
        yield "embed_token_types.weight", (config.type_vocab_size, config.hidden_size)
    if config.embedding_norm:
        yield from _norm(config, "embed_norm", config.hidden_size)


def layer_shapes(config: TransformerConfig, layer: Layer) -> NamedShapes:
    """Names and shapes of the weights of one layer, as if it owned them."""
    hidden, prefix = config.hidden_size, f"layers.{layer.index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    yield from _norm(config, f"{prefix}.attention_norm", hidden)
    yield from _linear(f"{attention}.q_proj", hidden, layer.query_size, config.attention_bias)
    yield from _linear(f"{attention}.k_proj", hidden, layer.key_value_size, config.attention_bias)
    yield from _linear(f"{attention}.v_proj", hidden, layer.key_value_size, config.attention_bias)
    if config.qk_norm:
        yield f"{attention}.q_norm.weight", (layer.head_dim,)
        yield f"{attention}.k_norm.weight", (layer.head_dim,)
    yield from _linear(f"{attention}.o_proj", layer.query_size, hidden, config.attention_output_bias)
    yield from _norm(config, f"{prefix}.mlp_norm", hidden)
    if config.gated_mlp:
        yield from _linear(f"{mlp}.gate_proj", hidden, layer.intermediate_size, config.mlp_bias)
    yield from _linear(f"{mlp}.up_proj", hidden, layer.intermediate_size, config.mlp_bias)
    yield from _linear(f"{mlp}.down_proj", layer.intermediate_size, hidden, config.mlp_bias)


def output_shapes(config: TransformerConfig) -> NamedShapes:
    """Names and shapes of the weights behind the layers: the last norm and the head."""
    hidden = config.hidden_size
    if config.norm_placement == "pre":
        yield from _norm(config, "norm", hidden)
    if config.head == "pooler":
        yield from _linear("pooler", hidden, hidden, bias=True)
    if config.head == "masked_lm":
        yield from _linear("head.transform", hidden, hidden, bias=True)
        yield from _norm(config, "head.norm", hidden)
        yield "lm_head.bias", (config.vocab_size,)
    if config.head in ("causal_lm", "masked_lm") and not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)
