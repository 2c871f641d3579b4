"""The blocks that transformers are made of, as functions from sizes to `Block`: the one place for shapes.

Matrices are [out, in] as in PyTorch. Letters: D hidden_size, N attention heads, K key-value heads, H head_dim,
F intermediate_size, E experts, V vocabulary.
"""

from __future__ import annotations

import dataclasses

from estimator.network import Attention, Block, Weight

__all__ = [
    "attention",
    "cross_attention",
    "embedding",
    "experts",
    "feed_forward",
    "head",
    "latent_attention",
    "linear",
    "norm",
    "norm_weights",
]

NORMS = ("rms_norm", "layer_norm", "layer_norm_without_bias", "none")


def linear(
    name: str,
    in_size: int,
    out_size: int,
    *,
    bias: bool = False,
    quantized: bool = True,
    stored: bool = True,
    copies: int = 1,
    active_copies: int = 1,
) -> tuple[Weight, ...]:
    """A matrix [out, in] and, with `bias`, a vector of `out`."""
    matrix = Weight(
        name=f"{name}.weight",
        shape=(out_size, in_size),
        quantized=quantized,
        stored=stored,
        copies=copies,
        active_copies=active_copies,
    )
    if not bias:
        return (matrix,)
    shift = Weight(name=f"{name}.bias", shape=(out_size,), role="bias", copies=copies, active_copies=active_copies)
    return matrix, shift


def norm_weights(name: str, size: int, kind: str) -> tuple[Weight, ...]:
    """Gain, and for layer_norm shift, of `size` each. `kind` is one of NORMS."""
    assert kind in NORMS, kind
    if kind == "none":
        return ()
    prefix = f"{name}." if name else ""
    gain = Weight(name=f"{prefix}weight", shape=(size,), role="norm")
    if kind != "layer_norm":
        return (gain,)
    return gain, Weight(name=f"{prefix}bias", shape=(size,), role="norm")


def norm(name: str, size: int, kind: str) -> Block:
    """A norm over rows of `size`."""
    return Block(name=name, part="norm", weights=norm_weights("", size, kind))


def embedding(name: str, num_rows: int, width: int) -> Block:
    """A table [rows, width] of which one row per token is looked up."""
    table = Weight(name="weight", shape=(num_rows, width), role="embedding", quantized=False)
    return Block(name=name, part="embedding", weights=(table,), live_width=width)


def head(
    name: str,
    hidden_size: int,
    num_outputs: int,
    *,
    bias: bool = False,
    tied: bool = False,
    positions: int | None = None,
) -> Block:
    """A projection of every row to `num_outputs`; tied, its matrix is the token table's, and only a bias its own."""
    weights = linear(name, hidden_size, num_outputs, bias=bias, stored=not tied, quantized=not tied)
    return Block(name="", part="head", weights=weights, positions=positions, live_width=hidden_size + num_outputs)


def attention(
    *,
    hidden_size: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    value_head_dim: int | None = None,
    qkv_bias: bool = False,
    key_bias: bool | None = None,
    output_bias: bool = False,
    qk_norm: str = "none",
    qk_norm_kind: str = "rms_norm",
    sinks: bool = False,
    gated: bool = False,
    window: int | None = None,
    is_cached: bool = True,
    has_key_value: bool = True,
    has_output: bool = True,
    name: str = "self_attn",
    extra: tuple[Weight, ...] = (),
) -> Block:
    """Softmax attention with separate or grouped heads.

    qk_norm: "none", "head" (one norm of H for q and one for k, shared by the heads), "full" (norms over N*H and K*H),
    or "per_head" (norms of [N, H] and [K, H]).
    key_bias: when the key's differs from the query's and value's. gated: q comes with a gate of its size, which
    multiplies the result (qwen3_next). sinks: one learned logit per head (gpt_oss). has_key_value: False for a layer
    that reads another layer's keys and values.
    """
    value_head_dim = head_dim if value_head_dim is None else value_head_dim
    query, result = num_attention_heads * head_dim, num_attention_heads * value_head_dim
    key, value = num_key_value_heads * head_dim, num_key_value_heads * value_head_dim
    weights = linear("q_proj", hidden_size, query * (2 if gated else 1), bias=qkv_bias)
    if has_key_value:
        weights += linear("k_proj", hidden_size, key, bias=qkv_bias if key_bias is None else key_bias)
        weights += linear("v_proj", hidden_size, value, bias=qkv_bias)
    sizes = {"none": (0, 0), "head": (head_dim, head_dim), "full": (query, key), "per_head": (query, key)}[qk_norm]
    if qk_norm != "none":
        weights += norm_weights("q_norm", sizes[0], qk_norm_kind)
        weights += norm_weights("k_norm", sizes[1], qk_norm_kind) if has_key_value else ()
    if sinks:
        weights += (Weight(name="sinks", shape=(num_attention_heads,), role="other"),)
    if has_output:
        weights += linear("o_proj", result, hidden_size, bias=output_bias)
    scores = Attention(
        num_attention_heads=num_attention_heads,
        key_head_dim=head_dim,
        value_head_dim=value_head_dim,
        cached_elements=key + value if is_cached and has_key_value else 0,
        window=window,
    )
    live_width = hidden_size + query * (2 if gated else 1) + result + key + value
    return Block(name=name, part="attention", weights=weights + extra, attention=scores, live_width=live_width)


