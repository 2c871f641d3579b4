"""The search loop: ask, evaluate, tell, until the budget is spent, the space is exhausted or the user stops it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from estimator.errors import StorageFullError
from estimator.figures import Figure
from nas.errors import EvaluationError, SpaceExhaustedError, StoreError
from nas.evaluate import Progress
from nas.records import TrialRecord
from nas.standing import count_trials, num_paid
from nas.study import Study, Trial

__all__ = ["Evaluate", "View", "run_study", "terminated_as_interrupt"]

Evaluate = Callable[[Trial, Progress], dict[str, Figure]]


class View(Protocol):
    """Somebody who watches a search: the live terminal view, or plain lines."""

    def trial_started(self, number: int) -> None: ...

    def step(self, name: str, fraction: float | None) -> None: ...

    def trial_ended(self, trial: TrialRecord) -> None: ...

    def note(self, text: str) -> None: ...


def run_study(study: Study, evaluate: Evaluate, view: View) -> str:
    """Runs a study to its budget and returns its state: finished.

    A candidate that fails is a trial with its reason, and the search goes on. A study that is interrupted (Ctrl-C,
    SIGTERM) is stored as stopped, and its running trial is handed out again when it is resumed; one that is killed
    needs no farewell: everything paid for is already in the store.

    Raises:
        StoreError: another process runs this study, or the store cannot be written.
        StorageFullError: no space is left for an artefact; the study is stopped and can go on.
        ImpossibleConstraintError: no candidate of the space can meet a constraint.
    """
    store, study_id = study.store, study.id
    with store.lock_study(study_id):
        store.set_study_state(study_id, "running")
        try:
            while num_paid(count_trials(study.trials())) < study.spec.num_trials:
                _run_trial(study, evaluate, view)
        except SpaceExhaustedError as end:
            store.add_event(study_id, "space_exhausted", {"detail": str(end)})
            view.note(str(end))
        except KeyboardInterrupt:
            store.set_study_state(study_id, "stopped")
            raise
        except Exception as error:
            state = "stopped" if isinstance(error, StorageFullError | StoreError) else "fail"
            with contextlib.suppress(StoreError):  # the store itself may be what failed
                store.set_study_state(study_id, state)
            raise
        store.set_study_state(study_id, "finished")
    return "finished"


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM ends a search as Ctrl-C does. Does nothing outside the main thread."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_trial(study: Study, evaluate: Evaluate, view: View) -> None:
    trial = study.ask()
    view.trial_started(trial.number)
    try:
        figures = evaluate(trial, view.step)
    except EvaluationError as error:
        record = study.tell(trial, state="fail", error=error)
    else:
        record = study.tell(trial, figures)
    view.trial_ended(record)
