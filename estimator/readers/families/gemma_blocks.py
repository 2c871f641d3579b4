"""What Gemma 3n and those after it have beside attention and feed-forward: inputs per layer, and streams of residuals.

Source: transformers 5.24, `Gemma3nTextModel`; AltUp, arXiv:2301.13310; LAuReL, arXiv:2411.07501.
"""

from __future__ import annotations

import dataclasses

from estimator.blocks.common import attention, embedding, experts, feed_forward, linear, norm, norm_weights
from estimator.errors import ConfigError
from estimator.network import Block, Recurrence, Weight
from estimator.readers.fields import Fields

__all__ = [
    "blocks_before_gemma3n",
    "blocks_before_gemma4",
    "feed_forward_of_layer",
    "gemma3n_blocks",
    "gemma4_attention",
    "gemma4_blocks",
    "gemma4_feed_forward",
    "sharing_attention",
]

GEMMA4_GLOBAL_HEAD_DIM = 512  # what Gemma4TextConfig takes where `global_head_dim` is not given


def sharing_attention(fields: Fields, window: int | None, index: int) -> Block:
    """Attention of which the last `num_kv_shared_layers` layers read the keys and values of an earlier one."""
    return attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=fields.size("head_dim"),
        qkv_bias=fields.flag("attention_bias"),
        output_bias=fields.flag("attention_bias"),
        qk_norm="head",
        window=window,
        has_key_value=index < fields.layers() - fields.count("num_kv_shared_layers"),
    )


def feed_forward_of_layer(fields: Fields, index: int) -> Block:
    """As wide as `intermediate_size` says, for all layers or in a list."""
    if isinstance(fields.raw("intermediate_size"), list):
        width = fields.sizes("intermediate_size", fields.layers())[index]
    else:
        width = fields.size("intermediate_size")
    if width == 0:
        raise ConfigError("intermediate_size must be positive in every layer, not 0", field="intermediate_size")
    return feed_forward(hidden_size=fields.size("hidden_size"), intermediate_size=width, gated=True)


def blocks_before_gemma3n(fields: Fields) -> tuple[Block, ...]:
    """Inputs per layer, and the projections that open the streams and join them again."""
    hidden, streams = fields.size("hidden_size"), fields.layers("altup_num_inputs")
    weights: tuple[Weight, ...] = ()
    for index in range(streams - 1):
        weights += linear(f"altup_projections.{index}", hidden, hidden)
        weights += linear(f"altup_unembed_projections.{index}", hidden, hidden)
    return (
        *inputs_per_layer(fields),
        Block(name="", part="embedding", weights=weights, live_width=2 * streams * hidden),
    )


def inputs_per_layer(fields: Fields) -> tuple[Block, ...]:
    """A second table of tokens, and a projection of the first, that give each layer a small input of its own."""
    hidden, width = fields.size("hidden_size"), fields.size("hidden_size_per_layer_input")
    total = fields.layers() * width
    weights = linear("per_layer_model_projection", hidden, total)
    weights += norm_weights("per_layer_projection_norm", width, "rms_norm")
    return (
        embedding("embed_tokens_per_layer", fields.size("vocab_size_per_layer_input"), total),
        Block(name="", part="embedding", weights=weights, live_width=hidden + 2 * total),
    )


def gate_of_the_input(fields: Fields) -> tuple[Block, ...]:
    """What mixes a layer's own input in."""
    hidden, width = fields.size("hidden_size"), fields.size("hidden_size_per_layer_input")
    weights = linear("per_layer_input_gate", hidden, width) + linear("per_layer_projection", width, hidden)
    mix = Block(name="", part="feed_forward", weights=weights, live_width=2 * hidden + 2 * width)
    return mix, norm("post_per_layer_input_norm", hidden, "rms_norm")


def gemma3n_blocks(fields: Fields, index: int) -> tuple[Block, ...]:
    """AltUp's streams, LAuReL's low-rank residual, and the layer's own input."""
    hidden, streams, rank = fields.size("hidden_size"), fields.size("altup_num_inputs"), fields.size("laurel_rank")
    altup = linear("modality_router", hidden, streams, quantized=False)
    altup += linear("correction_coefs", streams, streams, quantized=False)
    altup += linear("prediction_coefs", streams, streams**2, quantized=False)
    altup += (Weight(name="correct_output_scale", shape=(hidden,), role="other"),)
    altup += norm_weights("router_norm", hidden, "rms_norm")
    # The router runs twice, before and behind the layer; the streams are mixed by a matrix of their number squared.
    products = Recurrence(state_elements=0, token_flops=2 * hidden * streams + 2 * hidden * streams**2)
    laurel = linear("linear_left", hidden, rank) + linear("linear_right", rank, hidden)
    laurel += norm_weights("post_laurel_norm", hidden, "rms_norm")
    return (
        Block(name="altup", part="feed_forward", weights=altup, recurrence=products, live_width=2 * streams * hidden),
        Block(name="laurel", part="feed_forward", weights=laurel, live_width=2 * hidden + rank),
        *gate_of_the_input(fields),
    )


