"""Text encoders that differ in facts only: one function lays out a stack from a row of facts.

A row of `Encoder` says what a family fixes and which fields of config.json decide the rest. What stands behind the
layers is written in words, one list of words per task, so that a head is named once and used by every family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from estimator.blocks.common import (
    attention,
    cross_attention,
    embedding,
    feed_forward,
    linear,
    norm,
)
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.readers.families.decoders import Flag
from estimator.readers.families.encoder_heads import flag_of, head_blocks, norm_kind
from estimator.readers.fields import Fields

__all__ = [
    "Encoder",
    "Extra",
    "encoder_attention",
    "encoder_layer",
    "encoder_network",
    "encoder_stack",
    "head_dim_of",
    "idle",
    "is_generating",
    "table_width",
]

# Further blocks of a family: behind the tables, in each layer, or behind the layers.
Extra = Callable[[Fields], tuple[Block, ...]]
MakeLayers = Callable[[Fields, "Encoder"], tuple[Layer, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The facts of a family of encoders.

    norm_first: norms stand before what they belong to, instead of behind; final_norm: one more behind the layers.
    embedding_size: the field with the width of the tables, null for the hidden size; `projection` says when a matrix
    leads from it to the hidden size: "differs" (when it is another), "always" or "never". norm_projected: the norm
    of the embeddings stands behind that matrix. positions: "learned" (max_position_embeddings rows and
    `extra_positions` more), "none", or the field that says absolute or rotary. segments: the field with the number of
    token types, or a fixed number. heads: the words of `head_blocks` for each task. lm_norm: kind of norm in the
    head's transform; lm_width: the field with the transform's width, null for the hidden size; lm_tied: whether
    tie_word_embeddings ties the head; lm_untied_bias: an untied head keeps a second vector beside the projection's.
    make_attention, make_feed_forward: instead of the usual blocks. tables, behind: further blocks behind the tables
    and behind the layers.
    """

    norm: str = "layer_norm"
    norm_first: Flag = False
    final_norm: Flag = False
    embedding_norm: Flag = True
    embedding_size: str | None = None
    projection: str = "differs"
    projection_bias: bool = True
    norm_projected: bool = False
    positions: str = "learned"
    extra_positions: int = 0
    segments: str | int = "type_vocab_size"
    gated: bool = False
    qkv_bias: Flag = True
    key_bias: bool | None = None
    qk_norm: str = "none"
    output_bias: Flag = True
    mlp_bias: Flag = True
    key_value_heads: str | None = None
    intermediate_size: str = "intermediate_size"
    heads: Mapping[str, str] | None = None
    lm_norm: str = "layer_norm"
    final_norm_kind: str | None = None
    lm_transform: bool = True
    lm_transform_bias: Flag = True
    lm_width: str | None = None
    lm_bias: Flag = True
    lm_tied: bool = True
    lm_untied_bias: bool = True
    classifier_bias: bool = True
    dense_bias: Flag = True
    dense_norm: str = "none"
    dense_width: str | None = None
    pooler: Flag = True
    can_decode: bool = True
    make_layers: MakeLayers | None = None
    make_attention: Extra | None = None
    make_feed_forward: Extra | None = None
    tables: Extra | None = None
    behind: Extra | None = None
    ignored: tuple[str, ...] = ()
    warning: str = ""


def encoder_network(fields: Fields, facts: Encoder) -> Network:
    """A model that is one encoder, with what its class has behind it; a decoder where the config says so.

    Raises:
        UnsupportedModelError: the class is for a task that is not known here.
    """
    return Network(
        architecture="decoder" if is_generating(fields) else "encoder",
        stacks=(encoder_stack(fields, facts, after=tuple(head_blocks(fields, facts))),),
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.optional_size("max_position_embeddings"),
        learned_positions=_has_table(fields, facts),
    )


def encoder_stack(
    fields: Fields, facts: Encoder, *, after: tuple[Block, ...] = (), prefix: str = "", has_source: bool = False
) -> Stack:
    """Embeddings, layers and last norm, then `after`. has_source: an encoder stands before, for cross-attention."""
    fields.ignore(*facts.ignored)
    hidden = fields.size("hidden_size")
    for fact in (facts.lm_width, facts.lm_transform_bias, facts.lm_bias, facts.dense_bias, facts.pooler):
        fields.ignore(*([fact] if isinstance(fact, str) else []))  # heads that the class may not have
    if facts.warning:
        fields.warnings.append(facts.warning)
    layers = facts.make_layers(fields, facts) if facts.make_layers else None
    kind = norm_kind(fields, facts.final_norm_kind or facts.norm)
    last = (norm("norm", hidden, kind),) if flag_of(fields, facts.final_norm) else ()
    extra = facts.behind(fields) if facts.behind is not None else ()
    return Stack(
        name="decoder" if is_generating(fields) else "encoder",
        hidden_size=hidden,
        before=tuple(_embeddings(fields, facts)),
        layers=layers or (encoder_layer(fields, facts, has_source=has_source),) * fields.layers(),
        after=last + extra + after,
        is_causal=is_generating(fields),
        prefix=prefix,
    )


def is_generating(fields: Fields) -> bool:
    """Whether `is_decoder` turns the encoder into a decoder with a cache."""
    is_decoder = "is_decoder" in fields.data.defaults and fields.flag("is_decoder")
    return is_decoder and fields.task in ("base", "causal_lm")


