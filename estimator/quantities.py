"""Quantities as people write them, such as 20ms, 200MB or 5M, in base units."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable

from estimator.errors import InputError

__all__ = ["parse_quantity", "quantity"]

_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0}
_BYTES = {"B": 1.0} | {
    f"{prefix}{infix}B": float(base**power)
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate(("k" if base == 1000 else "K", "M", "G", "T"), start=1)
}
_FLOPS = {f"{prefix}{suffix}": factor for prefix, factor in {**_COUNTS, "P": 1e15}.items() for suffix in ("", "FLOPs")}
_BITS = {"": 1.0, "bits": 1.0}
_JOULES = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "kJ": 1e3, "Wh": 3.6e3, "kWh": 3.6e6}
# Scale of each accepted suffix by unit, and an example for the message.
_SCALES = {
    "": (_COUNTS, "a count such as 5M or 500k"),
    "s": (_SECONDS, "a time such as 20ms or 1.5s"),
    "bytes": (_BYTES, "a size such as 200MB or 1.5GiB"),
    "flops": (_FLOPS, "a number of FLOPs such as 3GFLOPs"),
    "bits": (_BITS, "a number of bits such as 2.5"),
    "j": (_JOULES, "an energy such as 20mJ or 1.5J"),
}


def parse_quantity(text: str | float, unit: str) -> float:
    """The value in base units of a text such as 20ms; `unit` is one of "", s, bytes, flops, bits, j.

    A number that is not a text is taken to be in base units.

    Raises:
        InputError: not a positive number, or its suffix is not one of this unit; says what would be right.
    """
    scales, example = _SCALES[unit]
    shown = text[:40] if isinstance(text, str) else text
    if isinstance(text, int | float) and not isinstance(text, bool):
        value = float(text)
    else:
        match = re.fullmatch(r"\s*(\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([^\W\d_]*)\s*", str(text))
        suffix = _known_suffix(match[2], scales) if match else None
        if match is None or suffix is None:
            raise InputError(f"{shown!r} is not {example} (suffixes: {_listed(scales)})")
        value = float(match[1]) * scales[suffix]
    if not math.isfinite(value) or value <= 0:
        raise InputError(f"{shown!r} must be finite and more than zero; give {example}")
    return value


def quantity(unit: str) -> Callable[[str], float]:
    """An argparse type: a quantity of this unit."""

    def parse(text: str) -> float:
        try:
            return parse_quantity(text, unit)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _known_suffix(suffix: str, scales: dict[str, float]) -> str | None:
    """The suffix as the table writes it: exactly, or else the only one that differs in case alone."""
    if suffix in scales:
        return suffix
    alike = [known for known in scales if known.lower() == suffix.lower()]
    return alike[0] if len(alike) == 1 else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "none" for name in names if name != "μs")
