"""Rows of the store: finding them in a session, and turning them into records and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.errors import NotFoundError, StoreError
from nas.records import Artifact, Event, Observation, StudyRecord, TrialRecord
from nas.spec import StudySpec
from nas.tables import (
    Architecture,
    ArtifactRow,
    EventRow,
    MeasurementRow,
    ObservationRow,
    QualityRow,
    StudyRow,
    TrialRow,
)

__all__ = [
    "add_architecture",
    "add_observations",
    "artifact_record",
    "event_record",
    "find_running_trial",
    "find_study_row",
    "find_trial",
    "free_name",
    "new_observation",
    "next_number",
    "observation_record",
    "read_trial",
    "read_trials",
    "share_results",
    "study_record",
    "touch_study",
]

_ARTIFACT_FIELDS = (
    "sha256",
    "path",
    "file_bytes",
    "opset",
    "num_params",
    "weight_dtype",
    "weights_path",
    "architecture_hash",
)
_TRIAL_FIELDS = (
    "study_id",
    "number",
    "state",
    "params",
    "architecture_hash",
    "created_at",
    "finished_at",
    "error_type",
    "error_text",
    "duplicate_of",
    "sampler_state",
)


def study_record(row: StudyRow) -> StudyRecord:
    return StudyRecord(
        id=row.id,
        name=row.name,
        spec=StudySpec.from_dict(row.spec),
        state=row.state,
        created_at=row.created_at,
        revision=row.revision,
    )


def artifact_record(row: ArtifactRow) -> Artifact:
    return Artifact(**{name: getattr(row, name) for name in _ARTIFACT_FIELDS})


def event_record(row: EventRow) -> Event:
    return Event(id=row.id, study_id=row.study_id, kind=row.kind, payload=row.payload, created_at=row.created_at)


def observation_record(row: ObservationRow) -> Observation:
    return Observation(
        objective=row.objective,
        figure=Figure(value=row.value, low=row.low, high=row.high, origin=row.origin),
        cost_s=row.cost_s,
        created_at=row.created_at,
    )


def read_trial(session: Session, study_id: str, number: int) -> TrialRecord:
    """One trial with all that is attached to it."""
    found = read_trials(session, select(TrialRow.id).where(TrialRow.study_id == study_id, TrialRow.number == number))
    if not found:
        raise _no_trial(session, study_id, number)
    return found[0]


def read_trials(session: Session, trials: Select[int]) -> tuple[TrialRecord, ...]:
    """The trials whose row ids the query selects, by number, each with all that is attached to it."""
    observations = defaultdict(list)
    for row in session.scalars(
        select(ObservationRow).where(ObservationRow.trial_id.in_(trials)).order_by(ObservationRow.id)
    ):
        observations[row.trial_id].append(observation_record(row))
    query = (
        select(TrialRow, Architecture.config, ArtifactRow, MeasurementRow.payload, QualityRow.payload)
        .join(Architecture, Architecture.hash == TrialRow.architecture_hash)
        .outerjoin(ArtifactRow, ArtifactRow.sha256 == TrialRow.artifact_sha256)
        .outerjoin(MeasurementRow, MeasurementRow.key == TrialRow.measurement_key)
        .outerjoin(QualityRow, QualityRow.key == TrialRow.quality_key)
        .where(TrialRow.id.in_(trials))
        .order_by(TrialRow.number)
    )
    return tuple(
        _trial_record(row, config, tuple(observations[row.id]), artifact, measurement, quality)
        for row, config, artifact, measurement, quality in session.execute(query)
    )


def _trial_record(
    row: TrialRow,
    config: Mapping[str, Any],
    observations: tuple[Observation, ...],
    artifact: ArtifactRow | None,
    measurement: dict[str, Any] | None,
    quality: dict[str, Any] | None,
) -> TrialRecord:
    return TrialRecord(
        **{name: getattr(row, name) for name in _TRIAL_FIELDS},
        config=TransformerConfig.from_dict(config),
        observations=observations,
        artifact=None if artifact is None else artifact_record(artifact),
        measurement=measurement,
        quality=quality,
    )


def find_study_row(session: Session, study_id: str, *, for_update: bool = False) -> StudyRow:
    row = session.get(StudyRow, study_id, with_for_update=for_update)
    if row is None:
        raise NotFoundError(f"no study with id {study_id!r}")
    return row


def touch_study(session: Session, study_id: str) -> StudyRow:
    """The study's row, locked until the transaction ends, its revision one higher."""
    row = find_study_row(session, study_id, for_update=True)
    row.revision += 1
    return row


def find_trial(session: Session, study_id: str, number: int) -> TrialRow:
    row = session.scalar(select(TrialRow).where(TrialRow.study_id == study_id, TrialRow.number == number))
    if row is None:
        raise _no_trial(session, study_id, number)
    return row


def _no_trial(session: Session, study_id: str, number: int) -> NotFoundError:
    return NotFoundError(f"study {find_study_row(session, study_id).name} has no trial {number}")


def find_running_trial(session: Session, study_id: str, number: int) -> TrialRow:
    """The row of a trial that has not ended: one that has is never changed again."""
    row = find_trial(session, study_id, number)
    if row.state != "running":
        raise StoreError(f"trial {number} has ended already: it is {row.state}")
    return row


def next_number(session: Session, study_id: str) -> int:
    """The number of a study's next trial; the study's row must be locked."""
    last = session.scalar(select(func.max(TrialRow.number)).where(TrialRow.study_id == study_id))
    return 0 if last is None else last + 1


def free_name(session: Session, stem: str) -> str:
    """The stem with the lowest number that no study has."""
    taken = set(session.scalars(select(StudyRow.name).where(StudyRow.name.startswith(f"{stem}-", autoescape=True))))
    return next(name for name in (f"{stem}-{number}" for number in range(1, len(taken) + 2)) if name not in taken)


def add_architecture(session: Session, config: TransformerConfig, now: datetime) -> str:
    """Stores a network unless a trial had it before; its hash."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    values = {"hash": config.architecture_hash(), "config": config.to_dict(), "created_at": now}
    session.execute(dialect.insert(Architecture).values(values).on_conflict_do_nothing())
    return str(values["hash"])


def new_observation(trial_id: int, objective: str, figure: Figure, cost_s: float, now: datetime) -> ObservationRow:
    return ObservationRow(
        trial_id=trial_id,
        objective=objective,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        origin=figure.origin,
        cost_s=cost_s,
        created_at=now,
    )


def add_observations(
    session: Session, trial: TrialRow, figures: Mapping[str, Figure], cost_s: float, now: datetime
) -> None:
    """Stores figures that arrived together; each bears its share of their cost."""
    for objective, figure in figures.items():
        session.add(new_observation(trial.id, objective, figure, cost_s / len(figures), now))


def share_results(session: Session, source: TrialRow, target: TrialRow, now: datetime) -> None:
    """Gives a duplicate what its original has; it cost nothing more."""
    for row in session.scalars(
        select(ObservationRow).where(ObservationRow.trial_id == source.id).order_by(ObservationRow.id)
    ):
        session.add(new_observation(target.id, row.objective, observation_record(row).figure, 0.0, now))
    target.artifact_sha256 = source.artifact_sha256
    target.measurement_key = source.measurement_key
    target.quality_key = source.quality_key
    session.flush()
