"""Blocks with a state of fixed size instead of a cache that grows: state spaces, linear attention, convolutions.

Matrices are [out, in]; letters as in blocks.py, and I the inner width, S the state per channel, c the tokens per chunk.

What is counted beside the weights is what PyTorch's FlopCounterMode sees of the reference implementations in
transformers 5.24: products of matrices, in prefill in chunks of c tokens, padded where the code pads. Two things
follow. A causal convolution is computed over k - 1 positions beyond the prompt, and over one beyond a single token.
And steps that are written as elementwise products (the delta rules, RG-LRU, RWKV) count as nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from estimator.blocks.common import linear, norm_weights
from estimator.network import Block, Chunks, Recurrence, Weight

__all__ = [
    "delta_attention",
    "delta_rule",
    "depthwise_convolution",
    "gated_delta_net",
    "lightning_attention",
    "mamba",
    "mamba2",
    "matrix_lstm",
    "residual_convolutions",
    "rg_lru",
    "rwkv",
    "short_convolution",
]

DELTA_RULE_CHUNK = 64  # the default of chunk_gated_delta_rule and chunk_kda in flash-linear-attention and transformers


def depthwise_convolution(name: str, channels: int, kernel: int, *, bias: bool) -> tuple[Weight, ...]:
    """A causal convolution of `kernel` tokens, each channel for itself."""
    weights = (Weight(name=f"{name}.weight", shape=(channels, 1, kernel), role="convolution"),)
    return (*weights, Weight(name=f"{name}.bias", shape=(channels,), role="bias")) if bias else weights


def _vector(name: str, *shape: int) -> tuple[Weight, ...]:
    return (Weight(name=name, shape=shape, role="other"),)


def _convolved(channels: int, kernel: int, *, state: int, step_flops: int, chunks: Chunks | None) -> Recurrence:
    """The recurrence behind a convolution that keeps its last `kernel` inputs: an fp32 `state` and those inputs."""
    output_flops = 2 * channels * kernel
    return Recurrence(
        state_elements=state + channels * kernel,
        fp32_elements=state,
        token_flops=step_flops + output_flops,
        prompt_flops=(kernel - 1) * output_flops,
        chunks=chunks,
    )


def mamba(
    *,
    hidden_size: int,
    intermediate_size: int,
    state_size: int,
    conv_kernel: int,
    time_step_rank: int,
    bias: bool,
    conv_bias: bool,
    has_norms: bool = False,
    num_heads: int = 1,
    name: str = "mixer",
) -> Block:
    """A selective state space: each of I channels has a state of S; a token's product with it takes 2*I*S FLOPs.

    has_norms: over time step, B and C (jamba). num_heads: heads of I/heads channels that select for themselves (zamba).
    Source: Mamba, arXiv:2312.00752, algorithm 2.
    """
    width = intermediate_size // num_heads
    weights = depthwise_convolution("conv1d", intermediate_size, conv_kernel, bias=conv_bias)
    weights += linear("in_proj", hidden_size, 2 * intermediate_size, bias=bias)
    weights += linear("x_proj", width, time_step_rank + 2 * state_size, copies=num_heads, active_copies=num_heads)
    weights += linear("dt_proj", time_step_rank, width, bias=True, copies=num_heads, active_copies=num_heads)
    weights += _vector("A_log", intermediate_size, state_size) + _vector("D", intermediate_size)
    weights += linear("out_proj", intermediate_size, hidden_size, bias=bias)
    if has_norms:
        weights += norm_weights("dt_layernorm", time_step_rank, "rms_norm")
        weights += norm_weights("b_layernorm", state_size, "rms_norm")
        weights += norm_weights("c_layernorm", state_size, "rms_norm")
    product = 2 * intermediate_size * state_size
    recurrence = _convolved(
        intermediate_size,
        conv_kernel,
        state=intermediate_size * state_size,
        step_flops=product,
        chunks=Chunks(num_tokens=1, token_flops=product),
    )
    live_width = hidden_size + 4 * intermediate_size + num_heads * (time_step_rank + 2 * state_size)
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)


def mamba2(
    *,
    hidden_size: int,
    num_heads: int,
    head_dim: int,
    state_size: int,
    num_groups: int,
    conv_kernel: int,
    chunk_size: int,
    bias: bool,
    conv_bias: bool,
    output_bias: bool | None = None,
    has_norm: bool = True,
    name: str = "mixer",
) -> Block:
    """State space duality: heads of H channels with a state of H*S; groups of heads share B and C.

    Per head and chunk: c*c*(S + H) multiply-adds within it, 2*c*H*S into and out of the state, and H*S for each pair of
    chunk boundaries. A single token takes H*S.
    Source: Mamba-2, arXiv:2405.21060, section 6.
    """
    inner, product = num_heads * head_dim, 2 * num_heads * head_dim * state_size
    convolved = inner + 2 * num_groups * state_size
    weights = depthwise_convolution("conv1d", convolved, conv_kernel, bias=conv_bias)
    weights += linear("in_proj", hidden_size, inner + convolved + num_heads, bias=bias)
    weights += _vector("dt_bias", num_heads) + _vector("A_log", num_heads) + _vector("D", num_heads)
    weights += norm_weights("norm", inner, "rms_norm") if has_norm else ()
    weights += linear("out_proj", inner, hidden_size, bias=bias if output_bias is None else output_bias)
    chunks = Chunks(
        num_tokens=chunk_size,
        token_flops=2 * product,
        pair_flops=2 * num_heads * (state_size + head_dim),
        boundary_flops=product,
    )
    recurrence = _convolved(
        convolved, conv_kernel, state=num_heads * head_dim * state_size, step_flops=product, chunks=chunks
    )
    live_width = hidden_size + 2 * inner + 2 * convolved + num_heads
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)


def delta_rule(
    *, num_heads: int, key_head_dim: int, value_head_dim: int, conv_channels: int, conv_kernel: int, pairs: int
) -> Recurrence:
    """The state [K, V] of each head behind a convolution, read in chunks by the WY representation of the delta rule.

    Per head and chunk: `pairs` multiply-adds for each pair of its tokens, and c*3*K*V with the state. One more token is
    elementwise. Ignores: the triangular solve within a chunk.
    Source: Gated delta networks, arXiv:2412.06464, section 3.3.
    """
    state = num_heads * key_head_dim * value_head_dim
    chunks = Chunks(num_tokens=DELTA_RULE_CHUNK, token_flops=6 * state, pair_flops=2 * num_heads * pairs)
    return _convolved(conv_channels, conv_kernel, state=state, step_flops=0, chunks=chunks)


def gated_delta_net(
    *,
    hidden_size: int,
    num_key_heads: int,
    num_value_heads: int,
    key_head_dim: int,
    value_head_dim: int,
    conv_kernel: int,
    projections: str = "split",
    name: str = "linear_attn",
) -> Block:
    """Gated DeltaNet; each key head serves as many value heads as there are more of them.

    projections: "fused" (qwen3_next), "split" (qwen3_5) or "separate" (olmo_hybrid) matrices, of the same size in all.
    """
    key, value = num_key_heads * key_head_dim, num_value_heads * value_head_dim
    weights = depthwise_convolution("conv1d", 2 * key + value, conv_kernel, bias=False)
    for projection, out in _delta_projections(projections, key, value, num_value_heads):
        weights += linear(projection, hidden_size, out)
    weights += _vector("dt_bias", num_value_heads) + _vector("A_log", num_value_heads)
    weights += norm_weights("norm", value_head_dim, "rms_norm") + linear("out_proj", value, hidden_size)
    recurrence = delta_rule(
        num_heads=num_value_heads,
        key_head_dim=key_head_dim,
        value_head_dim=value_head_dim,
        conv_channels=2 * key + value,
        conv_kernel=conv_kernel,
        pairs=2 * key_head_dim + value_head_dim,
    )
    live_width = hidden_size + 2 * (2 * key + value) + 2 * value + 2 * num_value_heads
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)


def _delta_projections(kind: str, key: int, value: int, heads: int) -> tuple[tuple[str, int], ...]:
    """Names and outputs of the matrices that make queries, keys, values, output gate, learning rate and decay."""
    if kind == "fused":
        return ("in_proj_qkvz", 2 * key + 2 * value), ("in_proj_ba", 2 * heads)
    if kind == "split":
        return ("in_proj_qkv", 2 * key + value), ("in_proj_z", value), ("in_proj_b", heads), ("in_proj_a", heads)
    assert kind == "separate", kind
    wide = (("q_proj", key), ("k_proj", key), ("v_proj", value), ("g_proj", value))
    return (*wide, ("a_proj", heads), ("b_proj", heads))


def delta_attention(
    *,
    hidden_size: int,
    num_heads: int,
    head_dim: int,
    conv_kernel: int,
    low_rank_gates: bool = True,
    name: str = "self_attn",
) -> Block:
    """Kimi delta attention: a delta rule whose decay differs by channel.

    low_rank_gates: forget and output gates go through a rank of `head_dim` (kimi_linear), else they are full matrices.
    Source: Kimi Linear, arXiv:2510.26692, section 3.
    """
    width = num_heads * head_dim
    weights: tuple[Weight, ...] = ()
    for projection in ("q_proj", "k_proj", "v_proj"):
        weights += linear(projection, hidden_size, width)
    weights += depthwise_convolution("conv1d", 3 * width, conv_kernel, bias=False)
    if low_rank_gates:
        for gate in ("forget_gate.f", "g"):
            weights += linear(f"{gate}_a_proj", hidden_size, head_dim) + linear(f"{gate}_b_proj", head_dim, width)
    else:
        weights += linear("forget_gate.f_proj", hidden_size, width) + linear("g_proj", hidden_size, width)
    weights += _vector("forget_gate.dt_bias", width) + _vector("forget_gate.A_log", num_heads)
    weights += linear("b_proj", hidden_size, num_heads) + norm_weights("o_norm", head_dim, "rms_norm")
    weights += linear("o_proj", width, hidden_size)
    recurrence = delta_rule(
        num_heads=num_heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        conv_channels=3 * width,
        conv_kernel=conv_kernel,
        pairs=3 * head_dim,
    )
    live_width = hidden_size + 9 * width
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)


def lightning_attention(
    *, hidden_size: int, num_heads: int, head_dim: int, block_size: int, name: str = "self_attn"
) -> Block:
    """Linear attention with a fixed decay per head and a state of H*H, in the activation type.

    Per head and block: 2*c*c*H multiply-adds within it and 2*c*H*H with the state; a single token takes 2*H*H.
    Source: Lightning attention-2, arXiv:2401.04658, algorithm 1.
    """
    width, state = num_heads * head_dim, num_heads * head_dim * head_dim
    weights = norm_weights("norm", width, "rms_norm") + linear("qkv_proj", hidden_size, 3 * width)
    weights += linear("out_proj", width, hidden_size) + linear("output_gate", hidden_size, width)
    chunks = Chunks(num_tokens=block_size, token_flops=4 * state, pair_flops=4 * width, rest="short")
    recurrence = Recurrence(state_elements=state, token_flops=4 * state, chunks=chunks)
    live_width = hidden_size + 5 * width
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)


def rg_lru(
    *, hidden_size: int, lru_width: int, num_heads: int, conv_kernel: int, name: str = "temporal_block"
) -> Block:
    """Griffin's recurrent block: two branches, one through a convolution and a gated linear recurrence of I states.

    The gates are block-diagonal, one [I/heads, I/heads] per head. The convolution keeps k - 1 inputs, and counts in a
    step too, where the reference multiplies elementwise.
    Source: Griffin, arXiv:2402.19427, section 2.4.
    """
    width = lru_width // num_heads
    weights = linear("linear_y", hidden_size, lru_width, bias=True)
    weights += linear("linear_x", hidden_size, lru_width, bias=True)
    weights += linear("linear_out", lru_width, hidden_size, bias=True)
    weights += depthwise_convolution("conv_1d", lru_width, conv_kernel, bias=True)
    weights += _vector("rg_lru.recurrent_param", lru_width)
    weights += linear(
        "rg_lru.input_gate", width, width, bias=True, quantized=False, copies=num_heads, active_copies=num_heads
    )
    weights += linear(
        "rg_lru.recurrent_gate", width, width, bias=True, quantized=False, copies=num_heads, active_copies=num_heads
    )
    kept = conv_kernel - 1
    recurrence = Recurrence(
        state_elements=lru_width * (1 + kept),
        fp32_elements=lru_width,
        token_flops=0,
        prompt_flops=kept * 2 * conv_kernel * lru_width,
    )
    live_width = hidden_size + 5 * lru_width
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)


def rwkv(*, hidden_size: int, attention_hidden_size: int, name: str = "attention") -> Block:
    """RWKV-4's time mixing: numerator, denominator and maximum of a decaying average, and the last token's input.

    Source: RWKV, arXiv:2305.13048, section 3.1.
    """
    weights = _vector("time_decay", attention_hidden_size) + _vector("time_first", attention_hidden_size)
    for what in ("key", "value", "receptance"):
        weights += _vector(f"time_mix_{what}", 1, 1, hidden_size)
        weights += linear(what, hidden_size, attention_hidden_size)
    weights += linear("output", attention_hidden_size, hidden_size)
    recurrence = Recurrence(
        state_elements=hidden_size + 3 * attention_hidden_size, fp32_elements=3 * attention_hidden_size, token_flops=0
    )
    live_width = 4 * hidden_size + 4 * attention_hidden_size
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)


def short_convolution(*, hidden_size: int, conv_kernel: int, bias: bool, name: str = "conv") -> Block:
    """LFM2's gated short convolution: the state is its last `conv_kernel` inputs."""
    weights = depthwise_convolution("conv", hidden_size, conv_kernel, bias=bias)
    weights += linear("in_proj", hidden_size, 3 * hidden_size, bias=bias)
    weights += linear("out_proj", hidden_size, hidden_size, bias=bias)
    nothing = Chunks(num_tokens=1, token_flops=0)
    recurrence = _convolved(hidden_size, conv_kernel, state=0, step_flops=0, chunks=nothing)
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=6 * hidden_size)


