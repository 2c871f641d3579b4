"""Encoders that read more than words: boxes on a page, paths in a document, patches of its picture; and XLNet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import attention, embedding, feed_forward, head, linear, norm
from estimator.blocks.vision import patch_projection, position_table, tokens
from estimator.errors import ConfigError
from estimator.network import Attention, Block, Network, Recurrence, Stack, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.families.encoder_blocks import squad_head
from estimator.readers.families.encoder_heads import BERT_HEADS, ROBERTA_HEADS, class_of
from estimator.readers.families.encoders import Encoder, encoder_attention, encoder_network, head_dim_of, idle
from estimator.readers.fields import Fields

__all__ = ["ENCODERS", "READERS"]

_FEW_LABELS = 10  # layoutlmv3: from so many on, token classification has one more matrix
_TWO_SIDES = 2
_XPATH_FACTOR = 4  # markuplm: the inner width of its paths, in hidden sizes
_PLAIN = Encoder(can_decode=False)
_DERIVED_OF_BROS = ("dim_bbox_sinusoid_emb_2d", "dim_bbox_sinusoid_emb_1d", "dim_bbox_projection")


def _relative_attention(fields: Fields) -> tuple[Block, ...]:
    """xlnet: scores of content, and of positions on both sides, which a fifth matrix makes.

    Positions are 2L rows for L tokens: their matrix runs twice per token, and their scores are twice as many.
    Source: Transformer-XL, arXiv:1901.02860, section 3.3, and the class.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden % heads:
        raise ConfigError(f"n_head must divide d_model {hidden}, not {heads}", field="n_head")
    width = hidden // heads
    fields.choice("d_head", (width, None))
    positions = linear("r", hidden, hidden)
    again = tuple(replace(weight, name="r.again", stored=False) for weight in positions)
    vectors = tuple(Weight(name=f"r_{kind}_bias", shape=(heads, width), role="other") for kind in ("r", "s", "w"))
    segments = Weight(name="seg_embed", shape=(2, heads, width), role="other")
    block = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width,
        is_cached=False,
        extra=(*positions, *again, *vectors, segments),
    )
    scores = Attention(
        num_attention_heads=heads,
        key_head_dim=(1 + _TWO_SIDES) * width,
        value_head_dim=width,
        cached_elements=0,
    )
    return (replace(block, attention=scores, live_width=block.live_width + 2 * hidden),)


def _mask_row(fields: Fields) -> tuple[Block, ...]:
    return (tokens("mask_emb", 1, fields.size("hidden_size")),)


def _layout_width(fields: Fields) -> int:
    return fields.size("hidden_size") // fields.size("channel_shrink_ratio")


def _layout_tables(fields: Fields) -> tuple[Block, ...]:
    """lilt: a second, narrower stream that reads the boxes of the tokens."""
    hidden, width, rows = fields.size("hidden_size"), _layout_width(fields), fields.size("max_2d_position_embeddings")
    side = hidden // 6
    tables = tuple(embedding(f"layout.{name}_position_embeddings", rows, side) for name in "xyhw")
    weights = linear("box_linear_embeddings", 6 * side, width, bias=True)
    return (
        *tables,
        embedding("layout.box_position_embeddings", fields.size("max_position_embeddings"), width),
        Block(name="layout", part="embedding", weights=weights, live_width=hidden + width),
        norm("layout.norm", width, "layer_norm"),
    )


def _layout_attention(fields: Fields) -> tuple[Block, ...]:
    """lilt: words and boxes each attend by the sum of both scores.

    Raises:
        ConfigError: the heads of the boxes are not narrower by a whole factor.
    """
    width, heads, ratio = _layout_width(fields), fields.size("num_attention_heads"), fields.size("channel_shrink_ratio")
    if head_dim_of(fields) % ratio:
        raise ConfigError(
            f"channel_shrink_ratio must divide a head's size {head_dim_of(fields)}, not {ratio}",
            field="channel_shrink_ratio",
        )
    own = attention(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim_of(fields) // ratio,
        qkv_bias=True,
        output_bias=True,
        is_cached=False,
        name="layout_attn",
    )
    return encoder_attention(fields, _PLAIN), own, norm("layout_attn_norm", width, "layer_norm")


