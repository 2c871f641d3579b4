"""The paired protocol on a clock that the test turns itself: no waiting, exact answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from estimator.measuring.protocol import MAX_CALLS_PER_BLOCK, MIN_PAIRS, Blocks, judge, measure_paired, measure_quiet
from estimator.measuring.statistics import bootstrap_median
from estimator.measuring.yardstick import choose_yardstick, is_parallel

QUIET_S = 0.001


class FakeClock:
    """A clock that stands still until a call advances it by its duration times the machine's slowness."""

    def __init__(self, slowness: Iterator[float]) -> None:
        self.now_s = 0.0
        self._slowness = slowness

    def __call__(self) -> float:
        return self.now_s

    def work(self, duration_s: float) -> Callable[[], None]:
        def call() -> None:
            self.now_s += duration_s * next(self._slowness)

        return call


def run(clock: FakeClock, candidate_s: float, *, precision: float = 0.03, max_seconds: float = 2.0) -> Blocks:
    return measure_paired(
        clock.work(candidate_s),
        clock.work(QUIET_S),
        is_parallel=False,
        precision=precision,
        max_seconds=max_seconds,
        seed=0,
        clock=clock,
    )


@pytest.mark.parametrize(("slowness", "verdict"), [(1.0, "quiet"), (1.7, "corrected"), (3.0, "noisy")])
def test_normalised_time_does_not_depend_on_the_load(slowness: float, verdict: str) -> None:
    """A machine that is slower by a factor changes the raw time and the verdict, and the normalised time not at all."""
    blocks = run(FakeClock(itertools.repeat(slowness)), 0.004)
    latency = judge(blocks, quiet_s=QUIET_S, seed=0)
    assert latency.normalised_s == pytest.approx(0.004)
    assert latency.raw_median_s == pytest.approx(0.004 * slowness)
    assert latency.contention == pytest.approx(slowness)
    assert latency.verdict == verdict


def test_drift_between_blocks_cancels() -> None:
    """A load that grows steadily to the double leaves the ratio within 2 %."""
    growth = (1.0 + step / 4000 for step in itertools.count())
    latency = judge(run(FakeClock(growth), 0.004), quiet_s=QUIET_S, seed=0)
    assert latency.normalised_s == pytest.approx(0.004, rel=0.02)


class SharedCore:
    """A clock on a core that a scheduler takes away after each time slice of 2 to 4 ms, for as long again."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._generator = np.random.default_rng(0)
        self._left_s = self._slice()

    def _slice(self) -> float:
        return float(self._generator.uniform(0.002, 0.004))

    def __call__(self) -> float:
        return self.now_s

    def work(self, duration_s: float) -> Callable[[], None]:
        def call() -> None:
            rest_s = duration_s
            while rest_s >= self._left_s:
                rest_s -= self._left_s
                self.now_s += self._left_s + self._slice()
                self._left_s = self._slice()
            self._left_s -= rest_s
            self.now_s += rest_s

        return call


@pytest.mark.parametrize(
    ("candidate_s", "is_parallel"), [(0.00007, False), (0.0004, False), (0.002, True), (0.015, True), (0.15, True)]
)
def test_time_slices_of_others_cancel_for_short_and_long_calls(candidate_s: float, is_parallel: bool) -> None:
    """Most short calls are spared and no long one is; neither looks slower than it is beside the other."""
    core = SharedCore()
    blocks = measure_paired(
        core.work(candidate_s),
        core.work(0.00031),
        is_parallel=is_parallel,
        precision=0.03,
        max_seconds=3.0,
        seed=0,
        clock=core,
    )
    assert judge(blocks, quiet_s=0.00031, seed=0).normalised_s == pytest.approx(candidate_s, rel=0.1)


def test_blocks_of_both_last_equally_long() -> None:
    """A long call is weighed against as much time of the yardstick, but not against more than is of use."""
    for candidate_s, yardstick_calls in ((0.004, 12), (0.04, 40), (5.0, 250)):
        blocks = run(FakeClock(itertools.repeat(1.0)), candidate_s)
        assert {len(block) for block in blocks.yardstick_s} == {yardstick_calls}


def test_wide_interval_is_marked_noisy() -> None:
    """Work that hits the candidate at random and not the yardstick cannot be corrected, and is not hidden."""
    generator = np.random.default_rng(3)
    clock = FakeClock(itertools.repeat(1.0))

    def candidate() -> None:
        clock.now_s += 0.02 * float(generator.choice([1.0, 4.0]))

    blocks = measure_paired(
        candidate, clock.work(QUIET_S), is_parallel=False, precision=0.03, max_seconds=0.5, seed=0, clock=clock
    )
    assert judge(blocks, quiet_s=QUIET_S, seed=0).verdict == "noisy"


def test_precise_interval_ends_the_measurement_early() -> None:
    """Equal ratios stop after the first look at the interval, long before the time is spent."""
    blocks = run(FakeClock(itertools.repeat(1.0)), 0.004, max_seconds=1000.0)
    assert len(blocks.candidate_s) == 2 * MIN_PAIRS


def test_time_budget_ends_the_measurement_with_enough_pairs() -> None:
    """A slow candidate spends the budget at once and still gets the smallest number of pairs."""
    blocks = run(FakeClock(itertools.repeat(1.0)), 5.0, max_seconds=1.0)
    assert len(blocks.candidate_s) == MIN_PAIRS
    assert len(blocks.yardstick_s) == MIN_PAIRS + 1


def test_block_length_follows_the_call() -> None:
    """Short calls fill a block with many, up to the limit that keeps records small; a long call is a block."""
    short = run(FakeClock(itertools.repeat(1.0)), 0.00001)
    long = run(FakeClock(itertools.repeat(1.0)), 0.5)
    assert {len(block) for block in short.candidate_s} == {MAX_CALLS_PER_BLOCK}
    assert {len(block) for block in long.candidate_s} == {1}


def test_quiet_time_is_the_fast_end_of_a_busy_minute() -> None:
    """A machine that is disturbed for four fifths of the time still gives the quiet time of every yardstick."""
    phases = itertools.cycle([1.0] * 200 + [2.0] * 500 + [1.6] * 300)
    clock = FakeClock(phases)
    yardsticks = {"short": clock.work(QUIET_S), "long": clock.work(3 * QUIET_S)}
    found = measure_quiet(yardsticks, min_seconds=5.0, clock=clock)
    assert found == {"short": pytest.approx(QUIET_S), "long": pytest.approx(3 * QUIET_S)}


@pytest.mark.parametrize(
    ("phase", "num_threads", "helper_share", "yardstick"),
    [
        ("prefill", 2, 0.4, "compute-3"),
        ("prefill", 2, 0.0, "step-4"),
        ("prefill", 1, 0.0, "compute-3"),
        ("decode", 2, 0.4, "stream-3"),
        ("decode", 2, 0.06, "step-4"),
        ("decode", 1, 0.0, "step-4"),
    ],
)
def test_yardstick_works_as_the_candidate_does(
    phase: str, num_threads: int, helper_share: float, yardstick: str
) -> None:
    """Prefill computes and decode streams; what one of several threads does alone is compared with such work."""
    assert choose_yardstick(phase, num_threads=num_threads, parallel=is_parallel(helper_share)) == yardstick


def test_bootstrap_interval_covers_the_true_median() -> None:
    """Over 200 samples of a skewed distribution, the 95 % interval holds its median in 90 to 99 % of them."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        middle, low, high = bootstrap_median(generator.exponential(1.0, 40), seed=0)
        assert low <= middle <= high
        hits += low <= np.log(2) <= high
    assert 180 <= hits <= 198
