"""What the store holds, as frozen records.

Trial states are Optuna's words: running, complete, pruned (an estimate already broke a constraint: nothing was built),
fail (built or measured in vain; the reason is stored).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.spec import StudySpec

__all__ = [
    "STUDY_STATES",
    "TRIAL_STATES",
    "Artifact",
    "Event",
    "KnownQuality",
    "Observation",
    "StudyRecord",
    "TrialRecord",
]

TRIAL_STATES = ("running", "complete", "pruned", "fail")
# new: nothing asked yet. running: a process works on it. stopped: interrupted, can be resumed. finished: budget spent.
STUDY_STATES = ("new", "running", "stopped", "finished", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One value of one objective, as it arrived. The latest observation of an objective is its value."""

    objective: str
    figure: Figure
    cost_s: float
    created_at: datetime

    def to_dict(self) -> dict[str, Any]:
        figure = self.figure.to_dict()
        return {"objective": self.objective, **figure, "cost_s": self.cost_s, "created_at": self.created_at.isoformat()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The one ONNX file of a trial, which was measured, scored and is shipped."""

    sha256: str
    path: str  # relative to the store's artefact folder
    file_bytes: int
    opset: int
    num_params: int
    weight_dtype: str
    weights_path: str | None  # safetensors with the trained fp32 weights, relative as well
    architecture_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownQuality:
    """A score that was paid for already, and the file it belongs to."""

    artifact_sha256: str
    quality: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One proposal and all that is known of it.

    `params` are the raw choices of the search space by field; `config` the architecture they make. `measurement` and
    `quality` are the JSON forms of `estimator.measuring.Measurement` and `nas.quality.scoring.Quality`.
    """

    study_id: str
    number: int
    state: str
    params: dict[str, Any]
    config: TransformerConfig
    architecture_hash: str
    observations: tuple[Observation, ...]
    created_at: datetime
    finished_at: datetime | None = None
    error_type: str | None = None
    error_text: str | None = None
    duplicate_of: int | None = None
    sampler_state: dict[str, Any] | None = None
    artifact: Artifact | None = None
    measurement: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None

    @property
    def figures(self) -> dict[str, Figure]:
        """Latest figure of each objective that has been observed."""
        return {observation.objective: observation.figure for observation in self.observations}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything but the sampler's own state; `figures` has the latest of each objective."""
        return {
            "number": self.number,
            "state": self.state,
            "params": self.params,
            "config": self.config.to_dict(),
            "architecture_hash": self.architecture_hash,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "observations": [observation.to_dict() for observation in self.observations],
            "created_at": self.created_at.isoformat(),
            "finished_at": None if self.finished_at is None else self.finished_at.isoformat(),
            "error_type": self.error_type,
            "error_text": self.error_text,
            "duplicate_of": self.duplicate_of,
            "artifact": None if self.artifact is None else asdict(self.artifact),
            "measurement": self.measurement,
            "quality": self.quality,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study as stored: what was asked for, and where it stands. `revision` grows with every change to the study."""

    id: str
    name: str
    spec: StudySpec
    state: str
    created_at: datetime
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a study; `id` grows without gaps in a store."""

    id: int
    study_id: str
    kind: str
    payload: dict[str, Any]
    created_at: datetime
