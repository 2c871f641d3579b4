"""Decoders that differ in facts only: one function lays out a stack from a row of facts."""

from __future__ import annotations

import dataclasses

from estimator.blocks.common import attention, embedding, experts, feed_forward, head, latent_attention, linear, norm
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.readers.families.decoder_facts import (
    Decoder,
    Experts,
    Flag,
    is_true,
    layer_windows,
    named_fields,
    norm_of,
    size_of,
    sparse_layers,
)
from estimator.readers.fields import Fields

__all__ = [
    "Decoder",
    "Experts",
    "Flag",
    "decoder_attention",
    "decoder_experts",
    "decoder_feed_forward",
    "decoder_latent_attention",
    "decoder_network",
    "decoder_stack",
    "num_labels",
    "task_head",
]


def decoder_network(fields: Fields, facts: Decoder) -> Network:
    """A model that is one decoder stack, with the head that its class asks for."""
    for name, own in facts.renamed.items():
        fields.rename(name, own)
    stack = decoder_stack(fields, facts, after=task_head(fields, facts))
    is_encoder = is_true(fields, facts.bidirectional)
    return Network(
        architecture="encoder" if is_encoder else "decoder",
        stacks=(_as_encoder(stack) if is_encoder else stack,),
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.optional_size(facts.max_position_embeddings),
        learned_positions=facts.positions == "learned",
    )


def decoder_stack(fields: Fields, facts: Decoder, *, after: tuple[Block, ...] = (), prefix: str = "") -> Stack:
    """Embeddings, layers and last norm, then `after`."""
    fields.ignore(*named_fields(facts))
    for name, values in facts.required.items():
        fields.choice(name, values)
    hidden, num_layers = fields.size("hidden_size"), fields.layers(facts.num_hidden_layers)
    windows = layer_windows(fields, facts.windows, num_layers)
    sparse = sparse_layers(fields, facts.experts, num_layers)
    differs = facts.layer_blocks or facts.attention_block or facts.feed_forward_block
    kinds = [
        (window, is_sparse, index if differs else 0)
        for index, (window, is_sparse) in enumerate(zip(windows, sparse, strict=True))
    ]
    layers = {kind: _layer(fields, facts, *kind) for kind in set(kinds)}
    last = (norm("norm", hidden, norm_of(fields, facts)),) if is_true(fields, facts.final_norm) else ()
    return Stack(
        name="decoder",
        hidden_size=hidden,
        before=_embeddings(fields, facts),
        layers=tuple(layers[kind] for kind in kinds),
        after=last + _projection(fields, facts, "project_out") + after,
        is_causal=True,
        prefix=prefix,
    )


def task_head(fields: Fields, facts: Decoder) -> tuple[Block, ...]:
    """What the class has behind its decoder.

    Raises:
        UnsupportedModelError: the class is for a task that is not known here.
    """
    width = _embedding_size(fields, facts)
    before = facts.before_head(fields) if facts.before_head else ()
    if fields.task in ("causal_lm", "double_heads", "image_text_to_text"):
        tied, bias = fields.flag("tie_word_embeddings"), is_true(fields, facts.head_bias)
        outputs = fields.optional_size(facts.output_vocab_size) if facts.output_vocab_size else None
        language = head("lm_head", width, outputs or fields.size("vocab_size"), bias=bias, tied=tied)
        return (*before, language, *(_summary(fields) if fields.task == "double_heads" else ()))
    if fields.task == "sequence_classification":
        bias = facts.classifier_bias is not None and is_true(fields, facts.classifier_bias)
        return (*before, head("score", width, num_labels(fields), bias=bias))
    if fields.task == "token_classification":
        return (head("score", width, num_labels(fields), bias=True),)
    if fields.task == "question_answering":
        return (head("qa_outputs", width, 2, bias=True),)
    if fields.task == "base":
        return ()
    raise UnsupportedModelError(f"classes for {fields.task} are not supported for model_type {fields.data.model_type}")


def num_labels(fields: Fields) -> int:
    """Classes of a classification head: `num_labels`, or as many as `id2label` names; 2 by default."""
    if fields.raw("num_labels") is not None:
        return fields.size("num_labels")
    labels = fields.raw("id2label")
    return len(labels) if isinstance(labels, dict) and labels else 2


