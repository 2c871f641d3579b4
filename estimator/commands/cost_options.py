"""Energy, carbon and cost in `estimator size`: its options, lines and JSON."""

from __future__ import annotations

import argparse
import math
import re
from typing import TYPE_CHECKING, Any

from estimator.commands.arguments import count
from estimator.cost.energy import EnergyEstimate, estimate_energy
from estimator.cost.facility import DATA_CENTRE_PUE, WORLD_GRID_KG_PER_KWH, Facility, facility_of
from estimator.display import shorten
from estimator.figures import Figure
from estimator.quantities import quantity
from estimator.sizing import Estimate
from estimator.training.compute import TrainingCompute, TrainingRun, estimate_training_compute

if TYPE_CHECKING:
    from estimator.explaining.figures import Derivation

__all__ = ["add_arguments", "cost_document", "cost_explanation", "cost_lines", "energy_of", "training_of"]

_TRAINING_ONLY = ("num_devices", "achieved", "utilisation", "target_length")
_FACILITY = ("pue", "grid", "price_per_hour", "purchase_price", "years", "price_per_kwh", "power")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for energy, carbon, cost and the compute of a training run."""
    cost = parser.add_argument_group("energy, carbon and cost (with --device or --training-tokens)")
    cost.add_argument(
        "--pue", type=_number, metavar="X", help=f"facility energy over device energy ({DATA_CENTRE_PUE:g} for servers)"
    )
    cost.add_argument(
        "--grid", type=_number, metavar="KG", help=f"kg CO2e per kWh ({WORLD_GRID_KG_PER_KWH:g}, the world's)"
    )
    cost.add_argument("--power", type=_number, metavar="W", help="average power of a device, in place of the model")
    cost.add_argument("--price-per-hour", type=_number, metavar="P", help="price of a device for an hour")
    cost.add_argument("--purchase-price", type=_number, metavar="P", help="price of a device, over --years")
    cost.add_argument("--years", type=_number, metavar="N", help="years of use; alone, of the published price")
    cost.add_argument("--price-per-kwh", type=_number, metavar="P", help="price of electricity")
    training = parser.add_argument_group(
        "compute of a training run, in sequences of --sequence-length; in 16 bit, unless --weight-dtype fp32"
    )
    training.add_argument("--training-tokens", type=quantity(""), metavar="N", help="tokens in all, such as 300B")
    training.add_argument("--target-length", type=count(1), metavar="N", help="tokens of an encoder-decoder's target")
    training.add_argument(
        "--num-devices", type=count(1), metavar="N", help="devices in all (those of --training, else 1)"
    )
    training.add_argument("--achieved", type=quantity("flops"), metavar="R", help="FLOP/s of a device, such as 24.6T")
    training.add_argument("--utilisation", type=_share, metavar="S", help="share of its peak, such as 40%%")
    parser.set_defaults(usage_error=parser.error)


def energy_of(result: Estimate, args: argparse.Namespace) -> EnergyEstimate | None:
    """Energy of a request on the device of the estimate; None without a device, its time or its power.

    Raises:
        InputError: an option is impossible. One that would change nothing ends the program with code 2.
    """
    _refuse_idle_options(result, args)
    if result.device is None or result.latency is None:
        return None
    return estimate_energy(result.latency, result.device, result.workload, _facility(result, args))


def training_of(result: Estimate, args: argparse.Namespace) -> TrainingCompute | None:
    """The training run that the arguments ask for; None when they ask for none.

    Raises:
        InputError: an option is impossible. One that would change nothing ends the program with code 2.
    """
    _refuse_idle_options(result, args)
    if args.training_tokens is None:
        return None
    run = TrainingRun(
        tokens=round(args.training_tokens),
        sequence_length=args.sequence_length,
        target_length=args.target_length or 0,
        num_devices=args.num_devices or _planned_devices(args),
        dtype="fp32" if args.weight_dtype == "fp32" else "bf16",
        checkpointing="full" if args.checkpointing in ("full", "reversible") else "none",
        achieved_flops_per_s=args.achieved,
        utilisation=args.utilisation,
    )
    return estimate_training_compute(result.network, run, result.device, _facility(result, args))


def _planned_devices(args: argparse.Namespace) -> int:
    """The devices that --training divides the model and its batches among: its run is theirs."""
    return math.prod(getattr(args, f"{axis}_parallel") or 1 for axis in ("data", "tensor", "pipeline"))


def cost_document(result: Estimate, args: argparse.Namespace) -> dict[str, Any]:
    """The JSON objects `energy` (with a device) and `training_compute` (with --training-tokens)."""
    document: dict[str, Any] = {}
    energy, training = energy_of(result, args), training_of(result, args)
    if result.device is not None:
        document["energy"] = None if energy is None else energy.to_dict()
    if training is not None:
        document["training_compute"] = training.to_dict()
    return document


def cost_lines(result: Estimate, args: argparse.Namespace) -> list[str]:
    """Lines of the table, after those of the time."""
    energy, training = energy_of(result, args), training_of(result, args)
    lines = []
    if energy is not None:
        lines += _energy_lines(energy)
    elif result.latency is not None and result.device is not None:
        lines.append(f"  energy             not known: {result.device.name} has no published power; give --power W")
    if training is None:
        return lines
    only_weights = result.network.has_only_weights
    unknown = "not known from weights alone" if only_weights else "not known without --target-length"
    return [*lines, *_training_lines(training, unknown)]


def cost_explanation(result: Estimate, args: argparse.Namespace) -> tuple[Derivation, ...]:
    """How each figure of energy and training compute is derived."""
    from estimator.explaining.cost import derive_energy, derive_training_compute

    energy, training = energy_of(result, args), training_of(result, args)
    derived = () if energy is None else derive_energy(result, energy)
    return derived if training is None else (*derived, *derive_training_compute(training))


def _energy_lines(energy: EnergyEstimate) -> list[str]:
    price, facility = _price(energy.facility), energy.facility
    lines = [
        _line("  power in prefill", energy.prefill_w, "W"),
        _line("  power in decode", energy.decode_w, "W"),
        _line("  energy per request", energy.request_j, "J", "; the device alone"),
        _line("    per prompt token", energy.prefill_j_per_token, "J"),
        _line("    per decoded token", energy.decode_j_per_token, "J"),
        _line("    request/generated", energy.output_token_j, "J"),
        _line("  facility, request", energy.request_wh, "Wh", f"; PUE {facility.pue:g}"),
        _line("  CO2e per request", energy.request_kg_co2e, "g", f"; {facility.grid_kg_per_kwh:g} kg per kWh", 1e3),
        _line("  money, 1M prompt", energy.money_per_million_prompt_tokens, "", price),
        _line("  money, 1M output", energy.money_per_million_output_tokens, "", price),
    ]
    return [line for line in lines if line]


def _training_lines(training: TrainingCompute, unknown: str) -> list[str]:
    run, flops, cost = training.run, training.flops, training.cost
    each = f"sequences of {flops.sequence_tokens:,}, devices: {run.num_devices:,}"
    lines = [f"training on {run.tokens:,} tokens in {each}"]
    for label, value, origin in (
        ("  exact", flops.exact, f"counted: {run.num_passes} forward passes, masks not discounted"),
        ("  exact, causal", flops.exact_causal, "counted, without what masks hide"),
        ("  rule 6·N·D", flops.rule, f"modelled, N = {flops.parameters:,} (all that a token passes)"),
        ("  without tables", flops.rule_non_embedding, f"modelled, N = {flops.parameters_non_embedding:,}"),
    ):
        shown = "-" if value is None else f"{value:.4g} FLOP"
        lines.append(f"{label:<20} {shown:>14} {'':>22}   {unknown if value is None else origin}")
    lines += [
        _line("  petaflop/s-days", cost.petaflop_days, ""),
        _line("  rate of a device", cost.achieved_flops_per_s, "FLOP/s", f"; {cost.achieved_source.partition(':')[0]}"),
        _line("  device-hours", cost.device_hours, ""),
        _line("  wall time, days", cost.wall_days, ""),
        _line("  power of a device", cost.device_w, "W"),
        _line("  energy", cost.energy_kwh, "MWh", f"; PUE {cost.facility.pue:g}", 1e-3),
        _line("  CO2e", cost.co2e_kg, "t", f"; {cost.facility.grid_kg_per_kwh:g} kg per kWh", 1e-3),
        _line("  money", cost.money, "", _price(cost.facility)),
    ]
    return ["", *(line for line in lines if line)]


def _line(label: str, figure: Figure | None, unit: str, note: str = "", factor: float = 1.0) -> str:
    """A row of the table; empty for a figure that is not known."""
    if figure is None:
        return ""
    span = ""
    if figure.low is not None and figure.high is not None:
        span = f"{_shown(figure.low * factor, unit)} to {_shown(figure.high * factor, unit)}"
    return f"{label:<20} {_shown(figure.value * factor, unit):>12} {span:>24}   {figure.origin}{note}"


def _shown(value: float, unit: str) -> str:
    """With a prefix for the units that take one; else with all digits before the point."""
    if unit in ("W", "J", "Wh", "g", "FLOP/s"):
        return shorten(value, unit)
    return f"{value:,.0f} {unit}".rstrip() if value >= 1000 else f"{value:.4g} {unit}".rstrip()


def _price(facility: Facility) -> str:
    parts = []
    if facility.price_per_hour is not None:
        parts.append(f"{facility.price_per_hour:,.4g} an hour ({facility.price_source})")
    if facility.price_per_kwh:
        parts.append(f"{facility.price_per_kwh:g} per kWh")
    return f"; {', '.join(parts)}"


def _facility(result: Estimate, args: argparse.Namespace) -> Facility:
    return facility_of(
        result.device,
        pue=args.pue,
        grid_kg_per_kwh=args.grid,
        price_per_hour=args.price_per_hour,
        purchase_price=args.purchase_price,
        years=args.years,
        price_per_kwh=args.price_per_kwh or 0.0,
        power_w=args.power,
    )


def _refuse_idle_options(result: Estimate, args: argparse.Namespace) -> None:
    """An option that is given must change something."""
    if args.training_tokens is not None:
        return
    for name in _TRAINING_ONLY:
        if getattr(args, name) is not None:
            args.usage_error(f"--{name.replace('_', '-')} needs --training-tokens N")
    for name in _FACILITY:
        if getattr(args, name) is not None and result.latency is None:
            args.usage_error(f"--{name.replace('_', '-')} needs a --device whose time is known, or --training-tokens N")


def _number(text: str) -> float:
    """A number of at least 0, as Python writes it."""
    if not re.fullmatch(r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+", text.strip()) or len(text) > 40:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text[:40]!r}")
    return float(text)


def _share(text: str) -> float:
    """A share such as 0.4 or 40%."""
    digits = text.strip()
    return _number(digits[:-1]) / 100 if digits.endswith("%") else _number(digits)
