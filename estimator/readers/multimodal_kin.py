"""Further language models that read images, in the form of `multimodal.py`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from estimator.blocks import head, linear, norm_weights
from estimator.errors import UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack
from estimator.readers.decoders import num_labels
from estimator.readers.encoders import idle
from estimator.readers.fields import Fields
from estimator.readers.multimodal import (
    Multimodal,
    Parts,
    Reader,
    merged_patches,
    multimodal_network,
    projection,
)
from estimator.readers.multimodal_families import MULTIMODAL
from estimator.readers.vision import vision_stack

__all__ = ["READERS"]


def _video_tower(parts: Parts) -> tuple[Stack, ...]:
    """video_llava: a second tower of the same form for videos, which stands idle for images."""
    tower = vision_stack(parts.vision, parts.facts, optional=True, prefix="video_tower.")
    return (
        replace(
            tower,
            before=tuple(idle(block) for block in tower.before),
            layers=tuple(Layer(blocks=tuple(idle(block) for block in layer.blocks)) for layer in tower.layers),
            after=tuple(idle(block) for block in tower.after),
            length=0,
        ),
    )


def _seeing_encoder(fields: Fields) -> Network:
    """modernvbert, ultravbert: a text encoder that also reads patches, which are shuffled into fewer, wider rows.

    Raises:
        UnsupportedModelError: the class's task is not known here.
    """
    fields.ignore("classifier_pooling", "classifier_bias")
    task, fields.task = fields.task, "base"  # what stands behind it is laid out here
    network = multimodal_network(fields, _SHUFFLED, _find_text)
    fields.task = task
    text, hidden = fields.sub("text_config"), fields.sub("text_config").size("hidden_size")
    before: tuple[Block, ...] = ()
    if "prediction_head_size" not in text.data.defaults:
        kind = "layer_norm" if text.flag("norm_bias") else "layer_norm_without_bias"
        weights = linear("head.dense", hidden, hidden, bias=text.flag("classifier_bias"), quantized=False)
        weights += norm_weights("head.norm", hidden, kind)
        before = (Block(name="", part="head", weights=weights, live_width=2 * hidden),)
    elif fields.task == "masked_lm":
        inner = text.size("prediction_head_size")
        weights = linear("head.linear1", hidden, inner) + linear("head.linear2", inner, hidden)
        before = (Block(name="", part="head", weights=weights, live_width=hidden + inner),)
    if fields.task == "base":
        return network
    if fields.task == "masked_lm":
        bias, tied = text.flag("decoder_bias"), fields.flag("tie_word_embeddings")
        last = head("lm_head", hidden, text.size("vocab_size"), bias=bias, tied=tied)
    elif fields.task in ("sequence_classification", "token_classification"):
        positions = 1 if fields.task == "sequence_classification" else None
        before = tuple(replace(block, positions=positions) for block in before)
        last = head("classifier", hidden, num_labels(fields), bias=True, positions=positions)
    else:
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    main = replace(network.main, after=(*network.main.after, *before, last))
    return replace(network, stacks=(*network.stacks[:-1], main))


def _shuffled(parts: Parts) -> tuple[Block, ...]:
    factor = parts.fields.size("pixel_shuffle_factor")
    rows, text = merged_patches(parts.patches, factor), parts.text_size
    last = norm_weights("norm", text, "rms_norm") if "prediction_head_size" in parts.text.data.defaults else ()
    return (projection("connector", (parts.vision_size * factor**2, text), positions=rows, bias=False, extra=last),)


_SHUFFLED = Multimodal(projector=_shuffled)
_LLAVA = MULTIMODAL["llava"]
FAMILIES: Mapping[str, Multimodal] = {
    "llava_next_video": replace(
        MULTIMODAL["llava_next"],
        ignored=(*_LLAVA.ignored, "spatial_pool_mode", "spatial_pool_stride", "video_seq_length"),
    ),
    "video_llava": replace(
        _LLAVA, between=_video_tower, text_ties=False, ignored=(*_LLAVA.ignored, "video_seq_length")
    ),
}


def _find_text(model_type: str) -> Reader | None:
    from estimator.readers.networks import find_reader  # which loads the families, this module among them

    return find_reader(model_type)


READERS: Mapping[str, Reader] = {
    **{
        name: functools.partial(multimodal_network, facts=facts, find_text=_find_text)
        for name, facts in FAMILIES.items()
    },
    "modernvbert": _seeing_encoder,
    "ultravbert": _seeing_encoder,
}
