"""Numbers as people read them, on a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["print_json", "shorten"]


def shorten(value: float, unit: str) -> str:
    """Three or four digits with a decimal prefix: 1.235 G."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}{unit}".rstrip()
    for factor, prefix in ((1e-3, "m"), (1e-6, "µ")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
