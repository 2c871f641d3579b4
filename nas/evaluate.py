"""One candidate, paid for once: train, build, score, measure. Each result is stored the moment it exists.

1. Quality: answered from the store when the same architecture was trained on the same data with the same budget and
   its file is still intact; otherwise made in a child process (`nas.quality.task`).
2. Measurement: answered from the store for the same file, workload, device and plan; otherwise measured.

A trial that was interrupted therefore repeats only the step that was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from estimator.errors import EstimatorError, MeasurementError, StorageFullError
from estimator.figures import Figure
from estimator.measuring import Measurement, MeasurementPlan, host_fingerprint, measure
from nas.errors import EvaluationError
from nas.executor import ChildExecutor
from nas.objectives import OBJECTIVES
from nas.quality.task import QualityTask, ScoredArtifact, quality_key, train_build_score
from nas.records import Artifact
from nas.spec import StudySpec
from nas.store import Store
from nas.study import Trial

__all__ = ["Evaluator", "Progress", "measured_figures", "measurement_key"]

# Told while a candidate is evaluated: the step's name and the fraction of it that is done (None: not known).
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Evaluates the trials of one study on this machine; a call returns the figures by objective.

    Raises (from a call):
        EvaluationError: the candidate failed; its `reason` says how. The search goes on.
        StorageFullError: there is no space left; the search stops, and the trial is repeated when it goes on.
    """

    store: Store
    study_id: str
    spec: StudySpec
    folder: Path
    executor: ChildExecutor
    data_fingerprint: str

    def __call__(self, trial: Trial, progress: Progress) -> dict[str, Figure]:
        deadline = time.monotonic() + self.spec.trial_time_limit_s
        scored = self._scored(trial, progress, deadline)
        measurement = self._measurement(trial, scored.artifact, progress, deadline)
        figures = _quality_figures(scored.quality) | _artifact_figures(scored.artifact)
        return figures | measured_figures(measurement)

    def _scored(self, trial: Trial, progress: Progress, deadline: float) -> ScoredArtifact:
        task = QualityTask(
            config=trial.config,
            settings=self.spec.quality,
            weight_dtype=self.spec.workload.weight_dtype,
            num_threads=self.spec.num_threads,
            provider=self.spec.device,
            folder=self.folder,
        )
        key = quality_key(task, self.data_fingerprint)
        scored = self._known_quality(key)
        cost_s = 0.0
        if scored is None:
            started = time.monotonic()
            scored = self._in_child(task, key, progress, deadline)
            self._check_names(scored.quality)
            cost_s = time.monotonic() - started
            self.store.save_artifact(scored.artifact)
            self.store.save_quality(key, scored.artifact.sha256, scored.quality)
        self.store.attach_artifact(self.study_id, trial.number, scored.artifact.sha256)
        self.store.attach_quality(self.study_id, trial.number, key)
        self._observe(trial, _quality_figures(scored.quality), cost_s)
        self._observe(trial, _artifact_figures(scored.artifact), 0.0)
        return scored

    def _known_quality(self, key: str) -> ScoredArtifact | None:
        """What the store knows, if the artefact it belongs to is still there, whole."""
        known = self.store.find_quality(key)
        if known is None:
            return None
        artifact = self.store.find_artifact(known.artifact_sha256)
        if artifact is None or not _is_intact(self.folder / artifact.path, artifact.sha256):
            return None
        return ScoredArtifact(artifact=artifact, quality=known.quality)

    def _check_names(self, quality: dict[str, Any]) -> None:
        for name in quality["figures"]:
            if name not in self.spec.required_figures and name not in OBJECTIVES:
                asked = ", ".join(self.spec.required_figures)
                raise EvaluationError(f"the evaluator returned {name}; this study asks for {asked}", reason="crash")

    def _in_child(self, task: QualityTask, key: str, progress: Progress, deadline: float) -> ScoredArtifact:
        try:
            return self.executor.run(
                train_build_score,
                task,
                key,
                time_limit_s=max(0.0, deadline - time.monotonic()),
                on_progress=lambda message: progress(*message),
            )
        except StorageFullError:  # the disk's fault, not the candidate's: the search stops, and can go on
            raise
        except EstimatorError as error:
            raise EvaluationError(str(error), reason="build") from error

    def _measurement(self, trial: Trial, artifact: Artifact, progress: Progress, deadline: float) -> Measurement:
        progress("measuring", None)
        plan = MeasurementPlan(
            num_threads=self.spec.num_threads, time_limit_s=max(1.0, deadline - time.monotonic()), seed=self.spec.seed
        )
        key = measurement_key(artifact.sha256, self.spec, plan)
        document = self.store.find_measurement(key)
        cost_s = 0.0
        if document is None:
            started = time.monotonic()
            measurement = self._measure(artifact, plan)
            cost_s = time.monotonic() - started
            self.store.save_measurement(key, artifact.sha256, measurement.to_dict())
        else:
            measurement = Measurement.from_dict(document)
        self.store.attach_measurement(self.study_id, trial.number, key)
        self._observe(trial, measured_figures(measurement), cost_s)
        return measurement

    def _measure(self, artifact: Artifact, plan: MeasurementPlan) -> Measurement:
        try:
            return measure(self.folder / artifact.path, self.spec.workload, plan=plan, provider=self.spec.device)
        except MeasurementError as error:
            raise EvaluationError(str(error), reason=error.reason) from error

    def _observe(self, trial: Trial, figures: dict[str, Figure], cost_s: float) -> None:
        """Stores what arrived and is not stored yet; the step's cost is shared by its figures."""
        known = self.store.trial(self.study_id, trial.number).figures
        fresh = {name: figure for name, figure in figures.items() if known.get(name) != figure}
        for name, figure in fresh.items():
            self.store.add_observation(self.study_id, trial.number, name, figure, cost_s=cost_s / len(fresh))


def measurement_key(sha256: str, spec: StudySpec, plan: MeasurementPlan) -> str:
    """Sixteen hexadecimal digits that change with the file, the workload, the device, the threads and the protocol."""
    device = host_fingerprint(provider=spec.device, num_threads=spec.num_threads)
    limits = ("time_limit_s", "memory_limit_bytes")  # they decide whether there is a result, not which
    protocol = {name: value for name, value in asdict(plan).items() if name not in limits}
    facts = [sha256, asdict(spec.workload), device.to_dict(), protocol]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def measured_figures(measurement: Measurement) -> dict[str, Figure]:
    """Latencies with their intervals, and the peak memory."""
    figures = {"peak_memory_bytes": Figure(value=measurement.peak_memory_bytes, origin="measured")}
    for phase in (measurement.prefill, measurement.decode):
        if phase is not None:
            figures[f"{phase.phase}_latency_s"] = Figure(
                value=phase.normalised_s, low=phase.low_s, high=phase.high_s, origin="measured"
            )
    return figures


def _quality_figures(quality: dict[str, Any]) -> dict[str, Figure]:
    return {name: Figure(**figure) for name, figure in quality["figures"].items()}


def _artifact_figures(artifact: Artifact) -> dict[str, Figure]:
    return {"file_bytes": Figure(value=artifact.file_bytes, origin="measured")}


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
