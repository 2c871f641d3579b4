"""What every store promises, whatever database is below it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from estimator.figures import Figure
from nas.errors import NotFoundError, StoreError, UsageError
from nas.records import Artifact, StudyRecord, TrialRecord
from nas.space import SearchSpace
from nas.spec import StudySpec
from nas.store import Store

SPEC = StudySpec(space=SearchSpace.preset("decoder-nano"))
PARAMS = list(SPEC.space.sample(4, seed=0))
FIGURE = Figure(value=2.0, low=1.5, high=2.5, origin="measured")
COUNTED = Figure(value=3.0, origin="counted")


class Clock:
    """A clock that moves one second at every look."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A new store of each kind."""
    url = "sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/study.db"
    with Store.open(url, now=Clock()) as opened:
        yield opened


@pytest.fixture
def study(store: Store) -> StudyRecord:
    """A new study."""
    return store.create_study(SPEC, "first")


def start(store: Store, study: StudyRecord, index: int = 0, **more: Any) -> TrialRecord:
    """Starts a trial with one of the sampled choices."""
    return store.start_trial(study.id, params=PARAMS[index], config=SPEC.space.to_config(PARAMS[index]), **more)


def make_artifact(store: Store, sha256: str = "a" * 64) -> Artifact:
    """A stored artefact."""
    artifact = Artifact(
        sha256=sha256,
        path=f"{sha256}.onnx",
        file_bytes=2**40,
        opset=23,
        num_params=2**33,
        weight_dtype="fp32",
        weights_path=None,
        architecture_hash="0" * 16,
    )
    store.save_artifact(artifact)
    return artifact


def test_study_is_found_by_id_name_and_latest(store: Store) -> None:
    """The record comes back as it was made, whichever way it is asked for."""
    first = store.create_study(SPEC, "first")
    second = store.create_study(SPEC, "second")
    assert store.find_study(first.id) == store.find_study("first") == first
    assert store.find_study("latest") == second
    assert store.list_studies() == (second, first)
    assert (first.state, first.revision, first.spec) == ("new", 0, SPEC)


def test_study_without_a_name_is_called_after_its_space(store: Store) -> None:
    """The lowest free number, also when one in between is taken or gone."""
    names = [store.create_study(SPEC).name for _ in range(2)]
    store.create_study(SPEC, "decoder-nano-3")
    assert [*names, store.create_study(SPEC).name] == ["decoder-nano-1", "decoder-nano-2", "decoder-nano-4"]
    store.delete_study(store.find_study("decoder-nano-2").id)
    assert store.create_study(SPEC).name == "decoder-nano-2"


def test_taken_name_is_refused(store: Store, study: StudyRecord) -> None:
    """A name stands for one study."""
    with pytest.raises(UsageError, match="there is a study 'first' already"):
        store.create_study(SPEC, "first")


@pytest.mark.parametrize("name", ["", "latest", "two\nlines", " padded", "x" * 101])
def test_name_that_cannot_be_asked_for_is_refused(store: Store, name: str) -> None:
    """A name is one printable line, and not the word for the latest."""
    with pytest.raises(UsageError, match="one line"):
        store.create_study(SPEC, name)


def test_name_may_be_any_other_text(store: Store) -> None:
    """Text that is markup or SQL elsewhere is a name like any other."""
    for name in ("<img src=x onerror=alert(1)>", "'; DROP TABLE studies; --", "Größe %_"):
        assert store.create_study(SPEC, name).name == store.find_study(name).name == name


def test_unknown_study_and_trial_are_named(store: Store) -> None:
    """The message has what was asked for and what there is."""
    with pytest.raises(NotFoundError, match=r"no study 'latest' .* none yet"):
        store.find_study("latest")
    study = store.create_study(SPEC, "first")
    with pytest.raises(NotFoundError, match=r"no study 'other' .* first"):
        store.find_study("other")
    with pytest.raises(NotFoundError, match="study first has no trial 5"):
        store.trial(study.id, 5)
    with pytest.raises(NotFoundError, match="no study with id 'nope'"):
        store.trials("nope")


