"""Sizing in reverse: the largest batch, context and weight type that a device holds.

Memory and time grow with batch size and lengths, so the largest value within limits is found by doubling and halving.
Every answer names what binds: the first limit that one step more would break.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from estimator.achievable import Achievable
from estimator.cost.energy import EnergyEstimate, estimate_energy
from estimator.devices import Device
from estimator.display import shorten
from estimator.latency import LatencyEstimate, estimate_latency
from estimator.memory import MemoryEstimate, estimate_memory
from estimator.network import Network
from estimator.phases import longest_sequence
from estimator.roofline import peak_rate
from estimator.workload import DTYPE_BYTES, Workload

__all__ = [
    "DEFAULT_RESERVE",
    "LONGEST",
    "Answer",
    "Demand",
    "Limits",
    "Request",
    "best_weight_dtype",
    "broken_limit",
    "demand_of",
    "describe_break",
    "fit_batch_size",
    "fit_context",
    "fit_device",
    "fit_weight_dtypes",
    "has_rates",
    "largest",
    "why_unknown",
]

# The display, other processes and the allocator's fragments, and on a CPU the system. vLLM keeps as much free
# (gpu_memory_utilization 0.9, docs.vllm.ai, engine arguments).
DEFAULT_RESERVE = 0.1
LONGEST = 2**31 - 1  # of a workload's batch size and lengths
_SPECIAL_DTYPES = ("fp8", "nf4", "mxfp4")  # need a device or a library of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a model has to stay within. A limit that is None does not hold.

    Memory: that of the device less the share `reserve`, and `max_memory_bytes`. `max_latency_s` is the time between
    tokens, or that of the only pass of a model that generates nothing; `max_first_token_s` the time of the prompt;
    `max_energy_j` the energy of the device for one sequence, its prompt and all its tokens. Times and energies are
    compared as expected, not at the end of their interval.
    """

    device: Device | None = None
    achievable: Achievable | None = None
    reserve: float = DEFAULT_RESERVE
    max_memory_bytes: float | None = None
    max_latency_s: float | None = None
    max_first_token_s: float | None = None
    max_energy_j: float | None = None

    @property
    def memory_bytes(self) -> int | None:
        """Bytes that the model may take; None when no limit of memory is known."""
        room = None if self.device is None else self.device.memory_bytes
        known = [] if room is None else [room * (1 - self.reserve)]
        known += [] if self.max_memory_bytes is None else [self.max_memory_bytes]
        return int(min(known)) if known else None

    @property
    def has_time(self) -> bool:
        """Whether a time is limited, or an energy, which takes a time."""
        return any(limit is not None for limit in (self.max_latency_s, self.max_first_token_s, self.max_energy_j))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A model and what it is asked to do. `stored_bytes` are those of its weights as a file holds them.

    `num_devices` share the work when `network` is what one of them holds.
    """

    network: Network
    workload: Workload
    stored_bytes: int | None = None
    num_devices: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request takes of one device; `latency` is None without a device whose rates are known.

    `energy` is None unless it is limited, and where no power of the device is known.
    """

    request: Request
    memory: MemoryEstimate
    latency: LatencyEstimate | None
    energy: EnergyEstimate | None = None

    @property
    def request_j(self) -> float:
        """Energy of all devices for one sequence; 0 where it is not limited or not known."""
        return 0.0 if self.energy is None else self.energy.request_j.value * self.request.num_devices

    def to_dict(self) -> dict[str, Any]:
        """The figures that a decision needs, JSON-ready."""
        parts = {name: getattr(self.memory, name) for name in _PARTS}
        times = {"prefill_s": None, "decode_s_per_token": None}
        if self.latency is not None:
            times = {name: self.latency.to_dict()[name] for name in times}
        energy = None if self.energy is None else self.energy.request_j.to_dict()
        memory = parts | {"total_bytes": self.memory.total_bytes}
        return {"memory": memory, "latency": times, "request_j": energy}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The largest value within the limits, or None when none is; `binds` is what one step more would break.

    Of memory, the part binds that has grown most on the way from 1; when not even 1 fits, the largest part.
    `demand` is what the value takes. `detail` says in words how the next value fails, or why there is none.
    """

    value: int | None
    binds: str | None
    detail: str
    demand: Demand | None = None
    origin: str = "modelled"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, and the figures at the value."""
        figures = None if self.demand is None else self.demand.to_dict()
        return {"value": self.value, "binds": self.binds, "detail": self.detail, "origin": self.origin, "at": figures}


_PARTS = {
    "weights_bytes": "weights",
    "kv_cache_bytes": "KV cache",
    "state_bytes": "state",
    "activations_bytes": "activations",
    "runtime_bytes": "runtime",
}


