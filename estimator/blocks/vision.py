"""The blocks that read images: patches, tokens that stand beside them, tables of positions, pooling heads.

Letters: D hidden_size, N attention heads, H head_dim, C channels, P patch size.
"""

from __future__ import annotations

import math

from estimator.blocks.common import feed_forward, linear, norm_weights
from estimator.network import Attention, Block, Weight

__all__ = [
    "attention_pooling",
    "convolution",
    "image_attention",
    "layer_scale",
    "patch_projection",
    "position_table",
    "resampler_attention",
    "tokens",
]


def convolution(
    name: str, in_size: int, out_size: int, kernel: tuple[int, ...], *, bias: bool = True, groups: int = 1
) -> tuple[Weight, ...]:
    """A kernel [out, in / groups, *kernel] and, with `bias`, a vector of `out`."""
    shape = (out_size, in_size // groups, *kernel)
    matrix = Weight(name=f"{name}.weight", shape=shape, role="convolution", quantized=False)
    if not bias:
        return (matrix,)
    return matrix, Weight(name=f"{name}.bias", shape=(out_size,), role="bias")


def patch_projection(
    *,
    num_channels: int,
    hidden_size: int,
    patch: tuple[int, ...],
    positions: int | None,
    bias: bool = True,
    is_linear: bool = False,
    name: str = "patch_embedding",
) -> Block:
    """C*P*P values of each of `positions` patches to D: a convolution whose stride is its kernel, or a matrix."""
    if is_linear:
        weights = linear("projection", num_channels * math.prod(patch), hidden_size, bias=bias, quantized=False)
    else:
        weights = convolution("projection", num_channels, hidden_size, patch, bias=bias)
    live_width = num_channels * math.prod(patch) + hidden_size
    return Block(name=name, part="embedding", weights=weights, positions=positions, live_width=live_width)


def tokens(name: str, num_tokens: int, hidden_size: int) -> Block:
    """Learned rows that stand beside the patches: class, distillation, register or mask tokens."""
    weight = Weight(name=name, shape=(num_tokens, hidden_size), role="other")
    return Block(name="", part="embedding", weights=(weight,), positions=num_tokens)


def position_table(num_rows: int, hidden_size: int, name: str = "position_embedding") -> Block:
    """A vector for each row, or for each place of the grid that it is interpolated from."""
    table = Weight(name="weight", shape=(num_rows, hidden_size), role="embedding", quantized=False)
    return Block(name=name, part="embedding", weights=(table,), live_width=hidden_size)


def layer_scale(hidden_size: int, name: str) -> Weight:
    """A factor per element of what a layer's part adds to the residual."""
    return Weight(name=name, shape=(hidden_size,), role="other")


def resampler_attention(
    *,
    hidden_size: int,
    num_attention_heads: int,
    num_queries: int,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    source_size: int | None = None,
    output_size: int | None = None,
    bias: bool = True,
    output_bias: bool | None = None,
    name: str = "attention",
) -> tuple[Block, Block]:
    """Attention of `num_queries` learned rows to the rows of the stack: queries and output, then keys and values."""
    head_dim = head_dim or hidden_size // num_attention_heads
    width, kept = num_attention_heads * head_dim, (num_key_value_heads or num_attention_heads) * head_dim
    source, out = source_size or hidden_size, output_size or hidden_size
    scores = Attention(
        num_attention_heads=num_attention_heads, key_head_dim=head_dim, value_head_dim=head_dim, cached_elements=0
    )
    own = linear("q_proj", hidden_size, width, bias=bias)
    own += linear("o_proj", width, out, bias=bias if output_bias is None else output_bias)
    keys = linear("k_proj", source, kept, bias=bias) + linear("v_proj", source, kept, bias=bias)
    return (
        Block(name=name, part="attention", weights=keys, live_width=source + 2 * kept),
        Block(
            name=name,
            part="attention",
            weights=own,
            attention=scores,
            positions=num_queries,
            live_width=hidden_size + 2 * width,
        ),
    )


def image_attention(
    *, hidden_size: int, num_attention_heads: int, num_key_value_heads: int, head_dim: int, name: str = "cross_attn"
) -> tuple[Block, Block]:
    """Attention of the text to the rows of the images, with norms of queries and keys: keys and values are cached."""
    width, kept = num_attention_heads * head_dim, num_key_value_heads * head_dim
    scores = Attention(
        num_attention_heads=num_attention_heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        cached_elements=2 * kept,
        is_cross=True,
    )
    own = linear("q_proj", hidden_size, width) + norm_weights("q_norm", head_dim, "rms_norm")
    own += linear("o_proj", width, hidden_size)
    keys = linear("k_proj", hidden_size, kept) + linear("v_proj", hidden_size, kept)
    keys += norm_weights("k_norm", head_dim, "rms_norm")
    return (
        Block(name=name, part="attention", weights=own, attention=scores, live_width=hidden_size + 2 * width),
        Block(name=name, part="attention", weights=keys, positions="source", live_width=2 * kept),
    )


def attention_pooling(hidden_size: int, num_attention_heads: int, intermediate_size: int) -> tuple[Block, ...]:
    """One learned row attends to all rows, then a feed-forward: the pooling head of SigLIP.

    Source: SigLIP's multi-head attention pooling, arXiv:2303.15343, after arXiv:2106.04560.
    """
    mixing = resampler_attention(
        hidden_size=hidden_size, num_attention_heads=num_attention_heads, num_queries=1, name="head.attention"
    )
    mlp = feed_forward(hidden_size=hidden_size, intermediate_size=intermediate_size, gated=False, bias=True)
    weights = norm_weights("layernorm", hidden_size, "layer_norm") + mlp.weights
    last = Block(name="head", part="feed_forward", weights=weights, positions=1, live_width=mlp.live_width)
    return (tokens("head.probe", 1, hidden_size), *mixing, last)