def encoder_layer(fields: Fields, facts: Encoder, *, has_source: bool = False) -> Layer:
    """One layer; all are alike."""
    hidden = fields.size("hidden_size")
    mixing = facts.make_attention(fields) if facts.make_attention else (encoder_attention(fields, facts),)
    cross = _cross_attention(fields, facts, has_source)
    feeding = facts.make_feed_forward(fields) if facts.make_feed_forward else (_feed_forward(fields, facts),)
    parts = (("attention_norm", mixing), ("cross_attention_norm", cross), ("mlp_norm", feeding))
    blocks: tuple[Block, ...] = ()
    norm_first = flag_of(fields, facts.norm_first)
    for name, part in parts:
        if part:
            own = (norm(name, hidden, norm_kind(fields, facts.norm)),)
            blocks += own + part if norm_first else part + own
    return Layer(blocks=blocks)


def encoder_attention(
    fields: Fields, facts: Encoder, *, window: int | None = None, extra: tuple[Weight, ...] = ()
) -> Block:
    """Attention of every token to every token."""
    heads = fields.size("num_attention_heads")
    key_value_heads = fields.optional_size(facts.key_value_heads) if facts.key_value_heads else None
    if facts.qk_norm == "full" and heads * head_dim_of(fields) != fields.size("hidden_size"):
        raise ConfigError("head_dim times num_attention_heads must be hidden_size", field="head_dim")
    return attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads or heads,
        head_dim=head_dim_of(fields),
        qkv_bias=flag_of(fields, facts.qkv_bias),
        key_bias=facts.key_bias,
        output_bias=flag_of(fields, facts.output_bias),
        qk_norm=facts.qk_norm,
        qk_norm_kind="layer_norm_without_bias",
        is_cached=is_generating(fields),
        window=window,
        extra=extra,
    )


def head_dim_of(fields: Fields, name: str = "num_attention_heads") -> int:
    """The width of a head: `head_dim`, or an equal share of the hidden size.

    Raises:
        ConfigError: the heads do not share it evenly.
    """
    if "head_dim" in fields.data.defaults and fields.raw("head_dim") is not None:
        return fields.size("head_dim")
    hidden, heads = fields.size("hidden_size"), fields.size(name)
    if hidden % heads:
        raise ConfigError(f"{name} must divide hidden_size {hidden}, not {heads}", field=name)
    return hidden // heads


def table_width(fields: Fields, facts: Encoder) -> int:
    """The width of the embedding tables."""
    own = fields.optional_size(facts.embedding_size) if facts.embedding_size else None
    return own or fields.size("hidden_size")


def idle(block: Block) -> Block:
    """The block of weights that is there, but through which no row of plain text passes."""
    return replace(block, positions=0, attention=None)


def _embeddings(fields: Fields, facts: Encoder) -> Iterator[Block]:
    hidden, width = fields.size("hidden_size"), table_width(fields, facts)
    yield embedding("embed_tokens", fields.size("vocab_size"), width)
    if _has_table(fields, facts):
        rows = fields.size("max_position_embeddings") + facts.extra_positions
        yield embedding("embed_positions", rows, width)
    types = fields.count(facts.segments) if isinstance(facts.segments, str) else facts.segments
    if types:
        yield embedding("embed_token_types", types, width)
    yield from facts.tables(fields) if facts.tables is not None else ()
    is_projected = facts.projection == "always" or (facts.projection == "differs" and width != hidden)
    has_norm = flag_of(fields, facts.embedding_norm)
    if has_norm and not facts.norm_projected:
        yield norm("embed_norm", width, norm_kind(fields, facts.norm))
    if is_projected:
        weights = linear("embed_project", width, hidden, bias=facts.projection_bias)
        yield Block(name="", part="embedding", weights=weights, live_width=width + hidden)
    if has_norm and facts.norm_projected:
        yield norm("embed_norm", hidden, norm_kind(fields, facts.norm))


def _has_table(fields: Fields, facts: Encoder) -> bool:
    """Whether positions are looked up: a fact, or what a field says."""
    if facts.positions in ("learned", "none"):
        return facts.positions == "learned"
    if isinstance(fields.raw(facts.positions), bool):
        return fields.flag(facts.positions)
    return bool(fields.choice(facts.positions, ("absolute", "rotary")) == "absolute")


def _cross_attention(fields: Fields, facts: Encoder, has_source: bool) -> tuple[Block, ...]:
    """Queries, keys, values and output for an encoder's rows: they stand idle where this model has none."""
    if not facts.can_decode:
        fields.ignore("is_decoder", "add_cross_attention")
        return ()
    if "add_cross_attention" not in fields.data.defaults or not fields.flag("add_cross_attention"):
        return ()
    if not fields.flag("is_decoder"):
        raise ConfigError("add_cross_attention needs is_decoder to be true", field="add_cross_attention")
    hidden = fields.size("hidden_size")
    blocks = cross_attention(
        hidden_size=hidden,
        source_size=hidden,
        num_attention_heads=fields.size("num_attention_heads"),
        head_dim=head_dim_of(fields),
        qkv_bias=flag_of(fields, facts.qkv_bias),
        output_bias=flag_of(fields, facts.output_bias),
    )
    return blocks if has_source else tuple(idle(block) for block in blocks)


def _feed_forward(fields: Fields, facts: Encoder) -> Block:
    hidden = fields.size("hidden_size")
    width = fields.size_or_null_default(facts.intermediate_size) or 4 * hidden
    bias = flag_of(fields, facts.mlp_bias)
    return feed_forward(hidden_size=hidden, intermediate_size=width, gated=facts.gated, bias=bias)
