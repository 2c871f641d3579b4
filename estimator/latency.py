"""How long a request takes on a device: the roofline, over what real runs reach of the peaks, with an interval."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from estimator.achievable import Achievable, achievable_of
from estimator.config import TransformerConfig
from estimator.devices import Device
from estimator.figures import Figure
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes, count_state_bytes, count_weight_bytes
from estimator.network import Network
from estimator.phases import BlockRun, decode_runs, prefill_runs, stack_rows
from estimator.roofline import count_read_bytes, peak_rate
from estimator.weights import network_of
from estimator.workload import Workload

__all__ = ["LatencyEstimate", "PhaseTime", "computing_rate", "count_operators", "estimate_latency", "sustained_rate"]


_ATTENTION_OPERATORS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """Seconds of one phase: what is expected with its interval, the bound that no run beats, and what binds.

    `flops` and `bytes_moved` are what the bound divides; `intensity` is their ratio in FLOP per byte. `fraction` names
    the part of a peak that decides (`achievable.FRACTIONS`); `overhead_s` is what operators take beside their work.
    """

    time_s: Figure
    bound_s: float
    fraction: str
    flops: int
    bytes_moved: int
    overhead_s: float

    @property
    def limit(self) -> str:
        """What binds: bandwidth or compute."""
        return "bandwidth" if self.fraction == "bandwidth_fraction" else "compute"

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes_moved

    def to_dict(self) -> dict[str, Any]:
        """The JSON of one phase; value, low, high and origin are a contract."""
        return self.time_s.to_dict() | {
            "bound_s": self.bound_s,
            "limit": self.limit,
            "flops": self.flops,
            "bytes_moved": self.bytes_moved,
            "intensity_flops_per_byte": self.intensity,
            "overhead_s": self.overhead_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyEstimate:
    """Both phases, None where there is no such phase. `achievable` holds the fractions and where they come from.

    Time to first token is the prefill; a sequence gets a token every `decode_s_per_token`, the batch `batch_size` of
    them: `tokens_per_s`. `request_s` is the prefill and all generated tokens.
    """

    prefill_s: PhaseTime
    decode_s_per_token: PhaseTime | None
    request_s: float
    tokens_per_s: float | None
    achievable: Achievable

    @property
    def origins(self) -> dict[str, str]:
        """The origin of every time by its name; a request is predicted when all of it is."""
        phases = {"prefill_s": self.prefill_s, "decode_s_per_token": self.decode_s_per_token}
        origins = {name: phase.time_s.origin for name, phase in phases.items() if phase is not None}
        origins["request_s"] = "predicted" if set(origins.values()) == {"predicted"} else "modelled"
        if self.decode_s_per_token is not None:
            origins["tokens_per_s"] = origins["decode_s_per_token"]
        return origins

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `latency`; prefill_s and decode_s_per_token are a contract."""
        return {
            "prefill_s": self.prefill_s.to_dict(),
            "decode_s_per_token": None if self.decode_s_per_token is None else self.decode_s_per_token.to_dict(),
            "request_s": self.request_s,
            "tokens_per_s": self.tokens_per_s,
            "achievable": asdict(self.achievable) | {"learnt": list(self.achievable.learnt)},
        }


