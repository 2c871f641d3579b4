"""Ask and tell: what is handed out, what is refused, what survives a restart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.config import TransformerConfig
from estimator.figures import Figure
from estimator.flops import count_flops
from estimator.params import count_params
from estimator.sizing import estimate
from nas.errors import (
    EvaluationError,
    ImpossibleConstraintError,
    NotFoundError,
    ObjectiveError,
    SpaceExhaustedError,
    UsageError,
)
from nas.objectives import Constraint, Objective
from nas.records import TrialRecord
from nas.screening import MODELLED_MARGIN
from nas.space import SearchSpace
from nas.store import Store
from nas.study import Study, Trial

NANO = SearchSpace.preset("decoder-nano")
GOALS = (Objective("loss", "minimize"), Objective("params"))
BASE = {"vocab_size": 256, "max_position_embeddings": 512, "num_attention_heads": 2, "head_dim": 16}
# 6 raw choices, 4 networks: 3 key-value heads become 2.
TINY = SearchSpace(
    name="tiny",
    base=BASE | {"num_hidden_layers": 1, "intermediate_size": 32},
    choices={"hidden_size": [32, 64], "num_key_value_heads": [1, 2, 3]},
)


def loss_of(config: TransformerConfig) -> float:
    """A smooth, deterministic stand-in for quality."""
    return 10.0 - math.log(count_params(config).total) + 0.01 * config.num_hidden_layers


def run(study: Study, count: int, evaluate: Callable[[Trial], float] | None = None) -> None:
    """Asks and tells that many candidates."""
    for _ in range(count):
        trial = study.ask()
        study.tell(trial, {"loss": loss_of(trial.config) if evaluate is None else evaluate(trial)})


def history(study: Study) -> list[tuple[Any, ...]]:
    """All that a restart must reproduce, without times."""
    return [
        (t.number, t.state, t.params, t.architecture_hash, t.duplicate_of, t.error_text, t.figures)
        for t in study.trials()
    ]


def is_evaluated(trial: TrialRecord) -> bool:
    """Handed out, not answered from the store or by an estimate."""
    return trial.state in ("complete", "fail") and trial.duplicate_of is None


def test_counted_objectives_are_filled_in() -> None:
    """Only the loss is told; parameters and FLOPs are exact and say that they are counted."""
    study = Study.create(space=NANO, objectives=GOALS, seed=0)
    trial = study.ask()
    assert trial.config == NANO.to_config(trial.params)
    record = study.tell(trial, {"loss": 3.2})
    assert record.state == "complete"
    assert record.figures["loss"] == Figure(value=3.2, origin="measured")
    assert record.figures["params"] == Figure(value=count_params(trial.config).total, origin="counted")
    flops = count_flops(trial.config, study.spec.workload).decode_flops_per_token
    assert record.figures["decode_flops_per_token"].value == flops
    assert study.front().trials == (0,)


def test_figure_keeps_its_interval_and_origin() -> None:
    """A `Figure` is stored as it is; figures told together share what they cost."""
    study = Study.create(space=NANO, objectives=GOALS)
    figure = Figure(value=2.0, low=1.9, high=2.1, origin="predicted")
    record = study.tell(study.ask(), {"loss": figure, "prefill_latency_s": 0.5}, cost_s=4.0)
    assert record.figures["loss"] == figure
    assert [o.cost_s for o in record.observations if o.objective == "loss"] == [2.0]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({}, "a complete trial needs loss, too"),
        ({"lost": 1.0}, "unknown figure 'lost'"),
        ({"loss": math.nan}, "loss must be a finite number, not nan"),
        ({"loss": math.inf}, "loss must be a finite number, not inf"),
        ({"loss": "3"}, "loss must be a finite number"),
        ({"loss": True}, "loss must be a finite number"),
    ],
)
def test_wrong_figures_are_refused_and_the_trial_runs_on(figures: dict[str, Any], message: str) -> None:
    """Nothing is stored of a refused tell; the right one is still accepted."""
    study = Study.create(space=NANO, objectives=GOALS)
    trial = study.ask()
    with pytest.raises(ObjectiveError, match=message):
        study.tell(trial, figures)
    assert study.store.trial(study.id, 0).state == "running"
    assert "loss" not in study.store.trial(study.id, 0).figures
    assert study.tell(trial, {"loss": 1.0}).state == "complete"


def test_trial_is_told_once() -> None:
    """A second tell, another state and a foreign trial are refused."""
    study = Study.create(space=NANO, objectives=GOALS)
    trial = study.ask()
    with pytest.raises(UsageError, match="complete, pruned or fail, not 'running'"):
        study.tell(trial, {"loss": 1.0}, state="running")
    study.tell(trial, {"loss": 1.0})
    with pytest.raises(UsageError, match="trial 0 of decoder-nano-1 has ended already: it is complete"):
        study.tell(trial, {"loss": 2.0})
    stranger = Trial(number=9, params=trial.params, config=trial.config, figures={})
    with pytest.raises(NotFoundError, match="no trial 9"):
        study.tell(stranger, {"loss": 2.0})


def test_failed_trial_has_its_reason_and_the_search_goes_on() -> None:
    """The reason of an `EvaluationError`, or the kind of any other error, is stored with its text."""
    study = Study.create(space=NANO, objectives=GOALS)
    record = study.tell(study.ask(), state="fail", error=EvaluationError("no room", reason="out_of_memory"))
    assert (record.state, record.error_type, record.error_text) == ("fail", "out_of_memory", "no room")
    record = study.tell(study.ask(), state="fail", error=ZeroDivisionError("by zero"))
    assert (record.error_type, record.error_text) == ("ZeroDivisionError", "by zero")
    record = study.tell(study.ask(), {"loss": 4.0}, state="pruned", error="no better")
    assert (record.state, record.figures["loss"].value, record.error_text) == ("pruned", 4.0, "no better")
    run(study, 3)
    assert study.store.count_trials(study.id) == {"running": 0, "complete": 3, "pruned": 1, "fail": 2}


def test_network_that_the_evaluator_gave_up_is_not_proposed_again() -> None:
    """Pruned by whoever evaluates is as final as failed: the other networks follow, then the space is exhausted."""
    study = Study.create(space=TINY, objectives=GOALS, sampler="random", seed=1)
    given_up = study.ask()
    study.tell(given_up, state="pruned", error="no better")
    asked = []
    for _ in range(3):
        asked.append(study.ask())
        study.tell(asked[-1], {"loss": 1.0})
    assert given_up.config not in [trial.config for trial in asked]
    with pytest.raises(SpaceExhaustedError):
        study.ask()


def test_every_network_of_a_small_space_is_evaluated_once() -> None:
    """Duplicates are answered from the first, failed ones are not tried again, then the space is exhausted."""
    study = Study.create(space=TINY, objectives=GOALS, sampler="random", seed=1)
    asked = []
    for state in ("complete", "fail", "complete", "complete"):
        trial = study.ask()
        asked.append(trial)
        study.tell(trial, {"loss": float(len(asked))}, state=state, error=None if state == "complete" else "crash")
    with pytest.raises(SpaceExhaustedError, match="no new candidate is left in tiny: 4 evaluated"):
        study.ask()
    assert {trial.config for trial in asked} == {TINY.to_config(params) for params in TINY.enumerate()}
    assert len(asked) == 4
    by_number = {trial.number: trial for trial in study.trials()}
    duplicates = [trial for trial in study.trials() if trial.duplicate_of is not None]
    for trial in duplicates:
        first = by_number[trial.duplicate_of]
        assert trial.architecture_hash == first.architecture_hash
        if first.state == "complete":
            assert (trial.state, trial.figures) == ("complete", first.figures)
        else:
            assert trial.state == "pruned"
            assert trial.error_text == f"the same network as trial {first.number}, which is fail"
    assert {by_number[trial.duplicate_of].state for trial in duplicates} == {"complete", "fail"}
    assert set(study.front().trials) <= {trial.number for trial in asked}


def test_trials_asked_for_at_once_are_all_different() -> None:
    """Several evaluators may hold trials; none gets a network that another one is working on."""
    study = Study.create(space=TINY, objectives=GOALS, sampler="random")
    trials = [study.ask() for _ in range(4)]
    assert len({trial.config for trial in trials}) == 4
    for trial in reversed(trials):
        study.tell(trial, {"loss": 1.0})
    assert study.store.count_trials(study.id)["complete"] == 4


def test_candidates_that_break_a_counted_limit_are_never_handed_out() -> None:
    """They are stored as pruned, with the figure and the limit in the reason."""
    limit = 120_000
    study = Study.create(space=NANO, objectives=GOALS, constraints=[Constraint("params", limit)], sampler="random")
    run(study, 15)
    evaluated = [trial for trial in study.trials() if trial.state == "complete"]
    pruned = [trial for trial in study.trials() if trial.state == "pruned"]
    assert all(count_params(trial.config).total <= limit for trial in evaluated)
    assert pruned
    for trial in pruned:
        count = count_params(trial.config).total
        assert count > limit
        assert (trial.error_type, trial.figures["params"].value) == ("constraint", count)
        assert trial.error_text == f"params would be {count:,}; the limit is 120,000"


@pytest.mark.parametrize("name", ["peak_memory_bytes", "file_bytes"])
def test_measured_limit_is_screened_by_what_is_known_of_it(name: str) -> None:
    """Peak memory by the model less its margin, the file by its weights: surely too large is not built."""
    space = SearchSpace.preset("decoder-small")
    limit = {"peak_memory_bytes": 30e6, "file_bytes": 12e6}[name]
    study = Study.create(space=space, objectives=GOALS, constraints=[Constraint(name, limit)], sampler="random")
    for _ in range(8):
        trial = study.ask()
        memory = estimate(trial.config).memory
        assert memory.weights_bytes <= limit
        if name == "peak_memory_bytes":
            assert memory.total_bytes <= limit * (1 + MODELLED_MARGIN)
        study.tell(trial, {"loss": 1.0, name: limit})
    assert any(trial.state == "pruned" for trial in study.trials())


def test_tight_limit_still_finds_candidates() -> None:
    """Where one in ten thousand random choices passes, the search steps around what passes, and nothing repeats."""
    smallest = count_params(NANO.to_config(NANO.smallest())).total
    study = Study.create(
        space=NANO, objectives=GOALS, constraints=[Constraint("params", smallest * 1.2)], sampler="random"
    )
    run(study, 12)
    evaluated = [trial for trial in study.trials() if is_evaluated(trial)]
    assert len({trial.architecture_hash for trial in evaluated}) == 12
    assert len(study.trials()) < 80


def test_impossible_limit_names_the_nearest_reachable_value() -> None:
    """The value in the message is the least of all candidates, found here by counting every one."""
    space = SearchSpace(
        name="small",
        base=BASE,
        choices={
            "num_hidden_layers": [2, 3],
            "hidden_size": [64, 32],
            "intermediate_size_per_layer": [64, 32],
            "num_key_value_heads": [2, 1],
        },
    )
    least = min(count_params(space.to_config(params)).total for params in space.enumerate())
    with pytest.raises(ImpossibleConstraintError) as caught:
        Study.create(space=space, objectives=GOALS, constraints=[Constraint("params", least - 1)])
    assert str(caught.value) == (
        f"no candidate of small keeps params within {least - 1:,}: the nearest reachable is {least:,}"
    )
    study = Study.create(space=space, objectives=GOALS, constraints=[Constraint("params", least)])
    assert count_params(study.ask().config).total == least
    with pytest.raises(SpaceExhaustedError):
        run(study, 2)


def test_every_limit_must_be_reachable() -> None:
    """One that can be met does not hide one that cannot; measured ones are named with their estimate."""
    reachable = Constraint("params", 100_000.0)
    with pytest.raises(ImpossibleConstraintError, match="prefill_flops within 1,000 flops: the nearest reachable is"):
        Study.create(space=NANO, objectives=GOALS, constraints=[reachable, Constraint("prefill_flops", 1000.0)])
    with pytest.raises(ImpossibleConstraintError, match="peak_memory_bytes, as estimated, within 1,000,000 bytes"):
        Study.create(space=NANO, objectives=GOALS, constraints=[Constraint("peak_memory_bytes", 1e6)])


def test_front_has_no_trial_that_breaks_a_measured_limit() -> None:
    """A limit that only the measurement shows: the trial is complete, but not on the front."""
    study = Study.create(space=NANO, objectives=GOALS, constraints=[Constraint("decode_latency_s", 0.01)])
    slow, fast = study.ask(), study.ask()
    study.tell(slow, {"loss": 1.0, "decode_latency_s": 0.02})
    with pytest.raises(ObjectiveError, match="needs decode_latency_s, too"):
        study.tell(fast, {"loss": 2.0})
    study.tell(fast, {"loss": 2.0, "decode_latency_s": 0.01})
    assert study.front().trials == (fast.number,)


def test_hypervolume_is_measured_from_the_given_reference() -> None:
    """A maximised objective counts upwards from its reference."""
    study = Study.create(space=NANO, objectives=[Objective("accuracy", "maximize"), Objective("loss", "minimize")])
    for accuracy, loss in ((0.5, 2.0), (0.8, 3.0)):
        study.tell(study.ask(), {"accuracy": accuracy, "loss": loss})
    assert study.hypervolume({"accuracy": 0.0, "loss": 4.0}) == pytest.approx(0.5 * 2.0 + 0.3 * 1.0)
    with pytest.raises(ObjectiveError, match="each of accuracy, loss"):
        study.hypervolume({"accuracy": 0.0})


def test_interrupted_trial_is_handed_out_again_with_what_it_has(tmp_path: Path) -> None:
    """Same number, same choices, and the figures that had arrived; they need not be told twice."""
    url = f"sqlite:///{tmp_path}/study.db"
    with Store.open(url) as store:
        study = Study.create(space=NANO, objectives=GOALS, store=store, name="mine")
        run(study, 2)
        trial = study.ask()
        store.add_observation(study.id, trial.number, "loss", Figure(value=2.5, origin="measured"), cost_s=60.0)
    with Store.open(url) as store:
        study = Study.load(store, "mine")
        again = study.ask()
        assert (again.number, again.params, again.config) == (trial.number, trial.params, trial.config)
        assert again.figures["loss"].value == 2.5
        record = study.tell(again, {"loss": Figure(value=2.5, origin="measured")})
        assert sum(observation.objective == "loss" for observation in record.observations) == 1
        assert study.ask().number > again.number


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe"])
@pytest.mark.parametrize("constraints", [(), (Constraint("params", 150_000.0), Constraint("loss", 0.5))])
def test_study_that_is_loaded_anew_at_every_step_is_the_same_study(
    sampler: str, constraints: tuple[Constraint, ...]
) -> None:
    """Proposals, duplicates and rejections are those of an uninterrupted run of the same seed."""
    settings_ = {"space": NANO, "objectives": GOALS, "constraints": constraints, "sampler": sampler, "seed": 5}
    uninterrupted = Study.create(**settings_)
    run(uninterrupted, 45)
    store = Store.in_memory()
    study = Study.create(**settings_, store=store)
    for step in range(45):
        trial = study.ask()
        if step % 3 == 0:
            study = Study.load(store, study.id)  # killed while the trial ran
            assert study.ask() == trial
        study.tell(trial, {"loss": loss_of(trial.config)})
        if step % 2 == 0:
            study = Study.load(store, study.id)  # killed between two trials
    assert history(study) == history(uninterrupted)
    assert study.front() == uninterrupted.front()


def test_seed_decides_the_proposals() -> None:
    """Two seeds propose differently, one seed the same."""
    asked = [Study.create(space=NANO, objectives=GOALS, sampler="random", seed=seed).ask().params for seed in (1, 1, 2)]
    assert asked[0] == asked[1] != asked[2]


def test_study_follows_what_another_object_wrote() -> None:
    """A study that was opened before another process worked on it takes up where that one stopped."""
    store = Store.in_memory()
    early = Study.create(space=NANO, objectives=GOALS, store=store, name="shared")
    run(Study.load(store, "shared"), 3)
    assert early.ask().number >= 3
    assert len({trial.architecture_hash for trial in early.trials() if is_evaluated(trial)}) == 3


def test_unknown_study_is_named() -> None:
    """Loading says what was asked for."""
    with pytest.raises(NotFoundError, match="no study 'nothing'"):
        Study.load(Store.in_memory(), "nothing")


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 50),
    actions=st.lists(st.sampled_from(["ask", "complete", "fail", "restart"]), min_size=5, max_size=40),
)
def test_nothing_is_lost_or_evaluated_twice(seed: int, actions: list[str]) -> None:
    """Whatever the order of asks, ends and restarts: no network is handed out twice but to finish it."""
    space = SearchSpace(
        name="mid",
        base=BASE | {"intermediate_size": 32},
        choices={"num_hidden_layers": [1, 2], "hidden_size": [32, 64, 96], "num_key_value_heads": [1, 2]},
    )
    store = Store.in_memory()
    study = Study.create(space=space, objectives=GOALS, sampler="random", seed=seed, store=store)
    held: list[Trial] = []
    ended: dict[str, str] = {}
    for action in actions:
        if action == "ask":
            if len(ended) + len(held) == 12:
                continue
            trial = study.ask()
            assert trial.config.architecture_hash() not in ended
            assert trial.number not in [other.number for other in held]
            held.append(trial)
        elif action == "restart":
            study = Study.load(store, study.id)
            again = [study.ask() for _ in held]
            assert [trial.number for trial in again] == sorted(trial.number for trial in held)
            held = again
        elif held:
            trial = held.pop()
            state = {"complete": "complete", "fail": "fail"}[action]
            study.tell(trial, {"loss": loss_of(trial.config)}, state=state, error="crash" if state == "fail" else None)
            ended[trial.config.architecture_hash()] = state
    evaluated = [trial for trial in store.trials(study.id) if is_evaluated(trial)]
    assert {trial.architecture_hash: trial.state for trial in evaluated} == ended
    assert len(evaluated) == len(ended)
    assert [trial.number for trial in store.trials(study.id)] == list(range(len(study.trials())))
    assert all(a.created_at <= b.created_at for a, b in itertools.pairwise(store.trials(study.id)))