def decoder_attention(fields: Fields, facts: Decoder, window: int | None) -> Block:
    """The attention of one layer."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = (fields.size_or_null_default(facts.head_dim) if facts.head_dim else None) or hidden // heads
    if facts.square and heads * head_dim != hidden:
        raise ConfigError(
            f"hidden_size {hidden} must be num_attention_heads {heads} times a head's size", field="hidden_size"
        )
    key_value_heads = size_of(fields, facts.key_value_heads) or heads
    if heads % key_value_heads:
        raise ConfigError(
            f"num_attention_heads {heads} must be a multiple of the {key_value_heads} heads of keys and values",
            field="num_attention_heads",
        )
    return attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        qkv_bias=is_true(fields, facts.qkv_bias),
        output_bias=is_true(fields, facts.output_bias),
        qk_norm=facts.qk_norm if is_true(fields, facts.has_qk_norm) else "none",
        qk_norm_kind=facts.qk_norm_kind or norm_of(fields, facts),
        sinks=facts.sinks,
        gated=facts.gated_attention,
        window=window,
        extra=facts.attention_extra(fields) if facts.attention_extra else (),
    )


def _as_encoder(stack: Stack) -> Stack:
    """The same weights, attending to both sides and keeping nothing."""

    def open_up(block: Block) -> Block:
        if block.attention is None:
            return block
        return dataclasses.replace(
            block, attention=dataclasses.replace(block.attention, cached_elements=0, window=None)
        )

    layers = tuple(
        dataclasses.replace(layer, blocks=tuple(open_up(block) for block in layer.blocks)) for layer in stack.layers
    )
    return dataclasses.replace(stack, layers=layers, is_causal=False)


def _embeddings(fields: Fields, facts: Decoder) -> tuple[Block, ...]:
    hidden = fields.size("hidden_size")
    blocks = [embedding("embed_tokens", fields.size("vocab_size"), _embedding_size(fields, facts))]
    blocks += _projection(fields, facts, "project_in")
    if facts.positions == "learned":
        rows = fields.size(facts.max_position_embeddings) + facts.extra_positions
        blocks.append(embedding("embed_positions", rows, hidden))
    if facts.embedding_norm:
        blocks.append(norm("embed_norm", hidden, norm_of(fields, facts)))
    return (*blocks, *(facts.before_blocks(fields) if facts.before_blocks else ()))


def _embedding_size(fields: Fields, facts: Decoder) -> int:
    width = fields.optional_size(facts.embedding_size) if facts.embedding_size else None
    return width or fields.size("hidden_size")


def _projection(fields: Fields, facts: Decoder, name: str) -> tuple[Block, ...]:
    hidden, width = fields.size("hidden_size"), _embedding_size(fields, facts)
    if width == hidden:
        return ()
    sizes = (width, hidden) if name == "project_in" else (hidden, width)
    return (Block(name="", part="embedding", weights=linear(name, *sizes), live_width=width + hidden),)


def _layer(fields: Fields, facts: Decoder, window: int | None, is_sparse: bool, index: int) -> Layer:
    hidden, kind = fields.size("hidden_size"), norm_of(fields, facts)
    blocks = [norm(f"norms.{number}", hidden, kind) for number in range(size_of(fields, facts.norms) or 0)]
    if facts.attention_block:
        blocks.append(facts.attention_block(fields, window, index))
    elif facts.latent:
        blocks.append(decoder_latent_attention(fields, facts))
    else:
        blocks.append(decoder_attention(fields, facts, window))
    if is_sparse and facts.experts is not None:
        blocks.append(decoder_experts(fields, facts.experts))
    elif facts.feed_forward_block:
        blocks.append(facts.feed_forward_block(fields, index))
    else:
        blocks.append(decoder_feed_forward(fields, facts))
    return Layer(blocks=(*blocks, *(facts.layer_blocks(fields, index) if facts.layer_blocks else ())))


def decoder_latent_attention(fields: Fields, facts: Decoder) -> Block:
    """The latent attention of one layer."""
    fields.ignore("head_dim", "num_key_value_heads")  # derived from those below, or not read
    key_dim = fields.size("qk_nope_head_dim") + fields.size("qk_rope_head_dim")
    fields.choice("qk_head_dim", (key_dim, None))
    return latent_attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        q_lora_rank=fields.optional_size("q_lora_rank"),
        kv_lora_rank=fields.size("kv_lora_rank"),
        qk_nope_head_dim=fields.size("qk_nope_head_dim"),
        qk_rope_head_dim=fields.size("qk_rope_head_dim"),
        v_head_dim=fields.optional_size("v_head_dim")
        or fields.size("hidden_size") // fields.size("num_attention_heads"),
        bias=is_true(fields, facts.qkv_bias),
        extra=facts.attention_extra(fields) if facts.attention_extra else (),
    )


def decoder_feed_forward(fields: Fields, facts: Decoder) -> Block:
    """The dense feed-forward of one layer."""
    hidden, fact = fields.size("hidden_size"), facts.intermediate_size
    width = fields.size_or_null_default(fact) if isinstance(fact, str) else size_of(fields, fact)
    block = feed_forward(
        hidden_size=hidden,
        intermediate_size=width or facts.intermediate_factor * hidden,
        gated=is_true(fields, facts.gated),
        bias=is_true(fields, facts.mlp_bias),
    )
    extra = facts.mlp_extra(fields) if facts.mlp_extra else ()
    return dataclasses.replace(block, weights=block.weights + extra)


def decoder_experts(fields: Fields, facts: Experts) -> Block:
    """The experts of one layer."""
    width, num_experts = fields.size(facts.intermediate_size), fields.size(facts.num_experts)
    extra = facts.others(fields) if facts.others else ()
    if facts.router_vector:
        extra += (Weight(name="gate.vector", shape=(num_experts,), role="other"),)
    return experts(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=width,
        num_experts=num_experts,
        num_experts_per_tok=_active_experts(fields, facts),
        gated=facts.gated,
        bias=is_true(fields, facts.bias),
        shared_bias=None if facts.shared_bias is None else is_true(fields, facts.shared_bias),
        router_bias=facts.router_bias,
        shared_intermediate_size=_shared(fields, facts.num_shared) * width
        + _shared(fields, facts.shared_intermediate_size),
        shared_gate=facts.shared_gate,
        extra=extra,
    )


def _active_experts(fields: Fields, facts: Experts) -> int:
    active = size_of(fields, facts.num_experts_per_tok)
    if active is None:
        raise ConfigError(
            f"{facts.num_experts_per_tok} must say how many experts each token uses, not null", field=None
        )
    return active


def _shared(fields: Fields, fact: int | str) -> int:
    return fields.count(fact) if isinstance(fact, str) else fact


def _summary(fields: Fields) -> tuple[Block, ...]:
    """The second head of the classes with two: one score per choice, from the last row of each."""
    if not fields.flag("summary_use_proj"):
        return ()
    hidden = fields.size("hidden_size")
    outputs = 1 if fields.flag("summary_proj_to_labels") else hidden
    return (head("multiple_choice_head.summary", hidden, outputs, bias=True, positions=1),)
