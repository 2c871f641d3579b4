"""The facts in which families of decoders differ, as records, and the rules by which their layers differ.

A row of `Decoder` says what a family fixes (its kind of norm), and which fields of config.json decide the rest. A fact
is a value, the name of a field, or for the odd ones a small function of the fields. The rows stand in
`decoder_families.py` and `expert_families.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estimator.network import Block, Weight
from estimator.readers.fields import Fields

__all__ = [
    "BIASED_ATTENTION",
    "LLAMA",
    "OLMO2",
    "Decoder",
    "Experts",
    "Flag",
    "Rule",
    "Size",
    "Truth",
    "Windows",
    "all_but_every",
    "all_layers",
    "from_layer",
    "is_true",
    "layer_windows",
    "named_fields",
    "norm_of",
    "size_of",
    "sparse_layers",
]

# A fact that is fixed for the family, or the name of the boolean field that decides it.
Flag = bool | str
Truth = Flag | Callable[[Fields], bool]
Size = int | str | Callable[[Fields], int | None]
# Which of so many layers have what the rule is about.
Rule = Callable[[Fields, int], Sequence[bool]]
# Weights that no other family has.
Extra = Callable[[Fields], tuple[Weight, ...]]
_FULL, _SPARSE = "full_attention", "sparse"
# Attention to what an indexer picks keeps every token all the same.
_SPARSE_ATTENTION = ("indexed_attention", "minimax_m3_sparse")
_LAYER_TYPES = (_FULL, "sliding_attention", "chunked_attention", *_SPARSE_ATTENTION)
# Fields that say which layers are which; where a list of layer types is given, they change nothing.
_PATTERNS = (
    "layer_types",
    "mlp_layer_types",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "no_rope_layers",
    "no_rope_layer_interval",
    "global_attn_every_n_layers",
    "first_k_dense_replace",
    "decoder_sparse_step",
    "mlp_only_layers",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Which layers attend to the last tokens only, and to how many.

    field: the window; null means none. switch: the boolean field without which there is none. layers: the rule where
    config.json has no `layer_types`.
    """

    field: Size = "sliding_window"
    switch: str | None = None
    layers: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Which fields describe the experts, and which layers have them.

    layers: the rule where config.json has no `mlp_layer_types`. num_shared: as many experts more, or
    shared_intermediate_size: one of that width, run for every token; shared_gate: a projection [1, D] weighs it;
    shared_bias: when it differs from `bias`. router_vector: the router has a vector [E] beside its matrix.
    others: weights that no other family has.
    """

    num_experts: str
    num_experts_per_tok: Size = "num_experts_per_tok"
    intermediate_size: str = "moe_intermediate_size"
    layers: Rule
    num_shared: int | str = 0
    shared_intermediate_size: int | str = 0
    shared_gate: bool = False
    gated: bool = True
    bias: Flag = False
    shared_bias: Flag | None = None
    router_bias: bool = False
    router_vector: bool = False
    others: Extra | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The facts of a family of decoders.

    norms: how many norms over the hidden size each layer has. intermediate_size: the field; where it is null the width
    is `intermediate_factor` times the hidden size. head_dim: the field; null, or None here, means hidden size / heads.
    square: the classes take heads times head_dim for the hidden size.
    qk_norm: as in `blocks.attention`, when `has_qk_norm`. latent: `blocks.latent_attention`, for a true fact.
    positions: "rotary", "learned" (a table of `max_position_embeddings` rows and `extra_positions` more) or "none"
    (distances, sinusoids). embedding_size: the width of the token table where a projection leads to the hidden size.
    bidirectional: every token attends to every other and nothing is kept, as in an encoder.
    output_vocab_size: the field with the outputs of the head, where they may be fewer than the tokens.
    attention_extra, mlp_extra: weights that no other family has. layer_blocks: blocks that no other family has, in the
    layer of that index. attention_block: what stands for the attention, from the fields, the window and
    the index of the layer; feed_forward_block: from the fields and the index. before_blocks: what stands beside the
    embeddings. before_head: what stands between the last norm and the heads of tasks.
    renamed: names in old published configs -> fields that they stand for. ignored: fields of published configs that
    the classes do not read. required: fields that are not sized here, and the values that ask for nothing.
    """

    norm: str | Callable[[Fields], str] = "rms_norm"
    norms: Size = 2
    final_norm: Truth = True
    embedding_norm: bool = False
    gated: Truth = True
    qkv_bias: Truth = False
    output_bias: Truth = False
    mlp_bias: Truth = False
    head_bias: Flag = False
    qk_norm: str = "head"
    has_qk_norm: Flag = False
    qk_norm_kind: str | None = None
    sinks: bool = False
    gated_attention: bool = False
    latent: bool = False
    positions: str = "rotary"
    extra_positions: int = 0
    max_position_embeddings: str = "max_position_embeddings"
    num_hidden_layers: str = "num_hidden_layers"
    embedding_size: str | None = None
    output_vocab_size: str | None = None
    windows: Windows | None = None
    key_value_heads: Size = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    square: bool = False
    intermediate_size: Size = "intermediate_size"
    intermediate_factor: int = 4
    bidirectional: Flag = False
    experts: Experts | None = None
    attention_extra: Extra | None = None
    mlp_extra: Extra | None = None
    attention_block: Callable[[Fields, int | None, int], Block] | None = None
    feed_forward_block: Callable[[Fields, int], Block] | None = None
    before_blocks: Callable[[Fields], tuple[Block, ...]] | None = None
    layer_blocks: Callable[[Fields, int], tuple[Block, ...]] | None = None
    classifier_bias: Flag | None = None
    before_head: Callable[[Fields], tuple[Block, ...]] | None = None
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    required: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