def cross_attention(
    *,
    hidden_size: int,
    source_size: int,
    num_attention_heads: int,
    num_key_value_heads: int | None = None,
    head_dim: int,
    qkv_bias: bool = False,
    key_bias: bool | None = None,
    output_bias: bool = False,
    name: str = "encoder_attn",
) -> tuple[Block, Block]:
    """Attention from this stack's rows to the encoder's: queries and output, then keys and values.

    Keys and values are computed once from the encoder's rows, and kept.
    """
    width, kept = num_attention_heads * head_dim, (num_key_value_heads or num_attention_heads) * head_dim
    scores = Attention(
        num_attention_heads=num_attention_heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        cached_elements=2 * kept,
        is_cross=True,
    )
    own = linear("q_proj", hidden_size, width, bias=qkv_bias) + linear("o_proj", width, hidden_size, bias=output_bias)
    weights = linear("k_proj", source_size, kept, bias=qkv_bias if key_bias is None else key_bias)
    weights += linear("v_proj", source_size, kept, bias=qkv_bias)
    return (
        Block(name=name, part="attention", weights=own, attention=scores, live_width=hidden_size + 2 * width),
        Block(name=name, part="attention", weights=weights, positions="source", live_width=2 * kept),
    )


def latent_attention(
    *,
    hidden_size: int,
    num_attention_heads: int,
    q_lora_rank: int | None,
    kv_lora_rank: int,
    qk_nope_head_dim: int,
    qk_rope_head_dim: int,
    v_head_dim: int,
    bias: bool = False,
    output_bias: bool | None = None,
    norm_kind: str = "rms_norm",
    name: str = "self_attn",
    extra: tuple[Weight, ...] = (),
) -> Block:
    """Multi-head latent attention: the cache keeps the latent of `kv_lora_rank` and one rotary key per token.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """
    key_dim = qk_nope_head_dim + qk_rope_head_dim
    query, result = num_attention_heads * key_dim, num_attention_heads * v_head_dim
    if q_lora_rank is None:
        weights = linear("q_proj", hidden_size, query)
    else:
        weights = linear("q_a_proj", hidden_size, q_lora_rank, bias=bias)
        weights += norm_weights("q_a_layernorm", q_lora_rank, norm_kind) + linear("q_b_proj", q_lora_rank, query)
    weights += linear("kv_a_proj_with_mqa", hidden_size, kv_lora_rank + qk_rope_head_dim, bias=bias)
    weights += norm_weights("kv_a_layernorm", kv_lora_rank, norm_kind)
    expanded = num_attention_heads * (qk_nope_head_dim + v_head_dim)
    weights += linear("kv_b_proj", kv_lora_rank, expanded)
    weights += linear("o_proj", result, hidden_size, bias=bias if output_bias is None else output_bias)
    scores = Attention(
        num_attention_heads=num_attention_heads,
        key_head_dim=key_dim,
        value_head_dim=v_head_dim,
        cached_elements=kv_lora_rank + qk_rope_head_dim,
    )
    live_width = hidden_size + 2 * query + 2 * result
    return Block(name=name, part="attention", weights=weights + extra, attention=scores, live_width=live_width)


def feed_forward(
    *, hidden_size: int, intermediate_size: int, gated: bool, bias: bool = False, name: str = "mlp"
) -> Block:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated."""
    weights = linear("gate_proj", hidden_size, intermediate_size, bias=bias) if gated else ()
    weights += linear("up_proj", hidden_size, intermediate_size, bias=bias)
    weights += linear("down_proj", intermediate_size, hidden_size, bias=bias)
    inner = intermediate_size * (2 if gated else 1)
    return Block(name=name, part="feed_forward", weights=weights, live_width=2 * hidden_size + inner)


def experts(
    *,
    hidden_size: int,
    intermediate_size: int,
    num_experts: int,
    num_experts_per_tok: int,
    gated: bool = True,
    bias: bool = False,
    router_bias: bool = False,
    shared_intermediate_size: int = 0,
    shared_gate: bool = False,
    shared_bias: bool | None = None,
    name: str = "mlp",
    extra: tuple[Weight, ...] = (),
) -> Block:
    """A router [E, D] and E experts of which each token uses `num_experts_per_tok`; a shared expert runs always.

    shared_gate: a projection [1, D] weighs the shared expert (qwen2_moe). shared_bias: when it differs from `bias`.
    """
    active = min(num_experts_per_tok, num_experts)

    def projection(what: str, in_size: int, out_size: int) -> tuple[Weight, ...]:
        return linear(f"experts.{what}", in_size, out_size, bias=bias, copies=num_experts, active_copies=active)

    weights = linear("gate", hidden_size, num_experts, bias=router_bias, quantized=False)
    weights += projection("gate_proj", hidden_size, intermediate_size) if gated else ()
    weights += projection("up_proj", hidden_size, intermediate_size)
    weights += projection("down_proj", intermediate_size, hidden_size)
    inner = active * intermediate_size
    if shared_intermediate_size:
        shared = feed_forward(
            hidden_size=hidden_size,
            intermediate_size=shared_intermediate_size,
            gated=gated,
            bias=bias if shared_bias is None else shared_bias,
        )
        weights += tuple(dataclasses.replace(weight, name=f"shared_expert.{weight.name}") for weight in shared.weights)
        inner += shared_intermediate_size
    if shared_gate:
        weights += linear("shared_expert_gate", hidden_size, 1, quantized=False)
    live_width = 2 * hidden_size + inner * (2 if gated else 1)
    return Block(name=name, part="experts", weights=weights + extra, live_width=live_width)