def test_state_and_budget_change_and_the_revision_counts(store: Store, study: StudyRecord) -> None:
    """Every change is one revision; the number of trials is set as a total."""
    assert store.set_study_state(study.id, "running").state == "running"
    extended = store.extend_trials(study.id, 99)
    assert (extended.spec.num_trials, extended.revision) == (99, 2)
    assert store.find_study("first") == extended
    with pytest.raises(UsageError, match="num_trials"):
        store.extend_trials(study.id, 0)
    assert store.find_study("first") == extended


def test_trial_comes_back_as_it_was_stored(store: Store, study: StudyRecord) -> None:
    """Choices, network, sampler state, known figures; numbers count from 0 in each study."""
    other = store.create_study(SPEC, "other")
    start(store, other)
    first = start(store, study, 0, sampler_state={"generation": 1}, figures={"params": COUNTED})
    second = start(store, study, 1)
    assert (first.number, second.number) == (0, 1)
    assert (first.params, first.config, first.state) == (PARAMS[0], SPEC.space.to_config(PARAMS[0]), "running")
    assert (first.sampler_state, second.sampler_state) == ({"generation": 1}, None)
    assert first.figures == {"params": COUNTED}
    assert first.created_at.tzinfo is not None
    assert store.trials(study.id) == (first, second)
    assert store.trial(study.id, 1) == second


def test_trials_are_paged_by_number(store: Store, study: StudyRecord) -> None:
    """Those after a number, at most so many, with their observations."""
    for index in range(4):
        start(store, study, index, figures={"params": COUNTED})
    page = store.trials(study.id, after_number=0, limit=2)
    assert [trial.number for trial in page] == [1, 2]
    assert all(trial.figures == {"params": COUNTED} for trial in page)
    assert store.trials(study.id, after_number=3) == ()


def test_latest_observation_of_an_objective_counts(store: Store, study: StudyRecord) -> None:
    """All are kept in the order they arrived, with interval, origin, cost and time."""
    start(store, study)
    store.add_observation(study.id, 0, "decode_latency_s", COUNTED)
    latest = store.add_observation(study.id, 0, "decode_latency_s", FIGURE, cost_s=1.5)
    trial = store.trial(study.id, 0)
    assert [o.figure for o in trial.observations] == [COUNTED, FIGURE]
    assert trial.observations[1] == latest
    assert (latest.cost_s, trial.figures) == (1.5, {"decode_latency_s": FIGURE})


def test_finished_trial_is_never_changed_again(store: Store, study: StudyRecord) -> None:
    """State, figures and end are stored at once; every later write is refused and leaves no trace."""
    start(store, study)
    done = store.finish_trial(study.id, 0, "complete", figures={"bits_per_byte": FIGURE}, cost_s=2.0)
    assert (done.state, done.figures, done.error_type) == ("complete", {"bits_per_byte": FIGURE}, None)
    assert done.finished_at is not None
    assert done.finished_at > done.created_at
    make_artifact(store)
    for write in (
        lambda: store.finish_trial(study.id, 0, "fail"),
        lambda: store.add_observation(study.id, 0, "bits_per_byte", COUNTED),
        lambda: store.attach_artifact(study.id, 0, "a" * 64),
    ):
        revision = store.find_study("first").revision
        with pytest.raises(StoreError, match="trial 0 has ended already: it is complete"):
            write()
        assert store.find_study("first").revision == revision
    assert store.trial(study.id, 0) == done


def test_failed_trial_keeps_its_reason(store: Store, study: StudyRecord) -> None:
    """Type and text of the error are part of the trial."""
    start(store, study)
    trial = store.finish_trial(study.id, 0, "fail", error_type="out_of_memory", error_text="asked for 9 TB")
    assert (trial.state, trial.error_type, trial.error_text) == ("fail", "out_of_memory", "asked for 9 TB")
    assert store.count_trials(study.id) == {"running": 0, "complete": 0, "pruned": 0, "fail": 1}


