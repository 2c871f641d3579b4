"""A number that carries where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["ORIGINS", "Figure"]

# counted: exact, from the config. modelled: a formula. predicted: learnt, with an interval.
# measured: ran on hardware, with samples. published: a datasheet, with its source.
ORIGINS = ("counted", "modelled", "predicted", "measured", "published")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One finite value with its origin and, where there is one, the interval [low, high].

    Raises:
        ValueError: the value is not finite, the origin is unknown or the interval does not hold the value.
    """

    value: float
    origin: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} must be finite, not {number!r}")
        if self.origin not in ORIGINS:
            raise ValueError(f"origin must be one of {', '.join(ORIGINS)}, not {self.origin!r}")
        if (self.low is not None and self.low > self.value) or (self.high is not None and self.high < self.value):
            raise ValueError(f"the interval [{self.low}, {self.high}] does not hold {self.value}")

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "origin": self.origin}