def estimate_latency(
    model: TransformerConfig | Network,
    workload: Workload,
    device: Device,
    achievable: Achievable | None = None,
    *,
    stored_bytes: int | None = None,
) -> LatencyEstimate | None:
    """Time of both phases on a device; None when no peak rate or bandwidth of it is known.

    Time = max(FLOPs / (peak · fraction), bytes / (bandwidth · fraction)) + operators · time of one. Prefill reads all
    weights once and writes the prompt's keys and values. A decode step of B sequences computes B tokens, and reads all
    weights once and the whole cache. Of experts, those are read that the rows choose. `stored_bytes` are those of the
    weights as a file holds them; the bytes read are scaled to them.

    Ignores: activations that spill from the caches, products too small to fill a device, communication, what a server
        does beside one request (prompts of others, sampling).
    Source: Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009; fractions: `Achievable.source`.
    """
    network = network_of(model)
    if peak_rate(workload, device) is None or device.memory_bandwidth_bytes_per_s is None:
        return None
    achievable = achievable or achievable_of(device)
    flops = count_flops(network, workload)
    shrunk = 1.0 if stored_bytes is None else stored_bytes / count_weight_bytes(network, workload)
    read = round(shrunk * count_read_bytes(prefill_runs(network, workload), workload))
    written = count_kv_cache_bytes(network, workload, stack_rows(network, network.main, workload))
    overhead_s = achievable.operator_s * count_operators(prefill_runs(network, workload))
    phase = functools.partial(_phase, workload, device, achievable)
    prefill = phase(flops.prefill_flops, read + written, overhead_s)
    decode = None
    if flops.decode_flops_per_token is not None:
        read = round(shrunk * count_read_bytes(decode_runs(network, workload), workload))
        cache = count_kv_cache_bytes(network, workload) + count_state_bytes(network, workload)
        overhead_s = achievable.operator_s * count_operators(decode_runs(network, workload))
        decode = phase(workload.batch_size * flops.decode_flops_per_token, read + cache, overhead_s)
    step_s = 0.0 if decode is None else decode.time_s.value
    return LatencyEstimate(
        prefill_s=prefill,
        decode_s_per_token=decode,
        request_s=prefill.time_s.value + workload.generated_length * step_s,
        tokens_per_s=workload.batch_size / step_s if step_s else None,
        achievable=achievable,
    )


def sustained_rate(workload: Workload, device: Device, achievable: Achievable) -> float:
    """FLOP/s that the device sustains for the workload's types; 4-bit weights are multiplied in the activations' type.

    A float type without a published rate runs in fp32, outside of matrix units.
    """
    rate, fraction = computing_rate(workload, device)
    return rate * float(getattr(achievable, fraction))


def computing_rate(workload: Workload, device: Device) -> tuple[float, str]:
    """The peak of what computes the workload, and the name of the fraction of it that is sustained."""
    rates = device.peak_flops_per_s
    weights = workload.weight_dtype.split("-")[0]
    if weights in ("int8", "fp8") and weights in rates:
        return rates[weights], "matrix_fraction"
    if workload.activation_dtype != "fp32" and workload.activation_dtype in rates:
        return rates[workload.activation_dtype], "matrix_fraction"
    return rates.get("fp32") or max(rates.values()), "fp32_fraction"


def count_operators(runs: Iterable[BlockRun]) -> int:
    """Operators that a runtime calls: one for every matrix and norm, and some ten for attention (rotation, cache)."""
    return sum(
        sum(weight.role != "bias" for weight in run.block.weights) + _ATTENTION_OPERATORS * bool(run.block.attention)
        for run in runs
    )


def _phase(
    workload: Workload, device: Device, achievable: Achievable, flops: int, bytes_moved: int, overhead_s: float
) -> PhaseTime:
    peak, bandwidth = peak_rate(workload, device), device.memory_bandwidth_bytes_per_s
    assert peak is not None
    assert bandwidth is not None
    bound_s = max(flops / peak, bytes_moved / bandwidth)
    compute_s = flops / sustained_rate(workload, device, achievable)
    bandwidth_s = bytes_moved / (bandwidth * achievable.bandwidth_fraction)
    fraction = computing_rate(workload, device)[1] if compute_s >= bandwidth_s else "bandwidth_fraction"
    value, spread = max(compute_s, bandwidth_s) + overhead_s, achievable.spread_of(fraction)
    # rates that were measured here, perhaps beside other work, bound nothing: caches and a quieter machine beat them
    fastest_s = bound_s if device.origin == "published" else 0.0
    figure = Figure(
        value=value,
        low=max(min(fastest_s, value), value / spread),
        high=value * spread,
        origin=achievable.origin_of(fraction),
    )
    return PhaseTime(
        time_s=figure, bound_s=bound_s, fraction=fraction, flops=flops, bytes_moved=bytes_moved, overhead_s=overhead_s
    )