def gemma4_attention(fields: Fields, window: int | None, index: int) -> Block:
    """As sharing_attention, but layers without a window have heads of another size, and may keep keys as values."""
    layers = fields.layers()
    if index == layers - 1:
        window = None  # whatever the list says
    sizes = _gemma4_sizes(fields, index, window is None)
    block = attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        qkv_bias=fields.flag("attention_bias"),
        output_bias=fields.flag("attention_bias"),
        qk_norm="head",
        window=window,
        has_key_value=index < layers - fields.count("num_kv_shared_layers"),
    )
    if window is None and fields.flag("attention_k_eq_v"):
        kept = tuple(weight for weight in block.weights if not weight.name.startswith("v_proj"))
        return dataclasses.replace(block, weights=kept)
    return block


def _gemma4_sizes(fields: Fields, index: int, is_full: bool) -> dict[str, int]:
    """Head size and key-value heads of a layer: from `per_layer_config`, or from the fields of all full layers."""
    fields.ignore("global_head_dim", "num_global_key_value_heads")
    own = {name: fields.size(name) for name in ("head_dim", "num_key_value_heads")}
    given = fields.raw("per_layer_config")
    if given is not None:
        known = isinstance(given, dict) and all(isinstance(key, str) and key.isdecimal() for key in given)
        numbered = {int(key): value for key, value in given.items()} if known else {}  # "05" as well as "5"
        layer = numbered.get(index, {}) if known and max(numbered, default=0) < fields.layers() else None
        if not isinstance(layer, dict) or not all(
            name in own and type(v) is int and v > 0 for name, v in layer.items()
        ):
            raise ConfigError(
                f"per_layer_config must give {' and '.join(own)} by the index of the layer", field="per_layer_config"
            )
        return own | layer
    if is_full:
        own["head_dim"] = fields.size("global_head_dim") if fields.given("global_head_dim") else GEMMA4_GLOBAL_HEAD_DIM
        if fields.flag("attention_k_eq_v") and fields.given("num_global_key_value_heads"):
            own["num_key_value_heads"] = fields.size("num_global_key_value_heads")
    return own


def gemma4_feed_forward(fields: Fields, index: int) -> Block:
    """Twice as wide in layers that share keys and values, with `use_double_wide_mlp`."""
    is_shared = index >= fields.layers() - fields.count("num_kv_shared_layers")
    factor = 2 if fields.flag("use_double_wide_mlp") and is_shared else 1
    width = factor * fields.size("intermediate_size")
    return feed_forward(hidden_size=fields.size("hidden_size"), intermediate_size=width, gated=True)


def blocks_before_gemma4(fields: Fields) -> tuple[Block, ...]:
    """Inputs per layer, where they have a size."""
    fields.ignore("vocab_size_per_layer_input")
    return inputs_per_layer(fields) if fields.count("hidden_size_per_layer_input") else ()


def gemma4_blocks(fields: Fields, index: int) -> tuple[Block, ...]:
    """The layer's own input, and experts beside its feed-forward."""
    blocks = gate_of_the_input(fields) if fields.count("hidden_size_per_layer_input") else ()
    if not fields.flag("enable_moe_block"):
        fields.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
        return blocks
    hidden, num_experts = fields.size("hidden_size"), fields.size("num_experts")
    scales = (("router.scale", hidden), ("router.per_expert_scale", num_experts))
    routed = experts(
        hidden_size=hidden,
        intermediate_size=fields.size("moe_intermediate_size"),
        num_experts=num_experts,
        num_experts_per_tok=fields.size("top_k_experts"),
        extra=tuple(Weight(name=name, shape=(size,), role="other") for name, size in scales),
    )
    return (*blocks, routed, *(norm(f"experts.norms.{number}", hidden, "rms_norm") for number in range(3)))
