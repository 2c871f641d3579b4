"""What to type after a search: the terminal and the report say the same."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nas.pareto import ParetoFront
from nas.records import StudyRecord, TrialRecord
from nas.spec import StudySpec
from nas.table import column_of, format_value

__all__ = ["command_line", "explain_no_front", "next_commands"]


def next_commands(study: StudyRecord, front: ParetoFront, store: str | None) -> tuple[tuple[str, str], ...]:
    """Pairs (command, what it does); the trial in them is the best of the front in the first objective.

    Without a front there is nothing to ship, only trials to look at and a search to go on with. `store` is the URL to
    name, None for the default store.
    """
    more = (("resume", study.name, "--trials", 2 * study.spec.num_trials), "search on")
    commands = (*_with_point(study, front.trials[0]), more) if front.trials else (*_without_point(study), more)
    return tuple((command_line(*words, store=store), what) for words, what in commands)


def explain_no_front(study: StudyRecord, trials: Sequence[TrialRecord]) -> str:
    """Why a study has no front: the trial that came nearest to keeping every limit, and limits that it would keep."""
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        return f"{study.name} has no complete trial yet"
    nearest = min(complete, key=lambda trial: _worst_violation(study.spec, trial))
    broken = []
    for constraint in study.spec.constraints:
        value = nearest.figures[constraint.objective].value
        if not constraint.is_met(value):
            column = column_of(constraint.objective, study.spec)
            limit, reached = (format_value(number, column.unit) for number in (constraint.limit, value))
            broken.append(f"{column.label} {reached} where the limit is {limit}")
    return (
        f"no trial of {study.name} keeps every limit; trial {nearest.number} comes nearest: {', '.join(broken)}. "
        "Search on, or search again with a limit looser than that"
    )


def command_line(*words: object, store: str | None) -> str:
    """A command of `nas`, quoted for the shell; by its path where it is not found by its name."""
    started = Path(sys.argv[0])
    by_path = started.name == "nas" and shutil.which("nas") is None
    return shlex.join([str(started) if by_path else "nas", *map(str, words), *(["--store", store] if store else [])])


Commands = tuple[tuple[tuple[object, ...], str], ...]


def _with_point(study: StudyRecord, trial: int) -> Commands:
    spec = study.spec
    writes = spec.space.architecture == "decoder" and spec.quality.evaluator == "train"
    return (
        (("show", study.name, trial), "everything about one trial"),
        (("pareto", study.name, "--json"), "the front for a program"),
        (("export", study.name, trial, "model/"), "ship one trial: ONNX file, checkpoint and card"),
        *([(("generate", study.name, trial, "--prompt", "def "), "let it write")] if writes else []),
    )


def _without_point(study: StudyRecord) -> Commands:
    return ((("show", study.name), "what became of every trial"),)


def _worst_violation(spec: StudySpec, trial: TrialRecord) -> float:
    return max(limit.violation(trial.figures[limit.objective].value) for limit in spec.constraints)
