"""Rotary positions: how fast each pair of dimensions turns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.errors import BuildError

__all__ = ["inverse_frequencies"]

Frequencies = NDArray[np.float32]


def inverse_frequencies(config: TransformerConfig) -> Frequencies:
    """Radians per position of each pair of dimensions, fp32 [H/2]: theta^(-2i/H), then scaled by `rope_scaling`.

    Source: RoFormer, arXiv:2104.09864, equation 15.

    Raises:
        BuildError: the rope_scaling is of a type that cannot be built, or a number of it is missing or impossible.
    """
    head_dim = config.resolved_head_dim
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (np.float32(1) / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    if config.rope_scaling is None:
        return frequencies
    table = json.loads(config.rope_scaling)
    kind = table.get("rope_type")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise BuildError(f"rope_scaling of type {kind!r} cannot be built; these can: {', '.join(_SCALINGS)}")
    return _SCALINGS[kind](frequencies, table).astype(np.float32)


def _number(table: Mapping[str, Any], name: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BuildError(f"{name} of rope_scaling must be a positive number, not {value!r}")
    return float(value)


def _linear(frequencies: Frequencies, table: Mapping[str, Any]) -> Frequencies:
    """Every position is divided by the factor. Source: Position Interpolation, arXiv:2306.15595, equation 4."""
    return frequencies / np.float32(_number(table, "factor"))


def _llama3(frequencies: Frequencies, table: Mapping[str, Any]) -> Frequencies:
    """Long waves are divided by the factor, short ones kept, those between blended.

    Source: Llama 3.1's reference code, `apply_scaling` of https://github.com/meta-llama/llama-models.
    """
    low, high = _number(table, "low_freq_factor"), _number(table, "high_freq_factor")
    if low >= high:
        raise BuildError(f"low_freq_factor {low:g} of rope_scaling must be less than high_freq_factor {high:g}")
    turns = np.float32(_number(table, "original_max_position_embeddings")) * frequencies / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: Frequencies = kept * frequencies + (1 - kept) * frequencies / np.float32(_number(table, "factor"))
    return blended


_SCALINGS: dict[str, Callable[[Frequencies, Mapping[str, Any]], Frequencies]] = {"linear": _linear, "llama3": _llama3}
