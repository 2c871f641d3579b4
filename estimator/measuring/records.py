"""A measurement as a frozen record that says how it was made and doubts itself where it should."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from estimator.errors import InputError
from estimator.measuring.statistics import percentile
from estimator.workload import Workload

__all__ = [
    "VERDICTS",
    "DeviceFingerprint",
    "MachineState",
    "Measurement",
    "MeasurementPlan",
    "PhaseLatency",
    "RequestLatency",
]

# quiet: the yardstick ran at its quiet speed. corrected: it was slower, but the paired ratio is known well.
# noisy: the interval of the ratio stayed wide, or the yardstick took over twice as long; decide nothing by this number.
VERDICTS = ("quiet", "corrected", "noisy")
# Less does not hold the yardsticks and the threads' stacks.
_LEAST_MEMORY_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementPlan:
    """How long and how exactly to measure.

    num_threads: threads of ONNX Runtime; None means all physical cores that this process may use.
    precision: stop when the 95 % interval reaches at most this fraction of the value to either side.
    max_seconds: stop after so many seconds per phase, whatever the interval, but not before ten pairs of blocks.
    time_limit_s: the child process is ended after so many seconds in all.
    memory_limit_bytes: the child may take so much beyond what it has at its start; None means four fifths of the
        machine. Enforced on Linux.
    seed: of the random inputs and of the bootstrap.

    Raises:
        InputError: names the field and what would be right.
    """

    num_threads: int | None = None
    precision: float = 0.03
    max_seconds: float = 1.0
    time_limit_s: float = 300.0
    memory_limit_bytes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_threads is not None and self.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, not {self.num_threads!r}")
        if not 0 < self.precision < 1:
            raise InputError(f"precision must be a fraction between 0 and 1, not {self.precision!r}")
        if self.memory_limit_bytes is not None and self.memory_limit_bytes < _LEAST_MEMORY_BYTES:
            raise InputError(f"memory_limit_bytes must be at least 64 MiB, not {self.memory_limit_bytes!r}")
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
    quiet time: what the call takes on this machine when nothing else runs. `raw_median_s`, `p90_s` and `p99_s` are what
    the clock said. `contention` is the yardstick's median over its quiet time: 1 on a quiet machine.
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
    p99_s: float
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
        # Measurements that were kept before the record had a p99 have it in their samples.
        p99_s = percentile([sample for block in samples["raw_samples_s"] for sample in block], 99)
        return cls(**{"p99_s": p99_s, **values, **samples})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLatency:
    """Seconds of a whole request: the prompt and `num_steps` generated tokens, one after another.

    `measured` is the request run as one call. `composed_s` with [composed_low_s, composed_high_s] is prefill plus
    `num_steps` times `step`, the decode step in the middle of the request, as an estimate puts it together.
    """

    num_steps: int
    measured: PhaseLatency
    step: PhaseLatency
    composed_s: float
    composed_low_s: float
    composed_high_s: float

    @property
    def difference(self) -> float:
        """The measured time over the composed one, less 1: 0.1 when the request takes a tenth longer than its parts."""
        return self.measured.normalised_s / self.composed_s - 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"difference": self.difference}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RequestLatency:
        own = {name: value for name, value in values.items() if name != "difference"}
        phases = {name: PhaseLatency.from_dict(values[name]) for name in ("measured", "step")}
        return cls(**{**own, **phases})


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The cores that were used, at one moment. Unknown is None.

    `frequency_hz` is the mean over the cores; `num_throttles` counts how often heat has slowed them since the machine
    started; `temperature_celsius` is that of the machine's hottest sensor.
    """

    frequency_hz: float | None
    governor: str | None
    num_throttles: int | None
    temperature_celsius: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One ONNX file on one machine. `decode` is None for an encoder.

    `peak_memory_bytes` is the child's peak resident memory over its own before the file was loaded, through loading and
    the first call of each phase. `request` is None unless a whole request was asked for; `machine_before` and
    `machine_after` are the machine's states around the timing, None in measurements that were kept before there were
    any. `to_dict` and `from_dict` round-trip through JSON.
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
    request: RequestLatency | None = None
    machine_before: MachineState | None = None
    machine_after: MachineState | None = None

    def to_dict(self) -> dict[str, Any]:
        request = None if self.request is None else self.request.to_dict()
        return asdict(self) | {"device": self.device.to_dict(), "warnings": list(self.warnings), "request": request}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        kinds: dict[str, Callable[[Any], Any]] = {
            "workload": lambda value: Workload(**value),
            "plan": lambda value: MeasurementPlan(**value),
            "device": DeviceFingerprint.from_dict,
            "prefill": PhaseLatency.from_dict,
            "decode": PhaseLatency.from_dict,
            "warnings": tuple,
            "request": RequestLatency.from_dict,
            "machine_before": lambda value: MachineState(**value),
            "machine_after": lambda value: MachineState(**value),
        }
        known = {name: kind(values[name]) for name, kind in kinds.items() if values.get(name) is not None}
        return cls(**{**values, **known})
