"""The largest candidate of a space, every one counted that is not another one in a different order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.batch import columns_from_configs, estimate_batch
from estimator.config import TransformerConfig
from estimator.space_fitting.candidates import CandidateSpace, Params, Search, SpaceAnswer, possibly_within, reduced

__all__ = ["Outer", "count_out", "outer_choices"]

_CHUNK = 50_000
_LAYERED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """All candidates that agree in everything but the sizes of their layers.

    `groups` are the layers that own weights, alike ones together; `options` the raw choices that each may make, and
    `sizes` what they come to, [O, L, 3] in the order of _LAYERED.
    """

    params: Params
    config: TransformerConfig
    sources: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    options: tuple[Params, ...]
    sizes: Ints

    @property
    def num_candidates(self) -> int:
        ways = (math.comb(len(group) + len(self.options) - 1, len(group)) for group in self.groups)
        return math.prod(ways)


def outer_choices(search: Search, most: int) -> list[Outer] | None:
    """Every choice outside of the layers; None when there are more candidates than `most`, or layers are entangled."""
    found: list[Outer] = []
    total = 0
    for params, inner in _walk(search.space):
        outer = _outer(search.space, params, inner)
        total += 0 if outer is None else outer.num_candidates
        if outer is None or total > most:
            return None
        found.append(outer)
    return found


def _walk(space: CandidateSpace) -> Iterator[tuple[Params, dict[str, tuple[Any, ...]]]]:
    """Every combination of the choices outside of layers, with the choices within its layers."""
    path: list[int] = []
    while True:
        params, inner, sizes = _follow(space, path)
        yield params, inner
        path += [0] * (len(sizes) - len(path))
        while path and path[-1] + 1 == sizes[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


def _follow(space: CandidateSpace, path: Sequence[int]) -> tuple[Params, dict[str, tuple[Any, ...]], list[int]]:
    """The candidate at the end of a path of choices, then of first ones; its layers' choices; choices per step."""
    sizes: list[int] = []
    inner: dict[str, tuple[Any, ...]] = {}

    def pick(name: str, values: tuple[Any, ...]) -> Any:
        values = reduced(name, values)
        if name.endswith("]"):
            if len(values) > 1:
                inner[name] = values
            return values[0]
        sizes.append(len(values))
        return values[path[len(sizes) - 1] if len(sizes) <= len(path) else 0]

    return space.choose(pick), inner, sizes


def _outer(space: CandidateSpace, params: Params, inner: Mapping[str, tuple[Any, ...]]) -> Outer | None:
    config = space.to_config(params)
    sources = tuple(layer.weight_source for layer in config.layers)
    owners = sorted(set(sources))
    fields = sorted({name.split("[")[0] for name in inner})
    options = [
        dict(zip(fields, values, strict=True))
        for values in itertools.product(*(inner[f"{field}[{owners[0]}]"] for field in fields))
    ]
    configs = [space.to_config(params | _place(option, owners)) for option in options]
    if len({other.resolved_head_dim for other in configs}) > 1:
        return None  # a head's size follows from one layer's choice, so layers are not independent of each other
    sizes = np.array([[[getattr(layer, n) for n in _LAYERED] for layer in c.layers] for c in configs], np.int64)
    _, kept = np.unique(sizes.reshape(len(options), -1), axis=0, return_index=True)
    alike: dict[Any, list[int]] = {}
    for owner in owners:
        alike.setdefault((sources.count(owner), sizes[:, owner].tobytes()), []).append(owner)
    return Outer(
        params=params,
        config=config,
        sources=sources,
        groups=tuple(tuple(group) for group in alike.values()),
        options=tuple(options[index] for index in sorted(kept)),
        sizes=sizes[sorted(kept)],
    )


def _place(option: Params, owners: Sequence[int]) -> Params:
    return {f"{field}[{owner}]": value for field, value in option.items() for owner in owners}