def test_duplicate_shares_the_results_of_the_first(store: Store, study: StudyRecord) -> None:
    """Its figures cost nothing more; artefact, measurement and quality are the same."""
    start(store, study)
    artifact = make_artifact(store)
    store.save_measurement("m", artifact.sha256, {"samples": [1.0]})
    store.save_quality("q", artifact.sha256, {"bits": 2})
    store.attach_artifact(study.id, 0, artifact.sha256)
    store.attach_measurement(study.id, 0, "m")
    store.attach_quality(study.id, 0, "q")
    first = store.finish_trial(study.id, 0, "complete", figures={"bits_per_byte": FIGURE}, cost_s=9.0)
    copy = start(store, study, state="complete", duplicate_of=0)
    assert (copy.number, copy.state, copy.duplicate_of) == (1, "complete", 0)
    assert copy.figures == first.figures
    assert [o.cost_s for o in copy.observations] == [0.0]
    assert (copy.artifact, copy.measurement, copy.quality) == (artifact, {"samples": [1.0]}, {"bits": 2})
    assert store.trial(study.id, 1) == copy


def test_pruned_proposal_is_stored_with_its_reason(store: Store, study: StudyRecord) -> None:
    """It never runs: state, reason and end are there from the start."""
    trial = start(store, study, state="pruned", error_type="constraint", error_text="too big")
    assert (trial.state, trial.error_text) == ("pruned", "too big")
    assert trial.finished_at is not None


def test_results_are_found_again_by_their_keys(store: Store) -> None:
    """Artefacts by sha256, measurements and scores by key; the same key again replaces the value."""
    assert (store.find_artifact("a" * 64), store.find_measurement("m"), store.find_quality("q")) == (None, None, None)
    artifact = make_artifact(store)
    store.save_measurement("m", artifact.sha256, {"samples": [1.0, 2.0]})
    store.save_measurement("m", artifact.sha256, {"samples": [3.0]})
    store.save_quality("q", artifact.sha256, {"bits": 2})
    assert store.find_artifact("a" * 64) == artifact
    assert store.find_measurement("m") == {"samples": [3.0]}
    known = store.find_quality("q")
    assert known is not None
    assert (known.artifact_sha256, known.quality) == (artifact.sha256, {"bits": 2})


def test_result_of_an_unknown_file_is_refused(store: Store, study: StudyRecord) -> None:
    """Foreign keys are on: nothing points at an artefact that is not stored."""
    start(store, study)
    with pytest.raises(StoreError):
        store.save_measurement("m", "b" * 64, {})
    with pytest.raises(StoreError):
        store.attach_artifact(study.id, 0, "b" * 64)
    assert store.find_measurement("m") is None


def test_value_that_is_no_json_is_refused(store: Store) -> None:
    """No NaN enters the store inside a document either."""
    artifact = make_artifact(store)
    with pytest.raises(Exception, match="not JSON compliant"):
        store.save_quality("q", artifact.sha256, {"bits": float("nan")})
    assert store.find_quality("q") is None


def test_events_are_numbered_without_gaps(store: Store, study: StudyRecord) -> None:
    """Ids rise by one, and reading after an id gives the rest, of that study alone."""
    other = store.create_study(SPEC, "other")
    events = [store.add_event(study.id, "trial_started", {"number": number}) for number in range(3)]
    store.add_event(other.id, "trial_started")
    assert [event.id for event in events] == [1, 2, 3]
    assert store.events(study.id) == tuple(events)
    assert store.events(study.id, after_id=2) == (events[2],)
    assert events[0].payload == {"number": 0}


def test_deleted_study_leaves_what_others_can_use(store: Store, study: StudyRecord) -> None:
    """Trials and events go; artefacts stay; other studies are untouched."""
    other = store.create_study(SPEC, "other")
    start(store, study, figures={"params": COUNTED})
    kept = start(store, other)
    store.add_event(study.id, "x")
    artifact = make_artifact(store)
    store.delete_study(study.id)
    with pytest.raises(NotFoundError):
        store.find_study("first")
    with pytest.raises(NotFoundError):
        store.trials(study.id)
    assert store.find_artifact(artifact.sha256) == artifact
    assert store.trials(other.id) == (kept,)
