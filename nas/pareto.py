"""The Pareto front and the hypervolume it covers.

Directions are normalised once, at the edge: below it everything is a loss to be made small, in arrays [trial,
objective] without a study. Equal points do not dominate each other, so ties are all on the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import ObjectiveError
from nas.objectives import Objective
from nas.records import TrialRecord
from nas.spec import StudySpec

__all__ = ["ParetoFront", "compute_hypervolume", "find_front", "front_of", "non_dominated"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoFront:
    """The trials that no other one beats in every objective, best first in the first objective.

    `points[i]` has the values of trial `trials[i]`, in the order of `objectives`. `reference` is the corner from which
    `hypervolume` is measured, by objective; it is empty when there is no point.
    """

    trials: tuple[int, ...]
    objectives: tuple[Objective, ...]
    points: tuple[tuple[float, ...], ...]
    reference: dict[str, float]
    hypervolume: float


def front_of(
    spec: StudySpec, trials: Sequence[TrialRecord], reference: Mapping[str, float] | None = None
) -> ParetoFront:
    """The front of a study's complete trials that meet every constraint; a duplicate stands under its first number.

    Raises:
        ObjectiveError: the reference lacks an objective, has another one, or is not finite.
    """
    feasible = [
        trial
        for trial in trials
        if trial.state == "complete"
        and trial.duplicate_of is None
        and all(constraint.is_met(trial.figures[constraint.objective].value) for constraint in spec.constraints)
    ]
    values = {
        trial.number: tuple(trial.figures[objective.name].value for objective in spec.objectives) for trial in feasible
    }
    return find_front(values, spec.objectives, reference)


def find_front(
    values: Mapping[int, Sequence[float]],
    objectives: tuple[Objective, ...],
    reference: Mapping[str, float] | None = None,
) -> ParetoFront:
    """The front among values by trial number.

    Without a reference it is the worst value of each objective among all the given trials, made worse by a tenth of
    its size. As trials arrive it therefore only moves away, and the hypervolume of a study never falls; to compare
    studies, give all of them the same reference.

    Raises:
        ObjectiveError: a value or the reference is not finite, or the reference does not name exactly the objectives.
    """
    _check_reference(objectives, reference)
    if not values:
        return ParetoFront(
            trials=(), objectives=objectives, points=(), reference=dict(reference or {}), hypervolume=0.0
        )
    signs = np.array([1.0 if objective.minimized else -1.0 for objective in objectives])
    numbers = np.array(list(values))
    losses = _finite(list(values.values())) * signs
    if reference is None:
        worst = losses.max(axis=0)
        corner = worst + 0.1 * np.abs(worst)
    else:
        corner = _finite([reference[objective.name] for objective in objectives]) * signs
    mask = non_dominated(losses)
    order = np.lexsort((numbers[mask], *losses[mask].T[::-1]))
    points = (losses[mask] * signs)[order]
    return ParetoFront(
        trials=tuple(int(number) for number in numbers[mask][order]),
        objectives=objectives,
        points=tuple(tuple(float(value) for value in point) for point in points),
        reference={objective.name: float(x) for objective, x in zip(objectives, corner * signs, strict=True)},
        hypervolume=compute_hypervolume(losses[mask], corner),
    )


def non_dominated(losses: ArrayLike) -> NDArray[np.bool_]:
    """Which rows no other row dominates: is at most as large everywhere and smaller somewhere.

    Two objectives take one sort and one sweep; more take one vectorised comparison for each row of the front.

    Args:
        losses: [num_points, num_objectives], finite.
    """
    array = _finite(losses)
    if len(array) == 0:
        return np.zeros(0, np.bool_)
    rows, inverse = np.unique(array, axis=0, return_inverse=True)  # sorted by the first column, then the next
    mask: NDArray[np.bool_] = _sweep(rows) if rows.shape[1] <= 2 else _peel(rows)
    return mask[inverse.reshape(-1)]


def compute_hypervolume(losses: ArrayLike, reference: ArrayLike) -> float:
    """The exact volume that is dominated by some point and dominates the reference; points beyond it add nothing.

    Source: While, Bradstreet, Barone, "A fast way of calculating exact hypervolumes", IEEE TEC 16(1), 2012 (WFG), for
    four objectives and more.

    Args:
        losses: [num_points, num_objectives], finite.
        reference: [num_objectives], finite.
    """
    array, corner = _finite(losses), _finite(reference)
    if len(array) == 0:
        return 0.0
    inside = array[(array < corner).all(axis=1)]
    return _volume(np.unique(inside[non_dominated(inside)], axis=0), corner) if len(inside) else 0.0


def _volume(points: Floats, corner: Floats) -> float:
    """Of distinct points that do not dominate each other, sorted by the first objective, all inside the corner."""
    if points.shape[1] == 1:
        return float(corner[0] - points[0, 0])
    if points.shape[1] == 2:
        heights = np.concatenate(([corner[1]], points[:-1, 1])) - points[:, 1]
        return float(np.sum((corner[0] - points[:, 0]) * heights))
    if points.shape[1] == 3:
        return _volume_by_slices(points, corner)
    return _volume_wfg(points, corner)


def _volume_by_slices(points: Floats, corner: Floats) -> float:
    """Between one value of the first objective and the next, the area of the points up to it in the other two."""
    depths = np.diff(np.concatenate((points[:, 0], [corner[0]])))
    areas = (compute_hypervolume(points[: count + 1, 1:], corner[1:]) for count in range(len(points)))
    return float(sum(area * depth for area, depth in zip(areas, depths, strict=True)))


def _volume_wfg(points: Floats, corner: Floats) -> float:
    """Sum of what each point covers alone: its box, less what the points after it cover inside that box."""
    total = 0.0
    for index, point in enumerate(points):
        limited = np.maximum(points[index + 1 :], point)
        total += float(np.prod(corner - point)) - compute_hypervolume(limited, corner)
    return total


def _sweep(rows: Floats) -> NDArray[np.bool_]:
    """Of distinct sorted rows in one or two columns: those whose last column is below all before."""
    last = rows[:, -1]
    if rows.shape[1] == 1:
        return np.asarray(last == last[0])
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], last[:-1])))
    return np.asarray(last < best_before)


def _peel(rows: Floats) -> NDArray[np.bool_]:
    """Of distinct sorted rows: the first that is left is on the front; drop what it dominates, and go on."""
    mask = np.zeros(len(rows), np.bool_)
    left = np.arange(len(rows))
    while len(left):
        first = left[0]
        mask[first] = True
        left = left[(rows[left] < rows[first]).any(axis=1)]
    return mask


def _finite(values: ArrayLike) -> Floats:
    array: Floats = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ObjectiveError("values of objectives must be finite numbers")
    return array


def _check_reference(objectives: tuple[Objective, ...], reference: Mapping[str, Any] | None) -> None:
    names = [objective.name for objective in objectives]
    if reference is not None and set(reference) != set(names):
        raise ObjectiveError(f"the reference must have a value for each of {', '.join(names)}, not {dict(reference)}")