def demand_of(request: Request, limits: Limits) -> Demand:
    """Memory of a request on the limits' device, and its times where a device is given."""
    network, workload, stored = request.network, request.workload, request.stored_bytes
    memory = estimate_memory(network, workload, limits.device, stored_bytes=stored)
    latency = None
    if limits.device is not None and not network.has_only_weights:
        latency = estimate_latency(network, workload, limits.device, limits.achievable, stored_bytes=stored)
    energy = None
    if limits.max_energy_j is not None and limits.device is not None and latency is not None:
        energy = estimate_energy(latency, limits.device, workload)
    return Demand(request=request, memory=memory, latency=latency, energy=energy)


def broken_limit(demand: Demand, limits: Limits) -> str | None:
    """What binds, if the demand is beyond a limit: positions, the largest part of memory, or a budget of time.

    Positions bind where they are learned; a model with others was only not trained beyond them.
    """
    network = demand.request.network
    if network.learned_positions and _is_beyond_positions(demand.request):
        return "positions"
    if limits.memory_bytes is not None and demand.memory.total_bytes > limits.memory_bytes:
        return _largest_part(demand.memory)
    if demand.latency is None:
        return None
    step = demand.latency.decode_s_per_token or demand.latency.prefill_s
    if limits.max_first_token_s is not None and demand.latency.prefill_s.time_s.value > limits.max_first_token_s:
        return "first-token budget"
    if limits.max_latency_s is not None and step.time_s.value > limits.max_latency_s:
        return "latency budget"
    if limits.max_energy_j is not None and demand.request_j > limits.max_energy_j:
        return "energy budget"
    return None


def largest(broken: Callable[[int], str | None], most: int = LONGEST) -> tuple[int | None, str | None]:
    """The largest n from 1 to `most` for which `broken(n)` is None, and what breaks the next one.

    `broken` must be monotone: what breaks at n breaks at every larger n. Asks about 2 log2(n) times.
    """
    reason, high = broken(1), 1
    if reason is not None:
        return None, reason
    while reason is None and high < most:
        low, high = high, min(2 * high, most)
        reason = broken(high)
    if reason is None:
        return most, None
    while high - low > 1:
        middle = (low + high) // 2
        found = broken(middle)
        low, high, reason = (middle, high, reason) if found is None else (low, middle, found)
    return low, reason


def fit_batch_size(request: Request, limits: Limits) -> Answer:
    """The largest batch of the request's lengths.

    The energy of a sequence falls with the batch, which shares the reading of the weights, so it is asked for last.
    """
    answer = _fit_batch_size(request, replace(limits, max_energy_j=None))
    if limits.max_energy_j is None or answer.value is None:
        return answer
    workload = replace(request.workload, batch_size=answer.value)
    demand = demand_of(replace(request, workload=workload), limits)
    unknown = why_unknown(request, limits)
    if not unknown and demand.request_j <= limits.max_energy_j:
        return replace(answer, demand=demand)
    detail = unknown or f"even in a batch of {answer.value:,}: {describe_break('energy budget', demand, limits)}"
    return Answer(value=None, binds=None if unknown else "energy budget", detail=detail)


def _fit_batch_size(request: Request, limits: Limits) -> Answer:
    return _fit(request, limits, lambda n: replace(request.workload, batch_size=n), "batch", positions_bind=False)


