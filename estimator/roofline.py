"""What the roofline divides: the bytes that a pass reads, and the peak rate that binds a workload."""

from __future__ import annotations

from collections.abc import Iterable

from estimator.devices import Device
from estimator.memory import weight_bytes
from estimator.network import Weight
from estimator.phases import BlockRun
from estimator.workload import Workload

__all__ = ["count_read_bytes", "peak_rate"]

# The rate at which products of a weight type may run, if activations are turned into it.
_PRODUCT_TYPES = {"int8": "int8", "int4": "int8", "fp8": "fp8", "mxfp4": "fp4", "nvfp4": "fp4"}


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


def peak_rate(workload: Workload, device: Device) -> float | None:
    """The published FLOP/s that binds the workload, or None.

    int8 and int4 weights may be multiplied in int8, fp8 in fp8 and 4-bit floats in fp4, so the faster of that rate and
    the activation type's binds. A float type for which no rate is published runs in fp32.
    """
    rates = device.peak_flops_per_s
    rate = rates.get(workload.activation_dtype, rates.get("fp32"))
    faster = rates.get(_PRODUCT_TYPES.get(workload.weight_dtype.split("-")[0], ""))
    return rate if faster is None else max(rate or 0.0, faster)
