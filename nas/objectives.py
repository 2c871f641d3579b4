"""What a search can ask for: objectives and limits by name, with unit, direction and origin."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from estimator import quantities
from estimator.errors import InputError
from nas.errors import ObjectiveError

__all__ = [
    "ALIASES",
    "DIRECTIONS",
    "OBJECTIVES",
    "Constraint",
    "Objective",
    "ObjectiveInfo",
    "default_objectives",
    "parse_constraint",
    "parse_objective",
    "parse_quantity",
    "resolve_name",
]

DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveInfo:
    """One row of the table of objectives.

    source: estimate (known from the config before anything is built), measurement (ONNX Runtime on the device),
    artifact (the ONNX file) or quality (scored on held-out text). screened_by: the quantity of `estimate()` that is
    compared with a limit on this objective before anything is built, or None when only building and running can tell.
    """

    name: str
    label: str
    unit: str
    direction: str
    source: str
    screened_by: str | None = None


OBJECTIVES: dict[str, ObjectiveInfo] = {
    info.name: info
    for info in (
        ObjectiveInfo(name="bits_per_byte", label="bits per byte", unit="bits", direction="minimize", source="quality"),
        ObjectiveInfo(
            name="decode_latency_s", label="decode latency", unit="s", direction="minimize", source="measurement"
        ),
        ObjectiveInfo(
            name="prefill_latency_s", label="prefill latency", unit="s", direction="minimize", source="measurement"
        ),
        ObjectiveInfo(
            name="peak_memory_bytes",
            label="peak memory",
            unit="bytes",
            direction="minimize",
            source="measurement",
            screened_by="memory_bytes",
        ),
        ObjectiveInfo(
            name="file_bytes",
            label="file size",
            unit="bytes",
            direction="minimize",
            source="artifact",
            screened_by="weights_bytes",
        ),
        ObjectiveInfo(
            name="params",
            label="parameters",
            unit="",
            direction="minimize",
            source="estimate",
            screened_by="params",
        ),
        ObjectiveInfo(
            name="prefill_flops",
            label="prefill FLOPs",
            unit="flops",
            direction="minimize",
            source="estimate",
            screened_by="prefill_flops",
        ),
        ObjectiveInfo(
            name="decode_flops_per_token",
            label="decode FLOPs per token",
            unit="flops",
            direction="minimize",
            source="estimate",
            screened_by="decode_flops_per_token",
        ),
        ObjectiveInfo(
            name="weights_bytes",
            label="weights",
            unit="bytes",
            direction="minimize",
            source="estimate",
            screened_by="weights_bytes",
        ),
    )
}
# Short names that people type. `latency` is the phase that dominates: decode for a decoder, prefill for an encoder.
ALIASES = {"memory": "peak_memory_bytes", "quality": "bits_per_byte", "file_size": "file_bytes"}


@dataclass(frozen=True, slots=True)
class Objective:
    """A named figure to make as small or as large as possible.

    The direction of a name in `OBJECTIVES` is known; any other name needs one, and its values are told from outside.

    Raises:
        ObjectiveError: the name is unknown and no direction is given, or the direction is unknown or contradicts the
            table.
    """

    name: str
    direction: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise ObjectiveError(f"an objective is named in lower case letters, digits and _, not {self.name!r}")
        info = OBJECTIVES.get(self.name)
        if self.direction is None:
            if info is None:
                raise ObjectiveError(_unknown(self.name) + ", or give a direction (minimize or maximize) with it")
            object.__setattr__(self, "direction", info.direction)
        if self.direction not in DIRECTIONS:
            raise ObjectiveError(f"direction of {self.name} must be minimize or maximize, not {self.direction!r}")
        if info is not None and self.direction != info.direction:
            raise ObjectiveError(f"{self.name} is to {info.direction}, not to {self.direction}")

    @property
    def minimized(self) -> bool:
        return self.direction == "minimize"

    @property
    def info(self) -> ObjectiveInfo | None:
        """Its row in the table, or None for a figure that is told from outside."""
        return OBJECTIVES.get(self.name)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "direction": self.direction}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A figure that may be at most `limit`, in the figure's base unit.

    Raises:
        ObjectiveError: the limit is not a positive finite number.
    """

    objective: str
    limit: float

    def __post_init__(self) -> None:
        number = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        if not number or not math.isfinite(self.limit) or self.limit <= 0:
            raise ObjectiveError(f"the limit on {self.objective} must be a positive number, not {self.limit!r}")
        object.__setattr__(self, "limit", float(self.limit))

    def is_met(self, value: float) -> bool:
        return value <= self.limit

    def violation(self, value: float) -> float:
        """By which share of the limit the value exceeds it; zero or less when it is met."""
        return value / self.limit - 1.0

    def to_dict(self) -> dict[str, Any]:
        return {"objective": self.objective, "limit": self.limit}


def default_objectives(architecture: str) -> tuple[Objective, ...]:
    """What a search minimises unless told otherwise: quality, and the latency that dominates."""
    return Objective("bits_per_byte"), Objective(resolve_name("latency", architecture))


def resolve_name(name: str, architecture: str) -> str:
    """The full name in `OBJECTIVES` of a full or short name.

    Raises:
        ObjectiveError: no such name; the message lists those there are.
    """
    if name == "latency":
        return "decode_latency_s" if architecture == "decoder" else "prefill_latency_s"
    full = ALIASES.get(name, name)
    if full not in OBJECTIVES:
        raise ObjectiveError(_unknown(name))
    return full


def parse_objective(text: str, architecture: str) -> Objective:
    """The objective that a full or short name stands for, or `name:direction` for one of an evaluator's own.

    Raises:
        ObjectiveError: no such name, and no direction with it; the message lists the names there are.
    """
    name, _, direction = text.strip().partition(":")
    if direction and ALIASES.get(name, name) not in OBJECTIVES and name != "latency":
        return Objective(name, direction)
    return Objective(resolve_name(name, architecture), direction or None)


def parse_constraint(name: str, text: str | float, architecture: str) -> Constraint:
    """The limit that `--max-<name> <text>` stands for, such as latency and 20ms.

    Raises:
        ObjectiveError: the name is unknown, or the text is not a quantity of its unit.
    """
    full = resolve_name(name, architecture)
    try:
        return Constraint(full, parse_quantity(text, OBJECTIVES[full].unit))
    except ObjectiveError as error:
        raise ObjectiveError(f"limit on {name}: {error}") from error


def parse_quantity(text: str | float, unit: str) -> float:
    """As `estimator.quantities.parse_quantity`.

    Raises:
        ObjectiveError: not a positive number, or its suffix is not one of this unit; says what would be right.
    """
    try:
        return quantities.parse_quantity(text, unit)
    except InputError as error:
        raise ObjectiveError(str(error)) from error


def _unknown(name: str) -> str:
    known = ", ".join((*OBJECTIVES, "latency", *ALIASES))
    return f"unknown objective {name!r}; choose one of {known}"
