"""The loop when things go wrong that are not the candidate's fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from estimator.errors import StorageFullError
from estimator.figures import Figure
from nas.errors import EvaluationError, StoreError
from nas.evaluate import Progress
from nas.loop import run_study
from nas.objectives import Objective
from nas.records import TrialRecord
from nas.space import SearchSpace
from nas.study import Study, Trial


class Watcher:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.ended: list[TrialRecord] = []
        self.notes: list[str] = []

    def trial_started(self, number: int) -> None:
        assert number >= len(self.ended)

    def step(self, name: str, fraction: float | None) -> None:
        assert name

    def trial_ended(self, trial: TrialRecord) -> None:
        self.ended.append(trial)

    def note(self, text: str) -> None:
        self.notes.append(text)


def small_study() -> Study:
    space = SearchSpace.from_dict(
        {
            "name": "four",
            "base": {
                "vocab_size": 8,
                "max_position_embeddings": 128,
                "num_attention_heads": 1,
                "num_hidden_layers": 1,
                "intermediate_size": 8,
            },
            "choices": {"hidden_size": [4, 8], "gated_mlp": [True, False]},
        }
    )
    return Study.create(space=space, objectives=[Objective("loss", "minimize")], num_trials=4, seed=1)


def loss_of(trial: Trial, progress: Progress) -> dict[str, Figure]:
    progress("thinking", 0.5)
    return {"loss": Figure(value=float(trial.config.hidden_size), origin="measured")}


def failing(error: Exception, *, call: int) -> Callable[[Trial, Progress], dict[str, Figure]]:
    """An evaluator that fails at its call of that number, from 0."""
    calls = itertools.count()

    def evaluate(trial: Trial, progress: Progress) -> dict[str, Figure]:
        if next(calls) == call:
            raise error
        return loss_of(trial, progress)

    return evaluate


def test_failed_candidate_is_a_trial_and_the_search_goes_on() -> None:
    """A failure with its reason, and the other three complete."""
    study, watcher = small_study(), Watcher()
    run_study(study, failing(EvaluationError("it\nburst", reason="numerics"), call=1), watcher)
    states = [trial.state for trial in watcher.ended]
    assert states.count("fail") == 1
    assert states.count("complete") == 3
    (failed,) = (trial for trial in study.trials() if trial.state == "fail")
    assert (failed.error_type, failed.error_text) == ("numerics", "it burst")
    assert study.store.find_study(study.id).state == "finished"


@pytest.mark.parametrize("error", [StorageFullError("no space left"), StoreError("the disk is full")])
def test_full_disk_stops_the_search_and_blames_no_candidate(error: Exception) -> None:
    """The study is stopped with its trial still running; going on ends as if nothing had happened."""
    study = small_study()
    with pytest.raises(type(error)):
        run_study(study, failing(error, call=2), Watcher())
    assert study.store.find_study(study.id).state == "stopped"
    assert [trial.state for trial in study.trials()].count("running") == 1

    again = Study.load(study.store, study.id)
    run_study(again, loss_of, Watcher())
    undisturbed = small_study()
    run_study(undisturbed, loss_of, Watcher())
    assert [t.params for t in again.trials()] == [t.params for t in undisturbed.trials()]
    assert {t.state for t in again.trials()} == {"complete"}


def test_bug_of_the_evaluator_propagates() -> None:
    """What is not an EvaluationError is not data: it ends the search, and the study says fail."""
    study = small_study()
    with pytest.raises(ZeroDivisionError):
        run_study(study, failing(ZeroDivisionError("a bug"), call=0), Watcher())
    assert study.store.find_study(study.id).state == "fail"


def test_exhausted_space_ends_the_search_with_a_note() -> None:
    """Four networks and a budget of ten: all four, and why it ended."""
    study, watcher = small_study(), Watcher()
    study.store.extend_trials(study.id, 10)
    study = Study.load(study.store, study.id)
    run_study(study, loss_of, watcher)
    assert [trial.state for trial in study.trials() if trial.duplicate_of is None] == ["complete"] * 4
    assert "no new candidate is left" in watcher.notes[0]
    assert [event.kind for event in study.store.events(study.id)] == ["space_exhausted"]
