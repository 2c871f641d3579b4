"""A paired A/B: two ONNX files in alternating blocks of one child process, and the ratio of their times.

No yardstick and no quiet time is needed: what the machine does to both cancels in the ratio, as it does against a
yardstick (protocol.py), and better so the more alike the two are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from estimator.measuring.fingerprint import host_fingerprint
from estimator.measuring.protocol import NOISY_PRECISION, Blocks
from estimator.measuring.records import DeviceFingerprint, MachineState, MeasurementPlan
from estimator.measuring.runner import ask_child, identify
from estimator.measuring.statistics import bootstrap_median, percentile
from estimator.workload import Workload

__all__ = ["COMPARISON_VERDICTS", "Comparison", "PhaseComparison", "compare_phase", "measure_pair"]

# faster, slower: B's time lies below or above A's in the whole interval. same: the whole interval lies within the asked
# precision of 1. undecided: neither; measure longer, or on a quieter machine.
COMPARISON_VERDICTS = ("faster", "slower", "same", "undecided")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseComparison:
    """The time of a call of B over that of A, with its 95 % interval [low, high]: below 1 when B is faster."""

    phase: str
    sequence_length: int
    past_length: int
    ratio: float
    low: float
    high: float
    verdict: str
    a_raw_median_s: float
    b_raw_median_s: float
    a_samples_s: tuple[tuple[float, ...], ...]
    b_samples_s: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two ONNX files on one machine under one workload. `decode` is None unless both are decoders."""

    a_sha256: str
    b_sha256: str
    a_file_bytes: int
    b_file_bytes: int
    workload: Workload
    plan: MeasurementPlan
    device: DeviceFingerprint
    prefill: PhaseComparison
    decode: PhaseComparison | None
    machine_before: MachineState
    machine_after: MachineState
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"device": self.device.to_dict(), "warnings": list(self.warnings)}


def measure_pair(
    a: str | Path,
    b: str | Path,
    workload: Workload | None = None,
    *,
    plan: MeasurementPlan | None = None,
    provider: str = "cpu",
) -> Comparison:
    """How long B takes for each second of A, in both phases; the same inputs' sizes, threads and provider for both.

    Raises:
        As `measure`; InputError also when the two would decode at different lengths.
    """
    workload, plan = workload or Workload(), plan or MeasurementPlan()
    (a_sha256, a_bytes), (b_sha256, b_bytes) = identify(Path(a)), identify(Path(b))
    answer = ask_child({"path": str(a), "other_path": str(b)}, workload, plan, provider)
    phases = {name: compare_phase(name, answer, workload, plan) for name in answer["blocks"]}
    return Comparison(
        a_sha256=a_sha256,
        b_sha256=b_sha256,
        a_file_bytes=a_bytes,
        b_file_bytes=b_bytes,
        workload=workload,
        plan=plan,
        device=host_fingerprint(provider=provider, num_threads=plan.num_threads),
        prefill=phases["prefill"],
        decode=phases.get("decode"),
        machine_before=MachineState(**answer["machine"]["before"]),
        machine_after=MachineState(**answer["machine"]["after"]),
        warnings=tuple(text for phase in phases.values() for text in _doubts(phase)),
    )


def compare_phase(name: str, answer: dict[str, Any], workload: Workload, plan: MeasurementPlan) -> PhaseComparison:
    """What the child's blocks of one phase say. B is the candidate, A the yardstick."""
    blocks = Blocks.from_dict(answer["blocks"][name])
    ratio, low, high = bootstrap_median(blocks.ratios, seed=plan.seed)
    return PhaseComparison(
        phase=name,
        sequence_length=workload.prompt_length if name == "prefill" else 1,
        past_length=answer["past_length"][name],
        ratio=ratio,
        low=low,
        high=high,
        verdict=_verdict(low, high, plan.precision),
        a_raw_median_s=percentile([sample for block in blocks.yardstick_s for sample in block], 50),
        b_raw_median_s=percentile([sample for block in blocks.candidate_s for sample in block], 50),
        a_samples_s=blocks.yardstick_s,
        b_samples_s=blocks.candidate_s,
    )


def _verdict(low: float, high: float, precision: float) -> str:
    if 1 - precision <= low and high <= 1 + precision and low <= 1 <= high:
        return "same"
    if high < 1 or low > 1:
        return "faster" if high < 1 else "slower"
    return "undecided"


def _doubts(phase: PhaseComparison) -> list[str]:
    low, high = phase.low / phase.ratio - 1, phase.high / phase.ratio - 1
    if max(high, -low) <= NOISY_PRECISION:
        return []
    return [f"{phase.phase}: the interval is {low:+.0%} to {high:+.0%}; measure longer, or on a quieter machine"]
