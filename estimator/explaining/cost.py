"""Where energy, carbon and money come from: formula, numbers put in, origin, source."""

from __future__ import annotations

from collections.abc import Iterator

from estimator.cost.energy import EnergyEstimate
from estimator.cost.facility import JOULES_PER_KWH, Facility
from estimator.devices import Device
from estimator.explaining.figures import Derivation
from estimator.latency import PhaseTime, computing_rate
from estimator.sizing import Estimate
from estimator.training.compute import PETAFLOP_DAY, RULE_SOURCE, TrainingCompute
from estimator.workload import Workload

__all__ = ["derive_energy", "derive_training_compute"]

_Row = tuple[str, str, str, float, str]
_ABOVE = "the figures above"


def derive_energy(result: Estimate, energy: EnergyEstimate) -> tuple[Derivation, ...]:
    """A derivation of every figure of the energy of a request that is known."""
    figures = energy.figures()
    rows = {row[0]: row for row in _energy_rows(result, energy)}
    return tuple(
        _derivation(f"energy.{name}", rows[name], figure.origin)
        for name, figure in figures.items()
        if figure is not None
    )


def derive_training_compute(training: TrainingCompute) -> tuple[Derivation, ...]:
    """A derivation of the counts of a training run that follow from others, and of all that they cost."""
    figures = training.cost.figures()
    rows = {row[0]: row for row in _cost_rows(training)}
    derived = [_derivation(f"training_compute.flops.{row[0]}", row, "modelled") for row in _rule_rows(training)]
    derived += [
        _derivation(f"training_compute.{name}", rows[name], figure.origin)
        for name, figure in figures.items()
        if figure is not None
    ]
    return tuple(derived)


def _derivation(figure: str, row: _Row, origin: str) -> Derivation:
    _, formula, numbers, value, source = row
    return Derivation(figure=figure, formula=formula, numbers=numbers, value=value, origin=origin, source=source)


def _energy_rows(result: Estimate, energy: EnergyEstimate) -> Iterator[_Row]:
    workload, latency, device, facility = result.workload, result.latency, result.device, energy.facility
    assert latency is not None
    assert device is not None
    batch, prompts = workload.batch_size, workload.batch_size * workload.prompt_length
    generated = workload.generated_length
    prefill, request = energy.prefill_j.value, energy.request_j.value
    yield _watts("prefill_w", energy.prefill_w.value, prefill, latency.prefill_s, device, energy)
    yield _joules("prefill_j", prefill, latency.prefill_s, device, workload, energy)
    numbers = f"{prefill!r} / {prompts}"
    yield "prefill_j_per_token", "prefill / prompt tokens of the batch", numbers, prefill / prompts, _ABOVE
    token = 0.0
    if energy.decode_w is not None and energy.decode_j_per_token is not None and latency.decode_s_per_token is not None:
        token = energy.decode_j_per_token.value
        yield _watts("decode_w", energy.decode_w.value, token * batch, latency.decode_s_per_token, device, energy)
        _, formula, numbers, _, source = _joules("", token, latency.decode_s_per_token, device, workload, energy)
        yield "decode_j_per_token", f"({formula}) / B", f"({numbers}) / {batch}", token, source
    numbers = f"{prefill!r} / {batch} + {generated} × {token!r}"
    yield "request_j", "prefill / B + generated tokens · joules of one", numbers, request, _ABOVE
    if energy.output_token_j is not None:
        numbers = f"{request!r} / {generated}"
        yield "output_token_j", "request / generated tokens", numbers, energy.output_token_j.value, _ABOVE
    hours = f"{request!r} × {facility.pue!r} / 3600"
    yield "request_wh", "joules · PUE / 3600", hours, energy.request_wh.value, f"PUE: {facility.pue_source}"
    numbers = f"{request!r} × {facility.pue!r} / {JOULES_PER_KWH:g} × {facility.grid_kg_per_kwh!r}"
    co2e, source = energy.request_kg_co2e.value, f"grid: {facility.grid_source}"
    yield "request_kg_co2e", "kWh of the facility · kg per kWh", numbers, co2e, source
    yield from _money_rows(result, energy)


def _money_rows(result: Estimate, energy: EnergyEstimate) -> Iterator[_Row]:
    latency, workload, facility = result.latency, result.workload, energy.facility
    assert latency is not None
    for name, figure, seconds, joules, tokens in (
        (
            "money_per_million_prompt_tokens",
            energy.money_per_million_prompt_tokens,
            latency.prefill_s.time_s.value,
            energy.prefill_j.value,
            workload.batch_size * workload.prompt_length,
        ),
        (
            "money_per_million_output_tokens",
            energy.money_per_million_output_tokens,
            latency.request_s / workload.batch_size,
            energy.request_j.value,
            workload.generated_length,
        ),
    ):
        if figure is not None:
            numbers = f"({_price_numbers(facility, repr(seconds / 3600), repr(joules))}) / {tokens} × 1000000"
            formula = "(device-hours · price per hour + kWh · price per kWh) / tokens · 1,000,000"
            yield name, formula, numbers, figure.value, f"price: {facility.price_source or 'as given'}"


