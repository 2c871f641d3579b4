"""t5gemma2: two stacks of Gemma 3, of which the second reads its own rows and the first one's in one attention.

Source: transformers 5.24, models/t5gemma2; T5Gemma 2, arXiv:2512.14856.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import attention, embedding, feed_forward, head, norm
from estimator.errors import UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.families.multimodal import projection
from estimator.readers.families.vision import num_patches, vision_stack
from estimator.readers.families.vision_families import VISION
from estimator.readers.fields import Fields

__all__ = ["READERS"]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PATTERN = 6  # of so many layers the last one attends to everything


def t5gemma2_network(fields: Fields) -> Network:
    """The stacks, a vision tower whose rows the first of them reads, and the head of the class.

    Raises:
        UnsupportedModelError: the class's task is not known here.
    """
    fields.ignore("is_encoder_decoder", "vocab_size")
    outer, target = fields.own_sub("encoder"), fields.own_sub("decoder")
    source, vision = outer.own_sub("text_config"), outer.own_sub("vision_config", task="base")
    for part in (outer, source, target, vision):
        part.ignore("tie_word_embeddings", "max_position_embeddings")
    hidden, vocabulary = target.size("hidden_size"), target.size("vocab_size")
    rows = outer.size("mm_tokens_per_image")
    sizes = (vision.size("hidden_size"), source.size("hidden_size"))
    facts = VISION[vision.data.model_type]
    projector = projection(
        "multi_modal_projector", sizes, positions=min(rows, num_patches(vision, facts)), bias=False, norm="rms_norm"
    )
    tower = vision_stack(vision, facts, after=(projector,), optional=True, prefix="vision_tower.")
    tied = fields.flag("tie_word_embeddings")
    decoder, architecture = _stack(target, "decoder", shares=tied), "encoder-decoder"
    if fields.task == "image_text_to_text":
        after: tuple[Block, ...] = (head("lm_head", hidden, vocabulary, tied=tied),)
    elif fields.task in ("sequence_classification", "token_classification"):
        positions = 1 if fields.task == "sequence_classification" else None
        after = (head("score", hidden, num_labels(fields), bias=True, positions=positions),)
        decoder, architecture = _over_one_input(decoder), "encoder"
    elif fields.task == "base":
        after = ()
    else:
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    return Network(
        architecture=architecture,
        stacks=(tower, _stack(source, "encoder"), replace(decoder, after=decoder.after + after)),
        model_type=fields.data.model_type,
        vocab_size=vocabulary,
        max_position_embeddings=target.optional_size("max_position_embeddings"),
    )


def _stack(fields: Fields, name: str, *, shares: bool = True) -> Stack:
    """shares: the decoder's table of tokens is the encoder's."""
    hidden, count = fields.size("hidden_size"), fields.layers()
    kinds = fields.words("layer_types", count, (_FULL, _SLIDING))
    window = fields.optional_size("sliding_window")
    if kinds is None:
        pattern = fields.size("sliding_window_pattern") if fields.given("sliding_window_pattern") else _PATTERN
        kinds = tuple(_SLIDING if (index + 1) % pattern else _FULL for index in range(count))
    table = embedding("embed_tokens", fields.size("vocab_size"), hidden)
    table = replace(table, weights=(*table.weights, Weight(name="eoi_embedding", shape=(hidden,), role="other")))
    if name == "decoder" and shares:
        table = replace(table, weights=tuple(replace(weight, stored=False) for weight in table.weights))
    return Stack(
        name=name,
        hidden_size=hidden,
        before=(table,),
        layers=tuple(_layer(fields, window if kind == _SLIDING else None, name == "decoder") for kind in kinds),
        after=(norm("norm", hidden, "rms_norm"),),
        is_causal=name == "decoder",
        prefix=f"{name}.",
    )


def _layer(fields: Fields, window: int | None, is_decoder: bool) -> Layer:
    hidden, bias = fields.size("hidden_size"), fields.flag("attention_bias")
    own = attention(
        hidden_size=hidden,
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=fields.size("head_dim"),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        window=window,
        is_cached=is_decoder,
    )
    mixing = (own, *_of_the_source(own)) if is_decoder else (own,)
    inner = fields.size("intermediate_size")
    feeding = feed_forward(hidden_size=hidden, intermediate_size=inner, gated=True)
    norms = tuple(norm(f"norms.{index}", hidden, "rms_norm") for index in range(4))
    return Layer(blocks=(norms[0], *mixing, norms[1], norms[2], feeding, norms[3]))


def _of_the_source(own: Block) -> tuple[Block, Block]:
    """The same queries meet the encoder's rows, whose keys and values the same two matrices make."""
    assert own.attention is not None
    scores = replace(own.attention, is_cross=True, window=None)
    weights = tuple(
        replace(weight, stored=False) for weight in own.weights if weight.name.startswith(("k_proj.w", "v_proj.w"))
    )
    return (
        Block(name="source", part="attention", attention=scores),
        Block(name="source", part="attention", weights=weights, positions="source", live_width=scores.cached_elements),
    )


def _over_one_input(decoder: Stack) -> Stack:
    """The decoder where it reads the encoder's own input."""

    def change(block: Block) -> Block:
        if block.attention is not None:
            return replace(block, attention=replace(block.attention, is_cross=False, cached_elements=0))
        return replace(block, positions=None) if block.positions == "source" else block

    layers = tuple(replace(layer, blocks=tuple(change(block) for block in layer.blocks)) for layer in decoder.layers)
    return replace(decoder, layers=layers, is_causal=False)


READERS: Mapping[str, Callable[[Fields], Network]] = {"t5gemma2": t5gemma2_network}
