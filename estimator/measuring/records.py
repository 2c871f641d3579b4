"""A measurement as a frozen record that says how it was made and doubts itself where it should."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from estimator.errors import InputError
from estimator.workload import Workload

__all__ = ["VERDICTS", "DeviceFingerprint", "Measurement", "MeasurementPlan", "PhaseLatency"]

# quiet: the yardstick ran at its quiet speed. corrected: it was slower, but the paired ratio is known well.
# noisy: the interval of the ratio stayed wide, or the yardstick took over twice as long; decide nothing by this number.
VERDICTS = ("quiet", "corrected", "noisy")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementPlan:
    """How long and how exactly to measure.

    num_threads: threads of ONNX Runtime; None means all physical cores that this process may use.
    precision: stop when the 95 % interval reaches at most this fraction of the value to either side.
    max_seconds: stop after so many seconds per phase, whatever the interval, but not before ten pairs of blocks.
    time_limit_s: the child process is ended after so many seconds in all.
    seed: of the random inputs and of the bootstrap.

    Raises:
        InputError: names the field and what would be right.
    """

    num_threads: int | None = None
    precision: float = 0.03
    max_seconds: float = 1.0
    time_limit_s: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_threads is not None and self.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, not {self.num_threads!r}")
        if not 0 < self.precision < 1:
            raise InputError(f"precision must be a fraction between 0 and 1, not {self.precision!r}")
        for name in ("max_seconds", "time_limit_s"):
            if not 0 < getattr(self, name) <= 86_400:
                raise InputError(f"{name} must be above 0 and at most a day, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFingerprint:
    """The machine as far as it decides how fast a graph runs. Unknown is None."""

    cpu_model: str | None
    architecture: str
    physical_cores: int | None
    logical_cores: int | None
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    system: str
    onnxruntime_version: str
    provider: str
    num_threads: int
    accelerator: str | None = None

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits over all fields: measurements with different hashes are not comparable."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"instruction_sets": list(self.instruction_sets)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeviceFingerprint:
        return cls(**{**values, "instruction_sets": tuple(values["instruction_sets"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLatency:
    """Seconds of one call in one phase.

    `normalised_s` with its 95 % interval [low_s, high_s] is the paired ratio to the yardstick times the yardstick's
    quiet time: what the call takes on this machine when nothing else runs. `raw_median_s` and `p90_s` are what the
    clock said. `contention` is the yardstick's median over its quiet time: 1 on a quiet machine.
    """

    phase: str
    batch_size: int
    sequence_length: int
    past_length: int
    normalised_s: float
    low_s: float
    high_s: float
    raw_median_s: float
    p90_s: float
    contention: float
    verdict: str
    yardstick: str
    yardstick_quiet_s: float
    raw_samples_s: tuple[tuple[float, ...], ...]
    yardstick_samples_s: tuple[tuple[float, ...], ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PhaseLatency:
        samples = {
            name: tuple(tuple(block) for block in values[name]) for name in ("raw_samples_s", "yardstick_samples_s")
        }
        return cls(**{**values, **samples})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One ONNX file on one machine. `decode` is None for an encoder.

    `peak_memory_bytes` is the child's peak resident memory over its own before the file was loaded, through loading and
    the first call of each phase. `to_dict` and `from_dict` round-trip through JSON.
    """

    artifact_sha256: str
    file_bytes: int
    workload: Workload
    plan: MeasurementPlan
    device: DeviceFingerprint
    prefill: PhaseLatency
    decode: PhaseLatency | None
    load_s: float
    first_inference_s: float
    peak_memory_bytes: int
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"device": self.device.to_dict(), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        return cls(
            **{
                **values,
                "workload": Workload(**values["workload"]),
                "plan": MeasurementPlan(**values["plan"]),
                "device": DeviceFingerprint.from_dict(values["device"]),
                "prefill": PhaseLatency.from_dict(values["prefill"]),
                "decode": None if values["decode"] is None else PhaseLatency.from_dict(values["decode"]),
                "warnings": tuple(values["warnings"]),
            }
        )
