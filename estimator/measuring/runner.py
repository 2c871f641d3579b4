"""Starts the child process of a measurement, watches over it, and makes its answer a record."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from estimator.errors import CorruptFileError, InputError
from estimator.measuring.cores import default_num_threads
from estimator.measuring.fingerprint import host_fingerprint
from estimator.measuring.limits import default_memory_limit_bytes
from estimator.measuring.process import run_child
from estimator.measuring.protocol import Blocks, judge
from estimator.measuring.quiet_times import QuietTimes, keep_quiet_times, known_quiet_times
from estimator.measuring.records import MachineState, Measurement, MeasurementPlan, PhaseLatency, RequestLatency
from estimator.workload import Workload

__all__ = ["ask_child", "identify", "measure"]

_NOT_QUIET = (
    "other processes kept the machine busy while the yardsticks were calibrated, so latencies may be too high; "
    "the next measurement tries again"
)


def measure(
    path: str | Path,
    workload: Workload | None = None,
    *,
    plan: MeasurementPlan | None = None,
    provider: str = "cpu",
    whole_request: bool = False,
) -> Measurement:
    """Latency of both phases and peak memory of an ONNX file that `build_onnx` wrote, on this machine.

    The work is done in a child process of its own: a fresh memory arena, a fixed thread count, limits of time and
    memory. It is gone when this function returns or raises, and it ends itself when this process is killed. With
    `whole_request` the prompt and all generated tokens are also run in a row, a dozen times or more.

    Raises:
        CorruptFileError: the file is missing or is not one of ours.
        InputError: the workload does not fit the model, or the provider or so many cores are not there.
        MeasurementError: reason time_limit, out_of_memory or crash.
    """
    path, workload, plan = Path(path), workload or Workload(), plan or MeasurementPlan()
    if whole_request and not workload.generated_length:
        raise InputError("a whole request has generated tokens; generated_length must be at least 1, not 0")
    sha256, file_bytes = identify(path)
    device = host_fingerprint(provider=provider, num_threads=plan.num_threads)
    known, warning = known_quiet_times(device)
    warnings = [warning] if warning else []
    options = {"whole_request": whole_request, "calibration_attempts": _calibration_attempts(known)}
    answer = ask_child({"path": str(path), **options}, workload, plan, provider)
    if answer["quiet"] is not None:
        known, warning = keep_quiet_times(device, QuietTimes(**answer["quiet"]))
        warnings += [warning] if warning else []
    assert known is not None
    if not known.is_final:
        warnings.append(_NOT_QUIET)
    quiet_s = known.seconds
    phases = {name: _phase(name, answer, quiet_s, workload, plan) for name in answer["blocks"]}
    return Measurement(
        artifact_sha256=sha256,
        file_bytes=file_bytes,
        workload=workload,
        plan=plan,
        device=device,
        prefill=phases["prefill"],
        decode=phases.get("decode"),
        load_s=answer["load_s"],
        first_inference_s=answer["first_inference_s"],
        peak_memory_bytes=answer["peak_memory_bytes"],
        warnings=(*warnings, *(text for phase in phases.values() for text in _doubts(phase))),
        request=_request(phases, workload) if whole_request else None,
        machine_before=MachineState(**answer["machine"]["before"]),
        machine_after=MachineState(**answer["machine"]["after"]),
    )


def _request(phases: dict[str, PhaseLatency], workload: Workload) -> RequestLatency:
    """The request beside the sum of its parts; the interval of the sum holds if either part lies at its end."""
    prefill, step, num_steps = phases["prefill"], phases["step"], workload.generated_length
    return RequestLatency(
        num_steps=num_steps,
        measured=phases["request"],
        step=step,
        composed_s=prefill.normalised_s + num_steps * step.normalised_s,
        composed_low_s=prefill.low_s + num_steps * step.low_s,
        composed_high_s=prefill.high_s + num_steps * step.high_s,
    )


def _calibration_attempts(known: QuietTimes | None) -> int:
    """A machine that has no quiet times yet is worth waiting for; one that is always busy must not cost every trial."""
    if known is None:
        return 3
    return 0 if known.is_final else 1


def ask_child(request: dict[str, Any], workload: Workload, plan: MeasurementPlan, provider: str) -> dict[str, Any]:
    """The child's answer to a request about files under a workload and a plan.

    Raises:
        As `measure`.
    """
    cores = psutil.cpu_count() or 1
    if plan.num_threads is not None and plan.num_threads > cores:
        raise InputError(f"num_threads {plan.num_threads} is more than the {cores} cores of this machine")
    common = {
        "provider": provider,
        "num_threads": plan.num_threads or default_num_threads(),
        "plan": asdict(plan),
        "workload": asdict(workload),
    }
    memory_bytes = plan.memory_limit_bytes or default_memory_limit_bytes()
    return run_child(request | common, time_limit_s=plan.time_limit_s, memory_limit_bytes=memory_bytes)


def identify(path: Path) -> tuple[str, int]:
    """The file's sha256 and its bytes.

    Raises:
        CorruptFileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}") from error


def _phase(
    name: str, answer: dict[str, Any], quiet_s: dict[str, float], workload: Workload, plan: MeasurementPlan
) -> PhaseLatency:
    yardstick = answer["yardstick"][name]
    found = Blocks.from_dict(answer["blocks"][name])
    latency = judge(found, quiet_s=quiet_s[yardstick], seed=plan.seed)
    return PhaseLatency(
        phase=name,
        batch_size=workload.batch_size,
        sequence_length=workload.prompt_length if name in ("prefill", "request") else 1,
        past_length=answer["past_length"].get(name, 0),
        **asdict(latency),
        yardstick=yardstick,
        yardstick_quiet_s=quiet_s[yardstick],
        raw_samples_s=found.candidate_s,
        yardstick_samples_s=found.yardstick_s,
    )


def _doubts(phase: PhaseLatency) -> list[str]:
    if phase.verdict == "noisy":
        return [
            f"{phase.phase}: noisy (the yardstick took {phase.contention:.2f} times its quiet time, the interval is "
            f"{phase.low_s / phase.normalised_s - 1:+.0%} to {phase.high_s / phase.normalised_s - 1:+.0%}); "
            "measure again on a quieter machine"
        ]
    if phase.verdict == "corrected":
        return [f"{phase.phase}: the machine was busy (the yardstick took {phase.contention:.2f} times its quiet time)"]
    if phase.contention < 0.85:
        return [f"{phase.phase}: the yardstick ran at {phase.contention:.2f} of its quiet time, which was not quiet"]
    return []
