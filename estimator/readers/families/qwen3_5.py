"""qwen3_5 and qwen3_5_moe: a text part with delta rules beside a vision tower. Source: transformers 5.24."""

from __future__ import annotations

import math

from estimator.blocks.common import attention, embedding, feed_forward, head, linear, norm, norm_weights
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.families.delta_nets import qwen3_5_layers
from estimator.readers.families.hybrids import hybrid_stack
from estimator.readers.fields import Fields

__all__ = ["qwen3_5", "qwen3_5_vision", "vision_stack"]

_MOST_PATCH = 4096


def qwen3_5(fields: Fields) -> Network:
    """The whole model, or the text part alone for a class without vision tower.

    Raises:
        UnsupportedModelError: the class is for a task that is not known here.
    """
    text = fields.sub("text_config", task=fields.task)
    text.ignore("tie_word_embeddings")
    vision = fields.sub("vision_config")
    tower = vision_stack(vision, optional=True)
    if vision.size("out_hidden_size") != text.size("hidden_size"):
        fields.warnings.append("vision_config.out_hidden_size is not text_config.hidden_size: images cannot be read")
    tied = fields.flag("tie_word_embeddings")
    stack = hybrid_stack(text, qwen3_5_layers(text), after=_head(fields, text, tied), prefix="language_model.")
    return Network(
        architecture="decoder",
        stacks=(stack,) if fields.task == "causal_lm" else (tower, stack),
        model_type=fields.data.model_type,
        vocab_size=text.size("vocab_size"),
        max_position_embeddings=text.optional_size("max_position_embeddings"),
    )


def qwen3_5_vision(fields: Fields) -> Network:
    """The vision tower as a model of its own."""
    tower = vision_stack(fields, optional=False)
    return Network(architecture="encoder", stacks=(tower,), model_type=fields.data.model_type)


def vision_stack(fields: Fields, *, optional: bool) -> Stack:
    """Patches of a clip of frames, learned positions, blocks, and a merger of neighbouring patches.

    An image counts with as many patches as there are learned positions; larger and smaller ones interpolate them.
    """
    fields.ignore("deepstack_visual_indexes")
    hidden, patches, merge = fields.size("hidden_size"), fields.size("num_position_embeddings"), _merge(fields)
    layer = Layer(blocks=tuple(_vision_blocks(fields)))
    merged = hidden * merge
    weights = norm_weights("norm", hidden, "layer_norm") + linear("linear_fc1", merged, merged, bias=True)
    weights += linear("linear_fc2", merged, fields.size("out_hidden_size"), bias=True)
    positions = -(-patches // merge)
    merger = Block(name="merger", part="projector", weights=weights, positions=positions, live_width=3 * merged)
    return Stack(
        name="vision",
        hidden_size=hidden,
        before=(_patch_embedding(fields), embedding("pos_embed", patches, hidden)),
        layers=(layer,) * fields.layers("depth"),
        after=(merger,),
        length=patches,
        optional=optional,
        prefix="visual.",
    )


def _merge(fields: Fields) -> int:
    return fields.size("spatial_merge_size") ** 2


def _patch_embedding(fields: Fields) -> Block:
    hidden = fields.size("hidden_size")
    shape = (
        hidden,
        fields.size("in_channels"),
        *_extent(fields, "temporal_patch_size", 1),
        *_extent(fields, "patch_size", 2),
    )
    kernel = Weight(name="weight", shape=shape, role="convolution")
    bias = Weight(name="bias", shape=(hidden,), role="bias")
    live_width = hidden + math.prod(shape[1:])
    return Block(name="patch_embed.proj", part="embedding", weights=(kernel, bias), live_width=live_width)


def _extent(fields: Fields, name: str, length: int) -> tuple[int, ...]:
    """A size for each of `length` dimensions, given as one number for all or as a list."""
    if not isinstance(fields.raw(name), list):
        return (fields.size(name),) * length
    sizes = fields.sizes(name, length)
    if not all(0 < size <= _MOST_PATCH for size in sizes):
        raise ConfigError(f"{name} must hold sizes from 1 to {_MOST_PATCH}", field=name)
    return sizes


def _vision_blocks(fields: Fields) -> list[Block]:
    hidden, heads = fields.size("hidden_size"), fields.size("num_heads")
    if hidden % heads:
        raise ConfigError(f"num_heads {heads} must divide hidden_size {hidden}", field="num_heads")
    mixer = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        qkv_bias=True,
        output_bias=True,
        is_cached=False,
        name="attn",
    )
    width = fields.size("intermediate_size")
    return [
        norm("norm1", hidden, "layer_norm"),
        norm("norm2", hidden, "layer_norm"),
        mixer,
        feed_forward(hidden_size=hidden, intermediate_size=width, gated=False, bias=True),
    ]


def _head(fields: Fields, text: Fields, tied: bool) -> tuple[Block, ...]:
    hidden, task = text.size("hidden_size"), fields.task
    if task == "base":
        return ()
    if task in ("causal_lm", "image_text_to_text"):
        return (head("lm_head", hidden, text.size("vocab_size"), tied=tied),)
    if task in ("sequence_classification", "token_classification"):
        return (head("score", hidden, num_labels(fields), bias=task == "token_classification"),)
    raise UnsupportedModelError(f"classes for {task} are not supported for model_type {fields.data.model_type}")
