"""Where a study stands: its state, and how many trials ended how. Terminal, report and service say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nas.records import TRIAL_STATES, StudyRecord, TrialRecord

if TYPE_CHECKING:
    from nas.store import Store

__all__ = ["as_it_stands", "count_trials", "describe_counts", "num_paid", "stored_counts"]

_WORDS = {"complete": "complete", "fail": "failed", "pruned": "pruned", "running": "running", "repeated": "repeated"}


def as_it_stands(store: Store, study: StudyRecord) -> StudyRecord:
    """The study, save that one that says it is running while no process holds it was killed: it is stopped."""
    if study.state != "running" or store.running_process(study.id) is not None:
        return study
    now = store.find_study(study.id)  # it may have ended meanwhile, and said so before it let go
    return replace(now, state="stopped") if now.state == "running" else now


def count_trials(trials: Iterable[TrialRecord]) -> dict[str, int]:
    """Number of trials by state; those that repeat another one are counted as `repeated` and under no state."""
    counts = dict.fromkeys((*TRIAL_STATES, "repeated"), 0)
    for trial in trials:
        counts[trial.state if trial.duplicate_of is None else "repeated"] += 1
    return counts


def stored_counts(store: Store, study_id: str) -> dict[str, int]:
    """What `count_trials` says of all trials of a study, without reading them."""
    counts = store.count_trials(study_id, with_repeated=False)
    return counts | {"repeated": sum(store.count_trials(study_id).values()) - sum(counts.values())}


def num_paid(counts: Mapping[str, int]) -> int:
    """Trials that count towards the budget: those that were evaluated, complete or in vain."""
    return counts["complete"] + counts["fail"]


def describe_counts(counts: Mapping[str, int]) -> str:
    """The counts in words: "4 complete, 1 failed"; what there is none of is left out, save `complete`."""
    return ", ".join(f"{counts[name]} {word}" for name, word in _WORDS.items() if counts[name] or name == "complete")
