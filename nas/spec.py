"""Everything that a search was asked for, in one record: the command line and the API share its defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from estimator.errors import InputError
from estimator.workload import Workload
from nas.errors import ObjectiveError, UsageError
from nas.objectives import OBJECTIVES, Constraint, Objective, default_objectives, parse_constraint, parse_objective
from nas.space import SearchSpace

__all__ = ["DEVICES", "EVALUATORS", "SAMPLERS", "QualitySettings", "StudySpec"]

SAMPLERS = ("auto", "random", "nsga2", "tpe", "gp")
DEVICES = ("cpu", "cuda")
EVALUATORS = ("train", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualitySettings:
    """How a candidate's quality is found: the same budget for every trial.

    evaluator: "train" (from scratch on `data`), "none", or a user's "module:function".
    data: files or folders; empty means the source of this Python's standard library.
    tokens: training budget in tokens (repeatable to the bit at a fixed seed and thread count); or
    seconds: training budget in seconds. Exactly one of the two is set.

    Raises:
        UsageError: names the setting and says what would be right.
    """

    evaluator: str = "train"
    data: tuple[str, ...] = ()
    tokens: int | None = 262_144
    seconds: float | None = None
    sequence_length: int = 128
    batch_size: int = 8
    learning_rate: float = 5e-3
    heldout_tokens: int = 32_768
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.data, tuple) or not all(isinstance(path, str) and path for path in self.data):
            raise UsageError(f"data must be a list of files or folders, not {self.data!r}")
        if self.evaluator not in EVALUATORS and not re.fullmatch(r"[\w.]+:\w+", str(self.evaluator)):
            raise UsageError(f"evaluator must be train, none or module:function, not {self.evaluator!r}")
        if (self.tokens is None) == (self.seconds is None):
            raise UsageError("give the training budget in tokens or in seconds: exactly one of the two")
        for name in ("tokens", "seconds"):
            if getattr(self, name) is not None:
                _check_number(self, name, 1 if name == "tokens" else 0.0)
        for name in ("sequence_length", "batch_size", "heldout_tokens"):
            _check_number(self, name, 1)
        _check_number(self, "learning_rate", 0.0)
        _check_number(self, "seed", 0)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "data": list(self.data)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QualitySettings:
        """Reads what `to_dict` wrote; a setting that is left out has its default.

        A budget in seconds alone replaces the default budget in tokens.

        Raises:
            UsageError: a setting is unknown or wrong.
        """
        _check_fields(cls, values, "quality")
        given = dict(values)
        if given.get("seconds") is not None:
            given.setdefault("tokens", None)
        if isinstance(given.get("data"), list):
            given["data"] = tuple(given["data"])
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpec:
    """A search: where, for what, by which sampler, for how many trials.

    `to_dict` and `from_dict` round-trip through JSON. Without objectives it is bits per byte and the latency that
    dominates: decode for a decoder, prefill for an encoder. `num_trials` counts the candidates that are evaluated,
    complete or in vain, not those that an estimate or the store answers.

    Raises:
        UsageError: names the field and says what would be right.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    num_trials: int = 14
    sampler: str = "auto"
    seed: int = 0
    device: str = "cpu"  # execution provider on this machine: cpu or cuda
    num_threads: int | None = None  # None: all physical cores
    workload: Workload = field(default_factory=Workload)
    quality: QualitySettings = field(default_factory=QualitySettings)
    trial_time_limit_s: float = 600.0

    def __post_init__(self) -> None:
        _check_records(self)
        if not self.objectives:
            object.__setattr__(self, "objectives", default_objectives(self.space.architecture))
        _check_unique("objectives", [objective.name for objective in self.objectives])
        _check_unique("constraints", [constraint.objective for constraint in self.constraints])
        for name in (constraint.objective for constraint in self.constraints):
            if name not in OBJECTIVES and name not in (objective.name for objective in self.objectives):
                raise ObjectiveError(f"the limit on {name} has no objective of that name; it is unknown")
        if self.space.architecture == "encoder":
            for name in self.required_figures:
                if name.startswith("decode_"):
                    raise ObjectiveError(f"{name} is for decoders; the encoders of {self.space.name} do not decode")
        _check_number(self, "num_trials", 1)
        _check_number(self, "seed", 0)
        if self.num_threads is not None:
            _check_number(self, "num_threads", 1)
        _check_number(self, "trial_time_limit_s", 0.0)
        self._check_lengths()
        for name, allowed in (("sampler", SAMPLERS), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(allowed)}")

    def _check_lengths(self) -> None:
        positions = self.space.base["max_position_embeddings"]
        for name, length in (
            ("prompt_length and generated_length together", self.workload.context_length),
            ("sequence_length", self.quality.sequence_length),
        ):
            if length > positions:
                raise UsageError(
                    f"{name}: {length} tokens, but the models of {self.space.name} have {positions} positions"
                )

    @property
    def required_figures(self) -> tuple[str, ...]:
        """Names of the figures that a complete trial has: all objectives and all that is limited."""
        limited = (constraint.objective for constraint in self.constraints)
        return tuple(dict.fromkeys([*(objective.name for objective in self.objectives), *limited]))

    def check_evaluable(self) -> None:
        """Raises ObjectiveError if an objective is not one that the search itself can evaluate."""
        has_own_evaluator = self.quality.evaluator not in EVALUATORS
        for name in self.required_figures:
            if name not in OBJECTIVES:
                if has_own_evaluator:
                    continue  # it is the evaluator's to answer
                raise ObjectiveError(
                    f"{name} needs an evaluator of your own (module:function); without one, choose among "
                    f"{', '.join(OBJECTIVES)}"
                )
            if OBJECTIVES[name].source == "quality" and self.quality.evaluator == "none":
                raise ObjectiveError(f"{name} needs an evaluator: train, or module:function")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back to an equal spec."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return own | {
            "space": self.space.to_dict(),
            "objectives": [objective.to_dict() for objective in self.objectives],
            "constraints": [constraint.to_dict() for constraint in self.constraints],
            "workload": asdict(self.workload),
            "quality": self.quality.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudySpec:
        """Reads what `to_dict` wrote, and what people write: a field that is left out has its default.

        `space` may be the name of a preset, an objective may be its name, and a limit a text such as "20ms".

        Raises:
            UsageError: a field is unknown, missing or wrong; the message names it.
        """
        _check_fields(cls, values, "study")
        if "space" not in values:
            raise UsageError("the study lacks its space; give a preset's name or a table")
        space = _read_space(values["space"])
        read = dict(values) | {"space": space}
        if "objectives" in values:
            entries = _as_list("objectives", values["objectives"])
            read["objectives"] = tuple(_read_objective(entry, space.architecture) for entry in entries)
        if "constraints" in values:
            entries = _as_list("constraints", values["constraints"])
            read["constraints"] = tuple(_read_constraint(entry, space.architecture) for entry in entries)
        if "workload" in values:
            read["workload"] = _read_workload(values["workload"])
        if "quality" in values:
            read["quality"] = QualitySettings.from_dict(values["quality"])
        return cls(**read)


