"""Layers of the families of encoders whose layers differ from one another or are not built the usual way."""

from __future__ import annotations

from dataclasses import replace

from estimator.blocks.common import attention, embedding, feed_forward, head, linear, norm, norm_weights
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Recurrence, Weight
from estimator.readers.families.encoder_blocks import convolution
from estimator.readers.families.encoder_heads import is_tied
from estimator.readers.families.encoders import Encoder, encoder_attention, encoder_layer, head_dim_of
from estimator.readers.fields import Fields

__all__ = [
    "bottleneck_head",
    "bottleneck_layers",
    "bottleneck_tables",
    "disentangled_attention",
    "disentangled_attention_v2",
    "grouped_layers",
    "position_tables",
    "windowed_layers",
]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def grouped_layers(fields: Fields, facts: Encoder) -> tuple[Layer, ...]:
    """albert: layers in groups, and a group's weights are stored once. Source: ALBERT, arXiv:1909.11942."""
    count, groups, inner = fields.layers(), fields.size("num_hidden_groups"), fields.size("inner_group_num")
    if groups > count:
        raise ConfigError(f"num_hidden_groups must be at most num_hidden_layers {count}", field="num_hidden_groups")
    layer = encoder_layer(fields, facts)
    seen: set[int] = set()
    layers: list[Layer] = []
    for index in range(count):
        group = int(index / (count / groups))
        layers += [replace(layer, owns_weights=group not in seen)] * inner
        seen.add(group)
    return tuple(layers)


def windowed_layers(fields: Fields, facts: Encoder) -> tuple[Layer, ...]:
    """modernbert, ultrabert: layers of which some attend within a window on both sides."""
    count = fields.layers()
    kinds = fields.words("layer_types", count, (_FULL, _SLIDING))
    is_modern = fields.data.model_type == "modernbert"
    if kinds is None:
        every = _every(fields) if is_modern else 3
        first = 0 if is_modern else 1
        kinds = tuple(_SLIDING if (index + first) % every else _FULL for index in range(count))
    window = 2 * (fields.size("local_attention") // 2) + 1 if is_modern else 2 * fields.size("sliding_window") + 1
    layer = encoder_layer(fields, facts)
    layers = tuple(_with_window(layer, window if kind == _SLIDING else None) for kind in kinds)
    if not is_modern:
        return layers
    first_layer = replace(layers[0], blocks=layers[0].blocks[1:])  # the embeddings' norm stands before it
    return (first_layer, *layers[1:])


def position_tables(fields: Fields) -> tuple[Block, ...]:
    """deberta, deberta-v2: the table of relative positions, its norm, and the convolution behind the first layer."""
    hidden = fields.size("hidden_size")
    fields.optional_size("pooler_hidden_size")
    is_legacy = fields.raw("legacy") is None or fields.flag("legacy")
    if not is_legacy and not (is_tied(fields) and fields.raw("embedding_size") is None):
        raise ConfigError("legacy false needs a tied head and no embedding_size", field="legacy")
    blocks: list[Block] = []
    if fields.flag("relative_attention"):
        blocks.append(embedding("rel_embeddings", 2 * _span(fields), hidden))
    if "layer_norm" in str(fields.raw("norm_rel_ebd") or "none").lower().split("|"):
        blocks.append(norm("rel_norm", hidden, "layer_norm"))
    kernel = fields.count("conv_kernel_size")
    groups = fields.size("conv_groups") if fields.raw("conv_groups") is not None else 1
    fields.ignore("conv_act")
    if kernel:
        weights = convolution("conv", hidden, hidden, kernel, groups=groups)
        weights += norm_weights("conv.norm", hidden, "layer_norm")
        blocks.append(Block(name="", part="feed_forward", weights=weights, live_width=3 * hidden))
    return tuple(blocks)


def disentangled_attention(fields: Fields) -> tuple[Block, ...]:
    """deberta: attention between contents, and from contents to positions and back. Source: arXiv:2006.03654, eq. 4."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    extra: tuple[Weight, ...] = ()
    if fields.flag("talking_head"):
        extra = linear("head_logits_proj", heads, heads) + linear("head_weights_proj", heads, heads)
        extra = tuple(replace(weight, role="other") for weight in extra)
    block = encoder_attention(fields, Encoder(key_bias=False), extra=extra)
    if not fields.flag("relative_attention"):
        return (block,)
    kinds, span = _kinds(fields), _span(fields)
    weights = linear("pos_proj", hidden, hidden) if "c2p" in kinds else ()
    weights += linear("pos_q_proj", hidden, hidden, bias=True) if "p2c" in kinds else ()
    return block, *_position_products(weights, kinds, span, hidden)


def disentangled_attention_v2(fields: Fields) -> tuple[Block, ...]:
    """deberta-v2: as deberta's, with buckets of distances, and with the contents' matrices when `share_att_key`."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    own = fields.optional_size("attention_head_size") or head_dim_of(fields)
    block = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=own,
        qkv_bias=True,
        output_bias=True,
        is_cached=False,
    )
    is_shared = fields.flag("share_att_key")
    if not fields.flag("relative_attention"):
        return (block,)
    kinds, width = _kinds(fields), heads * own
    names = ["pos_key_proj"] if is_shared or "c2p" in kinds else []
    names += ["pos_query_proj"] if is_shared or "p2c" in kinds else []
    weights = tuple(weight for name in names for weight in linear(name, hidden, width, bias=True))
    if is_shared:  # the products are made with the contents' matrices
        weights = tuple(replace(weight, stored=False) for weight in weights)
    return block, *_position_products(weights, kinds, _span(fields), width)


