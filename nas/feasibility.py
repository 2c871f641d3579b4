"""What can be known of a search before its first trial: that this machine can run it, and within its limits."""

from __future__ import annotations

import tempfile
from pathlib import Path

from estimator.errors import BuildError
from estimator.measuring import Measurement, MeasurementPlan, measure
from estimator.onnx_builder import build_onnx, check_target
from estimator.ort_session import provider_name
from nas.errors import EvaluationError, ImpossibleConstraintError, SpaceError, UsageError
from nas.quality.training import check_trainable
from nas.screening import check_reachable
from nas.spec import StudySpec
from nas.table import column_of, format_value

__all__ = ["check_feasible"]

# The smallest candidate is nearly always the fastest, but not by law: a limit is refused only when it asks for less
# than this fraction of its time, and searched for otherwise.
_SURELY_TOO_FAST = 0.5


def check_feasible(spec: StudySpec) -> None:
    """Returns if the search can start.

    Raises:
        UsageError: the weight type cannot be built for the device, an objective has no evaluator, or the space's
            models cannot be trained on bytes.
        InputError: the device's provider is not in this installation of ONNX Runtime.
        ImpossibleConstraintError: a limit is out of reach; names the nearest reachable value.
    """
    provider_name(spec.device)
    try:
        check_target(spec.workload.weight_dtype, spec.device)
    except BuildError as error:
        raise UsageError(str(error)) from error
    spec.check_evaluable()
    if spec.quality.evaluator == "train":
        try:
            check_trainable(spec.space.to_config(spec.space.smallest()))
        except EvaluationError as error:
            raise SpaceError(f"space {spec.space.name}: {error}") from error
    check_reachable(spec)
    _check_latency_limits(spec)


def _check_latency_limits(spec: StudySpec) -> None:
    limits = {c.objective: c.limit for c in spec.constraints if c.objective.endswith("_latency_s")}
    if not limits:
        return
    measurement = _measure_smallest(spec)
    for phase in (measurement.prefill, measurement.decode):
        limit = limits.get(f"{phase.phase}_latency_s") if phase is not None else None
        if phase is not None and limit is not None and limit < _SURELY_TOO_FAST * phase.low_s:
            column = column_of(f"{phase.phase}_latency_s")
            raise ImpossibleConstraintError(
                f"no candidate of {spec.space.name} keeps {column.label} within {format_value(limit, column.unit)} "
                f"here: the smallest one was measured at {format_value(phase.normalised_s, column.unit)}"
            )


def _measure_smallest(spec: StudySpec) -> Measurement:
    config = spec.space.to_config(spec.space.smallest())
    with tempfile.TemporaryDirectory(prefix="archfront-") as folder:
        path = Path(folder) / "smallest.onnx"
        build_onnx(config, path=path, weight_dtype=spec.workload.weight_dtype, provider=spec.device)
        return measure(path, spec.workload, plan=MeasurementPlan(num_threads=spec.num_threads), provider=spec.device)
