"""Fronts and hypervolumes against closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import ObjectiveError
from nas.objectives import Objective
from nas.pareto import compute_hypervolume, find_front, non_dominated

LOSS, SIZE = Objective("loss", "minimize"), Objective("size", "minimize")
ACCURACY = Objective("accuracy", "maximize")
# Few distinct coordinates, so that ties, duplicates and points on the reference are common.
point_sets = st.integers(1, 5).flatmap(
    lambda size: st.lists(st.tuples(*[st.integers(0, 4)] * size), min_size=1, max_size=8)
)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """At most as large everywhere and smaller somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def union_of_boxes(points: list[tuple[int, ...]], reference: int) -> int:
    """Volume of the union of the boxes from each point to the reference, by inclusion and exclusion."""
    total = 0
    for count in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, count):
            sides = (max(0, reference - max(column)) for column in zip(*chosen, strict=True))
            total += (-1) ** (count + 1) * math.prod(sides)
    return total


@settings(deadline=None)
@given(point_sets)
def test_front_is_that_of_the_naive_comparison(points: list[tuple[int, ...]]) -> None:
    """A point is kept exactly when no other one dominates it, in any number of objectives."""
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert non_dominated(points).tolist() == expected


@settings(deadline=None)
@given(point_sets)
def test_hypervolume_is_the_union_of_boxes(points: list[tuple[int, ...]]) -> None:
    """The exact volume, also with ties, duplicates and points on or beyond the reference."""
    size = len(points[0])
    assert compute_hypervolume(points, [3] * size) == pytest.approx(union_of_boxes(points, 3), abs=1e-9)


@settings(deadline=None)
@given(point_sets, st.randoms())
def test_order_of_points_changes_nothing(points: list[tuple[int, ...]], random: object) -> None:
    """Shuffled points have the same volume and the same members on the front."""
    shuffled = list(points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    corner = [5] * len(points[0])
    assert compute_hypervolume(shuffled, corner) == pytest.approx(compute_hypervolume(points, corner))

    def kept(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return sorted(row for row, keep in zip(rows, non_dominated(rows), strict=True) if keep)

    assert kept(shuffled) == kept(points)


@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_staircase_in_two_objectives_has_its_closed_form(count: int) -> None:
    """Points (i, n-1-i) under (n, n) cover 1 + 2 + ... + n unit squares."""
    steps = np.arange(count)
    points = np.stack([steps, count - 1 - steps], axis=1)
    assert compute_hypervolume(points, [count, count]) == count * (count + 1) // 2


@pytest.mark.parametrize("count", [1, 3, 12])
def test_staircase_in_three_objectives_has_its_closed_form(count: int) -> None:
    """All (i, j, k) with i + j + k = n-1 under (n, n, n) cover the cells with i + j + k >= n-1: n^3 - C(n+1, 3)."""
    points = [p for p in itertools.product(range(count), repeat=3) if sum(p) == count - 1]
    assert compute_hypervolume(points, [count] * 3) == count**3 - math.comb(count + 1, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_one_point_covers_its_box(size: int) -> None:
    """A point at 1 under a reference at 3 covers 2^n; more copies of it cover no more."""
    assert compute_hypervolume([[1.0] * size] * 3, [3.0] * size) == 2.0**size


def test_points_on_or_beyond_the_reference_cover_nothing() -> None:
    """A box without extent in one direction has no volume; no points have none either."""
    assert compute_hypervolume([[0, 3], [4, 0]], [3, 3]) == 0
    assert compute_hypervolume(np.empty((0, 2)), [1, 1]) == 0


def test_maximised_objective_is_turned_round_at_the_edge() -> None:
    """Higher accuracy is better; points and reference come back in the caller's own direction."""
    front = find_front({0: (0.5, 10.0), 1: (0.9, 20.0), 2: (0.4, 15.0)}, (ACCURACY, SIZE), {"accuracy": 0, "size": 30})
    assert front.trials == (1, 0)
    assert front.points == ((0.9, 20.0), (0.5, 10.0))
    assert front.hypervolume == pytest.approx(0.9 * 10 + 0.5 * 10)
    assert front.reference == {"accuracy": 0, "size": 30}


def test_ties_are_all_on_the_front_by_number() -> None:
    """Equal points do not dominate each other."""
    front = find_front({7: (1.0, 2.0), 3: (1.0, 2.0), 5: (2.0, 2.0)}, (LOSS, SIZE))
    assert front.trials == (3, 7)


def test_default_reference_is_a_tenth_beyond_the_worst() -> None:
    """The worst of all trials, not of the front; for a maximised objective a tenth below."""
    front = find_front({0: (2.0, 0.9), 1: (4.0, 0.5)}, (LOSS, ACCURACY))
    assert front.reference == pytest.approx({"loss": 4.4, "accuracy": 0.45})


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=12))
def test_hypervolume_of_a_growing_study_never_falls(points: list[tuple[float, float]]) -> None:
    """With the default reference, one more trial can only add volume."""
    volumes = [
        find_front(dict(enumerate(points[:count])), (LOSS, SIZE)).hypervolume for count in range(1, len(points) + 1)
    ]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(volumes))


def test_study_without_points_has_an_empty_front() -> None:
    """Nothing is complete yet: no points, no volume."""
    front = find_front({}, (LOSS, SIZE))
    assert (front.trials, front.points, front.reference, front.hypervolume) == ((), (), {}, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused(bad: float) -> None:
    """Neither a value nor a reference may be infinite or no number."""
    with pytest.raises(ObjectiveError, match="finite"):
        find_front({0: (bad, 1.0)}, (LOSS, SIZE))
    with pytest.raises(ObjectiveError, match="finite"):
        find_front({0: (1.0, 1.0)}, (LOSS, SIZE), {"loss": bad, "size": 1.0})
    with pytest.raises(ObjectiveError, match="finite"):
        non_dominated([[bad, 1.0]])


@pytest.mark.parametrize("reference", [{"loss": 1.0}, {"loss": 1.0, "size": 1.0, "params": 1.0}])
def test_reference_names_exactly_the_objectives(reference: dict[str, float]) -> None:
    """A missing or foreign name is refused, with or without points."""
    for values in ({}, {0: (0.5, 0.5)}):
        with pytest.raises(ObjectiveError, match="each of loss, size"):
            find_front(values, (LOSS, SIZE), reference)
