"""Attention of single families of decoders that no facts describe, and what stands beside it in their layers."""

from __future__ import annotations

import dataclasses

from estimator.blocks.common import attention, experts, feed_forward, linear, norm, norm_weights
from estimator.network import Attention, Block, Weight
from estimator.readers.families.decoder_facts import Decoder
from estimator.readers.families.decoder_oddities import norm_with_optional_bias
from estimator.readers.families.decoders import decoder_attention, decoder_latent_attention
from estimator.readers.fields import Fields

__all__ = [
    "differential_attention",
    "indexer",
    "laguna_attention",
    "longcat_blocks",
    "mimo_attention",
    "minimax_indexer",
    "modernbert_head",
    "norm_behind_the_first_layer",
    "shared_indexer",
]


def differential_attention(fields: Fields, window: int | None, index: int) -> Block:
    """Softmax over half of the values at a time, so twice, weighed by two pairs of vectors (DiffLlama).

    Source: Differential Transformer, arXiv:2410.05258, section 2.1.
    """
    facts = Decoder(qkv_bias="attention_bias", output_bias="attention_bias")
    block = decoder_attention(fields, facts, window)
    assert block.attention is not None
    heads, head_dim = block.attention.num_attention_heads, block.attention.value_head_dim
    scores = dataclasses.replace(block.attention, num_attention_heads=2 * heads)
    names = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    vectors = tuple(Weight(name=name, shape=(head_dim,), role="other") for name in names)
    return dataclasses.replace(block, attention=scores, weights=block.weights + vectors)


def laguna_attention(fields: Fields, window: int | None, index: int) -> Block:
    """As many heads as `num_attention_heads_per_layer` says, and a gate for each head or each of its elements."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if fields.given("num_attention_heads_per_layer"):
        heads = fields.sizes("num_attention_heads_per_layer", fields.layers())[index]
    head_dim, bias = fields.size("head_dim"), fields.flag("attention_bias")
    per_head = fields.choice("gating", (True, False, "per-head", "per-element")) in (True, "per-head")
    return attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=head_dim,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        window=window,
        extra=linear("g_proj", hidden, heads if per_head else heads * head_dim),
    )


def mimo_attention(fields: Fields, window: int | None, index: int) -> Block:
    """Layers with a window have twice the key-value heads, and sinks; values have a size of their own."""
    key_value_heads = fields.size("num_key_value_heads")
    return attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=key_value_heads if window is None else 2 * key_value_heads,
        head_dim=fields.size("head_dim"),
        value_head_dim=fields.size("v_head_dim"),
        qkv_bias=fields.flag("attention_bias"),
        sinks=window is not None,
        window=window,
    )


def indexer(fields: Fields, index: int) -> tuple[Block, ...]:
    """Small heads that pick what the main ones attend to: of their keys, one per token is kept (DeepSeek-V3.2)."""
    hidden, heads, head_dim = fields.size("hidden_size"), fields.size("index_n_heads"), fields.size("index_head_dim")
    fields.ignore("index_topk")
    weights = linear("wq_b", fields.size("q_lora_rank"), heads * head_dim)
    weights += linear("wk", hidden, head_dim) + norm_weights("k_norm", head_dim, "layer_norm")
    weights += linear("weights_proj", hidden, heads)
    return (_indexer(weights, heads, head_dim),)


def shared_indexer(fields: Fields, index: int) -> tuple[Block, ...]:
    """An indexer in the layers that `indexer_types` calls full; the others take over what the last of them picked."""
    kinds = fields.words("indexer_types", fields.layers(), ("full", "shared"))
    if kinds is None:
        freq = fields.size("index_topk_freq") if fields.given("index_topk_freq") else 1
        offset = fields.count("index_skip_topk_offset") if fields.given("index_skip_topk_offset") else 2
        is_full = max(index - offset + 1, 0) % freq == 0
    else:
        is_full = kinds[index] == "full"
    return indexer(fields, index) if is_full else ()


def minimax_indexer(fields: Fields, index: int) -> tuple[Block, ...]:
    """An indexer in the layers of the type minimax_m3_sparse."""
    fields.ignore("index_block_size", "index_topk_blocks", "index_local_blocks", "index_n_heads", "index_head_dim")
    kinds = fields.words("layer_types", fields.layers(), ("full_attention", "minimax_m3_sparse"))
    if kinds is None or kinds[index] == "full_attention":
        return ()
    hidden, heads, head_dim = fields.size("hidden_size"), fields.size("index_n_heads"), fields.size("index_head_dim")
    weights = linear("q_proj", hidden, heads * head_dim) + linear("k_proj", hidden, head_dim)
    weights += norm_weights("q_norm", head_dim, "rms_norm") + norm_weights("k_norm", head_dim, "rms_norm")
    return (_indexer(weights, heads, head_dim),)


def _indexer(weights: tuple[Weight, ...], heads: int, head_dim: int) -> Block:
    """What a key scores is a weighed sum over the heads: one value per head."""
    scores = Attention(num_attention_heads=heads, key_head_dim=head_dim, value_head_dim=1, cached_elements=head_dim)
    live_width = (heads + 1) * (head_dim + 1)
    return Block(name="self_attn.indexer", part="attention", weights=weights, attention=scores, live_width=live_width)


def longcat_blocks(fields: Fields, index: int) -> tuple[Block, ...]:
    """The second attention and feed-forward of a layer, and experts beside both, some of which do nothing."""
    hidden = fields.size("hidden_size")
    width, num_experts = fields.size("expert_ffn_hidden_size"), fields.size("n_routed_experts")
    num_idle, active = fields.count("zero_expert_num"), fields.size("moe_topk")
    second = decoder_latent_attention(fields, Decoder(latent=True, qkv_bias="attention_bias"))
    dense = feed_forward(hidden_size=hidden, intermediate_size=fields.size("ffn_hidden_size"), gated=True)
    routed = experts(
        hidden_size=hidden,
        intermediate_size=width,
        num_experts=num_experts,
        num_experts_per_tok=active,
        # The class stores gates and first halves for the idle experts too, and the router knows them.
        extra=tuple(
            Weight(name=f"experts.idle.{name}", shape=(width, hidden), role="other", copies=num_idle, active_copies=0)
            for name in ("gate_proj", "up_proj")
            if num_idle
        )
        + (linear("gate_idle", hidden, num_idle, quantized=False) if num_idle else ()),
    )
    return second, dense, routed


def norm_behind_the_first_layer(fields: Fields, index: int) -> tuple[Block, ...]:
    """The first layer has no norm before its attention (ModernBERT)."""
    return () if index == 0 else (norm("attn_norm", fields.size("hidden_size"), norm_with_optional_bias(fields)),)


def modernbert_head(fields: Fields) -> tuple[Block, ...]:
    """A projection and a norm before the heads of ModernBERT's decoder."""
    hidden = fields.size("hidden_size")
    weights = linear("dense", hidden, hidden, bias=fields.flag("classifier_bias"))
    weights += norm_weights("norm", hidden, norm_with_optional_bias(fields))
    return (Block(name="head", part="head", weights=weights, live_width=2 * hidden),)
