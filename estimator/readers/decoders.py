"""Decoders that differ in facts only: one function lays out a stack from a row of facts.

A row of `Decoder` says what a family fixes (its kind of norm), and which fields of config.json decide the rest. To add
a family that is a renaming or a mixture of known ones, add a row to `decoder_families.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.blocks import attention, embedding, experts, feed_forward, head, latent_attention, norm
from estimator.errors import UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack
from estimator.readers.fields import Fields

__all__ = ["Decoder", "Experts", "Flag", "decoder_network", "decoder_stack", "task_head"]

# A fact that is fixed for the family, or the name of the boolean field that decides it.
Flag = bool | str
_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Which fields describe the experts, and which layers have them.

    layers: "all"; "after_dense" (from `first_k_dense_replace` on); "sparse_step" (every `decoder_sparse_step`-th layer
        that `mlp_only_layers` does not name); "interleave" (every `interleave_moe_layer_step`-th).
    shared: "none"; "count" (`n_shared_experts` times the experts' width); "size" (a field with their width).
    router_extra: vectors [E] that the router has beside its matrix.
    """

    num_experts: str
    num_experts_per_tok: str = "num_experts_per_tok"
    intermediate_size: str = "moe_intermediate_size"
    layers: str = "all"
    shared: str = "none"
    shared_field: str = "n_shared_experts"
    shared_gate: bool = False
    gated: bool = True
    bias: bool = False
    router_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The facts of a family of decoders.

    norms: how many norms over the hidden size each layer has. intermediate_size: the field; where it is null the width
    is `intermediate_factor` times the hidden size. qk_norm: as in `blocks.attention`, when `has_qk_norm`.
    positions: "rotary", "learned" (a table of `max_position_embeddings` rows and `extra_positions` more) or "none".
    windows: "none"; "all" (`sliding_window` holds for every layer); "types" (`layer_types` says which, else every
        `full_attention_every`-th layer is full); "qwen" (`use_sliding_window`, from `max_window_layers` on).
    key_value_heads: the field, or a fixed number. ignored: fields of published configs that the classes do not read.
    """

    norm: str = "rms_norm"
    norms: int = 2
    final_norm: bool = True
    embedding_norm: bool = False
    gated: Flag = True
    qkv_bias: Flag = False
    output_bias: Flag = False
    mlp_bias: Flag = False
    head_bias: Flag = False
    qk_norm: str = "head"
    has_qk_norm: Flag = False
    qk_norm_kind: str | None = None
    sinks: bool = False
    gated_attention: bool = False
    latent: bool = False
    positions: str = "rotary"
    extra_positions: int = 0
    windows: str = "none"
    window_field: str = "sliding_window"
    full_attention_every: int = 0
    key_value_heads: str | int = "num_key_value_heads"
    head_dim: str = "head_dim"
    intermediate_size: str = "intermediate_size"
    intermediate_factor: int = 4
    experts: Experts | None = None
    classification_bias: bool = False
    ignored: tuple[str, ...] = ()


def decoder_network(fields: Fields, facts: Decoder) -> Network:
    """A model that is one decoder stack, with the head that its class asks for."""
    stack = decoder_stack(fields, facts, after=task_head(fields, facts))
    return Network(
        architecture="decoder",
        stacks=(stack,),
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=_positions(fields),
        learned_positions=facts.positions == "learned",
    )


def decoder_stack(fields: Fields, facts: Decoder, *, after: tuple[Block, ...] = (), prefix: str = "") -> Stack:
    """Embeddings, layers and last norm, then `after`."""
    fields.ignore(*facts.ignored)
    hidden, num_layers = fields.size("hidden_size"), fields.layers()
    before = [embedding("embed_tokens", fields.size("vocab_size"), hidden)]
    if facts.positions == "learned":
        rows = fields.size("max_position_embeddings") + facts.extra_positions
        before.append(embedding("embed_positions", rows, hidden))
    if facts.embedding_norm:
        before.append(norm("embed_norm", hidden, facts.norm))
    windows = layer_windows(fields, facts, num_layers)
    sparse = _sparse_layers(fields, facts, num_layers)
    cache: dict[tuple[int | None, bool], Layer] = {}
    layers = tuple(
        cache.setdefault(key, _layer(fields, facts, *key)) if key not in cache else cache[key]
        for key in zip(windows, sparse, strict=True)
    )
    last = (norm("norm", hidden, facts.norm),) if facts.final_norm else ()
    return Stack(
        name="decoder",
        hidden_size=hidden,
        before=tuple(before),
        layers=layers,
        after=last + after,
        is_causal=True,
        prefix=prefix,
    )


def task_head(fields: Fields, facts: Decoder) -> tuple[Block, ...]:
    """What the class has behind its decoder.

    Raises:
        UnsupportedModelError: the class is for a task that is not known here.
    """
    hidden = fields.size("hidden_size")
    tied = fields.flag("tie_word_embeddings")
    if fields.task == "causal_lm":
        bias = _flag(fields, facts.head_bias)
        return (head("lm_head", hidden, fields.size("vocab_size"), bias=bias, tied=tied),)
    if fields.task == "sequence_classification":
        return (head("score", hidden, num_labels(fields), bias=facts.classification_bias),)
    if fields.task == "token_classification":
        return (head("score", hidden, num_labels(fields), bias=True),)
    if fields.task == "question_answering":
        return (head("qa_outputs", hidden, 2, bias=True),)
    if fields.task == "base":
        return ()
    raise UnsupportedModelError(f"classes for {fields.task} are not supported for model_type {fields.data.model_type}")


def num_labels(fields: Fields) -> int:
    """Classes of a classification head: `num_labels`, or as many as `id2label` names; 2 by default."""
    if fields.raw("num_labels") is not None:
        return fields.size("num_labels")
    labels = fields.raw("id2label")
    return len(labels) if isinstance(labels, dict) and labels else 2


def layer_windows(fields: Fields, facts: Decoder, num_layers: int) -> tuple[int | None, ...]:
    """The window of each layer, None where it attends to everything."""
    if facts.windows == "none":
        return (None,) * num_layers
    window = fields.optional_size(facts.window_field)
    if facts.windows == "all":
        return (window,) * num_layers
    if facts.windows == "qwen" and not fields.flag("use_sliding_window"):
        window = None
    kinds = fields.words("layer_types", num_layers, (_FULL, _SLIDING, _CHUNKED))
    if kinds is not None:
        return tuple(None if kind == _FULL else window for kind in kinds)
    if facts.windows == "qwen":
        first = fields.count("max_window_layers")
        return tuple(window if index >= first else None for index in range(num_layers))
    every = facts.full_attention_every or 1
    return tuple(None if (index + 1) % every == 0 else window for index in range(num_layers))


def _layer(fields: Fields, facts: Decoder, window: int | None, is_sparse: bool) -> Layer:
    hidden = fields.size("hidden_size")
    blocks = [norm(f"norms.{index}", hidden, facts.norm) for index in range(facts.norms)]
    blocks.append(_latent(fields, facts) if facts.latent else decoder_attention(fields, facts, window))
    if is_sparse and facts.experts is not None:
        blocks.append(_experts(fields, facts.experts))
    else:
        width = fields.optional_size(facts.intermediate_size) or facts.intermediate_factor * hidden
        gated, bias = _flag(fields, facts.gated), _flag(fields, facts.mlp_bias)
        blocks.append(feed_forward(hidden_size=hidden, intermediate_size=width, gated=gated, bias=bias))
    return Layer(blocks=tuple(blocks))


def decoder_attention(fields: Fields, facts: Decoder, window: int | None) -> Block:
    """The attention of one layer."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if isinstance(facts.key_value_heads, int):
        key_value_heads = facts.key_value_heads
    else:
        key_value_heads = fields.optional_size(facts.key_value_heads) or heads
    return attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=fields.optional_size(facts.head_dim) or hidden // heads,
        qkv_bias=_flag(fields, facts.qkv_bias),
        output_bias=_flag(fields, facts.output_bias),
        qk_norm=facts.qk_norm if _flag(fields, facts.has_qk_norm) else "none",
        qk_norm_kind=facts.qk_norm_kind or facts.norm,
        sinks=facts.sinks,
        gated=facts.gated_attention,
        window=window,
    )


