"""The largest candidate of a space that is too large to be counted out: drawn at random, then improved."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from estimator.batch import columns_from_configs, estimate_batch
from estimator.params import count_params
from estimator.space_fitting.candidates import (
    CandidateSpace,
    Params,
    Search,
    SpaceAnswer,
    note_choices,
    possibly_within,
    reduced,
    size_key,
)

__all__ = ["sample_largest"]

_NUM_SAMPLES = 4_000
_NUM_STARTS = 4
_NUM_DOUBLE_STEPS = 600

_Leader = tuple[int, int, Params]  # parameters, FLOPs, choices


def sample_largest(search: Search, seed: int) -> SpaceAnswer:
    """The best of random candidates, improved by changing one choice, then two at once, until nothing helps."""
    generator = random.Random(seed)  # noqa: S311 - proposals, no secrets
    space = search.space

    def random_choice(name: str, values: tuple[Any, ...]) -> Any:
        return generator.choice(reduced(name, values))

    starts = [space.choose(lambda name, values: min(reduced(name, values), key=size_key))]
    starts += [space.choose(random_choice) for _ in range(_NUM_SAMPLES)]
    leaders = _largest_of(search, starts, _NUM_STARTS)
    looked = len(starts)
    for number, leader in enumerate(leaders):
        search.say(number, len(leaders))
        better: list[_Leader] = [leader]
        while better:
            leader = better[0]
            near = list(_one_step(space, leader[2]))
            better = _largest_of(search, near, 1, above=leader[:2])
            if not better:
                further = [_random_steps(space, leader[2], generator) for _ in range(_NUM_DOUBLE_STEPS)]
                better = _largest_of(search, further, 1, above=leader[:2])
                near += further
            looked += len(near)
        leaders[number] = leader
    search.say(len(leaders), len(leaders))
    if not leaders:
        return SpaceAnswer(method="sampled", num_candidates=looked, seed=seed)
    params = max(leaders, key=lambda leader: leader[:2])[2]
    binds = _next_limit(search, params)
    return SpaceAnswer(choices=params, binds=binds, method="sampled", num_candidates=looked, seed=seed)


def _largest_of(
    search: Search, candidates: Sequence[Params], number: int, above: tuple[int, int] = (-1, -1)
) -> list[_Leader]:
    """The largest candidates that fit and are larger than `above`, at most so many, the largest first."""
    distinct = list({tuple(sorted(params.items())): params for params in candidates}.values())
    if not distinct:
        return []
    configs = [search.space.to_config(params) for params in distinct]
    columns = columns_from_configs(configs)
    figures = estimate_batch(columns, search.workload)
    overheads = np.array([search.overhead_s(config) for config in configs])
    possible = possibly_within(search, figures, columns, overheads)
    found: list[_Leader] = []
    for row in np.lexsort((-figures.prefill_flops, -figures.params)):
        size = int(figures.params[row]), int(figures.prefill_flops[row])
        if size <= above or len(found) == number:
            break
        if possible[row] and search.broken(search.space.to_config(distinct[row])) is None:
            found.append((*size, distinct[row]))
    return found


def _one_step(space: CandidateSpace, params: Params) -> Iterator[Params]:
    """Every candidate that differs in one choice, and in what this choice brings with it."""
    choices: dict[str, tuple[Any, ...]] = {}
    space.choose(lambda name, values: note_choices(choices, name, values, params))
    for name, values in choices.items():
        for value in reduced(name, values):
            if value != params[name]:
                yield _changed(space, params, {name: value})


def _random_steps(space: CandidateSpace, params: Params, generator: random.Random) -> Params:
    """A candidate that differs in two or three choices."""
    changed = set(generator.sample(sorted(params), min(len(params), generator.choice((2, 3)))))

    def pick(name: str, values: tuple[Any, ...]) -> Any:
        if name in changed:
            return generator.choice(reduced(name, values))
        return _kept(params, name, values)

    return space.choose(pick)


def _changed(space: CandidateSpace, params: Params, changes: Params) -> Params:
    return space.choose(lambda name, values: changes[name] if name in changes else _kept(params, name, values))


def _kept(params: Params, name: str, values: tuple[Any, ...]) -> Any:
    """The candidate's own choice; for a layer that it does not have, that of one of its layers."""
    if name in params:
        return params[name]
    alike = [value for other, value in params.items() if other.split("[")[0] == name.split("[")[0]]
    return alike[-1] if alike else reduced(name, values)[0]


def _next_limit(search: Search, params: Params) -> str:
    """What the smallest larger neighbour breaks."""
    configs = [search.space.to_config(near) for near in _one_step(search.space, params)]
    size = count_params(search.space.to_config(params)).total
    larger = [config for config in configs if count_params(config).total > size]
    if not larger:
        return "space"
    return search.broken(min(larger, key=lambda config: count_params(config).total)) or "space"
