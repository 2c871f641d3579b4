"""Further language models that read images, in the form of `multimodal.py`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from estimator.network import Layer, Stack
from estimator.readers.encoders import idle
from estimator.readers.multimodal import Multimodal, Parts, Reader, multimodal_network
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
    name: functools.partial(multimodal_network, facts=facts, find_text=_find_text) for name, facts in FAMILIES.items()
}
