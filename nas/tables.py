"""The study store's tables. Their history is in `migrations/`; a test holds the two equal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "SCHEMA_REVISION",
    "Architecture",
    "ArtifactRow",
    "Base",
    "EventRow",
    "MeasurementRow",
    "ObservationRow",
    "QualityRow",
    "StudyRow",
    "TrialRow",
]

# The newest revision in migrations/versions, which these tables describe.
SCHEMA_REVISION = "0001"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, stored in UTC (SQLite forgets the zone)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """All tables; constraints have names so that a migration can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        datetime: UtcDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        float: Double,
    }


class StudyRow(Base):
    __tablename__ = "studies"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    revision: Mapped[int]


class Architecture(Base):
    """A network once, whatever the number of trials and studies that proposed it."""

    __tablename__ = "architectures"

    hash: Mapped[str] = mapped_column(String(16), primary_key=True)
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class ArtifactRow(Base):
    __tablename__ = "artifacts"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    path: Mapped[str]
    file_bytes: Mapped[int] = mapped_column(BigInteger)
    opset: Mapped[int]
    num_params: Mapped[int] = mapped_column(BigInteger)
    weight_dtype: Mapped[str] = mapped_column(String(16))
    weights_path: Mapped[str | None]
    architecture_hash: Mapped[str] = mapped_column(String(16), index=True)
    created_at: Mapped[datetime]


class MeasurementRow(Base):
    """A measurement with its samples; the key stands for the file, the workload, the device and the protocol."""

    __tablename__ = "measurements"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    artifact_sha256: Mapped[str] = mapped_column(ForeignKey("artifacts.sha256"), index=True)
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class QualityRow(Base):
    """A score; the key stands for the network, its number type, the data and the settings."""

    __tablename__ = "qualities"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    artifact_sha256: Mapped[str] = mapped_column(ForeignKey("artifacts.sha256"), index=True)
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class TrialRow(Base):
    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index("ix_trials_study_id_architecture_hash", "study_id", "architecture_hash"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    params: Mapped[dict[str, Any]]
    architecture_hash: Mapped[str] = mapped_column(ForeignKey("architectures.hash"))
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    error_type: Mapped[str | None] = mapped_column(String(100))
    error_text: Mapped[str | None]
    duplicate_of: Mapped[int | None]
    sampler_state: Mapped[dict[str, Any] | None]
    artifact_sha256: Mapped[str | None] = mapped_column(ForeignKey("artifacts.sha256"))
    measurement_key: Mapped[str | None] = mapped_column(ForeignKey("measurements.key"))
    quality_key: Mapped[str | None] = mapped_column(ForeignKey("qualities.key"))


class ObservationRow(Base):
    __tablename__ = "observations"

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id", ondelete="CASCADE"), index=True)
    objective: Mapped[str] = mapped_column(String(64))
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    origin: Mapped[str] = mapped_column(String(16))
    cost_s: Mapped[float]
    created_at: Mapped[datetime]


class EventRow(Base):
    __tablename__ = "events"
    __table_args__ = (Index("ix_events_study_id_id", "study_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
