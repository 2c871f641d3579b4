"""Latencies that were measured on a named device, and what they say of its sustained rates."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from estimator.achievable import Achievable, achievable_of
from estimator.devices import Device, get_device
from estimator.errors import CorruptFileError, InputError
from estimator.latency import PhaseTime, estimate_latency
from estimator.readers.source import read_source
from estimator.workload import FLOAT_DTYPES, Workload

__all__ = ["Point", "fit_points", "modelled_time", "read_points"]

_REQUIRED = ("model", "sequence_length", "batch_size", "latency_ms")
_MAX_POINTS = 100_000
# One point says nothing of how far the others lie off. Forward passes of three models on five GPUs (NeuSight, ASPLOS
# 2025) lay up to 18 % from what another one of the same device predicted.
_SPREAD_OF_ONE = 1.25
_LEAST_SPREAD = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured forward pass: `phase` prefill of `sequence_length` tokens, or one decode step on so many."""

    model: str
    sequence_length: int
    batch_size: int
    latency_s: float
    phase: str = "prefill"
    dtype: str = "fp32"


def read_points(path: str | Path, device: Device) -> tuple[Point, ...]:
    """Points of a device from a table with tabs (or commas): model, sequence_length, batch_size, latency_ms.

    Optional columns: device (other devices' rows are left out), phase (prefill or decode), dtype (fp32, fp16, bf16).

    Raises:
        InputError: the file is not there, or no row is of this device. CorruptFileError: names row and column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not a text file") from error
    lines = text.splitlines()
    reader = csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
    if missing:
        raise CorruptFileError(f"{path} has no column {missing[0]}; it needs {', '.join(_REQUIRED)}")
    points = [_point(f"{path} line {number}", row) for number, row in enumerate(reader, 2) if _is_of(row, device)]
    if not points:
        raise InputError(f"{path} has no row of {device.name}")
    if len(points) > _MAX_POINTS:
        raise InputError(f"{path} has more than {_MAX_POINTS:,} rows")
    return tuple(points)


def fit_points(device: Device, points: Sequence[Point]) -> Achievable:
    """What the device sustains by these points: each kind of rate that a point was bound by is scaled to them.

    The spread is that of the points around the fit, at least 10 %; that of a single point is taken from other devices.

    Raises:
        InputError: the device has no published rate or bandwidth, or a model is not understood.
    """
    start = achievable_of(device)
    residuals: dict[str, list[float]] = {}
    for point in points:
        modelled = modelled_time(device, point, start)
        residuals.setdefault(_kind(point, modelled), []).append(math.log(point.latency_s / modelled.time_s.value))
    scales = {kind: math.exp(-sum(logs) / len(logs)) for kind, logs in residuals.items()}
    fractions = {kind: getattr(start, kind) * scale for kind, scale in scales.items()}
    off = [abs(log + math.log(scales[kind])) for kind, logs in residuals.items() for log in logs]
    spread = _SPREAD_OF_ONE if len(points) == 1 else max(_LEAST_SPREAD, math.exp(1.5 * max(off)))
    source = f"{len(points)} measured point{'s' * (len(points) > 1)} of {device.name}"
    return replace(start, name=device.name, spread=spread, origin="predicted", source=source, **fractions)


def modelled_time(device: Device, point: Point, achievable: Achievable | None = None) -> PhaseTime:
    """The modelled time of a point's forward pass on a device.

    Raises:
        InputError: as `fit_points`, or a decode point is of a model that generates nothing.
    """
    workload = Workload(
        batch_size=point.batch_size,
        prompt_length=point.sequence_length,
        weight_dtype=point.dtype,
        activation_dtype=point.dtype,
        kv_cache_dtype=point.dtype,
    )
    latency = estimate_latency(read_source(point.model).network, workload, device, achievable)
    if latency is None:
        raise InputError(f"{device.name} has no published arithmetic rate or bandwidth to calibrate")
    phase = latency.prefill_s if point.phase == "prefill" else latency.decode_s_per_token
    if phase is None:
        raise InputError(f"{point.model} generates nothing; a decode point needs a decoder")
    return phase


def _kind(point: Point, modelled: PhaseTime) -> str:
    if modelled.limit == "bandwidth":
        return "bandwidth_fraction"
    return "fp32_fraction" if point.dtype == "fp32" else "matrix_fraction"


def _is_of(row: dict[str, str], device: Device) -> bool:
    name = (row.get("device") or "").strip()
    if not name:
        return True
    try:
        return get_device(name).name == device.name
    except InputError:
        return False


def _point(where: str, row: dict[str, str]) -> Point:
    lengths = {name: _number(where, row, name) for name in ("sequence_length", "batch_size", "latency_ms")}
    phase, dtype = (row.get("phase") or "prefill").strip(), (row.get("dtype") or "fp32").strip()
    if phase not in ("prefill", "decode"):
        raise CorruptFileError(f"{where}: phase must be prefill or decode, not {phase!r}")
    if dtype not in FLOAT_DTYPES:
        raise CorruptFileError(f"{where}: dtype must be one of {', '.join(FLOAT_DTYPES)}, not {dtype!r}")
    for name in ("sequence_length", "batch_size"):
        if lengths[name] != int(lengths[name]):
            raise CorruptFileError(f"{where}: {name} must be a whole number, not {row[name]!r}")
    return Point(
        model=(row["model"] or "").strip(),
        sequence_length=int(lengths["sequence_length"]),
        batch_size=int(lengths["batch_size"]),
        latency_s=lengths["latency_ms"] / 1e3,
        phase=phase,
        dtype=dtype,
    )


def _number(where: str, row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < 2**31:
        raise CorruptFileError(f"{where}: {name} must be a positive number, not {row[name]!r}")
    return value