def _layout_feed_forward(fields: Fields) -> tuple[Block, ...]:
    hidden, inner, width = fields.size("hidden_size"), fields.size("intermediate_size"), _layout_width(fields)
    ratio = fields.size("channel_shrink_ratio")
    return (
        feed_forward(hidden_size=hidden, intermediate_size=inner, gated=False, bias=True),
        feed_forward(hidden_size=width, intermediate_size=inner // ratio, gated=False, bias=True, name="layout_mlp"),
        norm("layout_mlp_norm", width, "layer_norm"),
    )


def _pair_projection(fields: Fields) -> tuple[Block, ...]:
    """bros: a matrix over the distance of each pair of boxes; every one of its outputs is a score of the pair."""
    inner = fields.size("hidden_size") // 4
    outputs = head_dim_of(fields)
    matrix = Weight(name="bbox_projection.weight", shape=(outputs, inner), role="other")
    pairs = Attention(num_attention_heads=outputs, key_head_dim=inner, value_head_dim=0, cached_elements=0)
    fields.ignore("bbox_scale", "n_relations", "dim_bbox", *_DERIVED_OF_BROS)
    return (Block(name="bbox_embeddings", part="embedding", weights=(matrix,), attention=pairs),)


def _pair_attention(fields: Fields) -> tuple[Block, ...]:
    """bros: queries meet keys, and the distances of the pair."""
    block = encoder_attention(fields, _PLAIN)
    assert block.attention is not None
    scores = replace(block.attention, key_head_dim=2 * block.attention.key_head_dim)
    return (replace(block, attention=scores),)


def _bros_heads(fields: Fields) -> tuple[Block, ...]:
    """bros: classes of tokens, or links between them, which are scores of pairs."""
    hidden, relations, name = fields.size("hidden_size"), fields.size("n_relations"), class_of(fields)
    if fields.task == "base":
        return ()
    if "Spade" not in name:
        return (head("classifier", hidden, num_labels(fields), bias=True),)
    first: tuple[Block, ...] = ()
    if "SpadeEE" in name:
        weights = linear("initial.0", hidden, hidden, bias=True)
        first = (
            Block(name="", part="head", weights=weights, live_width=2 * hidden),
            head("initial.3", hidden, num_labels(fields), bias=True),
        )
    width = relations * hidden
    dummy = Weight(name="links.dummy_node", shape=(1, hidden), role="other")
    links = linear("links.query", hidden, width, bias=True) + linear("links.key", hidden, width, bias=True)
    pairs = Attention(num_attention_heads=relations, key_head_dim=hidden, value_head_dim=0, cached_elements=0)
    none = Recurrence(state_elements=0, token_flops=2 * width, prompt_flops=2 * hidden * width)  # no link: one more key
    last = Block(name="", part="head", weights=(dummy, *links), attention=pairs, recurrence=none, live_width=2 * width)
    return (*first, last)


def _path_tables(fields: Fields) -> tuple[Block, ...]:
    """markuplm: a table of tags and one of places for each level of a token's path, and a feed-forward over them."""
    hidden, levels, width = (fields.size(name) for name in ("hidden_size", "max_depth", "xpath_unit_hidden_size"))
    sizes = (("tag", "max_xpath_tag_unit_embeddings"), ("subs", "max_xpath_subs_unit_embeddings"))
    tables = tuple(
        Weight(
            name=f"xpath_{kind}_sub_embeddings.weight",
            shape=(fields.size(field), width),
            role="embedding",
            quantized=False,
            copies=levels,
            active_copies=levels,
        )
        for kind, field in sizes
    )
    path, inner = levels * width, _XPATH_FACTOR * hidden
    weights = linear("xpath_inner", path, inner, bias=True) + linear("inner2emb", inner, hidden, bias=True)
    unused = linear("xpath_unitseq2_embeddings", path, hidden, bias=True)
    return (
        Block(name="", part="embedding", weights=tables, live_width=2 * path),
        Block(name="", part="embedding", weights=weights, live_width=path + inner + hidden),
        idle(Block(name="", part="embedding", weights=unused)),
    )


def _box_tables(fields: Fields) -> tuple[Block, ...]:
    """layoutlmv3: tables of the left, upper, height and width of each token's box, side by side; biases by distance."""
    rows = fields.size("max_2d_position_embeddings")
    sizes = {name: fields.size("coordinate_size" if name in "xy" else "shape_size") for name in "xyhw"}
    tables = tuple(embedding(f"{name}_position_embeddings", rows, sizes[name]) for name in "xyhw")
    return (*tables, *_distance_tables(fields))


def _distance_tables(fields: Fields) -> tuple[Block, ...]:
    heads = fields.size("num_attention_heads")
    names: list[tuple[str, str]] = []
    if fields.flag("has_relative_attention_bias"):
        names.append(("rel_pos_bias", "rel_pos_bins"))
    if fields.flag("has_spatial_attention_bias"):
        names += [(f"rel_pos_{axis}_bias", "rel_2d_pos_bins") for axis in "xy"]
    fields.ignore("rel_pos_bins", "rel_2d_pos_bins", "max_rel_pos", "max_rel_2d_pos")
    weights = tuple(Weight(name=name, shape=(heads, fields.size(bins)), role="other") for name, bins in names)
    return (Block(name="encoder", part="attention", weights=weights),) if weights else ()


def _picture(fields: Fields) -> tuple[Stack, ...]:
    """layoutlmv3: patches of the page's picture, which stand behind the words in one sequence."""
    fields.choice("text_embed", (True,))
    if not fields.flag("visual_embed"):
        fields.ignore("input_size", "patch_size", "num_channels")
        return ()
    hidden, patch = fields.size("hidden_size"), fields.size("patch_size")
    places = (fields.size("input_size") // patch) ** 2
    blocks = (
        patch_projection(
            num_channels=fields.size("num_channels"), hidden_size=hidden, patch=(patch, patch), positions=places
        ),
        tokens("cls_token", 1, hidden),
        position_table(places + 1, hidden),
        norm("LayerNorm", hidden, "layer_norm"),
        norm("norm", hidden, "layer_norm"),
    )
    return (Stack(name="vision", hidden_size=hidden, layers=(), before=blocks, length=places + 1, optional=True),)


def _layoutlmv3(fields: Fields) -> Network:
    """Words with their boxes, and the patches of the picture if there is one."""
    many = fields.task == "token_classification" and num_labels(fields) >= _FEW_LABELS
    facts = replace(_LAYOUTLMV3, heads={**_LAYOUTLMV3_HEADS, "token_classification": "rows labels"}) if many else None
    network = encoder_network(fields, facts or _LAYOUTLMV3)
    return replace(network, stacks=(*_picture(fields), *network.stacks))


_XLNET_HEADS = {
    "base": "",
    "causal_lm": "lm",
    "multiple_choice": "summary choice",
    "question_answering": "",
    "sequence_classification": "summary label",
    "token_classification": "labels",
}
_LAYOUTLMV3_HEADS = {
    "base": "",
    "question_answering": "rows labels",
    "sequence_classification": "dense label",
    "token_classification": "labels",
}
_LAYOUTLMV3 = replace(_PLAIN, heads=_LAYOUTLMV3_HEADS, tables=_box_tables)

ENCODERS: Mapping[str, Encoder] = {
    "bros": replace(
        _PLAIN,
        heads={"base": "pooler", "token_classification": "pooler"},
        tables=_pair_projection,
        make_attention=_pair_attention,
        behind=_bros_heads,
        ignored=("is_decoder", "add_cross_attention"),
    ),
    "lilt": replace(
        _PLAIN,
        heads={**ROBERTA_HEADS, "base": "pooler"},
        tables=_layout_tables,
        make_attention=_layout_attention,
        make_feed_forward=_layout_feed_forward,
    ),
    "markuplm": replace(
        _PLAIN,
        heads={**BERT_HEADS, "token_classification": "labels"},
        tables=_path_tables,
        ignored=("subs_pad_id", "tag_pad_id"),
    ),
    "xlnet": replace(
        _PLAIN,
        positions="none",
        segments=0,
        embedding_norm=False,
        intermediate_size="d_inner",
        heads=_XLNET_HEADS,
        lm_transform=False,
        lm_untied_bias=False,
        tables=_mask_row,
        make_attention=_relative_attention,
        behind=squad_head,
        ignored=("mem_len", "reuse_len", "same_length", "clamp_len", "summary_last_dropout"),
        warning="sized as one pass over its text, with what is to be written as rows that are masked",
    ),
}

READERS: Mapping[str, Callable[[Fields], Network]] = {
    **{name: functools.partial(encoder_network, facts=facts) for name, facts in ENCODERS.items()},
    "layoutlmv3": _layoutlmv3,
}