def _price_numbers(facility: Facility, hours: str, joules: str) -> str:
    electricity = f"{joules} × {facility.pue!r} / {JOULES_PER_KWH:g} × {facility.price_per_kwh!r}"
    return f"{hours} × {facility.price_per_hour or 0.0!r} + {electricity}"


def _watts(name: str, watts: float, joules: float, phase: PhaseTime, device: Device, energy: EnergyEstimate) -> _Row:
    if energy.facility.power_w is not None:
        return name, "power", repr(watts), watts, "as given"
    numbers = f"min({device.tdp_w!r}, {joules!r} / {phase.time_s.value!r})"
    limit = device.sources["tdp_w"]
    return name, "min(TDP, joules / seconds)", numbers, watts, f"TDP: {limit.title}, {limit.date}"


def _joules(
    name: str, joules: float, phase: PhaseTime, device: Device, workload: Workload, energy: EnergyEstimate
) -> _Row:
    seconds = phase.time_s.value
    if energy.facility.power_w is not None:
        return name, "power · seconds", f"{energy.facility.power_w!r} × {seconds!r}", joules, "power: as given"
    power, bandwidth = energy.power, device.memory_bandwidth_bytes_per_s
    moving = f"{power.bandwidth_share!r} × {phase.bytes_moved} / {bandwidth!r}"
    computing = f"{power.compute_share!r} × {phase.flops} / {computing_rate(workload, device)[0]!r}"
    numbers = f"{device.tdp_w!r} × ({power.awake_share!r} × {seconds!r} + {moving} + {computing})"
    formula = "TDP · (awake share · seconds + bandwidth share · bytes / bandwidth + compute share · FLOPs / peak)"
    return name, formula, numbers, joules, power.source


def _rule_rows(training: TrainingCompute) -> Iterator[_Row]:
    flops, tokens = training.flops, training.run.tokens
    yield "rule", "6·N·D", f"6 × {flops.parameters} × {tokens}", flops.rule, RULE_SOURCE
    numbers = f"6 × {flops.parameters_non_embedding} × {tokens}"
    yield "rule_non_embedding", "6·N·D, N without the tables", numbers, flops.rule_non_embedding, RULE_SOURCE


def _cost_rows(training: TrainingCompute) -> Iterator[_Row]:
    cost, run, facility, rule = training.cost, training.run, training.cost.facility, training.flops.rule
    days = cost.petaflop_days.value
    yield "petaflop_days", "rule / (10¹⁵ · 86,400)", f"{rule} / {PETAFLOP_DAY!r}", days, _ABOVE
    if cost.achieved_flops_per_s is None or cost.device_hours is None or cost.wall_days is None:
        return
    rate, hours = cost.achieved_flops_per_s.value, cost.device_hours.value
    yield "achieved_flops_per_s", "rate of a device", repr(rate), rate, cost.achieved_source
    yield "device_hours", "rule / rate / 3600", f"{rule} / {rate!r} / 3600", hours, _ABOVE
    numbers = f"{hours!r} / {run.num_devices} / 24"
    yield "wall_days", "device-hours / devices / 24", numbers, cost.wall_days.value, _ABOVE
    if cost.device_w is not None and cost.energy_kwh is not None and cost.co2e_kg is not None:
        watts, energy = cost.device_w.value, cost.energy_kwh.value
        where = "as given" if facility.power_w is not None else "TDP of the device · the share of its class in training"
        yield "device_w", "average power of a device", repr(watts), watts, where
        numbers = f"{hours!r} × {watts!r} × {facility.pue!r} / 1000"
        yield "energy_kwh", "device-hours · power · PUE", numbers, energy, f"PUE: {facility.pue_source}"
        numbers = f"{energy!r} × {facility.grid_kg_per_kwh!r}"
        yield "co2e_kg", "kWh · kg per kWh", numbers, cost.co2e_kg.value, f"grid: {facility.grid_source}"
    if cost.money is not None:
        used = 0.0 if cost.energy_kwh is None else cost.energy_kwh.value
        numbers = f"{hours!r} × {facility.price_per_hour or 0.0!r} + {used!r} × {facility.price_per_kwh!r}"
        source = f"price: {facility.price_source or 'as given'}"
        yield "money", "device-hours · price per hour + kWh · price per kWh", numbers, cost.money.value, source
