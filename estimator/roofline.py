"""How fast a device can be at best: time is at least FLOPs over peak rate, and at least bytes over bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.devices import Device
from estimator.figures import Figure
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes, count_read_bytes
from estimator.workload import Workload

__all__ = ["SLOWDOWN", "LatencyBound", "bound_latency", "bound_time", "peak_rate"]

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


def bound_latency(config: TransformerConfig, workload: Workload, device: Device) -> LatencyBound:
    """The roofline of both phases on a device.

    Prefill reads all weights once and writes the prompt's keys and values. A decode step of B sequences computes B
    tokens, and reads all weights once and the whole cache.

    Ignores: activations that spill from the caches, launch overhead, communication.
    Source: Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.
    """
    flops = count_flops(config, workload)
    weights = count_read_bytes(config, workload)
    peak = peak_rate(workload, device)
    bandwidth = device.memory_bandwidth_bytes_per_s
    prompt_cache = count_kv_cache_bytes(config, workload, workload.prompt_length)
    prefill, prefill_limit = bound_time(flops.prefill_flops, weights + prompt_cache, peak, bandwidth)
    decode, decode_limit = None, None
    if flops.decode_flops_per_token is not None:
        cache = count_kv_cache_bytes(config, workload, workload.context_length)
        step_flops = workload.batch_size * flops.decode_flops_per_token
        decode, decode_limit = bound_time(step_flops, weights + cache, peak, bandwidth)
    return LatencyBound(
        prefill_s=prefill, decode_s_per_token=decode, prefill_limit=prefill_limit, decode_limit=decode_limit
    )


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
