"""A study as a conversation: `ask` for a candidate, `tell` what came of it. Whoever evaluates may be outside.

Every step is in the store before it is answered. A study that was killed goes on where it stood: trials that were
still running are handed out again, with the same number, choices and the figures that had arrived; what would have
been proposed next still is. No network is handed out twice: if a proposal is one that is complete already, it is
stored as a complete trial that is a `duplicate_of` the first and shares its figures; if it is one that failed, or that
an estimate shows to break a limit, it is stored as pruned, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.errors import EvaluationError, ObjectiveError, SpaceExhaustedError, UsageError
from nas.objectives import OBJECTIVES, Constraint, Objective
from nas.pareto import ParetoFront, front_of
from nas.records import StudyRecord, TrialRecord
from nas.screening import broken_limit, candidates, check_reachable, known_figures
from nas.space import Params, SearchSpace
from nas.spec import StudySpec
from nas.store import Store

if TYPE_CHECKING:
    from nas.samplers import Proposer

__all__ = ["Study", "Trial", "front_of"]

# When more than half of the last proposals were duplicates or broke a limit, the sampler is passed over.
_WINDOW = 40
_BROKEN_LIMIT = "constraint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate to evaluate. `figures` are those that the store has already: counted, or from an interrupted run."""

    number: int
    params: Params
    config: TransformerConfig
    figures: dict[str, Figure]