def norm_of(fields: Fields, facts: Decoder) -> str:
    """The kind of the family's norms."""
    return facts.norm if isinstance(facts.norm, str) else facts.norm(fields)


def is_true(fields: Fields, fact: Truth) -> bool:
    """The fact itself, or what the field or the function says."""
    if isinstance(fact, str):
        return fields.flag(fact)
    return fact if isinstance(fact, bool) else fact(fields)


def size_of(fields: Fields, fact: Size) -> int | None:
    """The fact itself, or what the field (None for null) or the function says."""
    if isinstance(fact, str):
        return fields.optional_size(fact)
    return fact if isinstance(fact, int) else fact(fields)


def named_fields(facts: Decoder) -> tuple[str, ...]:
    """Every field that the row names: what is not read for one config is known to change nothing there."""
    records = [record for record in (facts, facts.experts, facts.windows) if record is not None]
    values = [getattr(record, field.name) for record in records for field in dataclasses.fields(record)]
    return (*_PATTERNS, *facts.ignored, *(value for value in values if isinstance(value, str)))


def layer_windows(fields: Fields, windows: Windows | None, num_layers: int) -> tuple[int | None, ...]:
    """The window of each layer, None where it attends to everything."""
    if windows is None:
        if fields.given("layer_types"):
            fields.words("layer_types", num_layers, (_FULL, *_SPARSE_ATTENTION))
        return (None,) * num_layers
    is_on = windows.switch is None or fields.flag(windows.switch)
    window = size_of(fields, windows.field) if is_on else None
    if window is None:
        return (None,) * num_layers
    kinds = fields.words("layer_types", num_layers, _LAYER_TYPES)
    has_window = windows.layers(fields, num_layers) if kinds is None else [kind != _FULL for kind in kinds]
    return tuple(window if has else None for has in has_window)


def sparse_layers(fields: Fields, experts: Experts | None, num_layers: int) -> tuple[bool, ...]:
    """Which layers have experts."""
    if experts is None:
        return (False,) * num_layers
    kinds = fields.words("mlp_layer_types", num_layers, ("dense", _SPARSE))
    return tuple(experts.layers(fields, num_layers) if kinds is None else [kind == _SPARSE for kind in kinds])


def all_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """Every layer."""
    return [True] * num_layers


def all_but_every(
    every: int, *, first: int | None = None, also: tuple[int, ...] = (), field: str | None = None
) -> Rule:
    """All layers but every N-th, counted from the one at `first` (N - 1), and those at `also` (negative: from the end).

    `field` may give another N.
    """

    def rule(fields: Fields, num_layers: int) -> Sequence[bool]:
        step = every if field is None or not fields.given(field) else fields.size(field)
        start = step - 1 if first is None else first
        others = {index % num_layers for index in also}
        return [(index - start) % step != 0 and index not in others for index in range(num_layers)]

    return rule


def from_layer(start: int | str) -> Rule:
    """All layers from the one at `start` on: a number, or the field with it."""

    def rule(fields: Fields, num_layers: int) -> Sequence[bool]:
        first = fields.count(start) if isinstance(start, str) else start
        return [index >= first for index in range(num_layers)]

    return rule


# Rows that many others start from.
BIASED_ATTENTION = Decoder(qkv_bias="attention_bias", output_bias="attention_bias")
LLAMA = dataclasses.replace(BIASED_ATTENTION, mlp_bias="mlp_bias")
OLMO2 = dataclasses.replace(BIASED_ATTENTION, has_qk_norm=True, qk_norm="full")
