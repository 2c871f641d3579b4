"""Everything that a search was asked for, in one record: the command line and the API share its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from estimator.workload import Workload
from nas.objectives import Constraint, Objective
from nas.space import SearchSpace

__all__ = ["QualitySettings", "StudySpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualitySettings:
    """How a candidate's quality is found: the same budget for every trial.

    evaluator: "train" (from scratch on `data`), "none", or a user's "module:function".
    data: files or folders; empty means the source of this Python's standard library.
    tokens: training budget in tokens (repeatable to the bit at a fixed seed and thread count); or
    seconds: training budget in seconds. Exactly one of the two is set.
    """

    evaluator: str = "train"
    data: tuple[str, ...] = ()
    tokens: int | None = 262_144
    seconds: float | None = None
    sequence_length: int = 128
    batch_size: int = 16
    learning_rate: float = 3e-3
    heldout_tokens: int = 32_768
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpec:
    """A search: where, for what, by which sampler, for how many trials.

    `to_dict` and `from_dict` round-trip through JSON.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    num_trials: int = 16
    sampler: str = "auto"
    seed: int = 0
    device: str = "cpu"  # execution provider on this machine: cpu or cuda
    num_threads: int | None = None  # None: all physical cores
    workload: Workload = field(default_factory=Workload)
    quality: QualitySettings = field(default_factory=QualitySettings)
    trial_time_limit_s: float = 600.0
