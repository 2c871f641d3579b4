"""The study store: the only code that writes SQL. Every method is one small transaction, durable when it returns."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import and_, delete, func, or_, select

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.database import Database, artifact_dir, resolve_url, upgrade_database
from nas.errors import NotFoundError, UsageError
from nas.records import (
    STUDY_STATES,
    TRIAL_STATES,
    Artifact,
    Event,
    KnownQuality,
    Observation,
    StudyRecord,
    TrialRecord,
)
from nas.rows import (
    add_architecture,
    add_observations,
    artifact_record,
    event_record,
    find_running_trial,
    find_study_row,
    find_trial,
    free_name,
    new_observation,
    next_number,
    observation_record,
    read_trial,
    read_trials,
    share_results,
    study_record,
    touch_study,
)
from nas.spec import StudySpec
from nas.study_lock import lock_holder, locked
from nas.tables import ArtifactRow, EventRow, MeasurementRow, QualityRow, StudyRow, TrialRow

__all__ = ["Store", "artifact_dir", "upgrade_store"]

_MEMORY_URL = "sqlite://"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """Studies and all that was paid for, in a database.

    Methods that name a study or trial raise NotFoundError if there is none, and StoreError if the database cannot be
    used; see `nas.errors`.
    """

    def __init__(self, database: Database, now: Callable[[], datetime] = _utc_now) -> None:
        self._database = database
        self._now = now

    @classmethod
    def open(
        cls, url: str | None = None, *, upgrade: bool | None = None, now: Callable[[], datetime] = _utc_now
    ) -> Store:
        """The store of an SQLAlchemy URL, else of the environment's ARCHFRONT_STORE, else of the user's data folder.

        The tables of a SQLite file are created and brought up to date; those of another database when `upgrade` is
        true (`nas db upgrade`).

        Raises:
            StoreError: not a URL, or the database cannot be opened; StoreVersionError and StoreCorruptError say why.
        """
        return cls(Database(resolve_url(url), upgrade=upgrade), now)

    @classmethod
    def in_memory(cls, now: Callable[[], datetime] = _utc_now) -> Store:
        """A store that lives and dies with this object."""
        return cls.open(_MEMORY_URL, now=now)

    @property
    def url(self) -> str:
        """The URL that opens this store again, with its password if it has one."""
        return self._database.url.render_as_string(hide_password=False)

    @property
    def artifact_dir(self) -> Path:
        """The folder of the store's artefacts; whoever writes the first one creates it."""
        return artifact_dir(self._database.url)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Studies

    def create_study(self, spec: StudySpec, name: str | None = None) -> StudyRecord:
        """A new study; without a name it is called after its space, numbered.

        Raises:
            UsageError: the name is taken or not one line of at most 100 characters.
        """
        if name is not None:
            _check_name(name)
        with self._database.writing() as session:
            if name is None:
                name = free_name(session, spec.space.name)
            elif session.scalar(select(StudyRow.id).where(StudyRow.name == name)) is not None:
                raise UsageError(f"there is a study {name!r} already; choose another name or resume it")
            row = StudyRow(
                id=secrets.token_hex(8),
                name=name,
                spec=spec.to_dict(),
                state="new",
                created_at=self._now(),
                revision=0,
            )
            session.add(row)
            return study_record(row)

    def find_study(self, study: str) -> StudyRecord:
        """The study of that id or name, or the one that was created last for "latest".

        Raises:
            NotFoundError: there is none; names the latest ones there are.
        """
        newest = select(StudyRow).order_by(StudyRow.created_at.desc(), StudyRow.id)
        with self._database.reading() as session:
            if study == "latest":
                row = session.scalars(newest.limit(1)).first()
            else:
                row = session.get(StudyRow, study) or session.scalar(select(StudyRow).where(StudyRow.name == study))
            if row is None:
                names = ", ".join(session.scalars(select(StudyRow.name).order_by(StudyRow.created_at.desc()).limit(5)))
                raise NotFoundError(f"no study {study!r} in {self._database.place}; the latest: {names or 'none yet'}")
            return study_record(row)

    def list_studies(
        self, *, after: tuple[datetime, str] | None = None, limit: int | None = None
    ) -> tuple[StudyRecord, ...]:
        """All studies, the newest first; those after that time of creation and id, at most `limit` of them."""
        query = select(StudyRow).order_by(StudyRow.created_at.desc(), StudyRow.id)
        if after is not None:
            created_at, study_id = after
            same_time = and_(StudyRow.created_at == created_at, StudyRow.id > study_id)
            query = query.where(or_(StudyRow.created_at < created_at, same_time))
        with self._database.reading() as session:
            rows = session.scalars(query if limit is None else query.limit(limit))
            return tuple(study_record(row) for row in rows)

    def set_study_state(self, study_id: str, state: str) -> StudyRecord:
        assert state in STUDY_STATES, state
        with self._database.writing() as session:
            row = touch_study(session, study_id)
            row.state = state
            return study_record(row)

    def extend_trials(self, study_id: str, num_trials: int) -> StudyRecord:
        """Sets the study's number of trials, as a total.

        Raises:
            UsageError: not a positive integer.
        """
        with self._database.writing() as session:
            row = touch_study(session, study_id)
            row.spec = replace(StudySpec.from_dict(row.spec), num_trials=num_trials).to_dict()
            return study_record(row)

    @contextmanager
    def lock_study(self, study_id: str) -> Iterator[None]:
        """Works on a study alone until the block ends; the lock goes with the process, however it ends.

        Nobody else can reach a store in memory, so there is nothing to lock.

        Raises:
            StoreError: another process works on it; names the process.
        """
        name = self.find_study(study_id).name
        with nullcontext() if self._database.in_memory else locked(self._lock_path(study_id), f"study {name}"):
            yield

    def running_process(self, study_id: str) -> int | None:
        """The process that works on a study on this machine, or None: then a study that is `running` was killed."""
        return None if self._database.in_memory else lock_holder(self._lock_path(study_id))

    def _lock_path(self, study_id: str) -> Path:
        return self.artifact_dir / f"{study_id}.lock"

    def delete_study(self, study_id: str) -> None:
        """Removes the study with its trials, observations and events.

        Artefacts, measurements and quality scores stay: another study may be answered from them.

        Raises:
            StoreError: a process is working on it.
        """
        with self.lock_study(study_id), self._database.writing() as session:
            session.execute(delete(StudyRow).where(StudyRow.id == study_id))
        if not self._database.in_memory:
            self._lock_path(study_id).unlink(missing_ok=True)

    # Trials

    def start_trial(
        self,
        study_id: str,
        *,
        params: Mapping[str, Any],
        config: TransformerConfig,
        figures: Mapping[str, Figure] | None = None,
        sampler_state: Mapping[str, Any] | None = None,
        state: str = "running",
        error_type: str | None = None,
        error_text: str | None = None,
        duplicate_of: int | None = None,
    ) -> TrialRecord:
        """Stores a proposal, with the figures that are known of it already, under the next number of its study.

        A proposal that needs no evaluation is stored with its final state at once: pruned with the reason, or complete
        as a `duplicate_of` an earlier trial, whose observations, artefact, measurement and quality it then shares.
        """
        now = self._now()
        with self._database.writing() as session:
            touch_study(session, study_id)
            row = TrialRow(
                study_id=study_id,
                number=next_number(session, study_id),
                state=state,
                params=dict(params),
                architecture_hash=add_architecture(session, config, now),
                created_at=now,
                finished_at=None if state == "running" else now,
                error_type=error_type,
                error_text=error_text,
                duplicate_of=duplicate_of,
                sampler_state=None if sampler_state is None else dict(sampler_state),
            )
            session.add(row)
            session.flush()
            add_observations(session, row, figures or {}, 0.0, now)
            if state == "complete" and duplicate_of is not None:
                share_results(session, find_trial(session, study_id, duplicate_of), row, now)
            return read_trial(session, study_id, row.number)

    def add_observation(
        self, study_id: str, number: int, objective: str, figure: Figure, cost_s: float = 0.0
    ) -> Observation:
        """Stores one value of one objective of a running trial; the latest one counts."""
        with self._database.writing() as session:
            touch_study(session, study_id)
            trial = find_running_trial(session, study_id, number)
            row = new_observation(trial.id, objective, figure, cost_s, self._now())
            session.add(row)
            return observation_record(row)

    def finish_trial(
        self,
        study_id: str,
        number: int,
        state: str,
        *,
        figures: Mapping[str, Figure] | None = None,
        cost_s: float = 0.0,
        error_type: str | None = None,
        error_text: str | None = None,
    ) -> TrialRecord:
        """Ends a running trial and stores its last figures, which share their cost, all at once.

        Raises:
            StoreError: the trial has ended already.
        """
        assert state in TRIAL_STATES[1:], state
        now = self._now()
        with self._database.writing() as session:
            touch_study(session, study_id)
            row = find_running_trial(session, study_id, number)
            add_observations(session, row, figures or {}, cost_s, now)
            row.state, row.finished_at, row.error_type, row.error_text = state, now, error_type, error_text
            session.flush()
            return read_trial(session, study_id, row.number)

    def trial(self, study_id: str, number: int) -> TrialRecord:
        with self._database.reading() as session:
            return read_trial(session, study_id, number)

    def trials(
        self, study_id: str, *, after_number: int | None = None, limit: int | None = None, state: str | None = None
    ) -> tuple[TrialRecord, ...]:
        """The trials of a study by number, those after `after_number` and in `state`, at most `limit` of them."""
        query = select(TrialRow.id).where(TrialRow.study_id == study_id).order_by(TrialRow.number)
        if state is not None:
            query = query.where(TrialRow.state == state)
        if after_number is not None:
            query = query.where(TrialRow.number > after_number)
        with self._database.reading() as session:
            find_study_row(session, study_id)
            return read_trials(session, query if limit is None else query.limit(limit))

    def count_trials(self, study_id: str, *, with_repeated: bool = True) -> dict[str, int]:
        """Number of trials by state, on request without those that repeat another one; every state is there."""
        query = select(TrialRow.state, func.count()).where(TrialRow.study_id == study_id).group_by(TrialRow.state)
        if not with_repeated:
            query = query.where(TrialRow.duplicate_of.is_(None))
        with self._database.reading() as session:
            return dict.fromkeys(TRIAL_STATES, 0) | {row[0]: row[1] for row in session.execute(query)}

    # What was paid for: files, measurements, scores

    def save_artifact(self, artifact: Artifact) -> None:
        """Stores what is known of a file; the same sha256 again replaces it."""
        with self._database.writing() as session:
            session.merge(ArtifactRow(**asdict(artifact), created_at=self._now()))

    def find_artifact(self, sha256: str) -> Artifact | None:
        with self._database.reading() as session:
            row = session.get(ArtifactRow, sha256)
            return None if row is None else artifact_record(row)

    def save_measurement(self, key: str, artifact_sha256: str, measurement: Mapping[str, Any]) -> None:
        """Stores a measurement of a stored artefact; the same key again replaces it."""
        with self._database.writing() as session:
            now = self._now()
            session.merge(
                MeasurementRow(key=key, artifact_sha256=artifact_sha256, payload=dict(measurement), created_at=now)
            )

    def find_measurement(self, key: str) -> dict[str, Any] | None:
        with self._database.reading() as session:
            row = session.get(MeasurementRow, key)
            return None if row is None else row.payload

    def save_quality(self, key: str, artifact_sha256: str, quality: Mapping[str, Any]) -> None:
        """Stores a score of a stored artefact; the same key again replaces it."""
        with self._database.writing() as session:
            now = self._now()
            session.merge(QualityRow(key=key, artifact_sha256=artifact_sha256, payload=dict(quality), created_at=now))

    def find_quality(self, key: str) -> KnownQuality | None:
        with self._database.reading() as session:
            row = session.get(QualityRow, key)
            return None if row is None else KnownQuality(artifact_sha256=row.artifact_sha256, quality=row.payload)

    def attach_artifact(self, study_id: str, number: int, sha256: str) -> None:
        self._attach(study_id, number, "artifact_sha256", sha256)

    def attach_measurement(self, study_id: str, number: int, key: str) -> None:
        self._attach(study_id, number, "measurement_key", key)

    def attach_quality(self, study_id: str, number: int, key: str) -> None:
        self._attach(study_id, number, "quality_key", key)

    def _attach(self, study_id: str, number: int, column: str, key: str) -> None:
        with self._database.writing() as session:
            touch_study(session, study_id)
            setattr(find_running_trial(session, study_id, number), column, key)

    # Events

    def add_event(self, study_id: str, kind: str, payload: Mapping[str, Any] | None = None) -> Event:
        with self._database.writing() as session:
            touch_study(session, study_id)
            row = EventRow(study_id=study_id, kind=kind, payload=dict(payload or {}), created_at=self._now())
            session.add(row)
            session.flush()
            return event_record(row)

    def events(self, study_id: str, after_id: int = 0) -> tuple[Event, ...]:
        """The events of a study in the order they happened, those after `after_id`."""
        query = select(EventRow).where(EventRow.study_id == study_id, EventRow.id > after_id).order_by(EventRow.id)
        with self._database.reading() as session:
            find_study_row(session, study_id)
            return tuple(event_record(row) for row in session.scalars(query))


def upgrade_store(url: str | None = None) -> tuple[str, str]:
    """Brings a store's tables up to date; their revision before ("none" for a new store) and after."""
    return upgrade_database(resolve_url(url))


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip() or name == "latest":
        raise UsageError(f"a study's name is one line of 1 to 100 characters, and not `latest`: {name!r}")
