"""How many parameters a config has, by part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.weights import PARTS, part_of, weight_shapes

__all__ = ["ParamCount", "count_by_part", "count_params"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamCount:
    """Exact numbers of stored parameters; tied and shared weights count once, buffers never.

    `active` is what one token passes through: all of them, as long as there are no experts to choose from.
    `embedding` is the lookup tables (tokens, positions, token types), which a tied head shares.
    """

    total: int
    active: int
    embedding: int
    non_embedding: int
    by_part: dict[str, int]


def count_params(config: TransformerConfig) -> ParamCount:
    """The exact parameter count: the sum over `weight_shapes`."""
    by_part = count_by_part(weight_shapes(config).items())
    total = sum(by_part.values())
    return ParamCount(
        total=total,
        active=total,
        embedding=by_part["embedding"],
        non_embedding=total - by_part["embedding"],
        by_part=by_part,
    )


def count_by_part(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Elements of the named shapes, summed by part of the model."""
    by_part = dict.fromkeys(PARTS, 0)
    for name, shape in shapes:
        by_part[part_of(name)] = by_part[part_of(name)] + math.prod(shape)
    return by_part
