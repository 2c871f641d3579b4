"""Latencies that were measured on a named device, and what they say of its sustained rates."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from estimator.achievable import FRACTIONS, Achievable, achievable_of
from estimator.devices import Device, get_device
from estimator.errors import CorruptFileError, InputError
from estimator.latency import PhaseTime, estimate_latency
from estimator.network import Network
from estimator.readers.source import read_source
from estimator.workload import FLOAT_DTYPES, Workload

__all__ = ["Point", "fit_points", "modelled_time", "read_points"]

_REQUIRED = ("model", "sequence_length", "batch_size", "latency_ms")
_MAX_POINTS, _MAX_BYTES = 2_000, 8_000_000
# One point says nothing of how far the others lie off. Forward passes of three models on five GPUs (NeuSight, ASPLOS
# 2025) lay up to 18 % from what another one of the same device predicted.
_SPREAD_OF_ONE = 1.25
_LEAST_SPREAD = 1.1
# Clocks above the published one, and attention that skips what a mask hides, beat the roofline by some; more than
# twice means that the row says something else than what was measured.
_MOST_OF_PEAK = 2.0
_MOST_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured forward pass of `network`, which `model` names.

    `phase` is prefill, of `sequence_length` tokens, or decode, one more token after so many.
    """

    model: str
    network: Network
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
    lines = _read_text(path).splitlines()
    header = lines[0] if lines else ""
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip() for name in header.split(delimiter)]
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise CorruptFileError(f"{path} has no column {missing[0]}; it needs {', '.join(_REQUIRED)}")
    reader = csv.DictReader(lines[1:], names, delimiter=delimiter, restval="")
    points, others = [], set()
    try:
        for row in reader:
            if None in row:  # more cells than columns: a phase or a type that would go unread
                columns = ", ".join(names)
                raise CorruptFileError(f"{path} line {reader.line_num + 1}: more cells than columns ({columns[:200]})")
            name = (row.get("device") or "").strip()
            if name and _device_name(name) != device.name:
                others.add(name)
            else:
                points.append(_point(f"{path} line {reader.line_num + 1}", row))
    except csv.Error as error:
        raise CorruptFileError(f"{path} line {reader.line_num + 1}: {error}") from error
    if not points:
        found = f"; its rows are of {', '.join(sorted(others)[:5])[:200]}" if others else ""
        raise InputError(f"{path} has no row of {device.name}{found}")
    if len(points) > _MAX_POINTS:
        raise InputError(f"{path} has more than {_MAX_POINTS:,} rows of {device.name}")
    return tuple(points)


def fit_points(device: Device, points: Sequence[Point]) -> Achievable:
    """What the device sustains by these points: each fraction is scaled to the points whose time it decides.

    Which one decides depends on the fractions, so this is done again until it stays the same. The spread is that of the
    points around the fit, at least 10 %; that of a single point is taken from other devices. Fractions that no point
    tells of stay those of the device's class, with its spread.

    Raises:
        InputError: the device has no published rate or bandwidth, a decode point is of a model that generates nothing,
            or a point is over twice as fast as the published peaks allow.
    """
    fitted = achievable_of(device)
    passes = [modelled_time(device, point, fitted) for point in points]
    for point, phase in zip(points, passes, strict=True):
        if phase.bound_s > _MOST_OF_PEAK * point.latency_s:
            raise InputError(
                f"{point.model}, {point.batch_size} x {point.sequence_length}: {point.latency_s * 1e3:.4g} ms is "
                f"{phase.bound_s / point.latency_s:.3g} times faster than the peaks of {device.name} allow; "
                "latency_ms is in milliseconds, dtype says fp32, fp16 or bf16"
            )
    for _ in range(_MOST_ROUNDS):
        decided = [phase.fraction for phase in passes]
        logs = [math.log(_work_ratio(point, phase)) for point, phase in zip(points, passes, strict=True)]
        by_fraction = {name: [log for log, own in zip(logs, decided, strict=True) if own == name] for name in decided}
        scales = {name: math.exp(-fmean(own)) for name, own in by_fraction.items()}
        fitted = replace(fitted, **{name: getattr(fitted, name) * scale for name, scale in scales.items()})
        passes = [modelled_time(device, point, fitted) for point in points]
        if [phase.fraction for phase in passes] == decided:
            break
    off = [abs(math.log(_work_ratio(point, phase))) for point, phase in zip(points, passes, strict=True)]
    return replace(
        fitted,
        name=device.name,
        origin="predicted",
        source=f"{len(points)} measured point{'s' * (len(points) > 1)} of {device.name}",
        learnt=tuple(name for name in FRACTIONS if name in decided),
        learnt_spread=_SPREAD_OF_ONE if len(points) == 1 else max(_LEAST_SPREAD, math.exp(1.5 * max(off))),
    )


