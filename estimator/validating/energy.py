"""Energy against reference data: measured requests on GPUs, and training runs as they were published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from estimator.cost.energy import EnergyEstimate, estimate_energy
from estimator.cost.facility import Facility, facility_of
from estimator.devices import Device, get_device
from estimator.errors import InputError
from estimator.figures import Figure
from estimator.latency import estimate_latency
from estimator.training.compute import TrainingRun, estimate_training_compute, estimate_training_cost
from estimator.validating.rows import named_network, reference_rows
from estimator.workload import Workload

__all__ = [
    "Row",
    "co2e_rows",
    "energy_rows",
    "joined_device",
    "power_rows",
    "training_energy_rows",
    "training_hours_rows",
]

Row = tuple[str, float, Callable[[], Figure]]
"""Name, reference, and what computes our figure (it may refuse)."""
# Chat requests differ in length and no row says it: as many prompt as generated tokens.
_CHAT = Workload(
    prompt_length=512, generated_length=512, weight_dtype="bf16", activation_dtype="bf16", kv_cache_dtype="bf16"
)


def energy_rows() -> Iterator[Row]:
    """Joules per output token of a server that is kept full, prompts included."""
    for row in reference_rows("energy_h100.tsv"):
        yield _request_name(row), float(row["joules_per_output_token"]), partial(_joules, row)


def power_rows() -> Iterator[Row]:
    """Watts of all devices of that server."""
    for row in reference_rows("energy_h100.tsv"):
        yield _request_name(row), float(row["power_w"]), partial(_watts, row)


def training_energy_rows() -> Iterator[Row]:
    """Watt-hours of training runs from the published FLOPs, rate, power and PUE; or hours, power and PUE."""
    for row in reference_rows("training_energy.tsv"):
        yield row["model"], float(row["energy_mwh"]) * 1e6, partial(_training_wh, row)


def co2e_rows() -> Iterator[Row]:
    """Grams of CO2e of the same runs on the published grid."""
    for row in reference_rows("training_energy.tsv"):
        yield row["model"], float(row["co2e_t"]) * 1e6, partial(_training_co2e, row)


def training_hours_rows() -> Iterator[Row]:
    """Device-hours from the config, the tokens, and what devices of the class sustain."""
    for row in reference_rows("training_energy.tsv"):
        if row["device_hours"]:
            yield row["model"], float(row["device_hours"]), partial(_hours, row)


def _request_name(row: Mapping[str, str]) -> str:
    device, num_gpus = row.get("device") or "h100", int(row.get("num_gpus") or 1)
    return f"{device}{f' x {num_gpus}' if num_gpus > 1 else ''}: {row['model']}, {row['batch_size']} requests"


def _request(row: Mapping[str, str]) -> EnergyEstimate:
    """Several devices count as one with all their bandwidth, peaks and power: collectives are left to the interval."""
    device = joined_device(get_device(row.get("device") or "h100"), int(row.get("num_gpus") or 1))
    workload = replace(_CHAT, batch_size=int(row["batch_size"]))
    latency = estimate_latency(named_network(row["model"]), workload, device)
    energy = None if latency is None else estimate_energy(latency, device, workload)
    if energy is None:
        raise InputError(f"{device.name} has no published rate, bandwidth or power")
    return energy


def _joules(row: Mapping[str, str]) -> Figure:
    figure = _request(row).output_token_j
    assert figure is not None
    return figure


def _watts(row: Mapping[str, str]) -> Figure:
    figure = _request(row).decode_w
    assert figure is not None
    return figure


def joined_device(device: Device, num_devices: int) -> Device:
    """So many devices as one with all their rates, bandwidth and power; what they tell each other takes no time."""
    bandwidth, limit = device.memory_bandwidth_bytes_per_s, device.tdp_w
    return replace(
        device,
        peak_flops_per_s={dtype: num_devices * rate for dtype, rate in device.peak_flops_per_s.items()},
        memory_bandwidth_bytes_per_s=None if bandwidth is None else num_devices * bandwidth,
        tdp_w=None if limit is None else num_devices * limit,
    )


def _training_wh(row: Mapping[str, str]) -> Figure:
    """From published FLOPs and rate, or from published hours, which are FLOPs at a rate of 1 per second."""
    if row["training_flops"]:
        flops, rate = float(row["training_flops"]), float(row["achieved_flops_per_s"])
    else:
        flops, rate = float(row["device_hours"]) * 3600, 1.0
    run = TrainingRun(tokens=1, achieved_flops_per_s=rate)
    cost = estimate_training_cost(Figure(value=flops, origin="published"), run, None, _facility(row))
    assert cost.energy_kwh is not None
    return Figure(value=cost.energy_kwh.value * 1e3, origin=cost.energy_kwh.origin)


def _training_co2e(row: Mapping[str, str]) -> Figure:
    energy, grid = _training_wh(row), float(row["grid_kg_per_kwh"])
    return Figure(value=energy.value * grid, origin=energy.origin)


def _facility(row: Mapping[str, str]) -> Facility:
    power_w, pue = float(row["power_w"]), float(row["pue"])
    return facility_of(None, power_w=power_w, pue=pue, grid_kg_per_kwh=float(row["grid_kg_per_kwh"]))


def _hours(row: Mapping[str, str]) -> Figure:
    run = TrainingRun(tokens=round(float(row["tokens"])), sequence_length=2048)
    cost = estimate_training_compute(named_network(row["model"]), run, get_device(row["device"])).cost
    assert cost.device_hours is not None
    return cost.device_hours
