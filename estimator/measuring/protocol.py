"""The paired protocol. Everything that decides what a latency means is in this module.

On a shared machine the speed of a core changes by a factor of two within seconds, for the candidate and for anything
else alike. So the candidate is never timed alone: a block of its calls alternates with a block of calls of a fixed
graph, the yardstick, and each candidate block is divided by the mean of the two yardstick blocks around it. What the
machine did to both cancels. The median of these ratios, times what the yardstick takes on the quiet machine, is the
latency; a bootstrap over the ratios gives its interval, and its width ends the measurement.

A scheduler that shares a core takes it away for some milliseconds at a time. Short calls on one thread are mostly
spared, so their median is that of the undisturbed ones. A long call, or one whose threads wait for each other, is
always hit: there the blocks of both last about equally long and count by their means, which hold an equal part of what
was taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from estimator.measuring.statistics import block_means, block_medians, bootstrap_median, percentile

__all__ = [
    "BUSY_CONTENTION",
    "MIN_PAIRS",
    "MOST_CONTENTION",
    "NOISY_PRECISION",
    "SHORT_CALL_S",
    "Blocks",
    "PairedLatency",
    "judge",
    "measure_paired",
    "measure_quiet",
]

# A candidate block lasts about so long: a few of the scheduler's time slices, far below the time scale on which the
# load changes. A longer call is a block of its own.
BLOCK_S = 0.012
# Many time slices: a yardstick block need not last longer, however long the candidate's call.
MAX_YARDSTICK_BLOCK_S = 0.25
# Well below a time slice (3 ms on Linux): most calls of this length on one thread run undisturbed.
SHORT_CALL_S = 0.001
MIN_PAIRS = 10
MAX_CALLS_PER_BLOCK = 20
_WARM_UP_S = 0.05
_WARM_UP_CALLS = 3
# The interval is looked at whenever there are so many times more pairs; a bootstrap takes longer the more there are.
_CHECK_GROWTH = 1.2
# Above this yardstick ratio the machine was busy: a quiet one's mean lies up to a tenth above its fastest blocks.
BUSY_CONTENTION = 1.25
# Above this one the two are no longer slowed alike: beside a busy process for every core, ratios lay up to 40 % off.
MOST_CONTENTION = 2.0
# An interval that reaches further than a tenth of the value decides nothing.
NOISY_PRECISION = 0.10

Call = Callable[[], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Seconds of single calls, by block. Every candidate block has a yardstick block on either side.

    `is_parallel`: the candidate keeps several threads at work.
    """

    candidate_s: tuple[tuple[float, ...], ...]
    yardstick_s: tuple[tuple[float, ...], ...]
    is_parallel: bool

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Blocks:
        samples = {name: tuple(tuple(block) for block in values[name]) for name in ("candidate_s", "yardstick_s")}
        return cls(**{**values, **samples})

    @property
    def ratios(self) -> list[float]:
        """Candidate block over the mean of the yardstick blocks around it, each block by its median or its mean."""
        candidate, yardstick = self.values_s
        return [
            c / ((before + after) / 2) for c, before, after in zip(candidate, yardstick, yardstick[1:], strict=False)
        ]

    @property
    def values_s(self) -> tuple[list[float], list[float]]:
        """What the blocks of each count by: their medians for short calls on one thread, else their means."""
        fastest_s = min(min(block) for block in self.candidate_s)
        of_block = block_means if self.is_parallel or fastest_s > SHORT_CALL_S else block_medians
        return of_block(self.candidate_s), of_block(self.yardstick_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedLatency:
    """What the blocks say, given the yardstick's quiet time."""

    normalised_s: float
    low_s: float
    high_s: float
    raw_median_s: float
    p90_s: float
    p99_s: float
    contention: float
    verdict: str


def measure_paired(
    candidate: Call,
    yardstick: Call,
    *,
    is_parallel: bool,
    precision: float,
    max_seconds: float,
    seed: int,
    min_pairs: int = MIN_PAIRS,
    clock: Clock = time.perf_counter,
) -> Blocks:
    """Alternates blocks until the interval of the ratio is within `precision` or `max_seconds` are spent.

    The interval is first looked at after twice `min_pairs` pairs; the time ends the measurement after `min_pairs`.
    """
    candidate_calls, yardstick_calls = _block_sizes(_warm_up(candidate, clock), _warm_up(yardstick, clock))
    started, next_check = clock(), 2 * min_pairs
    yardsticks = [_block(yardstick, yardstick_calls, clock)]
    candidates: list[tuple[float, ...]] = []
    while True:
        candidates.append(_block(candidate, candidate_calls, clock))
        yardsticks.append(_block(yardstick, yardstick_calls, clock))
        is_late = len(candidates) >= min_pairs and clock() - started >= max_seconds
        if not is_late and len(candidates) < next_check:
            continue
        next_check = math.ceil(_CHECK_GROWTH * len(candidates))
        blocks = Blocks(candidate_s=tuple(candidates), yardstick_s=tuple(yardsticks), is_parallel=is_parallel)
        if is_late or _reach(bootstrap_median(blocks.ratios, seed=seed)) <= precision:
            return blocks


def measure_quiet(
    yardsticks: Mapping[str, Call], *, min_seconds: float, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Seconds of one call of each yardstick when nothing else runs, found in `min_seconds` for each.

    The yardsticks take turns in blocks, so that each finds the caches as another graph has left them, as it does beside
    a candidate. A block counts by its median; the quiet time is their tenth percentile, because other work can only
    make a block slower, and the one fastest block may have been lucky.
    """
    num_calls = {name: max(1, round(BLOCK_S / _warm_up(call, clock))) for name, call in yardsticks.items()}
    blocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in yardsticks}
    started = clock()
    while clock() - started < min_seconds * len(yardsticks):
        for name, call in yardsticks.items():
            blocks[name].append(_block(call, num_calls[name], clock))
    return {name: percentile(block_medians(found), 10) for name, found in blocks.items()}


def judge(blocks: Blocks, *, quiet_s: float, seed: int) -> PairedLatency:
    """The latency with its interval and verdict.

    noisy: the interval reaches further than 10 % of the value, or the yardstick took over twice its quiet time.
    corrected: it took over 1.25 times that, so the raw median is not to be trusted, but the ratio is. quiet: neither.
    """
    ratio, low, high = interval = bootstrap_median(blocks.ratios, seed=seed)
    raw = [sample for block in blocks.candidate_s for sample in block]
    contention = percentile(blocks.values_s[1], 50) / quiet_s
    if _reach(interval) > NOISY_PRECISION or contention > MOST_CONTENTION:
        verdict = "noisy"
    else:
        verdict = "corrected" if contention > BUSY_CONTENTION else "quiet"
    return PairedLatency(
        normalised_s=ratio * quiet_s,
        low_s=low * quiet_s,
        high_s=high * quiet_s,
        raw_median_s=percentile(raw, 50),
        p90_s=percentile(raw, 90),
        p99_s=percentile(raw, 99),
        contention=contention,
        verdict=verdict,
    )


def _reach(interval: tuple[float, float, float]) -> float:
    """How far an interval reaches to its wider side, as a fraction of the value."""
    middle, low, high = interval
    return max(high - middle, middle - low) / middle


def _block_sizes(candidate_s: float, yardstick_s: float) -> tuple[int, int]:
    """Calls in a candidate block and in a yardstick block, so that both last equally long."""
    candidate_calls = max(1, min(MAX_CALLS_PER_BLOCK, round(max(BLOCK_S, yardstick_s) / candidate_s)))
    yardstick_block_s = min(MAX_YARDSTICK_BLOCK_S, candidate_calls * candidate_s)
    return candidate_calls, max(1, round(yardstick_block_s / yardstick_s))


def _warm_up(call: Call, clock: Clock) -> float:
    """Calls until caches and clocks are warm; returns the seconds of one call, above 0."""
    samples: list[float] = []
    while len(samples) < _WARM_UP_CALLS or (sum(samples) < _WARM_UP_S and len(samples) < 1000):
        samples.append(_timed(call, clock))
    return max(percentile(samples, 50), 1e-9)


def _block(call: Call, num_calls: int, clock: Clock) -> tuple[float, ...]:
    return tuple(_timed(call, clock) for _ in range(num_calls))


def _timed(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start
