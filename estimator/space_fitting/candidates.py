"""A search space as it is searched here: its candidates, the limits, and what both say before anything is sized."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from estimator.achievable import achievable_of
from estimator.batch import BatchEstimate
from estimator.config import TransformerConfig
from estimator.cost.power import power_class_of
from estimator.devices import Device
from estimator.fitting.limits import Demand, Limits, Request, broken_limit, demand_of
from estimator.latency import computing_rate, count_operators, sustained_rate
from estimator.params import count_params
from estimator.phases import decode_runs, prefill_runs
from estimator.weights import network_of
from estimator.workload import DTYPE_BYTES, Workload

__all__ = [
    "CandidateSpace",
    "Params",
    "Search",
    "SpaceAnswer",
    "field_of",
    "note_choices",
    "possibly_within",
    "reduced",
    "size_key",
]

_FIXED = ("hidden_act", "norm_eps", "rope_theta", "rope_scaling")  # change no figure
_ROUNDING = 1e-9

Params = dict[str, Any]
Pick = Callable[[str, tuple[Any, ...]], Any]


class CandidateSpace(Protocol):
    """What a search space has to offer: choices by name, a layer's own as `<field>_per_layer[i]`."""

    @property
    def name(self) -> str:
        """How the space is called."""

    def choose(self, pick: Pick) -> Params:
        """The raw choices that `pick(dimension, choices)` makes, asked only for dimensions that the candidate has."""

    def to_config(self, params: Mapping[str, Any]) -> TransformerConfig:
        """The network that raw choices stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceAnswer:
    """The largest architecture found: its raw choices, config and demand, all None when nothing fits.

    `method` is exact or sampled. `binds` is what the next larger candidate breaks, "space" when there is none; when
    nothing fits, what the smallest candidate breaks. `num_candidates` is how many were looked at.
    """

    method: str
    num_candidates: int
    binds: str = "space"
    choices: Params | None = None
    config: TransformerConfig | None = None
    demand: Demand | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What every step of a search needs."""

    space: CandidateSpace
    workload: Workload
    limits: Limits
    max_params: float | None
    say: Callable[[int, int], None]
    overheads: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def demand(self, config: TransformerConfig) -> Demand:
        return demand_of(Request(network=network_of(config), workload=self.workload), self.limits)

    def overhead_s(self, config: TransformerConfig) -> tuple[float, float]:
        """Seconds that calling the operators of prefill and of decode takes; they depend on no size but the depth."""
        if not self.limits.has_time or self.limits.device is None:
            return 0.0, 0.0
        values = [getattr(config, entry.name) for entry in fields(config)]
        key = config.num_hidden_layers, config.type_vocab_size, *(v for v in values if isinstance(v, str | bool))
        if key not in self.overheads:
            achievable, network = self.limits.achievable or achievable_of(self.limits.device), network_of(config)
            runs = prefill_runs(network, self.workload), decode_runs(network, self.workload)
            prefill, decode = (achievable.operator_s * count_operators(each) for each in runs)
            self.overheads[key] = prefill, decode
        return self.overheads[key]

    def broken(self, config: TransformerConfig) -> str | None:
        """What a candidate breaks, by the very figures that `fit` and `size` give."""
        network = network_of(config)
        if self.max_params is not None and count_params(network).total > self.max_params:
            return "parameters"
        return broken_limit(self.demand(config), self.limits)


def field_of(name: str) -> str:
    return name.split("[")[0].removesuffix("_per_layer")


def size_key(value: Any) -> tuple[int, Any]:
    """Numbers by size, None as the largest of all; choices that are no numbers stay in their order."""
    if value is None:
        return 1, 0
    return (0, value) if isinstance(value, int | float) and not isinstance(value, bool) else (0, 0)


