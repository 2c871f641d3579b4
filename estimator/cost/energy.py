"""What a request costs in energy, carbon and money on a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from estimator.cost.facility import JOULES_PER_KWH, Facility, facility_of, kwh_of
from estimator.cost.power import PowerClass, power_class_of
from estimator.devices import Device
from estimator.figures import Figure
from estimator.latency import LatencyEstimate, PhaseTime, computing_rate
from estimator.workload import Workload

__all__ = ["EnergyEstimate", "estimate_energy", "phase_energy_j", "scaled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyEstimate:
    """Energy of the device by phase, and what a request amounts to.

    `prefill_j` is that of the whole batch's prompts, `prefill_j_per_token` of one prompt token, `decode_j_per_token` of
    one generated token. `request_j` is one sequence: its prompt and all its tokens. `output_token_j` shares a request
    among its generated tokens; None when it generates none. Joules are those of the device alone: its host, and fans,
    disks and network are not in them. `request_wh` and `request_kg_co2e` are those of the facility, by its PUE. Money
    is for a million tokens; None without a price.
    """

    prefill_w: Figure
    decode_w: Figure | None
    prefill_j: Figure
    prefill_j_per_token: Figure
    decode_j_per_token: Figure | None
    request_j: Figure
    output_token_j: Figure | None
    request_wh: Figure
    request_kg_co2e: Figure
    money_per_million_prompt_tokens: Figure | None
    money_per_million_output_tokens: Figure | None
    facility: Facility
    power: PowerClass

    def figures(self) -> dict[str, Figure | None]:
        """All figures by name, in the order in which they are shown."""
        names = self.__dataclass_fields__
        return {name: getattr(self, name) for name in names if name not in ("facility", "power")}

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `energy`."""
        figures = {name: None if figure is None else figure.to_dict() for name, figure in self.figures().items()}
        return figures | {"facility": asdict(self.facility), "power": asdict(self.power)}


def estimate_energy(
    latency: LatencyEstimate, device: Device, workload: Workload, facility: Facility | None = None
) -> EnergyEstimate | None:
    """Energy by phase and request; None when no power limit of the device is known, and no power is given.

    Energy = limit · (awake share · seconds + bandwidth share · bytes / bandwidth + compute share · FLOPs / peak), with
    the published peaks; or the given power times the time.

    Ignores: the host, memory outside of the device, network, and the time in which a device waits for requests.
    Source: `PowerClass.source`; facility: `Facility.pue_source`, `Facility.grid_source`.
    """
    facility = facility or facility_of(device)
    if device.tdp_w is None and facility.power_w is None:
        return None
    power = power_class_of(device)
    batch, prompts = workload.batch_size, workload.batch_size * workload.prompt_length
    prefill_s = latency.prefill_s.time_s.value
    prefill_j = phase_energy_j(latency.prefill_s, device, workload, facility)
    prefill = _energy(prefill_j, power)
    decode_w = token = None
    token_s = 0.0
    if latency.decode_s_per_token is not None:
        step_j = phase_energy_j(latency.decode_s_per_token, device, workload, facility)
        step_s = latency.decode_s_per_token.time_s.value
        decode_w, token, token_s = (
            _power(step_j / step_s, device, facility),
            _energy(step_j / batch, power),
            step_s / batch,
        )
    generated = workload.generated_length if token is not None else 0
    request = _energy(prefill.value / batch + generated * (0.0 if token is None else token.value), power)
    request_s = prefill_s / batch + generated * token_s
    return EnergyEstimate(
        prefill_w=_power(prefill_j / prefill_s, device, facility),
        decode_w=decode_w,
        prefill_j=prefill,
        prefill_j_per_token=scaled(prefill, 1 / prompts),
        decode_j_per_token=token,
        request_j=request,
        output_token_j=scaled(request, 1 / generated) if generated else None,
        request_wh=scaled(request, facility.pue * 1e3 / JOULES_PER_KWH),
        request_kg_co2e=scaled(request, kwh_of(1.0, facility.pue) * facility.grid_kg_per_kwh),
        money_per_million_prompt_tokens=_money(facility, prefill_s, prefill, prompts, latency),
        money_per_million_output_tokens=_money(facility, request_s, request, generated, latency),
        facility=facility,
        power=power,
    )


def phase_energy_j(phase: PhaseTime, device: Device, workload: Workload, facility: Facility) -> float:
    """Joules of the device during a phase: by a given power, or by what the phase moves and computes."""
    seconds = phase.time_s.value
    if facility.power_w is not None:
        return facility.power_w * seconds
    power, bandwidth = power_class_of(device), device.memory_bandwidth_bytes_per_s
    assert device.tdp_w is not None
    assert bandwidth is not None  # else there were no time
    moving = power.bandwidth_share * phase.bytes_moved / bandwidth
    computing = power.compute_share * phase.flops / computing_rate(workload, device)[0]
    return device.tdp_w * (power.awake_share * seconds + moving + computing)


def scaled(figure: Figure, factor: float) -> Figure:
    """A figure times a number that is not negative, with its interval."""
    low, high = figure.low, figure.high
    return Figure(
        value=figure.value * factor,
        low=None if low is None else low * factor,
        high=None if high is None else high * factor,
        origin=figure.origin,
    )


def _power(watts: float, device: Device, facility: Facility) -> Figure:
    """Watts during a phase; a device that would need more than its limit takes longer than the roofline says."""
    if facility.power_w is not None:
        return Figure(value=facility.power_w, origin="published")
    assert device.tdp_w is not None
    value, spread = min(watts, device.tdp_w), power_class_of(device).power_spread
    return Figure(value=value, low=value / spread, high=min(value * spread, device.tdp_w), origin="modelled")


def _energy(joules: float, power: PowerClass) -> Figure:
    return Figure(value=joules, low=joules / power.below, high=joules * power.above, origin="modelled")


def _money(facility: Facility, seconds: float, energy: Figure, tokens: int, latency: LatencyEstimate) -> Figure | None:
    """Money for a million tokens of which `tokens` take these seconds and joules; the interval is that of the time."""
    cost = facility.cost(seconds, energy.value)
    if cost is None or not tokens:
        return None
    spread, value = latency.achievable.spread, cost / tokens * 1e6
    return Figure(value=value, low=value / spread, high=value * spread, origin="modelled")