def _assignments(outer: Outer, known: dict[Any, Ints]) -> Ints:
    """Which option each layer has in each candidate, [C, L]; alike layers in order, as they may be exchanged."""
    key = (outer.sources, outer.groups, len(outer.options))
    if key not in known:
        choices = range(len(outer.options))
        ways = [itertools.combinations_with_replacement(choices, len(group)) for group in outer.groups]
        flat = [owner for group in outer.groups for owner in group]
        chosen = np.array([list(itertools.chain(*row)) for row in itertools.product(*ways)], np.int64)
        known[key] = chosen[:, [flat.index(source) for source in outer.sources]]
    return known[key]


def count_out(search: Search, outers: list[Outer]) -> SpaceAnswer:
    known: dict[Any, Ints] = {}
    counts = [outer.num_candidates for outer in outers]
    starts, owner = np.cumsum([0, *counts]), np.repeat(np.arange(len(outers)), counts)
    found: list[tuple[Ints, Ints, NDArray[np.bool_]]] = []
    for chunk in _chunks(outers):
        columns = _columns(chunk, known)
        figures = estimate_batch(columns, search.workload)
        overheads = np.array([search.overhead_s(outer.config) for outer in chunk])
        overheads = np.repeat(overheads, [outer.num_candidates for outer in chunk], axis=0)
        found.append((figures.params, figures.prefill_flops, possibly_within(search, figures, columns, overheads)))
        search.say(sum(len(row[0]) for row in found), int(starts[-1]))
    params, flops, possible = (np.concatenate(column) for column in zip(*found, strict=True))

    def choices(row: int) -> Params:
        outer = outers[owner[row]]
        assigned = _assignments(outer, known)[row - starts[owner[row]]]
        parts = (_place(outer.options[assigned[source]], [source]) for source in set(outer.sources))
        found: Params = {name: value for part in parts for name, value in part.items()}
        return {**outer.params, **found}

    order = np.lexsort((-flops, -params))
    for place in np.flatnonzero(possible[order]):
        chosen = choices(order[place])
        if search.broken(search.space.to_config(chosen)) is None:
            larger = None if place == 0 else search.space.to_config(choices(order[place - 1]))
            binds = None if larger is None else search.broken(larger)
            return SpaceAnswer(choices=chosen, binds=binds or "space", method="exact", num_candidates=int(starts[-1]))
    return SpaceAnswer(method="exact", num_candidates=int(starts[-1]))


def _chunks(outers: Sequence[Outer]) -> Iterator[list[Outer]]:
    chunk: list[Outer] = []
    for outer in outers:
        chunk.append(outer)
        if sum(other.num_candidates for other in chunk) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _columns(outers: Sequence[Outer], known: dict[Any, Ints]) -> dict[str, NDArray[Any]]:
    """The columns of `estimate_batch` for all candidates of these outer choices, in order."""
    base = columns_from_configs([outer.config for outer in outers])
    depth = max(len(outer.sources) for outer in outers)
    counts = [outer.num_candidates for outer in outers]
    columns = {name: np.repeat(column, counts, axis=0) for name, column in base.items() if column.ndim == 1}
    layered = np.zeros((sum(counts), depth, len(_LAYERED)), np.int64)
    others = np.zeros((sum(counts), depth, 2), np.int64)
    start = 0
    for outer, count in zip(outers, counts, strict=True):
        layers = len(outer.sources)
        layered[start : start + count, :layers] = outer.sizes[_assignments(outer, known), np.arange(layers)]
        windows = [layer.sliding_window or 0 for layer in outer.config.layers]
        others[start : start + count, :layers] = np.array([windows, outer.sources]).T
        start += count
    columns |= {f"{name}_per_layer": layered[:, :, place] for place, name in enumerate(_LAYERED)}
    names = ("sliding_window_per_layer", "weight_source_per_layer")
    return columns | {name: others[:, :, place] for place, name in enumerate(names)}
