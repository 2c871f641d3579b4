"""What training takes: FLOPs by the exact count and by the rule, device-hours, energy, carbon and money."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from estimator.achievable import achievable_of
from estimator.config import TransformerConfig
from estimator.cost.energy import scaled
from estimator.cost.facility import JOULES_PER_KWH, Facility, facility_of
from estimator.cost.power import power_class_of
from estimator.devices import Device
from estimator.errors import InputError
from estimator.figures import Figure
from estimator.flops import count_flops
from estimator.network import Network
from estimator.params import count_params
from estimator.phases import stack_rows
from estimator.weights import network_of
from estimator.workload import Workload

__all__ = [
    "BACKWARD_PASSES",
    "PETAFLOP_DAY",
    "RULE_FLOPS_PER_PARAMETER",
    "RULE_SOURCE",
    "TrainingCompute",
    "TrainingCost",
    "TrainingFlops",
    "TrainingRun",
    "count_training_flops",
    "estimate_training_compute",
    "estimate_training_cost",
]

# The backward pass makes two products of the size of each forward one: for the inputs and for the weights.
BACKWARD_PASSES = 2
# 2 FLOPs forward and 4 backward per token and parameter: Kaplan et al., arXiv:2001.08361, section 2.1.
RULE_FLOPS_PER_PARAMETER = 6
PETAFLOP_DAY = 1e15 * 86_400
RULE_SOURCE = "Kaplan et al., Scaling Laws for Neural Language Models, arXiv:2001.08361, section 2.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What is trained for: tokens in all, in sequences of `sequence_length`, on `num_devices` devices.

    `target_length` is the length of an encoder-decoder's second sequence. `achieved_flops_per_s` is what one device
    sustains, as published or measured; without it `utilisation` of its peak, and without that the share of its class.
    `checkpointing` repeats the forward pass in the backward one ("full") or not ("none").

    Raises:
        InputError: names the number and what would be right.
    """

    tokens: int
    sequence_length: int = 2048
    target_length: int = 0
    num_devices: int = 1
    dtype: str = "bf16"
    checkpointing: str = "none"
    achieved_flops_per_s: float | None = None
    utilisation: float | None = None

    def __post_init__(self) -> None:
        limits = {
            "tokens": (1, 10**18),
            "sequence_length": (1, 2**31),
            "target_length": (0, 2**31),
            "num_devices": (1, 2**31),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise InputError(f"{name} must be an integer from {least} to {most:,}, not {value!r}")
        if self.checkpointing not in ("none", "full"):
            raise InputError(f"checkpointing must be none or full, not {self.checkpointing!r}")
        rate = self.achieved_flops_per_s
        if rate is not None and (not math.isfinite(rate) or not 0 < rate <= 1e18):
            raise InputError(f"the achieved rate must be above 0 and at most 1e18 FLOP/s, not {rate!r}")
        if self.utilisation is not None and not 0 < self.utilisation <= 1:
            raise InputError(f"utilisation must be above 0 and at most 100 %, not {self.utilisation!r}")
        if rate is not None and self.utilisation is not None:
            raise InputError("give either an achieved rate or a utilisation, not both")

    @property
    def num_passes(self) -> int:
        """Forward passes that one step of training is worth."""
        return 1 + BACKWARD_PASSES + (1 if self.checkpointing == "full" else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFlops:
    """FLOPs of a whole training run by the exact count and by the rule.

    `sequence_tokens` are the tokens of one sequence, or of source and target together. `exact` is three times the
    forward pass (four with full checkpointing) over all sequences, with the full square of attention; `exact_causal`
    leaves out what a causal mask hides. Both are None where the forward pass is not known: an encoder-decoder without
    a target length, a file that holds weights alone. `rule` is 6·N·D with N the parameters that a token passes
    through, `rule_non_embedding` without the lookup tables.
    """

    sequence_tokens: int
    exact: int | None
    exact_causal: int | None
    rule: int
    rule_non_embedding: int
    parameters: int
    parameters_non_embedding: int

    @property
    def known(self) -> tuple[int, ...]:
        """All counts there are."""
        counts = (self.exact, self.exact_causal, self.rule, self.rule_non_embedding)
        return tuple(count for count in counts if count is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """What so many FLOPs take. What needs a device, a rate, a power or a price is None without it.

    `achieved_flops_per_s` and `device_w` are of one device, `device_hours` of all together; `energy_kwh` and what
    follows from it are those of the facility.
    """

    petaflop_days: Figure
    achieved_flops_per_s: Figure | None
    achieved_source: str
    device_hours: Figure | None
    wall_days: Figure | None
    device_w: Figure | None
    energy_kwh: Figure | None
    co2e_kg: Figure | None
    money: Figure | None
    facility: Facility

    def figures(self) -> dict[str, Figure | None]:
        """All figures by name, in the order in which they are shown."""
        names = self.__dataclass_fields__
        return {name: getattr(self, name) for name in names if name not in ("achieved_source", "facility")}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCompute:
    """A training run, its FLOPs by every count, and what they cost.

    Hours, energy and money follow from the rule's FLOPs, because published rates are counted with it; their intervals
    reach over all counts, and over what devices of the class sustain when no rate is given.
    """

    run: TrainingRun
    flops: TrainingFlops
    cost: TrainingCost

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `training_compute`."""
        figures = {name: None if figure is None else figure.to_dict() for name, figure in self.cost.figures().items()}
        return {
            "run": asdict(self.run),
            "flops": asdict(self.flops),
            **figures,
            "achieved_source": self.cost.achieved_source,
            "facility": asdict(self.cost.facility),
        }


def count_training_flops(model: TransformerConfig | Network, run: TrainingRun) -> TrainingFlops:
    """FLOPs of a training run: the exact count, full and causal, and the rule 6·N·D.

    Exact = sequences · (1 + 2, + 1 with full checkpointing) · FLOPs of the forward pass.

    Ignores: what `count_flops` ignores, the optimizer, and the loss.
    Source: RULE_SOURCE; a backward pass costs two forward ones (tests/estimator/test_training_compute.py).
    """
    network = network_of(model)
    params = count_params(network)
    tokens = _sequence_tokens(network, run)
    exact, causal = _exact_flops(network, run, tokens)
    return TrainingFlops(
        sequence_tokens=tokens,
        exact=exact,
        exact_causal=causal,
        rule=RULE_FLOPS_PER_PARAMETER * params.active * run.tokens,
        rule_non_embedding=RULE_FLOPS_PER_PARAMETER * params.active_non_embedding * run.tokens,
        parameters=params.active,
        parameters_non_embedding=params.active_non_embedding,
    )


def estimate_training_compute(
    model: TransformerConfig | Network,
    run: TrainingRun,
    device: Device | None = None,
    facility: Facility | None = None,
) -> TrainingCompute:
    """FLOPs of a training run, and its device-hours, days, energy, carbon and money by the rule's FLOPs.

    Raises:
        InputError: a utilisation is asked for on a device without a known rate.
    """
    flops = count_training_flops(model, run)
    used = Figure(value=flops.rule, low=min(flops.known), high=max(flops.known), origin="modelled")
    return TrainingCompute(run=run, flops=flops, cost=estimate_training_cost(used, run, device, facility))


def estimate_training_cost(
    flops: Figure, run: TrainingRun, device: Device | None = None, facility: Facility | None = None
) -> TrainingCost:
    """What training with so many FLOPs takes, counted or published.

    Device-hours = FLOPs / achieved rate; kWh = device-hours · power · PUE; CO2e = kWh · grid.

    Raises:
        InputError: a utilisation is asked for on a device without a known rate.
    Source: Patterson et al., Carbon Emissions and Large Neural Network Training, arXiv:2104.10350, section 2.
    """
    facility = facility or facility_of(device)
    rate, source = _achieved_rate(run, device)
    hours = None if rate is None else _divided(flops, rate, 3600.0)
    power = _training_power(device, facility)
    energy = None if hours is None or power is None else _product(hours, power, facility.pue / 1e3)
    return TrainingCost(
        petaflop_days=scaled(flops, 1 / PETAFLOP_DAY),
        achieved_flops_per_s=rate,
        achieved_source=source,
        device_hours=hours,
        wall_days=None if hours is None else scaled(hours, 1 / (24 * run.num_devices)),
        device_w=power,
        energy_kwh=energy,
        co2e_kg=None if energy is None else scaled(energy, facility.grid_kg_per_kwh),
        money=_money(facility, hours, energy),
        facility=facility,
    )


def _sequence_tokens(network: Network, run: TrainingRun) -> int:
    """Tokens of one sequence, or of source and target; rows where their number is fixed, as an image's."""
    workload = Workload(prompt_length=run.sequence_length)
    if network.architecture == "encoder-decoder":
        return stack_rows(network, network.stacks[-2], workload) + run.target_length
    return stack_rows(network, network.main, workload)


def _exact_flops(network: Network, run: TrainingRun, tokens: int) -> tuple[int | None, int | None]:
    """FLOPs of all sequences, forward and backward: full and causal; the last sequence may be a part of one."""
    if network.has_only_weights or (network.architecture == "encoder-decoder" and not run.target_length):
        return None, None
    if network.architecture == "encoder-decoder":
        *before, main = network.stacks
        network = replace(network, stacks=(*before, replace(main, length=run.target_length)))
    forward = count_flops(network, Workload(prompt_length=run.sequence_length))
    full, causal = forward.prefill_flops, forward.prefill_causal_flops
    return run.num_passes * full * run.tokens // tokens, run.num_passes * causal * run.tokens // tokens


def _achieved_rate(run: TrainingRun, device: Device | None) -> tuple[Figure | None, str]:
    """FLOP/s of one device in training and where the number comes from."""
    if run.achieved_flops_per_s is not None:
        return Figure(value=run.achieved_flops_per_s, origin="published"), "as given"
    rates = {} if device is None else device.peak_flops_per_s
    peak = rates.get(run.dtype) or rates.get("fp16") or rates.get("fp32")
    if device is None or peak is None:
        if run.utilisation is not None:
            what = "a utilisation needs --device" if device is None else f"{device.name} has no published rate"
            raise InputError(f"{what}; or give the achieved FLOP/s")
        return None, ""
    if run.utilisation is not None:
        return Figure(value=peak * run.utilisation, origin="modelled"), f"given share of {peak / 1e12:g} TFLOP/s"
    achievable = achievable_of(device)
    share = achievable.fp32_fraction if peak == rates.get("fp32") else achievable.matrix_fraction
    value, spread = peak * share, achievable.spread
    figure = Figure(value=value, low=value / spread, high=min(peak, value * spread), origin="modelled")
    return figure, f"{share:g} of {peak / 1e12:g} TFLOP/s: {achievable.source}"


def _training_power(device: Device | None, facility: Facility) -> Figure | None:
    """Watts of one device that computes without pause: as given, or by its class."""
    if facility.power_w is not None:
        return Figure(value=facility.power_w, origin="published")
    if device is None or device.tdp_w is None:
        return None
    power = power_class_of(device)
    value, spread = device.tdp_w * power.training_share, power.training_spread
    return Figure(value=value, low=value / spread, high=value * spread, origin="modelled")


def _divided(value: Figure, rate: Figure, unit: float) -> Figure:
    low, high = _ends(value)
    slow, fast = _ends(rate)
    return Figure(
        value=value.value / rate.value / unit, low=low / fast / unit, high=high / slow / unit, origin="modelled"
    )


def _product(first: Figure, second: Figure, factor: float) -> Figure:
    (low, high), (other_low, other_high) = _ends(first), _ends(second)
    value = first.value * second.value * factor
    return Figure(value=value, low=low * other_low * factor, high=high * other_high * factor, origin="modelled")


def _ends(figure: Figure) -> tuple[float, float]:
    """Low and high of an interval; the value twice where there is none."""
    low = figure.value if figure.low is None else figure.low
    return low, figure.value if figure.high is None else figure.high


def _money(facility: Facility, hours: Figure | None, energy: Figure | None) -> Figure | None:
    """Price of the device-hours, and of the energy where both are known."""
    if hours is None or not facility.has_price or (facility.price_per_kwh and energy is None):
        return None
    joules = [0.0] * 3 if energy is None else [end / facility.pue * JOULES_PER_KWH for end in _all(energy)]
    seconds = [end * 3600 for end in _all(hours)]
    low, value, high = (facility.cost(s, j) or 0.0 for s, j in zip(seconds, joules, strict=True))
    return Figure(value=value, low=low, high=high, origin="modelled")


def _all(figure: Figure) -> tuple[float, float, float]:
    low, high = _ends(figure)
    return low, figure.value, high
