"""Optuna proposes: one fresh sampler for every proposal, so that a restart proposes what it would have proposed.

A sampler is seeded from the study's seed and the trial's number alone. What it proposes is then a pure function of the
trials before: of their choices, states and values, and of what a sampler noted while it proposed them, on the trial
(NSGA-II its generation) or on the study (NSGA-II the parents of a generation), which the store keeps with the trial as
its `sampler_state`.

What Optuna is told: complete trials with their values and, by `set_constraint`, how far each limit is broken; pruned
and failed trials as failed, since they have no values (and Optuna prunes no trial of several objectives).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from nas.errors import UsageError
from nas.records import TrialRecord
from nas.space import Params
from nas.spec import SAMPLERS, StudySpec

__all__ = ["Proposer", "make_sampler"]

# NSGA-II's generation. Searches have tens to hundreds of trials, Optuna's 50 would make most of them random.
_POPULATION_SIZE = 20
# A proposal of TPE takes longer with every trial before it: measured, 0.6 s after 10,000 trials, NSGA-II's 0.02 s.
_LAST_TPE_TRIAL = 1000
_STUDY_NAME = "search"


def make_sampler(name: str, *, seed: int, trial_number: int) -> BaseSampler:
    """A sampler for one proposal.

    auto is tpe for the first 1000 trials and nsga2 beyond, where a proposal of TPE takes longer and longer. tpe is
    multivariate, which Optuna leaves off for several objectives: choices of an architecture depend on each other.

    Raises:
        UsageError: no sampler of that name, or gp without PyTorch.
    """
    trial_seed = _trial_seed(seed, trial_number)
    if name == "auto":
        name = "tpe" if trial_number < _LAST_TPE_TRIAL else "nsga2"
    if name == "random":
        return optuna.samplers.RandomSampler(seed=trial_seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=trial_seed, population_size=_POPULATION_SIZE)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=trial_seed, multivariate=True)
    if name == "gp":
        if importlib.util.find_spec("torch") is None:
            raise UsageError("the sampler gp needs PyTorch: pip install 'archfront[train]', or choose tpe")
        return optuna.samplers.GPSampler(seed=trial_seed)
    raise UsageError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")


class Proposer:
    """An Optuna study in memory that has seen a study's trials and proposes the next; numbers are the same in both."""

    def __init__(self, spec: StudySpec, trials: Sequence[TrialRecord]) -> None:
        self._spec = spec
        self._storage = optuna.storages.InMemoryStorage()
        with _quiet():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=_STUDY_NAME,
                directions=[
                    StudyDirection.MINIMIZE if objective.minimized else StudyDirection.MAXIMIZE
                    for objective in spec.objectives
                ],
            )
        self._study_id = self._storage.get_study_id_from_name(_STUDY_NAME)
        for trial in trials:
            self._restore(trial)

    def propose(self, number: int, params: Mapping[str, Any] | None = None) -> tuple[Params, dict[str, Any]]:
        """The raw choices of the next trial, and what its sampler noted; given choices are taken as they are."""
        noted = dict(self._storage.get_study_system_attrs(self._study_id))
        if params is not None:
            self._study.enqueue_trial(dict(params))
        self._study.sampler = make_sampler(self._spec.sampler, seed=self._spec.seed, trial_number=number)
        trial = self._study.ask()
        assert trial.number == number, f"proposal {trial.number} is not the study's trial {number}"
        chosen = self._spec.space.suggest(trial)
        on_study = self._storage.get_study_system_attrs(self._study_id)
        return chosen, {
            "trial": dict(self._storage.get_trial(self._trial_id(number)).system_attrs),
            "study": {key: value for key, value in on_study.items() if noted.get(key) != value},
        }

    def tell(self, trial: TrialRecord) -> None:
        """How a proposed trial ended."""
        if trial.state != "complete":
            self._study.tell(trial.number, state=TrialState.FAIL)
            return
        handle = optuna.Trial(self._study, self._trial_id(trial.number))
        for name, violation in self._violations(trial).items():
            handle.set_constraint(name, violation)
        self._study.tell(trial.number, self._values(trial))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _values(self, trial: TrialRecord) -> list[float]:
        return [trial.figures[objective.name].value for objective in self._spec.objectives]

    def _violations(self, trial: TrialRecord) -> dict[str, float]:
        return {
            constraint.objective: constraint.violation(trial.figures[constraint.objective].value)
            for constraint in self._spec.constraints
        }

    def _restore(self, trial: TrialRecord) -> None:
        complete = trial.state == "complete"
        states = {"running": TrialState.RUNNING, "complete": TrialState.COMPLETE}
        noted = trial.sampler_state or {}
        choices = self._spec.space.choices
        self._study.add_trial(
            optuna.trial.create_trial(
                state=states.get(trial.state, TrialState.FAIL),
                values=self._values(trial) if complete else None,
                params=trial.params,
                distributions={name: CategoricalDistribution(choices[name.split("[")[0]]) for name in trial.params},
                system_attrs=noted.get("trial", {}),
                constraints=self._violations(trial) if complete else None,
            )
        )
        for key, value in noted.get("study", {}).items():
            self._storage.set_study_system_attr(self._study_id, key, value)


def _trial_seed(seed: int, trial_number: int) -> int:
    digest = hashlib.sha256(f"{seed}:{trial_number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna from announcing on standard error the study that is made inside."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
