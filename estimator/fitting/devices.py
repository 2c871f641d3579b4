"""Sizing in reverse: the devices of a table that hold a model, and how many of one kind it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from estimator.achievable import Achievable
from estimator.devices import Device
from estimator.fitting.limits import (
    Answer,
    Demand,
    Limits,
    Request,
    broken_limit,
    demand_of,
    describe_break,
    fit_device,
    why_unknown,
)
from estimator.fitting.sharding import shard_network, widest_split
from estimator.memory import count_weight_bytes
from estimator.runtimes import runs_on

__all__ = ["find_devices", "fit_num_devices"]


def fit_num_devices(request: Request, limits: Limits) -> Answer:
    """How many devices of the limits' kind hold the request, a power of two, every matrix divided among them.

    `estimator.fitting.sharding` says what is divided. None when even as many devices as there are heads do not suffice.
    """
    unknown = why_unknown(request, limits)
    if unknown:
        return Answer(value=None, binds=None, detail=unknown)
    num_devices, most = 1, widest_split(request.network)
    while True:
        demand = demand_of(_share(request, num_devices), limits)
        binds = broken_limit(demand, limits)
        if binds is None:
            fewer = demand_of(_share(request, num_devices // 2), limits) if num_devices > 1 else None
            reason = None if fewer is None else broken_limit(fewer, limits)
            detail = "one is enough" if fewer is None or reason is None else describe_break(reason, fewer, limits)
            return Answer(value=num_devices, binds=reason, detail=detail, demand=demand)
        if binds == "positions":
            return Answer(value=None, binds=binds, detail=describe_break(binds, demand, limits), demand=demand)
        if num_devices >= most:
            detail = f"not even {num_devices:,}, as many as its heads can be divided among: "
            return Answer(value=None, binds=binds, detail=detail + describe_break(binds, demand, limits), demand=demand)
        num_devices *= 2


def find_devices(
    request: Request, limits: Limits, devices: dict[str, Device], calibrated: Callable[[str], Achievable | None]
) -> Iterator[tuple[Device, Demand]]:
    """The devices that hold the request within the limits, from the smallest memory; of equal ones the cheaper first.

    `calibrated` says what a device sustains where that was measured. A processor that is sold without memory is none,
    and neither is one on which the workload's runtime does not run.
    """
    known = [d for d in devices.values() if d.memory_bytes is not None and runs_on(request.workload, d)]
    known.sort(key=lambda device: (device.memory_bytes, device.price_usd or float("inf"), device.name))
    for device in known:
        own = replace(limits, device=device, achievable=calibrated(device.name) if limits.has_time else None)
        if own.memory_bytes is not None and _count_weights(request) > own.memory_bytes:
            continue
        answer = fit_device(request, own)
        if answer.value is not None and answer.demand is not None:
            yield device, answer.demand


def _share(request: Request, num_devices: int) -> Request:
    """What one of so many devices is asked to hold and do."""
    if num_devices == 1:
        return request
    share, stored = shard_network(request.network, num_devices), None
    if request.stored_bytes is not None:
        whole = count_weight_bytes(request.network, request.workload)
        stored = -(-request.stored_bytes * count_weight_bytes(share, request.workload) // whole)
    return replace(request, network=share, stored_bytes=stored, num_devices=num_devices)


def _count_weights(request: Request) -> int:
    """Bytes of a request's weights."""
    if request.stored_bytes is not None:
        return request.stored_bytes
    return count_weight_bytes(request.network, request.workload)