def bottleneck_tables(fields: Fields) -> tuple[Block, ...]:
    """mobilebert: wide tables of positions and token types, and the projection of three neighbours' embeddings."""
    hidden, width = fields.size("hidden_size"), fields.size("embedding_size")
    inner = width * (3 if fields.flag("trigram_input") else 1)
    blocks = [embedding("embed_positions", fields.size("max_position_embeddings"), hidden)]
    blocks.append(embedding("embed_token_types", fields.size("type_vocab_size"), hidden))
    weights = linear("embed_project", inner, hidden, bias=True)
    blocks.append(Block(name="", part="embedding", weights=weights, live_width=inner + hidden))
    return tuple(blocks)


def bottleneck_layers(fields: Fields, _facts: Encoder) -> tuple[Layer, ...]:
    """mobilebert: layers that run at a smaller width between two projections. Source: arXiv:2004.02984, figure 1."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    is_narrow, heads = fields.flag("use_bottleneck"), fields.size("num_attention_heads")
    narrow = fields.size("intra_bottleneck_size")
    width = narrow if is_narrow else hidden
    shared, attends_narrow = fields.flag("key_query_shared_bottleneck"), fields.flag("use_bottleneck_attention")
    values = width if attends_narrow else hidden
    if width % heads:
        raise ConfigError(f"num_attention_heads must divide the width {width}", field="num_attention_heads")
    weights = linear("q_proj", width, width, bias=True) + linear("k_proj", width, width, bias=True)
    weights += linear("v_proj", values, width, bias=True) + linear("o_proj", width, width, bias=True)
    block = attention(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        is_cached=False,
    )
    blocks: tuple[Block, ...] = ()
    kind = "layer_norm"  # normalization_type no_norm has the same gain and shift
    if is_narrow:
        blocks += _bottleneck("bottleneck.input", hidden, narrow, kind)
        blocks += _bottleneck("bottleneck.attention", hidden, narrow, kind) if shared else ()
    blocks += (replace(block, weights=weights), norm("attention_norm", width, kind))
    for index in range(fields.layers("num_feedforward_networks")):
        feeding = feed_forward(hidden_size=width, intermediate_size=inner, gated=False, bias=True, name=f"mlp.{index}")
        blocks += (feeding, norm(f"mlp_norm.{index}", width, kind))
    if is_narrow:
        blocks += _bottleneck("bottleneck.output", narrow, hidden, kind)
    return (Layer(blocks=blocks),) * fields.layers()


def bottleneck_head(fields: Fields) -> tuple[Block, ...]:
    """mobilebert: the head, with the columns of its projection that the narrow token table lacks."""
    if fields.task not in ("masked_lm", "pretraining"):
        return ()
    hidden, width, vocabulary = fields.size("hidden_size"), fields.size("embedding_size"), fields.size("vocab_size")
    weights = linear("transform", hidden, hidden, bias=True, quantized=False)
    weights += norm_weights("norm", hidden, "layer_norm")
    blocks = [Block(name="head", part="head", weights=weights, live_width=2 * hidden)]
    blocks += [head("lm_head.rest", hidden - width, vocabulary)] if hidden > width else []
    tied = is_tied(fields)
    blocks.append(head("lm_head", width, vocabulary, bias=True, tied=tied))
    if not tied:
        second = Weight(name="lm_head.second_bias", shape=(vocabulary,), role="bias")
        blocks.append(Block(name="", part="head", weights=(second,)))
    return tuple(blocks)


def _every(fields: Fields) -> int:
    given = fields.raw("global_attn_every_n_layers")
    return 3 if given is None else fields.size("global_attn_every_n_layers")


def _with_window(layer: Layer, window: int | None) -> Layer:
    if window is None:
        return layer
    blocks = tuple(
        block if block.attention is None else replace(block, attention=replace(block.attention, window=window))
        for block in layer.blocks
    )
    return replace(layer, blocks=blocks)


def _span(fields: Fields) -> int:
    """Distances on one side that have a row of their own."""
    buckets, longest = fields.raw("position_buckets"), fields.raw("max_relative_positions")
    if isinstance(buckets, int) and buckets > 0 and fields.data.model_type == "deberta-v2":
        return fields.size("position_buckets")
    if isinstance(longest, int) and longest > 0:
        return fields.size("max_relative_positions")
    return fields.size("max_position_embeddings")


def _kinds(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("pos_att_type")
    words = value.lower().split("|") if isinstance(value, str) else value or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError("pos_att_type must be a list of c2p and p2c", field="pos_att_type")
    return tuple(word.strip() for word in words)


def _position_products(weights: tuple[Weight, ...], kinds: tuple[str, ...], span: int, width: int) -> tuple[Block, ...]:
    """The projections of the positions, once per sequence, and each token's products with all of them."""
    count = sum(kind in kinds for kind in ("c2p", "p2c"))
    products = Recurrence(state_elements=0, token_flops=2 * count * 2 * span * width)
    return (
        Block(name="self_attn", part="attention", weights=weights, positions=2 * span),
        Block(name="self_attn", part="attention", recurrence=products, live_width=2 * span),
    )


def _bottleneck(name: str, rows: int, columns: int, kind: str) -> tuple[Block, ...]:
    weights = linear(name, rows, columns, bias=True) + norm_weights(f"{name}_norm", columns, kind)
    return (Block(name="", part="feed_forward", weights=weights, live_width=rows + columns),)
