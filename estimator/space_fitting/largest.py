"""The largest architecture of a search space within limits of memory, time and parameters.

Three facts make small work of large spaces. A narrower window takes less memory and less time and changes neither
parameters nor the FLOPs of a prompt. Some fields, such as the activation function, change no figure at all. And layers
that differ in sizes alone may be exchanged, so only how many layers have which sizes matters. What is then left is
counted out in one vectorised call per some ten thousand candidates; where it is still too much, it is sampled and
improved step by step, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from estimator.fitting.limits import Limits
from estimator.space_fitting.candidates import (
    CandidateSpace,
    Params,
    Search,
    SpaceAnswer,
    field_of,
    note_choices,
    size_key,
)
from estimator.space_fitting.counting import count_out, outer_choices
from estimator.space_fitting.sampling import sample_largest
from estimator.workload import Workload

__all__ = ["MOST_EXACT", "largest_config"]

MOST_EXACT = 2_000_000  # candidates that are counted out; about a minute


def largest_config(
    space: CandidateSpace,
    workload: Workload,
    limits: Limits,
    *,
    max_params: float | None = None,
    seed: int = 0,
    most_exact: int = MOST_EXACT,
    say: Callable[[int, int], None] = lambda done, total: None,
) -> SpaceAnswer:
    """The candidate with the most parameters within the limits; of equal ones that with the most FLOPs per prompt.

    Its windows are then as wide as the limits allow, one after another. `say(done, total)` hears of progress.
    """
    search = Search(space=space, workload=workload, limits=limits, max_params=max_params, say=say)
    outers = outer_choices(search, most_exact)
    answer = sample_largest(search, seed) if outers is None else count_out(search, outers)
    if answer.choices is None:
        smallest = space.to_config(space.choose(lambda name, values: min(values, key=size_key)))
        return replace(answer, binds=search.broken(smallest) or "space")
    choices = _widen_windows(search, answer.choices)
    config = space.to_config(choices)
    return replace(answer, choices=choices, config=config, demand=search.demand(config))


def _widen_windows(search: Search, choices: Params) -> Params:
    """The same sizes with each window, in order, as wide as the limits allow."""
    windows: dict[str, tuple[Any, ...]] = {}
    search.space.choose(lambda name, values: note_choices(windows, name, values, choices))
    for name, values in windows.items():
        if field_of(name) != "sliding_window":
            continue
        for value in sorted(values, key=size_key, reverse=True):
            wider = choices | {name: value}
            if value == choices[name] or search.broken(search.space.to_config(wider)) is None:
                choices = wider
                break
    return choices
