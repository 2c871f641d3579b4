"""zaya: attention whose queries and keys pass short convolutions, and experts behind a router of layers of its own."""

from __future__ import annotations

import dataclasses

from estimator.blocks.common import attention, linear, norm_weights
from estimator.blocks.recurrent import depthwise_convolution
from estimator.errors import ConfigError
from estimator.network import Block, Chunks, Layer, Network, Recurrence, Weight
from estimator.readers.families.decoders import Decoder
from estimator.readers.families.hybrids import hybrid_network, layer_kinds, norms
from estimator.readers.fields import Fields

__all__ = ["zaya"]

_FULL, _SLIDING = "hybrid", "hybrid_sliding"


def zaya(fields: Fields) -> Network:
    """Layers of compressed convolutional attention and experts, with learned scales around both.

    Source: transformers 5.24, models/zaya; Compressed convolutional attention, arXiv:2510.04476.
    """
    kinds = layer_kinds(fields, "layer_types", (_FULL, _SLIDING), lambda _: _FULL)
    window = fields.optional_size("sliding_window")
    if _SLIDING in kinds and window is None:
        raise ConfigError(f"sliding_window must be given for layers of {_SLIDING}", field="sliding_window")
    mixers = {_FULL: _attention(fields, None), _SLIDING: _attention(fields, window)}
    convolutions, scales = _convolutions(fields), _scales(fields)
    around = [*norms(fields, "input_layernorm", "post_attention_layernorm"), *scales]
    layers = [
        Layer(blocks=(*around, convolutions, mixers[kind], _experts(fields, is_first=index == 0)))
        for index, kind in enumerate(kinds)
    ]
    network = hybrid_network(fields, layers, facts=Decoder(head_bias="lm_head_bias"))
    inputs = _vectors(fields, "", "input_hidden_states_scale", "input_hidden_states_bias")
    stack = dataclasses.replace(network.main, before=(*network.main.before, inputs))
    return dataclasses.replace(network, stacks=(stack,))


def _attention(fields: Fields, window: int | None) -> Block:
    hidden, bias = fields.size("hidden_size"), fields.flag("attention_bias")
    key_value = fields.size("num_key_value_heads") * fields.size("head_dim")
    plain = attention(
        hidden_size=hidden,
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=fields.size("head_dim"),
        qkv_bias=bias,
        output_bias=bias,
        window=window,
    )
    kept = tuple(weight for weight in plain.weights if not weight.name.startswith("v_proj"))
    values = linear("v_proj_current", hidden, key_value // 2, bias=bias)
    values += linear("v_proj_delayed", hidden, key_value // 2, bias=bias)
    temperature = (Weight(name="temp", shape=(fields.size("num_key_value_heads"),), role="other"),)
    return dataclasses.replace(plain, weights=kept + values + temperature)


def _convolutions(fields: Fields) -> Block:
    """Two convolutions over queries and keys, by channel and by head; the state is their last inputs and one value.

    The first is computed for as many tokens more as the second reaches back; the value before the prompt is projected
    from zeros.
    """
    heads, head_dim = fields.size("num_attention_heads") + fields.size("num_key_value_heads"), fields.size("head_dim")
    first, second = fields.size("cca_time0"), fields.size("cca_time1")
    channels, delayed = heads * head_dim, fields.size("num_key_value_heads") * head_dim // 2
    weights = depthwise_convolution("conv_qk_depthwise", channels, first, bias=True)
    weights += (Weight(name="conv_qk_grouped.weight", shape=(channels, head_dim, second), role="convolution"),)
    weights += (Weight(name="conv_qk_grouped.bias", shape=(channels,), role="bias"),)
    further = 2 * channels * first * (second - 1)
    recurrence = Recurrence(
        state_elements=channels * (first + second - 2) + delayed,
        token_flops=further,
        prompt_flops=further + 2 * fields.size("hidden_size") * delayed,
        chunks=Chunks(num_tokens=1, token_flops=0),
    )
    return Block(name="qkv_proj", part="state_space", weights=weights, recurrence=recurrence, live_width=3 * channels)


def _experts(fields: Fields, *, is_first: bool) -> Block:
    """Experts behind a small network that may choose none; all but the first add the last router's states."""
    hidden, router = fields.size("hidden_size"), fields.size("router_hidden_size")
    width, num_experts = fields.size("moe_intermediate_size"), fields.size("num_experts")
    fields.choice("num_experts_per_tok", (1,))
    weights = linear("gate.down_proj", hidden, router, bias=True, quantized=False)
    if not is_first:
        weights += (Weight(name="gate.router_states_scale", shape=(router,), role="other"),)
    weights += norm_weights("gate.router_mlp.norm", router, "rms_norm")
    for name in ("fc1", "fc2"):
        weights += linear(f"gate.router_mlp.{name}", router, router, bias=True, quantized=False)
    weights += linear("gate.router_mlp.out_proj", router, num_experts + 1, quantized=False)
    for name, inner, out in (("gate_proj", hidden, width), ("up_proj", hidden, width), ("down_proj", width, hidden)):
        weights += linear(f"experts.{name}", inner, out, copies=num_experts)
    live_width = 2 * hidden + 2 * width + 3 * router
    return Block(name="mlp", part="experts", weights=weights, live_width=live_width)


def _scales(fields: Fields) -> list[Block]:
    names = ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias")
    return [
        _vectors(fields, f"{place}_residual_scale", *names, part="norm") for place in ("post_attention", "post_mlp")
    ]


def _vectors(fields: Fields, block: str, *names: str, part: str = "embedding") -> Block:
    hidden = fields.size("hidden_size")
    weights = tuple(Weight(name=name, shape=(hidden,), role="other") for name in names)
    return Block(name=block, part=part, weights=weights)
