"""Encoder-decoders that differ in facts only: one function lays out both stacks from a row of facts.

The encoder is the second-last stack and the decoder the last. Classes that read one sequence with both (classification)
are encoders: both stacks run over the whole input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from estimator.blocks.common import attention, cross_attention, embedding, experts, feed_forward, head, linear, norm
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.readers.families.decoders import Flag, num_labels
from estimator.readers.families.encoder_heads import class_of, flag_of
from estimator.readers.families.encoders import idle
from estimator.readers.fields import Fields

__all__ = ["SEQ2SEQ_HEADS", "Seq2Seq", "Side", "seq2seq_network"]

SEQ2SEQ_HEADS: Mapping[str, str] = {
    "base": "",
    "seq2seq_lm": "lm",
    "speech_seq2seq": "lm",
    "causal_lm": "lm",
    "text_encoder": "",
    "sequence_classification": "dense label",
    "question_answering": "spans",
    "token_classification": "labels",
    "audio_classification": "projector pooled",
}
_ENCODER_TASKS = ("text_encoder", "token_classification", "audio_classification")
_BOTH_TASKS = ("sequence_classification", "question_answering")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The fields that size one of the two stacks. positions: the field with the number of learned positions.

    sparse: the field with the step from one layer of experts to the next. key_value_heads: null for as many as heads.
    """

    layers: str
    heads: str
    inner: str
    positions: str = "max_position_embeddings"
    sparse: str | None = None
    key_value_heads: str | None = None


