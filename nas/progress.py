"""Watching a search: a live view on a terminal, one line a trial elsewhere, both on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from nas.objectives import Objective
from nas.records import TrialRecord
from nas.spec import StudySpec
from nas.standing import count_trials, describe_counts, num_paid
from nas.study import Study
from nas.table import best_trials, column_of, describe_config, format_value

__all__ = ["ProgressView", "format_duration"]

_REFRESH_PER_S = 4


class ProgressView:
    """Shows trials done, running, failed and pruned, the best so far, the hypervolume and the time left.

    Use it as a context manager; it is a `nas.loop.View`.
    """

    def __init__(
        self, study: Study, *, console: Console, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._study = study
        self._console = console
        self._clock = clock
        self._quiet = quiet
        self._live = Live(console=console, refresh_per_second=_REFRESH_PER_S) if self._is_live else None
        self._started_s = clock()
        self._paid_before = num_paid(count_trials(study.trials()))
        self._running: int | None = None
        self._step = ""
        self._summary = Text()

    @property
    def _is_live(self) -> bool:
        return self._console.is_terminal and not self._quiet

    def __enter__(self) -> ProgressView:
        spec = self._study.spec
        self.note(f"study {self._study.name}: {spec.num_trials} trials of {spec.space.name} on {spec.device}")
        if self._live is not None:
            self._summary = self._summarise()
            self._live.start()
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._running = None
            self._draw()
            self._live.stop()

    def trial_started(self, number: int) -> None:
        self._running, self._step = number, "starting"
        self._draw()

    def step(self, name: str, fraction: float | None) -> None:
        self._step = name if fraction is None else f"{name} {fraction:.0%}"
        self._draw()

    def trial_ended(self, trial: TrialRecord) -> None:
        self._running = None
        self.note(self._trial_line(trial))
        if self._live is not None:
            self._summary = self._summarise()
            self._draw()

    def note(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text), soft_wrap=True)

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(Group(self._bar(), self._summary))

    def _bar(self) -> Progress:
        done = num_paid(count_trials(self._study.trials()))
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}")
        )
        now = "" if self._running is None else f"trial {self._running}: {self._step}"
        left_s = self._time_left_s(done)
        if left_s is not None:
            now += f"   about {format_duration(left_s)} left"
        bar.add_task(self._study.name, total=self._study.spec.num_trials, completed=done, now=now)
        return bar

    def _time_left_s(self, done: int) -> float | None:
        """Seconds that the remaining trials take at the pace so far, or None before the first."""
        paid = done - self._paid_before
        if paid == 0:
            return None
        return (self._clock() - self._started_s) / paid * max(0, self._study.spec.num_trials - done)

    def _summarise(self) -> Text:
        trials = self._study.trials()
        parts = [describe_counts(count_trials(trials))]
        for objective, trial in best_trials(trials, self._study.spec.objectives):
            parts.append(f"best {_shown(objective, trial, self._study.spec)} (trial {trial.number})")
        front = self._study.front()
        if front.points:
            parts.append(f"front {len(front.points)}, hypervolume {front.hypervolume:.4g}")
        return Text("   ".join(parts), style="dim")

    def _trial_line(self, trial: TrialRecord) -> str:
        if trial.state != "complete":
            return f"trial {trial.number}: {trial.state}: {trial.error_text}"
        values = [_shown(objective, trial, self._study.spec) for objective in self._study.spec.objectives]
        return f"trial {trial.number}: {describe_config(trial.config)}: {', '.join(values)}"


def format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _shown(objective: Objective, trial: TrialRecord, spec: StudySpec) -> str:
    column = column_of(objective.name, spec)
    return f"{column.label} {format_value(trial.figures[objective.name].value, column.unit)}"