def _latent(fields: Fields, facts: Decoder) -> Block:
    return latent_attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        q_lora_rank=fields.optional_size("q_lora_rank"),
        kv_lora_rank=fields.size("kv_lora_rank"),
        qk_nope_head_dim=fields.size("qk_nope_head_dim"),
        qk_rope_head_dim=fields.size("qk_rope_head_dim"),
        v_head_dim=fields.size("v_head_dim"),
        bias=_flag(fields, facts.qkv_bias),
    )


def _experts(fields: Fields, facts: Experts) -> Block:
    width = fields.size(facts.intermediate_size)
    shared = 0
    if facts.shared == "count":
        shared = fields.count(facts.shared_field) * width
    elif facts.shared == "size":
        shared = fields.count(facts.shared_field)
    return experts(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=width,
        num_experts=fields.size(facts.num_experts),
        num_experts_per_tok=fields.size(facts.num_experts_per_tok),
        gated=facts.gated,
        bias=facts.bias,
        router_bias=facts.router_bias,
        shared_intermediate_size=shared,
        shared_gate=facts.shared_gate,
    )


def _sparse_layers(fields: Fields, facts: Decoder, num_layers: int) -> tuple[bool, ...]:
    if facts.experts is None:
        return (False,) * num_layers
    if facts.experts.layers == "after_dense":
        first = fields.count("first_k_dense_replace")
        return tuple(index >= first for index in range(num_layers))
    if facts.experts.layers == "sparse_step":
        step = fields.size("decoder_sparse_step")
        dense = fields.sizes("mlp_only_layers") if fields.raw("mlp_only_layers") is not None else ()
        return tuple(index not in dense and (index + 1) % step == 0 for index in range(num_layers))
    assert facts.experts.layers == "all", facts.experts.layers
    return (True,) * num_layers


def _positions(fields: Fields) -> int | None:
    value = fields.raw("max_position_embeddings")
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _flag(fields: Fields, fact: Flag) -> bool:
    return fields.flag(fact) if isinstance(fact, str) else fact
