"""Models that put texts and images into one space: a text encoder and a vision encoder, each with its projection."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from estimator.blocks.common import head
from estimator.errors import UnsupportedModelError
from estimator.network import Block, Network, Stack, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.families.encoders import Encoder, encoder_stack
from estimator.readers.families.vision import vision_stack
from estimator.readers.families.vision_families import VISION
from estimator.readers.fields import Fields

__all__ = ["READERS", "Dual", "dual_network", "text_network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dual:
    """The facts of a family: has_projections: both towers end in a matrix to `projection_dim`; otherwise the text tower
    has one to `projection_size`. scalars: numbers that the similarity is scaled and shifted with.
    """

    has_projections: bool
    scalars: int


_TEXT = Encoder(norm_first=True, final_norm=True, embedding_norm=False, segments=0)
_CLIP = Dual(has_projections=True, scalars=1)
_SIGLIP = Dual(has_projections=False, scalars=2)


def text_network(fields: Fields, facts: Dual) -> Network:
    """The text tower on its own."""
    after = _text_head(fields) if not facts.has_projections else ()
    if fields.task == "projection":
        hidden = fields.size("hidden_size")
        after = (head("text_projection", hidden, fields.size("projection_dim"), positions=1),)
    fields.ignore("projection_dim")
    return Network(
        architecture="encoder",
        stacks=(_text_stack(fields, facts, after),),
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings"),
        learned_positions=True,
    )


def dual_network(fields: Fields, facts: Dual) -> Network:
    """Both towers, for one image and one text per sequence; or the vision tower with a classifier.

    Ignores: the products of every image with every text.
    """
    vision, text = (_part(fields, facts, name) for name in ("vision_config", "text_config"))
    for name, part in (("vision_config", vision), ("text_config", text)):
        if part.data.model_type != fields.data.sub_configs[name]:
            raise UnsupportedModelError(f"{name} of model_type {part.data.model_type} is not supported")
    seen = VISION[vision.data.model_type]
    vision.ignore("projection_dim")
    text.ignore("projection_dim")
    if fields.task == "image_classification":
        classifier = head("classifier", vision.size("hidden_size"), num_labels(fields), bias=True, positions=1)
        fields.ignore("projection_dim", "text_config")
        _text_stack(text, facts, _text_head(text) if not facts.has_projections else ())
        stack = vision_stack(vision, seen, after=(classifier,), prefix="vision_model.")
        return Network(architecture="encoder", stacks=(stack,), model_type=fields.data.model_type)
    if fields.task != "base":
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    image_head: tuple[Block, ...] = ()
    text_head = () if facts.has_projections else _text_head(text)
    if facts.has_projections:
        width = fields.size("projection_dim")
        image_head = (head("visual_projection", vision.size("hidden_size"), width, positions=1),)
        text_head = (head("text_projection", text.size("hidden_size"), width, positions=1),)
    scale = Weight(name="logit_scale", shape=(facts.scalars,), role="other")
    text_head += (Block(name="", part="head", weights=(scale,), positions=1),)
    return Network(
        architecture="encoder",
        stacks=(
            vision_stack(vision, seen, after=image_head, prefix="vision_model."),
            replace(_text_stack(text, facts, text_head), prefix="text_model."),
        ),
        model_type=fields.data.model_type,
        vocab_size=text.size("vocab_size"),
        max_position_embeddings=text.size("max_position_embeddings"),
        learned_positions=True,
    )


def _part(fields: Fields, facts: Dual, name: str) -> Fields:
    """The nested config, or in CLIP's older ones the `*_config_dict`, which wins over it as a whole."""
    older = f"{name}_dict"
    if not facts.has_projections or not fields.given(older):
        return fields.sub(name)
    fields.ignore(name)
    return fields.sub(older, family=fields.data.sub_configs[name])


def _text_stack(fields: Fields, facts: Dual, after: tuple[Block, ...]) -> Stack:
    """CLIP's text tower attends under a causal mask, SigLIP's to everything."""
    return replace(encoder_stack(fields, _TEXT, after=after), name="text", is_causal=facts.has_projections)


def _text_head(fields: Fields) -> tuple[Block, ...]:
    hidden = fields.size("hidden_size")
    return (head("head", hidden, fields.optional_size("projection_size") or hidden, bias=True, positions=1),)


READERS: Mapping[str, Callable[[Fields], Network]] = {
    **{name: functools.partial(dual_network, facts=_CLIP) for name in ("clip", "metaclip_2")},
    **{name: functools.partial(dual_network, facts=_SIGLIP) for name in ("siglip", "siglip2")},
    **{
        f"{name}_text_model": functools.partial(text_network, facts=facts)
        for name, facts in (("clip", _CLIP), ("metaclip_2", _CLIP), ("siglip", _SIGLIP), ("siglip2", _SIGLIP))
    },
}