def reduced(name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The choices that matter: one alone of a field that decides neither parameters nor FLOPs of a prompt."""
    if field_of(name) in _FIXED:
        return values[:1]
    return (min(values, key=size_key),) if field_of(name) == "sliding_window" else values


def note_choices(choices: dict[str, tuple[Any, ...]], name: str, values: tuple[Any, ...], params: Params) -> Any:
    choices[name] = values
    return params[name]


def possibly_within(
    search: Search, figures: BatchEstimate, columns: Mapping[str, NDArray[Any]], overheads: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """False where a candidate breaks a limit for certain: by counts, or by less than it takes in truth.

    `overheads` are seconds of prefill and decode that calling operators takes, [C, 2], as `Search.overhead_s` has them.
    """
    limits, workload, device = search.limits, search.workload, search.limits.device
    possible = np.ones(len(figures.params), np.bool_)
    if search.max_params is not None:
        possible &= figures.params <= search.max_params
    if limits.memory_bytes is not None:
        on_cpu = device is None or device.kind == "cpu"
        least = figures.total_bytes if on_cpu else figures.weights_bytes + figures.kv_cache_bytes
        possible &= least <= limits.memory_bytes
    if not limits.has_time or device is None or device.memory_bandwidth_bytes_per_s is None:
        return possible
    read = figures.weights_bytes - _table_bytes(columns, workload)
    generates = figures.decode_flops_per_token > 0
    step_flops, step_bytes = workload.batch_size * figures.decode_flops_per_token, read + figures.kv_cache_bytes
    prefill = _least_seconds(search, device, figures.prefill_flops, read) + overheads[:, 0]
    step = np.where(generates, _least_seconds(search, device, step_flops, step_bytes) + overheads[:, 1], prefill)
    possible &= prefill * (1 - _ROUNDING) <= (limits.max_first_token_s or math.inf)
    possible &= step * (1 - _ROUNDING) <= (limits.max_latency_s or math.inf)
    if limits.max_energy_j is not None and device.tdp_w is not None:
        energy = _least_joules(search, device, figures.prefill_flops, read, prefill)
        tokens = np.where(generates, workload.generated_length, 0)
        energy = energy + tokens * _least_joules(search, device, step_flops, step_bytes, step)
        possible &= energy / workload.batch_size * (1 - _ROUNDING) <= limits.max_energy_j
    return possible


def _least_seconds(search: Search, device: Device, flops: Any, moved_bytes: Any) -> Any:
    """The roofline of `estimate_latency`, with no more bytes than are certain."""
    achievable = search.limits.achievable or achievable_of(device)
    assert device.memory_bandwidth_bytes_per_s is not None
    bandwidth = device.memory_bandwidth_bytes_per_s * achievable.bandwidth_fraction
    return np.maximum(flops / sustained_rate(search.workload, device, achievable), moved_bytes / bandwidth)


def _least_joules(search: Search, device: Device, flops: Any, moved_bytes: Any, seconds: Any) -> Any:
    """The energy of `phase_energy_j`, with no more bytes and seconds than are certain."""
    power, bandwidth = power_class_of(device), device.memory_bandwidth_bytes_per_s
    assert bandwidth is not None
    assert device.tdp_w is not None
    moving = power.bandwidth_share * moved_bytes / bandwidth
    computing = power.compute_share * flops / computing_rate(search.workload, device)[0]
    return device.tdp_w * (power.awake_share * seconds + moving + computing)


def _table_bytes(columns: Mapping[str, NDArray[Any]], workload: Workload) -> NDArray[np.float64]:
    """Bytes of the tables of which a pass reads single rows; a token table that is the head's too is read."""
    rows = np.where(columns["tie_word_embeddings"], 0, columns["vocab_size"]) + columns["type_vocab_size"]
    rows = rows + np.where(columns["position_embedding"] == "learned", columns["max_position_embeddings"], 0)
    size = DTYPE_BYTES[workload.unquantized_dtype]
    result: NDArray[np.float64] = rows * columns["hidden_size"] * size
    return result