def residual_convolutions(
    *, channels: Mapping[str, int], conv_kernel: int, token_flops: int, name: str = "sconv"
) -> Block:
    """Depthwise convolutions without bias, each added to its input; inputs are kept in fp32.

    token_flops: of products per token that stand beside them.
    """
    weights: tuple[Weight, ...] = ()
    for convolution, width in channels.items():
        weights += depthwise_convolution(f"{convolution}.conv1d", width, conv_kernel, bias=False)
    total = sum(channels.values())
    chunks = Chunks(num_tokens=1, token_flops=token_flops)
    kept = _convolved(total, conv_kernel, state=0, step_flops=token_flops, chunks=chunks)
    recurrence = dataclasses.replace(kept, fp32_elements=kept.state_elements)
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=2 * total)


def matrix_lstm(
    *,
    hidden_size: int,
    num_heads: int,
    key_size: int,
    value_size: int,
    chunk_size: int,
    bias: bool,
    fused: bool,
    name: str = "mlstm_layer",
) -> Block:
    """xLSTM's mLSTM: per head a matrix memory [K, V], a normaliser [K] and a maximum, all fp32.

    Per head and chunk: c*c*(K + V) multiply-adds within it, c*(2*K*V + K) with the state; the tokens that fill no chunk
    go one by one, each 2*K*V + K.
    Source: xLSTM 7B, arXiv:2503.13427.
    """
    key, value = key_size // num_heads, value_size // num_heads
    if fused:
        weights = linear("qkv_opreact", hidden_size, 2 * key_size + 2 * value_size, bias=bias)
        weights += linear("ifgate_preact", hidden_size, 2 * num_heads, bias=True)
    else:
        weights = linear("q", hidden_size, key_size, bias=bias) + linear("k", hidden_size, key_size, bias=bias)
        weights += linear("v", hidden_size, value_size, bias=bias)
        weights += linear("ogate_preact", hidden_size, value_size, bias=bias)
        weights += linear("igate_preact", hidden_size, num_heads, bias=True)
        weights += linear("fgate_preact", hidden_size, num_heads, bias=True)
    weights += norm_weights("multihead_norm", num_heads * value, "layer_norm" if bias else "rms_norm")
    weights += linear("out_proj", value_size, hidden_size, bias=bias)
    state = num_heads * (key * value + key + 1)
    product = 2 * num_heads * (2 * key * value + key)
    chunks = Chunks(num_tokens=chunk_size, token_flops=product, pair_flops=2 * num_heads * (key + value), rest="steps")
    recurrence = Recurrence(state_elements=state, fp32_elements=state, token_flops=product, chunks=chunks)
    live_width = hidden_size + 2 * key_size + 4 * value_size
    return Block(name=name, part="state_space", weights=weights, recurrence=recurrence, live_width=live_width)
