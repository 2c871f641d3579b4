"""What stands behind an encoder's layers, written in words: a head is named once and used by every family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from estimator.blocks.common import NORMS, head, linear, norm_weights
from estimator.errors import UnsupportedModelError
from estimator.network import Block, Recurrence, Weight
from estimator.readers.families.decoders import Flag, num_labels
from estimator.readers.fields import Fields

if TYPE_CHECKING:
    from estimator.readers.families.encoders import Encoder

__all__ = ["BERT_HEADS", "ROBERTA_HEADS", "class_of", "flag_of", "head_blocks", "is_tied", "norm_kind"]

BERT_HEADS: dict[str, str] = {
    "base": "pooler",
    "masked_lm": "lm",
    "causal_lm": "lm",
    "pretraining": "pooler lm pair",
    "next_sentence_prediction": "pooler pair",
    "sequence_classification": "pooler label",
    "multiple_choice": "pooler choice",
    "token_classification": "labels",
    "question_answering": "spans",
}
ROBERTA_HEADS: dict[str, str] = {**BERT_HEADS, "sequence_classification": "dense label"}

# Words for projections to the classes: the name, how many rows are concatenated, and how many results there are.
_PER_LABEL: Mapping[str, tuple[str, int, int | None]] = {
    "label": ("classifier", 1, 1),
    "labels": ("classifier", 1, None),
    "spans": ("qa_outputs", 1, None),
    "pairs": ("classifier", 2, 1),
    "triples": ("classifier", 3, 1),
}


def head_blocks(fields: Fields, facts: Encoder) -> Iterator[Block]:
    """What the class has behind its layers, from the words for its task.

    pooler, dense: a square matrix on the first token. label, choice, pair: a projection of one row to the classes,
    to 1, to 2. labels, spans: a projection of every row to the classes. rows: a square matrix on every row; token: a
    projection of every row to 1. lm: the projection to the vocabulary, with its transform. late: `classifier_pooling`
    says whether rows are pooled before or behind the matrices.

    Raises:
        UnsupportedModelError: the class is for a task that is not known here.
    """
    words = (facts.heads or BERT_HEADS).get(fields.task)
    if words is None:
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    if "late" in words:
        is_late = fields.choice("classifier_pooling", ("late", "mean", "bos")) == "late"
        words = "rows labels" if is_late else "dense label"
    for word in words.split():
        if word == "lm":
            yield from _language_head(fields, facts)
        elif word != "pooler" or flag_of(fields, facts.pooler):
            yield _head_block(fields, facts, word)


def class_of(fields: Fields) -> str:
    """The class that the config names, or means."""
    names = fields.raw("architectures")
    return str(names[0]) if names else str(fields.data.default_class)


def flag_of(fields: Fields, fact: Flag) -> bool:
    """The fact, or the value of the field that decides it."""
    return fields.flag(fact) if isinstance(fact, str) else fact


def is_tied(fields: Fields) -> bool:
    """Whether the head shares the token table; families that declare nothing tie."""
    return fields.raw("tie_word_embeddings") is None or fields.flag("tie_word_embeddings")


def norm_kind(fields: Fields, kind: str) -> str:
    """The kind of norm; where a boolean field says whether layer norms have biases, that field's name is given."""
    if kind in NORMS:
        return kind
    return "layer_norm" if fields.flag(kind) else "layer_norm_without_bias"


def _head_block(fields: Fields, facts: Encoder, word: str) -> Block:
    hidden, bias = fields.size("hidden_size"), facts.classifier_bias
    if word in ("pooler", "dense", "rows"):
        width = hidden
        if word == "dense" and facts.dense_width:
            width = fields.optional_size(facts.dense_width) or hidden
        weights = linear(word, width, width, bias=flag_of(fields, facts.dense_bias), quantized=False)
        weights += norm_weights(f"{word}_norm", width, norm_kind(fields, facts.dense_norm))
        return Block(name="", part="head", weights=weights, positions=None if word == "rows" else 1)
    if word in _PER_LABEL:
        name, width, positions = _PER_LABEL[word]
        return head(name, width * hidden, num_labels(fields), bias=bias and word != "pairs", positions=positions)
    if word == "summary":
        width = _summary_width(fields)
        return Block(
            name="", part="head", weights=linear("summary", hidden, width, bias=True) if width else (), positions=1
        )
    if word == "cells":
        vectors = tuple(Weight(name=f"{name}_weights", shape=(hidden,), role="other") for name in ("cell", "column"))
        scalars = tuple(Weight(name=f"{name}_bias", shape=(), role="other") for name in ("cell", "column"))
        products = Recurrence(state_elements=0, token_flops=2 * 2 * hidden)
        return Block(name="", part="head", weights=vectors + scalars, recurrence=products)
    if word == "labels_choice":
        return head("classifier", num_labels(fields), 1, bias=True, positions=1)
    outputs = {"choice": 1, "pair": 2, "token": 1, "ends": 2}[word]
    return head(word, hidden, outputs, bias=bias, positions=1 if word in ("choice", "pair") else None)


def _summary_width(fields: Fields) -> int:
    """Outputs of a sequence summary; 0 without a projection. Source: SequenceSummary of transformers."""
    if not fields.flag("summary_use_proj"):
        return 0
    return num_labels(fields) if fields.raw("summary_proj_to_labels") else fields.size("hidden_size")


def _language_head(fields: Fields, facts: Encoder) -> Iterator[Block]:
    hidden, tied = fields.size("hidden_size"), is_tied(fields) and facts.lm_tied
    width = hidden
    if facts.lm_transform:
        width = (fields.optional_size(facts.lm_width) if facts.lm_width else None) or hidden
        bias = flag_of(fields, facts.lm_transform_bias)
        weights = linear("transform", hidden, width, bias=bias, quantized=False)
        weights += norm_weights("norm", width, norm_kind(fields, facts.lm_norm))
        yield Block(name="head", part="head", weights=weights, live_width=hidden + width)
    vocabulary = fields.size("vocab_size")
    yield head("lm_head", width, vocabulary, bias=flag_of(fields, facts.lm_bias), tied=tied)
    if facts.lm_untied_bias and not is_tied(fields):
        second = Weight(name="lm_head.second_bias", shape=(vocabulary,), role="bias")
        yield Block(name="", part="head", weights=(second,))
