"""The estimator against the bundled reference data: how far off is each kind of figure?"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources

from estimator.calibrating.points import Point, fit_points, modelled_time
from estimator.devices import Device, get_device
from estimator.errors import InputError
from estimator.figures import Figure
from estimator.memory import count_kv_cache_bytes, estimate_memory
from estimator.network import Network
from estimator.params import count_params
from estimator.readers.source import read_source, source_of_values
from estimator.training import TrainingPlan, estimate_training_memory
from estimator.workload import Workload

__all__ = ["CLASSES", "Comparison", "ErrorClass", "reference_network", "summarise", "validate"]

_BF16 = Workload(prompt_length=4096, weight_dtype="bf16", activation_dtype="bf16", kv_cache_dtype="bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One reference value, ours, and why there is none of ours if it was refused."""

    name: str
    reference: float
    value: float | None
    low: float | None = None
    high: float | None = None
    refusal: str | None = None

    @property
    def error(self) -> float | None:
        """Relative error, 0.1 for 10 % too much; None when refused."""
        return None if self.value is None else self.value / self.reference - 1

    @property
    def is_covered(self) -> bool | None:
        """Whether the interval holds the reference; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.reference <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorClass:
    """What the comparisons of one kind amount to; errors are relative, over what was not refused."""

    name: str
    count: int
    exact: int
    refused: int
    mean_absolute_error: float | None
    worst: Comparison | None
    coverage: float | None


def validate() -> dict[str, tuple[Comparison, ...]]:
    """All comparisons by class, in the order of CLASSES."""
    return {name: tuple(compare()) for name, (compare, _) in CLASSES.items()}


def summarise(name: str, comparisons: tuple[Comparison, ...]) -> ErrorClass:
    """Counts and errors of one class."""
    errors = [(abs(c.error), c) for c in comparisons if c.error is not None]
    covered = [c.is_covered for c in comparisons if c.is_covered is not None]
    return ErrorClass(
        name=name,
        count=len(comparisons),
        exact=sum(error == 0 for error, _ in errors),
        refused=len(comparisons) - len(errors),
        mean_absolute_error=sum(error for error, _ in errors) / len(errors) if errors else None,
        worst=max(errors, key=lambda pair: pair[0])[1] if errors else None,
        coverage=sum(covered) / len(covered) if covered else None,
    )


@functools.cache
def reference_network(*names: str) -> Network:
    """The network of a config of the reference data, by its folder (if it is in one) and name.

    Raises:
        InputError: the reader refuses it.
    """
    *folder, config = names
    return source_of_values(json.loads(_reference(*folder, "configs", f"{config}.json")), config).network


def _parameters() -> Iterator[Comparison]:
    for folder, row in _models():
        if row["params"]:
            yield _compared(folder, row["config"], int(row["params"]), lambda net: count_params(net).total)


def _kv_caches() -> Iterator[Comparison]:
    for folder, row in _models():
        if row["kv_cache_mib_4096_bf16_batch1"]:
            reference = float(row["kv_cache_mib_4096_bf16_batch1"]) * 2**20
            yield _compared(folder, row["config"], reference, lambda net: count_kv_cache_bytes(net, _BF16))


def _models() -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Folder and row of every model with a published config, and of those with published hyperparameters."""
    for folder in ((), ("published",)):
        for row in _rows(*folder, "params_truth.tsv"):
            yield folder, row


def _compared(folder: tuple[str, ...], config: str, reference: float, count: Callable[[Network], int]) -> Comparison:
    try:
        return Comparison(name=config, reference=reference, value=count(reference_network(*folder, config)))
    except InputError as error:
        return Comparison(name=config, reference=reference, value=None, refusal=str(error))


def _latencies() -> Iterator[Comparison]:
    """Forward passes on GPUs from the data sheet alone."""
    for device, point in _latency_points():
        yield _timed(_point_name(device, point), point.latency_s, modelled_time(device, point).time_s)


def _calibrated_latencies() -> Iterator[Comparison]:
    """Every forward pass from every single other one of the same device."""
    points = list(_latency_points())
    for device, known in points:
        achievable = fit_points(device, [known])
        for other_device, point in points:
            if other_device == device and point != known:
                name = f"{_point_name(device, point)} from {known.model} x {known.batch_size}"
                yield _timed(name, point.latency_s, modelled_time(device, point, achievable).time_s)


def _latency_points() -> Iterator[tuple[Device, Point]]:
    for row in _rows("gpu_latency_fp32.tsv"):
        yield (
            get_device(row["device"]),
            Point(
                model=row["model"],
                sequence_length=int(row["sequence_length"]),
                batch_size=int(row["batch_size"]),
                latency_s=float(row["latency_ms"]) / 1e3,
            ),
        )


def _decode_latencies() -> Iterator[Comparison]:
    """Time between tokens on an H100, with 512 tokens of context for the chat requests that were measured."""
    for row in _rows("energy_h100.tsv"):
        point = Point(
            model=row["model"],
            sequence_length=512,
            batch_size=int(row["batch_size"]),
            latency_s=float(row["inter_token_latency_ms"]) / 1e3,
            phase="decode",
            dtype="bf16",
        )
        device = get_device("h100")
        yield _timed(_point_name(device, point), point.latency_s, modelled_time(device, point).time_s)


def _memories() -> Iterator[Comparison]:
    """Peak memory of inference and of training on one GPU."""
    for row in _rows("training_memory.tsv"):
        name = f"{row['model']}, {row['mode']}"
        yield Comparison(name=name, reference=float(row["peak_gb"]) * 1e9, value=_peak_bytes(row))


def _peak_bytes(row: Mapping[str, str]) -> int:
    network, length = read_source(row["model"]).network, int(row["sequence_length"])
    if row["mode"].startswith("inference"):
        workload = replace(_BF16, batch_size=int(row["batch_size"]), prompt_length=length)
        return estimate_memory(network, workload, get_device(row["device"])).total_bytes
    plan = TrainingPlan(
        batch_size=int(row["batch_size"]),
        sequence_length=length,
        optimizer="adamw",
        precision="amp-bf16" if "amp" in row["mode"].lower() else "bf16",
        checkpointing="full" if "checkpointing" in row["mode"] else "none",
    )
    return estimate_training_memory(network, plan).total_bytes


def _timed(name: str, reference: float, figure: Figure) -> Comparison:
    return Comparison(name=name, reference=reference, value=figure.value, low=figure.low, high=figure.high)


def _point_name(device: Device, point: Point) -> str:
    return f"{device.name}: {point.model}, {point.batch_size} x {point.sequence_length}"


def _rows(*names: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_reference(*names).splitlines(), delimiter="\t"))


def _reference(*names: str) -> str:
    return resources.files("estimator").joinpath("reference", *names).read_text(encoding="utf-8")


# Class -> its comparisons, and what the figures are held against.
CLASSES: Mapping[str, tuple[Callable[[], Iterator[Comparison]], str]] = {
    "parameters": (_parameters, "transformers on the meta device, published totals"),
    "kv cache": (_kv_caches, "sizes of the cache tensors at 4,096 tokens, bf16"),
    "gpu latency, data sheet": (_latencies, "fp32 forward passes published with NeuSight (ASPLOS 2025)"),
    "gpu latency, one point": (_calibrated_latencies, "the same, from one measured point of the device"),
    "decode latency": (_decode_latencies, "Llama-3.1-8B on an H100, ML.ENERGY leaderboard"),
    "memory": (_memories, "peaks published with vramcalc, RTX A6000"),
}
