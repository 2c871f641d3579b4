"""The paired protocol. Everything that decides what a latency means is in this module.

On a shared machine the speed of a core changes by a factor of two within seconds, for the candidate and for anything
else alike. So the candidate is never timed alone: a block of its calls alternates with a block of calls of a fixed
graph, the yardstick, and each candidate block is divided by the mean of the two yardstick blocks around it. What the
machine did to both cancels. The median of these ratios, times what the yardstick takes on the quiet machine, is the
latency; a bootstrap over the ratios gives its interval, and its width ends the measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from estimator.measuring.statistics import block_medians, bootstrap_median, percentile

__all__ = ["BUSY_CONTENTION", "NOISY_PRECISION", "Blocks", "PairedLatency", "judge", "measure_paired", "measure_quiet"]

# A block lasts about so long: far above the clock's resolution, far below the time scale on which the load changes.
BLOCK_S = 0.008
MIN_PAIRS = 10
MAX_CALLS_PER_BLOCK = 20
_MIN_QUIET_CALLS = 100
_WARM_UP_S = 0.05
_WARM_UP_CALLS = 3
# The interval is looked at after every so many pairs; a bootstrap costs about a millisecond.
_PAIRS_PER_CHECK = 5
# Above this yardstick ratio the machine was busy: a quiet one's median lies a tenth above the fast end of its calls.
BUSY_CONTENTION = 1.25
# An interval that reaches further than a tenth of the value decides nothing.
NOISY_PRECISION = 0.10

Call = Callable[[], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Seconds of single calls, by block. Every candidate block has a yardstick block on either side."""

    candidate_s: tuple[tuple[float, ...], ...]
    yardstick_s: tuple[tuple[float, ...], ...]

    @property
    def ratios(self) -> list[float]:
        """Candidate block over the mean of the yardstick blocks around it, each block by its median."""
        candidate, yardstick = block_medians(self.candidate_s), block_medians(self.yardstick_s)
        return [
            c / ((before + after) / 2) for c, before, after in zip(candidate, yardstick, yardstick[1:], strict=False)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedLatency:
    """What the blocks say, given the yardstick's quiet time."""

    normalised_s: float
    low_s: float
    high_s: float
    raw_median_s: float
    p90_s: float
    contention: float
    verdict: str


def measure_paired(
    candidate: Call,
    yardstick: Call,
    *,
    precision: float,
    max_seconds: float,
    seed: int,
    clock: Clock = time.perf_counter,
) -> Blocks:
    """Alternates blocks until the interval of the ratio is within `precision` or `max_seconds` are spent."""
    candidate_calls = _warm_up(candidate, clock)
    yardstick_calls = _warm_up(yardstick, clock)
    started = clock()
    yardsticks = [_block(yardstick, yardstick_calls, clock)]
    candidates: list[tuple[float, ...]] = []
    while True:
        candidates.append(_block(candidate, candidate_calls, clock))
        yardsticks.append(_block(yardstick, yardstick_calls, clock))
        blocks = Blocks(candidate_s=tuple(candidates), yardstick_s=tuple(yardsticks))
        if len(candidates) >= MIN_PAIRS and clock() - started >= max_seconds:
            return blocks
        if len(candidates) >= 2 * MIN_PAIRS and len(candidates) % _PAIRS_PER_CHECK == 0:
            middle, low, high = bootstrap_median(blocks.ratios, seed=seed)
            if max(high - middle, middle - low) <= precision * middle:
                return blocks


def measure_quiet(yardstick: Call, *, min_seconds: float, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call when nothing else runs: the fifth percentile of the calls of `min_seconds`.

    Other work can only make a call slower, so the fast end is the quiet machine; the fifth percentile rather than the
    minimum keeps a few lucky calls from deciding.
    """
    _warm_up(yardstick, clock)
    started = clock()
    samples: list[float] = []
    while clock() - started < min_seconds or len(samples) < _MIN_QUIET_CALLS:
        samples.append(_timed(yardstick, clock))
    return percentile(samples, 5)


def judge(blocks: Blocks, *, quiet_s: float, seed: int) -> PairedLatency:
    """The latency with its interval and verdict.

    noisy: the interval reaches further than 10 % of the value. corrected: the yardstick took over 1.25 times its quiet
    time, so the raw median is not to be trusted, but the ratio is. quiet: neither.
    """
    ratio, low, high = bootstrap_median(blocks.ratios, seed=seed)
    raw = [sample for block in blocks.candidate_s for sample in block]
    contention = percentile([sample for block in blocks.yardstick_s for sample in block], 50) / quiet_s
    if max(high - ratio, ratio - low) > NOISY_PRECISION * ratio:
        verdict = "noisy"
    else:
        verdict = "corrected" if contention > BUSY_CONTENTION else "quiet"
    return PairedLatency(
        normalised_s=ratio * quiet_s,
        low_s=low * quiet_s,
        high_s=high * quiet_s,
        raw_median_s=percentile(raw, 50),
        p90_s=percentile(raw, 90),
        contention=contention,
        verdict=verdict,
    )


def _warm_up(call: Call, clock: Clock) -> int:
    """Calls until caches and clocks are warm; returns how many calls make a block."""
    samples: list[float] = []
    while len(samples) < _WARM_UP_CALLS or (sum(samples) < _WARM_UP_S and len(samples) < 1000):
        samples.append(_timed(call, clock))
    return max(1, min(MAX_CALLS_PER_BLOCK, round(BLOCK_S / max(percentile(samples, 50), 1e-9))))


def _block(call: Call, num_calls: int, clock: Clock) -> tuple[float, ...]:
    return tuple(_timed(call, clock) for _ in range(num_calls))


def _timed(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start