def _read_space(value: object) -> SearchSpace:
    if isinstance(value, str):
        return SearchSpace.preset(value)
    if not isinstance(value, Mapping):
        raise UsageError(f"space must be a preset's name or a table, not {value!r}")
    return SearchSpace.from_dict(value)


def _read_objective(entry: object, architecture: str) -> Objective:
    if isinstance(entry, str):
        return parse_objective(entry, architecture)
    if not isinstance(entry, Mapping) or not {"name"} <= set(entry) <= {"name", "direction"}:
        raise UsageError(f"an objective is a name, or a table with name and direction, not {entry!r}")
    return Objective(entry["name"], entry.get("direction"))


def _read_constraint(entry: object, architecture: str) -> Constraint:
    if not isinstance(entry, Mapping) or set(entry) != {"objective", "limit"}:
        raise UsageError(f"a constraint is a table with objective and limit, not {entry!r}")
    name, limit = str(entry["objective"]), entry["limit"]
    if isinstance(limit, str):
        return parse_constraint(name, limit, architecture)
    return Constraint(name, limit)


def _read_workload(values: object) -> Workload:
    if not isinstance(values, Mapping):
        raise UsageError(f"workload must be a table, not {values!r}")
    _check_fields(Workload, values, "workload")
    try:
        return Workload(**values)
    except InputError as error:
        raise UsageError(f"workload: {error}") from error


def _as_list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} must be a list, not {value!r}")
    return list(value)


def _check_fields(record: type, values: object, where: str) -> None:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must be a table of fields, not {values!r}")
    known = [entry.name for entry in fields(record)]
    for name in values:
        if name not in known:
            raise UsageError(f"unknown field {name!r} in {where}; known fields: {', '.join(known)}")


def _check_records(spec: StudySpec) -> None:
    """A name where a record belongs is a mistake that Python's users make."""
    entries = {"space": (spec.space,), "objectives": spec.objectives, "constraints": spec.constraints}
    for name, kind in (("space", SearchSpace), ("objectives", Objective), ("constraints", Constraint)):
        for entry in entries[name]:
            if not isinstance(entry, kind):
                raise UsageError(f"{name} takes records of {kind.__name__}, not {entry!r}")


def _check_unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what} name {name} twice")


def _check_number(record: object, name: str, least: float) -> None:
    """An integer from `least` to 2^31 - 1 where `least` is one, else a finite number above it."""
    value = getattr(record, name)
    integer = isinstance(least, int)
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if right and integer:
        right = isinstance(value, int) and least <= value < 2**31
    elif right:
        right = value > least
    if not right:
        wanted = f"an integer from {least} to 2^31 - 1" if integer else f"a number above {least:g}"
        raise UsageError(f"{name} must be {wanted}, not {value!r}")
