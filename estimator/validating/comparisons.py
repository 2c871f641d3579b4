"""The estimator against the bundled reference data: how far off is each kind of figure?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from estimator.calibrating.points import Point, fit_points, modelled_time
from estimator.devices import Device, get_device
from estimator.errors import InputError
from estimator.figures import Figure
from estimator.memory import count_kv_cache_bytes, estimate_memory
from estimator.network import Network
from estimator.params import count_params
from estimator.training.memory import TrainingPlan, estimate_training_memory
from estimator.validating.energy import (
    Row,
    co2e_rows,
    energy_rows,
    joined_device,
    power_rows,
    training_energy_rows,
    training_hours_rows,
)
from estimator.validating.rows import Mode, model_rows, named_network, read_mode, reference_network, reference_rows
from estimator.workload import Workload

__all__ = ["CLASSES", "Comparison", "ErrorClass", "ReferenceClass", "compare_class", "summarise", "validate"]

_BF16 = Workload(prompt_length=4096, weight_dtype="bf16", activation_dtype="bf16", kv_cache_dtype="bf16")
# The chat requests of the ML.ENERGY leaderboard differ in length and no row says it: tokens of context of a request,
# and prompt tokens that the server reads in between for every token that it generates.
_CHAT_TOKENS, _PROMPT_PER_GENERATED = 512, 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceClass:
    """One kind of figure: how its rows are compared, in which unit, and where their truth comes from."""

    compare: Callable[[], Iterable[Comparison]]
    unit: str
    held_against: str


def validate() -> dict[str, tuple[Comparison, ...]]:
    """All comparisons by class, in the order of CLASSES."""
    return {name: compare_class(name) for name in CLASSES}


def compare_class(name: str) -> tuple[Comparison, ...]:
    """The comparisons of one class.

    Raises:
        InputError: there is no such class.
    """
    if name not in CLASSES:
        raise InputError(f"unknown class {name[:40]!r}; there are {', '.join(CLASSES)}")
    return tuple(CLASSES[name].compare())


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


def _parameters() -> Iterator[Comparison]:
    for folder, row in model_rows():
        if row["params"]:
            yield _counted(folder, row["config"], float(row["params"]), lambda net: count_params(net).total)


def _kv_caches() -> Iterator[Comparison]:
    for folder, row in model_rows():
        if row["kv_cache_mib_4096_bf16_batch1"]:
            reference = float(row["kv_cache_mib_4096_bf16_batch1"]) * 2**20
            yield _counted(folder, row["config"], reference, lambda net: count_kv_cache_bytes(net, _BF16))


def _counted(folder: tuple[str, ...], config: str, reference: float, count: Callable[[Network], int]) -> Comparison:
    return _compared(config, reference, lambda: count(reference_network(*folder, config)))


def _latencies() -> Iterator[Comparison]:
    """Forward passes on GPUs from the data sheet alone."""
    for row in reference_rows("gpu_latency_fp32.tsv"):
        yield _compared(_latency_name(row), _latency_s(row), partial(_forward_pass, row))


def _calibrated_latencies() -> Iterator[Comparison]:
    """Every forward pass from every single other one of the same device."""
    rows = reference_rows("gpu_latency_fp32.tsv")
    for known in rows:
        others = [row for row in rows if row["device"] == known["device"] and row is not known]
        for row in others:
            name = f"{_latency_name(row)} from {known['model']} x {known['batch_size']}"
            yield _compared(name, _latency_s(row), partial(_forward_pass, row, known))


def _forward_pass(row: Mapping[str, str], known: Mapping[str, str] | None = None) -> Figure:
    """The time of a row, from the class of its device or from one `known` row of the same device."""
    device, point = _device_point(row)
    achievable = None if known is None else fit_points(device, [_device_point(known)[1]])
    return modelled_time(device, point, achievable).time_s


def _device_point(row: Mapping[str, str]) -> tuple[Device, Point]:
    return get_device(row["device"]), Point(
        model=row["model"],
        network=named_network(row["model"]),
        sequence_length=int(row["sequence_length"]),
        batch_size=int(row["batch_size"]),
        latency_s=_latency_s(row),
    )


def _latency_name(row: Mapping[str, str]) -> str:
    return f"{row['device']}: {row['model']}, {row['batch_size']} x {row['sequence_length']}"


def _latency_s(row: Mapping[str, str]) -> float:
    return float(row["latency_ms"]) / 1e3


def _decode_latencies() -> Iterator[Comparison]:
    """Time between tokens of a server that is kept full."""
    for row in reference_rows("energy_h100.tsv"):
        device, num_gpus = row.get("device") or "h100", int(row.get("num_gpus") or 1)
        name = f"{device}{f' x {num_gpus}' if num_gpus > 1 else ''}: {row['model']}, {row['batch_size']} requests"
        yield _compared(name, float(row["inter_token_latency_ms"]) / 1e3, partial(_served_token, row))


def _served_token(row: Mapping[str, str]) -> Figure:
    """A decode step of all requests, and the prompts of those that follow, which the server reads in between.

    Several GPUs count as one with all their bandwidth and peaks: the collectives are left to the interval.
    """
    device = joined_device(get_device(row.get("device") or "h100"), int(row.get("num_gpus") or 1))
    point = Point(
        model=row["model"],
        network=named_network(row["model"]),
        sequence_length=_CHAT_TOKENS,
        batch_size=int(row["batch_size"]),
        latency_s=float(row["inter_token_latency_ms"]) / 1e3,
        phase="decode",
        dtype="bf16",
    )
    step = modelled_time(device, point).time_s
    prompt = modelled_time(device, replace(point, phase="prefill", batch_size=1)).time_s
    share = point.batch_size * _PROMPT_PER_GENERATED / _CHAT_TOKENS
    assert step.low is not None
    assert step.high is not None
    assert prompt.high is not None
    # a server that keeps prompts apart from generation has none of their time in between
    high = step.high + share * prompt.high
    return Figure(value=step.value + share * prompt.value, low=step.low, high=high, origin=step.origin)


def _memories(*, training: bool) -> Iterator[Comparison]:
    """Peak memory of inference or of training on one GPU."""
    for row in reference_rows("training_memory.tsv"):
        if ("inference" in row["mode"].lower()) is not training:
            name = f"{row['model']}, {row['batch_size']} x {row['sequence_length']}, {row['mode']}"
            yield _compared(name, float(row["peak_gb"]) * 1e9, partial(_peak_bytes, row))


def _peak_bytes(row: Mapping[str, str]) -> int:
    network, mode = named_network(row["model"]), read_mode(row["mode"])
    batch_size, length = int(row["batch_size"]), int(row["sequence_length"])
    if mode.is_training:
        return estimate_training_memory(network, _plan(mode, batch_size, length)).total_bytes
    workload = Workload(
        batch_size=batch_size,
        prompt_length=length,
        weight_dtype=mode.dtype,
        activation_dtype=mode.dtype,
        kv_cache_dtype=mode.dtype,
        attention="fused" if mode.fused_attention else "eager",
    )
    return estimate_memory(network, workload, get_device(row["device"])).tensors_bytes  # as PyTorch's allocator counts


def _plan(mode: Mode, batch_size: int, length: int) -> TrainingPlan:
    return TrainingPlan(
        batch_size=batch_size,
        sequence_length=length,
        optimizer=mode.optimizer,
        precision=mode.precision,
        checkpointing=mode.checkpointing,
        fused_attention=mode.fused_attention,
        lora=mode.lora,
    )


def _each(rows: Callable[[], Iterator[Row]]) -> Iterator[Comparison]:
    return (_compared(*row) for row in rows())


def _compared(name: str, reference: float, figure: Callable[[], Figure | int]) -> Comparison:
    try:
        found = figure()
    except InputError as error:
        return Comparison(name=name, reference=reference, value=None, refusal=" ".join(str(error).split()))
    if isinstance(found, Figure):
        return Comparison(name=name, reference=reference, value=found.value, low=found.low, high=found.high)
    return Comparison(name=name, reference=reference, value=found)


CLASSES: Mapping[str, ReferenceClass] = {
    "parameters": ReferenceClass(
        compare=_parameters, unit="", held_against="transformers on the meta device, and published totals"
    ),
    "kv-cache": ReferenceClass(
        compare=_kv_caches, unit="B", held_against="sizes of the cache's tensors at 4,096 tokens, bf16, one sequence"
    ),
    "gpu-latency": ReferenceClass(
        compare=_latencies,
        unit="s",
        held_against="fp32 forward passes published with NeuSight (ASPLOS 2025), from the data sheet alone",
    ),
    "gpu-latency-one-point": ReferenceClass(
        compare=_calibrated_latencies,
        unit="s",
        held_against="the same, each from every other single one of its device, as `estimator calibrate` learns it",
    ),
    "decode-latency": ReferenceClass(
        compare=_decode_latencies,
        unit="s",
        held_against="time between tokens of vLLM on H100, bf16, from the ML.ENERGY leaderboard",
    ),
    "inference-memory": ReferenceClass(
        compare=partial(_memories, training=False),
        unit="B",
        held_against="peaks of PyTorch on an RTX A6000, published with vramcalc",
    ),
    "training-memory": ReferenceClass(
        compare=partial(_memories, training=True), unit="B", held_against="as inference-memory"
    ),
    "request-energy": ReferenceClass(
        compare=partial(_each, energy_rows),
        unit="J",
        held_against="joules per output token of vLLM on H100, bf16, from the ML.ENERGY leaderboard",
    ),
    "request-power": ReferenceClass(compare=partial(_each, power_rows), unit="W", held_against="as request-energy"),
    "training-energy": ReferenceClass(
        compare=partial(_each, training_energy_rows),
        unit="Wh",
        held_against="Patterson et al. (arXiv:2104.10350), LLMCarbon and LLaMA, from their published inputs",
    ),
    "training-co2e": ReferenceClass(compare=partial(_each, co2e_rows), unit="g", held_against="as training-energy"),
    "training-hours": ReferenceClass(
        compare=partial(_each, training_hours_rows),
        unit="h",
        held_against="A100 hours of LLaMA (arXiv:2302.13971), from config and tokens",
    ),
}