def modelled_time(device: Device, point: Point, achievable: Achievable | None = None) -> PhaseTime:
    """The modelled time of a point's forward pass on a device.

    Raises:
        InputError: as `fit_points`, but for points that are too fast.
    """
    workload = Workload(
        batch_size=point.batch_size,
        prompt_length=point.sequence_length,
        weight_dtype=point.dtype,
        activation_dtype=point.dtype,
        kv_cache_dtype=point.dtype,
    )
    latency = estimate_latency(point.network, workload, device, achievable)
    if latency is None:
        raise InputError(f"{device.name} has no published arithmetic rate or bandwidth to calibrate")
    phase = latency.prefill_s if point.phase == "prefill" else latency.decode_s_per_token
    if phase is None:
        raise InputError(f"{point.model} generates nothing; a decode point needs a decoder")
    return phase


def _work_ratio(point: Point, phase: PhaseTime) -> float:
    """Measured over modelled time, both without what the operators take beside their work.

    A tenth of the measured time is work all the same: it may be less than the operators are thought to take.
    """
    overhead_s = min(phase.overhead_s, 0.9 * point.latency_s)
    return (point.latency_s - overhead_s) / (phase.time_s.value - phase.overhead_s)


@functools.lru_cache(maxsize=256)
def _network(model: str) -> Network:
    return read_source(model).network


@functools.lru_cache(maxsize=1024)
def _device_name(text: str) -> str | None:
    try:
        return get_device(text).name
    except InputError:
        return None


def _read_text(path: str | Path) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES / 1e6:g} MB; a table of points is not")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not a text file") from error


def _point(where: str, row: dict[str, str]) -> Point:
    model = row["model"].strip()
    if not model:
        raise CorruptFileError(f"{where}: model is empty")
    phase, dtype = (row.get("phase") or "prefill").strip(), (row.get("dtype") or "fp32").strip()
    if phase not in ("prefill", "decode"):
        raise CorruptFileError(f"{where}: phase must be prefill or decode, not {phase[:40]!r}")
    if dtype not in FLOAT_DTYPES:
        raise CorruptFileError(f"{where}: dtype must be one of {', '.join(FLOAT_DTYPES)}, not {dtype[:40]!r}")
    try:
        network = _network(model)
    except InputError as error:
        raise CorruptFileError(f"{where}: {error}") from error
    return Point(
        model=model,
        network=network,
        sequence_length=_whole(where, row, "sequence_length"),
        batch_size=_whole(where, row, "batch_size"),
        latency_s=_number(where, row, "latency_ms") / 1e3,
        phase=phase,
        dtype=dtype,
    )


def _whole(where: str, row: dict[str, str], name: str) -> int:
    value = _number(where, row, name)
    if value != int(value):
        raise CorruptFileError(f"{where}: {name} must be a whole number, not {row[name][:40]!r}")
    return int(value)


def _number(where: str, row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not 0 < value < 2**31:
        raise CorruptFileError(f"{where}: {name} must be a positive number, not {row[name][:40]!r}")
    return value