_BART_ENCODER = Side(layers="encoder_layers", heads="encoder_attention_heads", inner="encoder_ffn_dim")
_BART_DECODER = Side(layers="decoder_layers", heads="decoder_attention_heads", inner="decoder_ffn_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seq2Seq:
    """The facts of a family of encoder-decoders.

    norm_first, final_norm, embedding_norm: as for encoders. positions: "learned" (with `extra_positions` more rows)
    or "none". head_dim: the field, null for an equal share of the hidden size. gated: a fact, "decoder" alone, or
    "proj" where `feed_forward_proj` says it. relative: a table of biases by distance in "none" of the layers, the
    "first" or "every". always_tied: token tables and head are one whatever the config says. has_shared: an untied
    model keeps a table beside those of its stacks. causal_tied: whether the class of the decoder alone ties its head.
    encoder_norms: how many norms each layer of the encoder has. tables, decoder_tables: further blocks behind the
    embeddings. front: what stands before the encoder in place of embeddings, with its number of rows where it is fixed
    (audio). encoder_attention, decoder_attention: blocks in place of the usual self-attention, from fields and layer
    index. target_vocabulary, source_vocabulary: numbers of tokens of their own. span_outputs: null for the classes.
    """

    encoder: Side = _BART_ENCODER
    decoder: Side = _BART_DECODER
    norm: str = "layer_norm"
    norm_first: bool = False
    final_norm: bool = False
    embedding_norm: bool = False
    positions: str = "learned"
    extra_positions: int = 0
    head_dim: str | None = None
    qkv_bias: Flag = True
    key_bias: bool | None = None
    output_bias: Flag = True
    mlp_bias: bool = True
    gated: Flag = False
    relative: str = "none"
    always_tied: bool = False
    has_shared: bool = True
    is_moe: bool = False
    experts_per_token: int = 1
    encoder_norms: int = 2
    causal_tied: bool = True
    has_cross_attention: Flag = True
    tables: Callable[[Fields], tuple[Block, ...]] | None = None
    front: Callable[[Fields], tuple[tuple[Block, ...], int | None]] | None = None
    encoder_attention: Callable[[Fields, int], tuple[Block, ...]] | None = None
    decoder_tables: Callable[[Fields], tuple[Block, ...]] | None = None
    decoder_attention: Callable[[Fields, int], tuple[Block, ...]] | None = None
    target_vocabulary: Callable[[Fields], int | None] | None = None
    source_vocabulary: Callable[[Fields], int] | None = None
    heads: Mapping[str, str] | None = None
    span_outputs: int | None = 2
    default_labels: int = 2
    ignored: tuple[str, ...] = ()
    warning: str = ""


def seq2seq_network(fields: Fields, facts: Seq2Seq) -> Network:
    """The network of the class: both stacks, one of them, or both over one input.

    Raises:
        UnsupportedModelError: the class is for a task that is not known here.
    """
    fields.ignore("is_encoder_decoder", "is_decoder", *facts.ignored)
    if facts.warning:
        fields.warnings.append(facts.warning)
    words = (facts.heads or SEQ2SEQ_HEADS).get(fields.task)
    if class_of(fields).endswith("PretrainedModel") or class_of(fields).startswith("Pretrained"):
        raise UnsupportedModelError(f"class {class_of(fields)} is abstract; name one that can be built")
    if words is None:
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    after = tuple(block for word in words.split() for block in _head(fields, facts, word))
    if "use_weighted_layer_sum" in fields.data.defaults:
        fields.flag("use_weighted_layer_sum")
    stacks, architecture = _stacks(fields, facts, after)
    return Network(
        architecture=architecture,
        stacks=stacks,
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=_longest(fields, facts, architecture),
        learned_positions=facts.positions == "learned",
    )


def _stacks(fields: Fields, facts: Seq2Seq, after: tuple[Block, ...]) -> tuple[tuple[Stack, ...], str]:
    if fields.task in _ENCODER_TASKS:
        _read_side(fields, facts.decoder)
        return (_encoder(fields, facts, after),), "encoder"
    if fields.task == "causal_lm":
        _read_side(fields, facts.encoder)
        return (_decoder(fields, facts, after),), "decoder"
    encoder, decoder = _encoder(fields, facts, ()), _decoder(fields, facts, after)
    if fields.task not in _BOTH_TASKS:
        return (encoder, decoder), "encoder-decoder"
    return (encoder, _over_one_input(decoder)), "encoder"


def _encoder(fields: Fields, facts: Seq2Seq, after: tuple[Block, ...]) -> Stack:
    hidden, side = _hidden(fields), facts.encoder
    length: int | None = None
    if facts.front is not None:
        before, length = facts.front(fields)
    else:
        before = tuple(_embeddings(fields, facts, side, is_decoder=False))
        before += facts.tables(fields) if facts.tables else ()
    layers = []
    for index in range(_layers(fields, facts, side)):
        if facts.encoder_attention:
            mixing = facts.encoder_attention(fields, index)
        else:
            mixing = (_self_attention(fields, facts, side, index, is_decoder=False),)
        feeding = (_feeding(fields, facts, side, index, is_decoder=False),)
        parts: list[tuple[str, tuple[Block, ...]]] = [("attention_norm", mixing), ("mlp_norm", feeding)]
        parts += [(f"extra_norm.{extra}", ()) for extra in range(facts.encoder_norms - 2)]
        layers.append(_layer(fields, facts, parts))
    last = (norm("norm", hidden, facts.norm),) if facts.final_norm else ()
    return Stack(
        name="encoder",
        hidden_size=hidden,
        before=before,
        layers=tuple(layers),
        after=last + after,
        length=length,
        prefix="encoder.",
    )


def _decoder(fields: Fields, facts: Seq2Seq, after: tuple[Block, ...]) -> Stack:
    hidden, side, alone = _hidden(fields), facts.decoder, fields.task == "causal_lm"
    before = tuple(_embeddings(fields, facts, side, is_decoder=True))
    before += facts.decoder_tables(fields) if facts.decoder_tables else ()
    layers = []
    for index in range(_layers(fields, facts, side)):
        cross = cross_attention(
            hidden_size=hidden,
            source_size=hidden,
            num_attention_heads=fields.size(side.heads),
            num_key_value_heads=_key_value_heads(fields, side),
            head_dim=_head_dim(fields, facts, side),
            qkv_bias=flag_of(fields, facts.qkv_bias),
            key_bias=facts.key_bias,
            output_bias=flag_of(fields, facts.output_bias),
        )
        if alone:
            cross = (idle(cross[0]), idle(cross[1]))
        if facts.decoder_attention:
            mixing = facts.decoder_attention(fields, index)
        else:
            mixing = (_self_attention(fields, facts, side, index, is_decoder=True),)
        parts: list[tuple[str, tuple[Block, ...]]] = [("attention_norm", mixing)]
        parts += [("cross_attention_norm", cross)] if flag_of(fields, facts.has_cross_attention) else []
        parts.append(("mlp_norm", (_feeding(fields, facts, side, index, is_decoder=True),)))
        layers.append(_layer(fields, facts, parts))
    last = (norm("norm", hidden, facts.norm),) if facts.final_norm else ()
    return Stack(
        name="decoder",
        hidden_size=hidden,
        before=before,
        layers=tuple(layers),
        after=last + after,
        is_causal=True,
        prefix="decoder.",
    )


def _layer(fields: Fields, facts: Seq2Seq, parts: list[tuple[str, tuple[Block, ...]]]) -> Layer:
    blocks: tuple[Block, ...] = ()
    for name, part in parts:
        own = (norm(name, _hidden(fields), facts.norm),)
        blocks += own + part if facts.norm_first else part + own
    return Layer(blocks=blocks)


def _self_attention(fields: Fields, facts: Seq2Seq, side: Side, index: int, *, is_decoder: bool) -> Block:
    heads = fields.size(side.heads)
    extra: tuple[Weight, ...] = ()
    if facts.relative == "every" or (facts.relative == "first" and index == 0):
        rows = fields.size("relative_attention_num_buckets")
        table = Weight(name="relative_attention_bias", shape=(rows, heads), role="embedding", quantized=False)
        extra = (table,)
    return attention(
        hidden_size=_hidden(fields),
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(fields, side),
        head_dim=_head_dim(fields, facts, side),
        qkv_bias=flag_of(fields, facts.qkv_bias),
        key_bias=facts.key_bias,
        output_bias=flag_of(fields, facts.output_bias),
        is_cached=is_decoder,
        extra=extra,
    )


def _feeding(fields: Fields, facts: Seq2Seq, side: Side, index: int, *, is_decoder: bool) -> Block:
    hidden, inner = _hidden(fields), fields.size(side.inner)
    num_experts = fields.size("num_experts") if facts.is_moe else 0
    router_bias = facts.is_moe and fields.flag("router_bias")
    if num_experts and _is_sparse(fields, facts, side, index):
        return experts(
            hidden_size=hidden,
            intermediate_size=inner,
            num_experts=num_experts,
            num_experts_per_tok=facts.experts_per_token,
            gated=_is_gated(fields, facts, is_decoder),
            bias=facts.mlp_bias,
            router_bias=router_bias,
        )
    return feed_forward(
        hidden_size=hidden, intermediate_size=inner, gated=_is_gated(fields, facts, is_decoder), bias=facts.mlp_bias
    )


def _is_sparse(fields: Fields, facts: Seq2Seq, side: Side, index: int) -> bool:
    """switch_transformers says how many layers have experts, nllb-moe how far apart they are."""
    assert side.sparse is not None
    step = fields.count(side.sparse)
    if side.sparse.startswith("num_sparse"):
        layers = _layers(fields, facts, side)
        step = layers // step if step else layers
        return step > 0 and (index % step == 1 or step == 1)
    return step > 0 and (index + 1) % step == 0


def _embeddings(fields: Fields, facts: Seq2Seq, side: Side, *, is_decoder: bool) -> Iterator[Block]:
    hidden, vocabulary = _hidden(fields), fields.size("vocab_size")
    own = facts.target_vocabulary(fields) if facts.target_vocabulary else None
    is_shared = _is_tied(fields, facts) and own is None
    source = facts.source_vocabulary(fields) if facts.source_vocabulary else vocabulary
    source = vocabulary if is_shared else source  # a table that both sides use is the target's
    alone = fields.task == "causal_lm" or facts.front is not None
    if not is_decoder and not is_shared and facts.has_shared and own is None:
        yield idle(embedding("shared", vocabulary, hidden))
    table = embedding("embed_tokens", (own or vocabulary) if is_decoder else source, hidden)
    if is_decoder and is_shared and not alone:
        table = replace(table, weights=tuple(replace(weight, stored=False) for weight in table.weights))
    yield table
    if facts.positions == "learned":
        yield embedding("embed_positions", fields.size(side.positions) + facts.extra_positions, hidden)
    if facts.embedding_norm:
        yield norm("embed_norm", hidden, facts.norm)


def _head(fields: Fields, facts: Seq2Seq, word: str) -> Iterator[Block]:
    """lm: to the vocabulary. dense label: two matrices on the last token. spans, labels: every row. projector pooled:
    a narrower row each, and the classes of their mean.
    """
    hidden = _hidden(fields)
    if word == "lm":
        own = facts.target_vocabulary(fields) if facts.target_vocabulary else None
        tied = _is_tied(fields, facts) and (fields.task != "causal_lm" or facts.causal_tied)
        yield head("lm_head", hidden, own or fields.size("vocab_size"), tied=tied)
    elif word == "dense":
        weights = linear("dense", hidden, hidden, bias=True, quantized=False)
        yield Block(name="", part="head", weights=weights, positions=1)
    elif word == "label":
        yield head("classifier", hidden, _labels(fields, facts), bias=True, positions=1)
    elif word == "labels":
        yield head("classifier", hidden, _labels(fields, facts), bias=True)
    elif word == "spans":
        yield head("qa_outputs", hidden, facts.span_outputs or _labels(fields, facts), bias=True)
    elif word == "projector":
        if fields.flag("use_weighted_layer_sum"):
            shape = (_layers(fields, facts, facts.encoder) + 1,)
            yield Block(name="", part="head", weights=(Weight(name="layer_weights", shape=shape, role="other"),))
        weights = linear("projector", hidden, fields.size("classifier_proj_size"), bias=True, quantized=False)
        yield Block(name="", part="head", weights=weights)
    else:
        assert word == "pooled", word
        yield head("classifier", fields.size("classifier_proj_size"), _labels(fields, facts), bias=True, positions=1)


def _over_one_input(decoder: Stack) -> Stack:
    """The decoder where it reads the encoder's own input: cross-attention is attention between equal lengths."""

    def change(block: Block) -> Block:
        if block.attention is not None:
            return replace(block, attention=replace(block.attention, is_cross=False, cached_elements=0))
        return replace(block, positions=None) if block.positions == "source" else block

    layers = tuple(replace(layer, blocks=tuple(change(block) for block in layer.blocks)) for layer in decoder.layers)
    return replace(decoder, layers=layers, is_causal=False)


def _read_side(fields: Fields, side: Side) -> None:
    """Reads the fields of the stack that the class does not have: they change nothing of it."""
    fields.ignore(
        side.layers, side.heads, side.inner, side.positions, *filter(None, (side.sparse, side.key_value_heads))
    )


def _is_tied(fields: Fields, facts: Seq2Seq) -> bool:
    given = fields.raw("tie_word_embeddings")
    if facts.always_tied and given is False:
        text = "tie_word_embeddings is false, but its classes tie the head; a checkpoint may hold one of its own"
        fields.warnings += [] if text in fields.warnings else [text]
    return facts.always_tied or given is None or fields.flag("tie_word_embeddings")


def _is_gated(fields: Fields, facts: Seq2Seq, is_decoder: bool) -> bool:
    if facts.gated == "decoder":
        return is_decoder
    if facts.gated != "proj":
        return flag_of(fields, facts.gated)
    value = fields.raw("feed_forward_proj")
    words = value.split("-") if isinstance(value, str) else []
    if not words or len(words) > 2 or (len(words) == 2 and words[0] != "gated"):
        raise ConfigError(
            "feed_forward_proj must be an activation, or gated- and an activation", field="feed_forward_proj"
        )
    return len(words) == 2


def _head_dim(fields: Fields, facts: Seq2Seq, side: Side) -> int:
    if facts.head_dim is not None:
        return fields.size(facts.head_dim)
    hidden, heads = _hidden(fields), fields.size(side.heads)
    if hidden % heads:
        raise ConfigError(f"{side.heads} must divide the hidden size {hidden}, not {heads}", field=side.heads)
    return hidden // heads


def _key_value_heads(fields: Fields, side: Side) -> int:
    own = fields.optional_size(side.key_value_heads) if side.key_value_heads else None
    return own or fields.size(side.heads)


def _layers(fields: Fields, facts: Seq2Seq, side: Side) -> int:
    """Layers of a stack; as many as the encoder's where the decoder's field is null."""
    return fields.layers(side.layers if fields.raw(side.layers) is not None else facts.encoder.layers)


def _labels(fields: Fields, facts: Seq2Seq) -> int:
    """Classes, by default as many as the family's configuration class says."""
    is_given = fields.raw("num_labels") is not None or fields.raw("id2label")
    return num_labels(fields) if is_given else facts.default_labels


def _hidden(fields: Fields) -> int:
    return fields.size("hidden_size" if "hidden_size" in fields.data.defaults else "d_model")


def _longest(fields: Fields, facts: Seq2Seq, architecture: str) -> int | None:
    side = facts.encoder if architecture == "encoder" else facts.decoder
    if side.positions not in fields.data.defaults:
        return None
    return fields.optional_size(side.positions)