class Study:
    """A search in a store. One process at a time may ask; `Store.lock_study` holds others off."""

    def __init__(self, store: Store, record: StudyRecord) -> None:
        self.store = store
        self.id = record.id
        self.name = record.name
        self.spec = record.spec
        self._trials: list[TrialRecord] = []
        self._first_of: dict[str, int] = {}  # number of the first trial of each architecture
        self._handed_out: set[int] = set()
        self._proposer: Proposer | None = None
        self._reload()

    @classmethod
    def create(
        cls,
        *,
        space: SearchSpace,
        objectives: Sequence[Objective] = (),
        constraints: Sequence[Constraint] = (),
        sampler: str = "auto",
        seed: int = 0,
        store: Store | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> Study:
        """A new study, in memory unless a store is given; further settings are the fields of `StudySpec`.

        Raises:
            UsageError: a setting is wrong, the name is taken, or no candidate can meet the constraints.
        """
        spec = StudySpec(
            space=space,
            objectives=tuple(objectives),
            constraints=tuple(constraints),
            sampler=sampler,
            seed=seed,
            **settings,
        )
        check_reachable(spec)
        store = store or Store.in_memory()
        return cls(store, store.create_study(spec, name))

    @classmethod
    def load(cls, store: Store, study: str) -> Study:
        """The study of that name or id, or "latest".

        Raises:
            NotFoundError: there is none.
        """
        return cls(store, store.find_study(study))

    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials by number, as this object knows them: every ask and tell, not what others wrote meanwhile."""
        return tuple(self._trials)

    def ask(self) -> Trial:
        """The next candidate to evaluate; trials that were interrupted come first.

        Raises:
            SpaceExhaustedError: every candidate that can meet the limits has been proposed.
            ImpossibleConstraintError: no candidate can meet the limits.
            StoreError: the store cannot be written.
        """
        self._follow_store()
        interrupted = (t for t in self._trials if t.state == "running" and t.number not in self._handed_out)
        record = next(interrupted, None) or self._next_candidate()
        self._handed_out.add(record.number)
        return Trial(number=record.number, params=record.params, config=record.config, figures=record.figures)

    def tell(
        self,
        trial: Trial,
        figures: Mapping[str, float | Figure] | None = None,
        *,
        state: str = "complete",
        error: Exception | str | None = None,
        cost_s: float = 0.0,
    ) -> TrialRecord:
        """Ends a trial and returns it as stored.

        A complete trial needs all that the study's objectives and constraints name; what is counted, or was stored
        while the trial ran, need not be told again.

        Args:
            trial: what `ask` gave.
            figures: by the name of an objective or limit, or any in `OBJECTIVES`; a plain number counts as measured.
            state: complete; fail; or pruned, when the evaluator gave it up.
            error: why the trial failed or was pruned.
            cost_s: seconds that all the figures cost together.

        Raises:
            ObjectiveError: a figure is missing, unknown or not finite; the trial then still runs.
            UsageError: the state is unknown, or the trial has ended already.
        """
        known = self._running(trial.number)
        if state not in ("complete", "pruned", "fail"):
            raise UsageError(f"a trial ends as complete, pruned or fail, not {state!r}")
        told = {name: self._figure(name, value) for name, value in (figures or {}).items()}
        if state == "complete":
            self._check_complete({**known.figures, **told})
        fresh = {name: figure for name, figure in told.items() if known.figures.get(name) != figure}
        record = self.store.finish_trial(
            self.id,
            trial.number,
            state,
            figures=fresh,
            cost_s=cost_s,
            error_type=_error_type(error),
            error_text=None if error is None else " ".join(str(error).split()),
        )
        self._proposals().tell(record)
        self._trials[record.number] = record
        return record

    def front(self) -> ParetoFront:
        """The complete trials that meet every constraint and that no other one beats in every objective."""
        return front_of(self.spec, self._trials)

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """The volume between the front and the reference, which has a value for each objective; see `find_front`.

        Raises:
            ObjectiveError: the reference lacks an objective, has another one, or is not finite.
        """
        return front_of(self.spec, self._trials, reference).hypervolume

    def _reload(self) -> None:
        self._trials = list(self.store.trials(self.id))
        self._first_of = {}
        for trial in self._trials:
            self._first_of.setdefault(trial.architecture_hash, trial.number)
        self._proposer = None

    def _follow_store(self) -> None:
        """Reads the study again if another process wrote trials since this object last looked."""
        if sum(self.store.count_trials(self.id).values()) != len(self._trials):
            self._reload()

    def _proposals(self) -> Proposer:
        if self._proposer is None:
            from nas.samplers import Proposer

            self._proposer = Proposer(self.spec, self._trials)
        return self._proposer

    def _next_candidate(self) -> TrialRecord:
        if not self._trials:
            check_reachable(self.spec)
        while True:
            params = self._unseen_params() if self._sampler_is_stuck() else None
            params, sampler_state = self._proposals().propose(len(self._trials), params)
            record = self._add(params, sampler_state)
            if record.state == "running":
                return record
            self._proposals().tell(record)

    def _sampler_is_stuck(self) -> bool:
        recent = self._trials[-_WINDOW:]
        return sum(_is_rejected(trial) for trial in recent) > _WINDOW // 2

    def _unseen_params(self) -> Params:
        """A candidate that was never proposed and breaks no limit that is known in advance."""
        evaluated = [trial.params for trial in self._trials if not _is_rejected(trial)]
        seed = self.spec.seed * 1_000_003 + len(self._trials)
        for params in candidates(self.spec, evaluated, seed):
            config = self.spec.space.to_config(params)
            if config.architecture_hash() not in self._first_of and broken_limit(self.spec, config) is None:
                return params
        evaluated_count = f"{len(evaluated)} evaluated, {len(self._trials) - len(evaluated)} ruled out"
        raise SpaceExhaustedError(f"no new candidate is left in {self.spec.space.name}: {evaluated_count}")

    def _add(self, params: Params, sampler_state: Mapping[str, Any]) -> TrialRecord:
        """Stores a proposal: as running, or at once as what its answer is already."""
        config = self.spec.space.to_config(params)
        record = self.store.start_trial(
            self.id, params=params, config=config, sampler_state=sampler_state, **self._answer(config)
        )
        self._trials.append(record)
        self._first_of.setdefault(record.architecture_hash, record.number)
        return record

    def _answer(self, config: TransformerConfig) -> dict[str, Any]:
        """What is known of a proposal without evaluating it, as arguments of `start_trial`."""
        first = self._first_of.get(config.architecture_hash())
        if first is not None and self._trials[first].state == "complete":
            return {"state": "complete", "duplicate_of": first}
        figures = known_figures(self.spec, config)
        if first is not None and self._trials[first].error_type != _BROKEN_LIMIT:
            text = f"the same network as trial {first}, which is {self._trials[first].state}"
            return {
                "state": "pruned",
                "duplicate_of": first,
                "error_type": "duplicate",
                "error_text": text,
                "figures": figures,
            }
        reason = broken_limit(self.spec, config)
        if reason is not None:
            return {"state": "pruned", "error_type": _BROKEN_LIMIT, "error_text": reason, "figures": figures}
        return {"state": "running", "figures": figures}

    def _running(self, number: int) -> TrialRecord:
        record = self.store.trial(self.id, number)
        if record.state != "running":
            raise UsageError(f"trial {number} of {self.name} has ended already: it is {record.state}")
        return record

    def _figure(self, name: str, value: float | Figure) -> Figure:
        if name not in OBJECTIVES and name not in self.spec.required_figures:
            known = ", ".join(dict.fromkeys((*self.spec.required_figures, *OBJECTIVES)))
            raise ObjectiveError(f"unknown figure {name!r}; this study knows {known}")
        if name in OBJECTIVES and OBJECTIVES[name].source == "estimate":
            raise ObjectiveError(f"{name} is counted from the config; it cannot be told")
        if isinstance(value, Figure):
            return value
        is_number = hasattr(value, "__float__") and not isinstance(value, bool | str)  # NumPy's and PyTorch's, too
        if not is_number or not math.isfinite(value):
            raise ObjectiveError(f"{name} must be a finite number, not {value!r}")
        return Figure(value=float(value), origin="measured")

    def _check_complete(self, figures: Mapping[str, Figure]) -> None:
        missing = [name for name in self.spec.required_figures if name not in figures]
        if missing:
            raise ObjectiveError(f"a complete trial needs {', '.join(missing)}, too")


def _is_rejected(trial: TrialRecord) -> bool:
    return trial.state == "pruned" or trial.duplicate_of is not None


def _error_type(error: Exception | str | None) -> str | None:
    if isinstance(error, EvaluationError):
        return error.reason
    return None if error is None or isinstance(error, str) else type(error).__name__
