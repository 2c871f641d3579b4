"""Sums of products as text: equal terms once, with how often they occur in front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from estimator.network import Weight

__all__ = ["Row", "plus", "product", "shapes_sum", "terms_sum"]

Row = tuple[str, str, str, float, str]
"""Figure, formula, numbers, value, source: a derivation before its origin is known."""


def terms_sum(terms: Iterable[tuple[int, ...]]) -> str:
    """The sum of the products of these factors: [(3, 4), (3, 4), (5,)] is "2 × 3 × 4 + 5"; "0" without terms."""
    counted = Counter(terms)
    return " + ".join(product(times, *term) if times > 1 else product(*term) for term, times in counted.items()) or "0"


def shapes_sum(weights: Iterable[Weight]) -> str:
    """The sum of the elements of weights that are stored."""
    return terms_sum((weight.copies, *weight.shape) if weight.copies > 1 else weight.shape for weight in weights)


def product(*factors: int) -> str:
    """The product of the factors."""
    return " × ".join(map(str, factors))


def plus(figures: Mapping[str, int]) -> str:
    """The sum of all figures that are not 0."""
    return " + ".join(str(value) for value in figures.values() if value) or "0"
