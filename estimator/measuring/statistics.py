"""Means, percentiles and the bootstrap interval of a median. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["block_means", "block_medians", "bootstrap_median", "percentile"]

_NUM_RESAMPLES = 1000


def bootstrap_median(values: Sequence[float], *, seed: int, level: float = 0.95) -> tuple[float, float, float]:
    """The median of the values and its percentile bootstrap interval (median, low, high).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, array.size, (_NUM_RESAMPLES, array.size))
    medians = np.median(array[picks], axis=1)
    middle = float(np.median(array))
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return middle, min(float(low), middle), max(float(high), middle)


def block_means(blocks: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each block."""
    return [sum(block) / len(block) for block in blocks]


def block_medians(blocks: Sequence[Sequence[float]]) -> list[float]:
    """The median of each block."""
    return [float(np.median(block)) for block in blocks]


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))
