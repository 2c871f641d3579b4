"""How fast a device can be at best: time is at least FLOPs over peak rate, and at least bytes over bandwidth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.devices import Device
from estimator.figures import Figure
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes, count_state_bytes, weight_bytes
from estimator.network import Network, Weight
from estimator.phases import BlockRun, decode_runs, prefill_runs, stack_rows
from estimator.weights import network_of
from estimator.workload import Workload

__all__ = ["SLOWDOWN", "LatencyBound", "bound_latency", "bound_time", "count_read_bytes", "peak_rate"]

# Measured runs take 1.4 to 5.5 times the bound: the 25 fp32 forward passes on five GPUs published with NeuSight (ASPLOS
# 2025; slowest on the L4, whose power limit is far below its peak), and Llama-3.1-8B decoding on an H100 (ML.ENERGY).
# tests/estimator/test_roofline.py checks every one. Models too small to fill a device can take longer.
SLOWDOWN = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBound:
    """Seconds of prefill for the whole batch, and between two tokens of a sequence; None where a number is missing.

    `value` and `low` are the roofline, which no run beats; `high` is as slow as measured runs were against it.
    `prefill_limit` and `decode_limit` say what binds: compute or bandwidth.
    """

    prefill_s: Figure | None
    decode_s_per_token: Figure | None
    prefill_limit: str | None
    decode_limit: str | None


def bound_latency(model: TransformerConfig | Network, workload: Workload, device: Device) -> LatencyBound:
    """The roofline of both phases on a device.

    Prefill reads all weights once and writes the prompt's keys and values. A decode step of B sequences computes B
    tokens, and reads all weights once and the whole cache. Of experts, those are read that the rows choose.

    Ignores: activations that spill from the caches, launch overhead, communication.
    Source: Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.
    """
    network = network_of(model)
    flops = count_flops(network, workload)
    peak = peak_rate(workload, device)
    bandwidth = device.memory_bandwidth_bytes_per_s
    read = count_read_bytes(prefill_runs(network, workload), workload)
    written = count_kv_cache_bytes(network, workload, stack_rows(network, network.main, workload))
    prefill, prefill_limit = bound_time(flops.prefill_flops, read + written, peak, bandwidth)
    decode, decode_limit = None, None
    if flops.decode_flops_per_token is not None:
        read = count_read_bytes(decode_runs(network, workload), workload)
        cache = count_kv_cache_bytes(network, workload) + count_state_bytes(network, workload)
        step_flops = workload.batch_size * flops.decode_flops_per_token
        decode, decode_limit = bound_time(step_flops, read + cache, peak, bandwidth)
    return LatencyBound(
        prefill_s=prefill, decode_s_per_token=decode, prefill_limit=prefill_limit, decode_limit=decode_limit
    )


def count_read_bytes(runs: Iterable[BlockRun], workload: Workload) -> int:
    """Bytes of the weights that a pass reads: all but the tables in which it looks up single rows.

    A tied head reads the token table. Weights that layers share are read once. Of E experts of which a row uses k, n
    rows read E * (1 - (1 - k/E)^n) on average.
    """
    owned = (run for run in runs if run.owns_weights)
    return sum(_read_bytes(weight, run, workload) for run in owned for weight in run.block.weights)


def _read_bytes(weight: Weight, run: BlockRun, workload: Workload) -> int:
    if weight.role == "embedding":
        return 0
    whole = weight_bytes(weight, workload)
    if weight.active_copies == weight.copies:
        return whole
    chosen = 1 - (1 - weight.active_copies / weight.copies) ** run.num_rows
    return round(whole * chosen)


def bound_time(
    flops: int, read_bytes: int, peak_flops_per_s: float | None, bandwidth_bytes_per_s: float | None
) -> tuple[Figure | None, str | None]:
    """Seconds, max(FLOPs / peak, bytes / bandwidth), and which of the two it is; None when a rate is unknown."""
    if peak_flops_per_s is None or bandwidth_bytes_per_s is None:
        return None, None
    compute_s, bandwidth_s = flops / peak_flops_per_s, read_bytes / bandwidth_bytes_per_s
    bound_s = max(compute_s, bandwidth_s)
    figure = Figure(value=bound_s, low=bound_s, high=SLOWDOWN * bound_s, origin="modelled")
    return figure, "compute" if compute_s >= bandwidth_s else "bandwidth"


def peak_rate(workload: Workload, device: Device) -> float | None:
    """The published FLOP/s that binds the workload, or None.

    int8 and int4 weights may be multiplied in int8, so the faster of that rate and the activation type's binds. A float
    type for which no rate is published runs in fp32.
    """
    rates = device.peak_flops_per_s
    rate = rates.get(workload.activation_dtype, rates.get("fp32"))
    if workload.weight_dtype in ("int8", "int4") and "int8" in rates:
        return rates["int8"] if rate is None else max(rate, rates["int8"])
    return rate
