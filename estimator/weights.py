"""The weights of a config by name: the one list that counting, building, training and exporting share."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from estimator.blocks.common import attention, embedding, feed_forward, head, linear, norm, norm_weights
from estimator.config import Layer, TransformerConfig
from estimator.errors import BuildError
from estimator.network import Block, Network, Stack, stored_weights
from estimator.network import Layer as NetworkLayer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "check_weights",
    "embedding_blocks",
    "is_linear",
    "layer_blocks",
    "network_of",
    "output_blocks",
    "part_of",
    "random_weights",
    "weight_shapes",
]


def network_of(model: TransformerConfig | Network) -> Network:
    """The network that a config describes; a network is its own."""
    return model if isinstance(model, Network) else _network_of_config(model)


@functools.lru_cache(maxsize=64)
def _network_of_config(config: TransformerConfig) -> Network:
    layers = tuple(
        NetworkLayer(blocks=tuple(layer_blocks(config, layer)), owns_weights=layer.owns_weights)
        for layer in config.layers
    )
    stack = Stack(
        name=config.architecture,
        hidden_size=config.hidden_size,
        before=tuple(embedding_blocks(config)),
        layers=layers,
        after=tuple(output_blocks(config)),
        is_causal=config.is_causal,
    )
    return Network(
        architecture=config.architecture,
        stacks=(stack,),
        model_type="archfront",
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        learned_positions=config.position_embedding == "learned",
    )


def weight_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every stored weight by name, in the order it is used; matrices are [out, in] as in PyTorch.

    Tied embeddings and shared layers appear once, under the name of their owner.
    """
    return {name: weight.shape for name, _, weight in stored_weights(network_of(config))}


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


def embedding_blocks(config: TransformerConfig) -> Iterator[Block]:
    """What stands in front of the layers."""
    yield embedding("embed_tokens", config.vocab_size, config.hidden_size)
    if config.position_embedding == "learned":
        yield embedding("embed_positions", config.max_position_embeddings, config.hidden_size)
    if config.type_vocab_size:
        yield embedding("embed_token_types", config.type_vocab_size, config.hidden_size)
    if config.embedding_norm:
        yield norm("embed_norm", config.hidden_size, config.norm_type)


def layer_blocks(config: TransformerConfig, layer: Layer) -> Iterator[Block]:
    """One layer, in the order of a pre-norm layer whichever comes first."""
    yield norm("attention_norm", config.hidden_size, config.norm_type)
    yield attention(
        hidden_size=config.hidden_size,
        num_attention_heads=layer.num_attention_heads,
        num_key_value_heads=layer.num_key_value_heads,
        head_dim=layer.head_dim,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_output_bias,
        qk_norm="head" if config.qk_norm else "none",
        window=layer.sliding_window,
        is_cached=config.is_causal,
    )
    yield norm("mlp_norm", config.hidden_size, config.norm_type)
    yield feed_forward(
        hidden_size=config.hidden_size,
        intermediate_size=layer.intermediate_size,
        gated=config.gated_mlp,
        bias=config.mlp_bias,
    )


def output_blocks(config: TransformerConfig) -> Iterator[Block]:
    """What stands behind the layers: the last norm and the head."""
    hidden = config.hidden_size
    if config.norm_placement == "pre":
        yield norm("norm", hidden, config.norm_type)
    if config.head == "pooler":
        weights = linear("pooler", hidden, hidden, bias=True, quantized=False)
        yield Block(name="", part="head", weights=weights, positions=1)
    if config.head == "masked_lm":
        weights = linear("transform", hidden, hidden, bias=True, quantized=False)
        yield Block(name="head", part="head", weights=weights + norm_weights("norm", hidden, config.norm_type))
    if config.head in ("causal_lm", "masked_lm"):
        has_bias = config.head == "masked_lm"
        yield head("lm_head", hidden, config.vocab_size, bias=has_bias, tied=config.tie_word_embeddings)