def fit_context(request: Request, limits: Limits) -> Answer:
    """The longest prompt at the request's batch size and number of generated tokens; positions bind."""

    def prompt(length: int) -> Workload:
        return replace(request.workload, prompt_length=length)

    first, second = (longest_sequence(request.network, prompt(n)) for n in (1, LONGEST // 2))
    if first == second and not request.network.has_only_weights:
        return Answer(value=None, binds=None, detail="the length of its input is fixed, so no prompt is longer")
    return _fit(request, limits, prompt, "context", positions_bind=True)


def fit_weight_dtypes(requests: dict[str, Request], limits: Limits) -> dict[str, Answer]:
    """For each weight type whether the model fits in it: 1, or None with what binds."""
    return {dtype: fit_device(request, limits) for dtype, request in requests.items()}


def best_weight_dtype(answers: dict[str, Answer], stored: str) -> str | None:
    """The most precise type that fits, but none wider than the stored one, which would gain nothing.

    Of types as wide as each other the stored one goes first, then those that run anywhere.
    """
    fitting = [dtype for dtype, answer in answers.items() if answer.value is not None]
    useful = [dtype for dtype in fitting if DTYPE_BYTES[dtype] <= DTYPE_BYTES[stored]]
    order = list(answers)
    ranked = sorted(useful, key=lambda d: (-DTYPE_BYTES[d], d != stored, d in _SPECIAL_DTYPES, order.index(d)))
    return ranked[0] if ranked else None


def fit_device(request: Request, limits: Limits) -> Answer:
    """1 when the request fits as it is, else None, with what binds."""
    unknown, demand = why_unknown(request, limits), demand_of(request, limits)
    if unknown:
        return Answer(value=None, binds=None, detail=unknown, demand=demand)
    binds = broken_limit(demand, limits)
    detail = "fits" if binds is None else describe_break(binds, demand, limits)
    return Answer(value=1 if binds is None else None, binds=binds, detail=detail, demand=demand)


def _fit(
    request: Request, limits: Limits, workload: Callable[[int], Workload], what: str, *, positions_bind: bool
) -> Answer:
    unknown = why_unknown(request, limits)
    if request.network.has_only_weights:
        unknown = f"nothing but its weights is known, so neither is what a {what} takes"
    if unknown:
        return Answer(value=None, binds=None, detail=unknown)

    def broken(value: int) -> str | None:
        asked = replace(request, workload=workload(value))
        if positions_bind and _is_beyond_positions(asked):
            return "positions"
        return broken_limit(demand_of(asked, limits), limits)

    value, binds = largest(broken)

    def demand(value: int) -> Demand:
        return demand_of(replace(request, workload=workload(value)), limits)

    if binds is None or value is None:
        detail = "nothing binds" if binds is None else f"at 1: {describe_break(binds, demand(1), limits)}"
        return Answer(value=value, binds=binds, detail=detail, demand=None if value is None else demand(value))
    over = demand(value + 1)
    if binds in _PARTS.values():
        binds = _largest_part(over.memory, demand(1).memory)
    detail = f"at {value + 1:,}: {describe_break(binds, over, limits)}"
    return Answer(value=value, binds=binds, detail=detail, demand=demand(value))


def why_unknown(request: Request, limits: Limits) -> str | None:
    """Why no answer can be given, or None if one can."""
    device = limits.device
    if limits.has_time and device is None:
        return "without a device no time is known"
    if limits.has_time and device is not None and not has_rates(request.workload, device):
        return (
            f"{device.name} has no published {request.workload.activation_dtype} rate or bandwidth, so no time is known"
        )
    if limits.max_energy_j is not None and device is not None and device.tdp_w is None:
        return f"{device.name} has no published power, so no energy is known"
    if limits.has_time and request.network.has_only_weights:
        return "nothing but its weights is known, so neither is its time"
    if limits.memory_bytes is None and limits.max_latency_s is None and limits.max_first_token_s is None:
        named = "no device is given" if device is None else f"{device.name} is sold without memory"
        return f"{named}; say how much there is with --max-memory"
    return None


def has_rates(workload: Workload, device: Device) -> bool:
    """Whether the device's rate for the workload's types and its bandwidth are known, so that a time is."""
    return peak_rate(workload, device) is not None and device.memory_bandwidth_bytes_per_s is not None


def _largest_part(memory: MemoryEstimate, start: MemoryEstimate | None = None) -> str:
    """The part that takes most or, from a start, the one that has grown most."""
    grown = {part: (getattr(memory, part) or 0) - (getattr(start, part, 0) or 0) for part in _PARTS}
    return _PARTS[max(grown, key=lambda part: grown[part])]


def _is_beyond_positions(request: Request) -> bool:
    most = request.network.max_position_embeddings
    return most is not None and longest_sequence(request.network, request.workload) > most


def describe_break(binds: str, demand: Demand, limits: Limits) -> str:
    """How a demand breaks the limit that binds, with its numbers."""
    if binds == "positions":
        needed = longest_sequence(demand.request.network, demand.request.workload)
        return f"{needed:,} positions of {demand.request.network.max_position_embeddings:,}"
    if binds in _PARTS.values():
        parts = {label: getattr(demand.memory, field) for field, label in _PARTS.items()}
        shown = ", ".join(f"{label} {shorten(size, 'B')}" for label, size in parts.items() if size)
        return f"{shorten(demand.memory.total_bytes, 'B')} of {shorten(limits.memory_bytes or 0, 'B')} ({shown})"
    assert demand.latency is not None
    if binds == "energy budget":
        return f"{shorten(demand.request_j, 'J')} of {shorten(limits.max_energy_j or 0.0, 'J')}"
    first = binds == "first-token budget"
    phase = demand.latency.prefill_s if first else demand.latency.decode_s_per_token or demand.latency.prefill_s
    limit = limits.max_first_token_s if first else limits.max_latency_s
    return f"{shorten(phase.time_s.value, 's')} of {shorten(limit or 0.0, 's')}"
