"""Opens the study store's database, brings its tables up to date, and turns its errors into one clear line.

SQLite runs in WAL mode with foreign keys on and synchronous=FULL, so that what is committed survives a power cut; every
writing transaction begins IMMEDIATE, because one that reads first and then writes fails at once under load whatever
the busy timeout. A store in memory is the same code on a single shared connection.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from estimator.user_data import user_data_dir
from nas.errors import StoreCorruptError, StoreError, StoreVersionError, UsageError
from nas.tables import SCHEMA_REVISION

__all__ = ["Database", "artifact_dir", "place_of", "resolve_url", "upgrade_database"]

_BUSY_TIMEOUT_S = 60.0
# What SQLite says, the error it is for us, and what the user is told of the file.
_SQLITE_ERRORS: tuple[tuple[str, type[StoreError], str], ...] = (
    ("file is not a database", StoreCorruptError, "is not a SQLite database"),
    ("malformed", StoreCorruptError, "is damaged: SQLite cannot read it; restore a copy"),
    ("disk is full", StoreError, "cannot grow: no space left on its disk"),
    ("disk i/o error", StoreError, "cannot be read or written: its disk reports an error or is full"),
    ("readonly", StoreError, "cannot be written: make the file and its folder writable"),
    ("unable to open", StoreError, "cannot be opened: its folder must exist and be writable"),
    ("locked", StoreError, "is locked by another process that does not let go"),
)


class Database:
    """One open database: `reading()` and `writing()` give a session inside a transaction of its own.

    Raises:
        StoreError: the URL is not understood, or the database cannot be opened or written.
        StoreVersionError: it was written by a newer Archfront.
        StoreCorruptError: it is not a database, or not a study store.
    """

    def __init__(self, url: URL, *, upgrade: bool | None = None) -> None:
        """Opens a database; `upgrade` brings its tables up to date, which is the default for SQLite alone."""
        self.url = url
        self.place = place_of(url)
        self._is_sqlite = url.get_backend_name() == "sqlite"
        self.in_memory = self._is_sqlite and sqlite_path(url) is None
        self._guard: AbstractContextManager[Any] = threading.RLock() if self.in_memory else nullcontext()
        self._engine = _create_engine(url, self.in_memory)
        with self._errors():
            if self._is_sqlite:
                self._set_wal()
            self.revision_before = self._prepare(self._is_sqlite if upgrade is None else upgrade)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one consistent state of the store."""
        with self._guard, self._errors(), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are committed, and durable, when the block ends; none of them if it raises."""
        engine = self._engine.execution_options(immediate=True)
        with self._guard, self._errors(), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            said = str(error.orig).lower()
            for fragment, kind, meaning in _SQLITE_ERRORS:
                if self._is_sqlite and fragment in said:
                    raise kind(f"the store {self.place} {meaning}") from error
            raise StoreError(f"the store {self.place} failed: {error.orig}") from error

    def _set_wal(self) -> None:
        """WAL is a property of the file; only the first process to open it has to set it."""
        with self._engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            cursor = raw.cursor()
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
                # Taking the write lock first makes two processes that open a new file wait for each other.
                cursor.execute("BEGIN IMMEDIATE")
                cursor.execute("COMMIT")
                cursor.execute("PRAGMA journal_mode = WAL")
            cursor.close()

    def _prepare(self, upgrade: bool) -> str | None:
        """Brings the tables up to date; the revision they had."""
        with self._engine.connect() as connection:
            revision = _revision(connection, self.place)
        if revision == SCHEMA_REVISION:
            return revision
        if not upgrade:
            raise StoreError(f"the tables of {self.place} are not up to date; run: nas db upgrade --store URL")
        with self._engine.execution_options(immediate=True).connect() as connection:
            _foreign_keys(connection, self._is_sqlite, "OFF")  # rebuilding a table must not cascade to its children
            try:
                with connection.begin():
                    _migrate(connection, self.place)
            finally:
                _foreign_keys(connection, self._is_sqlite, "ON")
        return revision


def upgrade_database(url: URL) -> tuple[str, str]:
    """Brings a database's tables up to date; their revision before ("none" for a new one) and after."""
    database = Database(url, upgrade=True)
    database.close()
    return database.revision_before or "none", SCHEMA_REVISION


def resolve_url(url: str | None) -> URL:
    """The given URL, else that of the environment's ARCHFRONT_STORE, else a file in the user's data folder.

    Raises:
        UsageError: not an SQLAlchemy URL.
    """
    given = url or os.environ.get("ARCHFRONT_STORE")
    if not given:
        folder = user_data_dir()
        folder.mkdir(parents=True, exist_ok=True)
        return URL.create("sqlite", database=str(folder / "archfront.db"))
    try:
        return make_url(given)
    except ArgumentError as error:
        raise UsageError(f"{given!r} is not a store's URL; give one such as sqlite:///folder/name.db") from error


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL; None for a store in memory."""
    name = url.database or ":memory:"
    if name == ":memory:" or "mode=memory" in name:
        return None
    return Path(name.removeprefix("file:"))


def artifact_dir(url: str | URL | None) -> Path:
    """The folder of a store's artefacts: beside a SQLite file, else in the user's data folder."""
    resolved = url if isinstance(url, URL) else resolve_url(url)
    path = sqlite_path(resolved) if resolved.get_backend_name() == "sqlite" else None
    if path is not None:
        return path.parent / f"{path.stem}.artifacts"
    return user_data_dir() / "artifacts"


def place_of(url: URL) -> str:
    """How messages call the store: its file, or its URL without the password."""
    if url.get_backend_name() == "sqlite":
        return str(sqlite_path(url) or "in memory")
    return url.render_as_string(hide_password=True)


def _create_engine(url: URL, in_memory: bool) -> Engine:
    options: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False)}
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        options["connect_args"] = {"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False}
    if in_memory:
        options["poolclass"] = StaticPool
    try:
        engine = create_engine(url, **options)
    except NoSuchModuleError as error:
        raise StoreError(f"unknown kind of store {url.drivername!r}; use sqlite or postgresql") from error
    except ImportError as error:
        raise StoreError(f"{url.drivername} needs a driver that is not installed: {error.name}") from error
    if is_sqlite:
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, _: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _on_begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _revision(connection: Connection, place: str) -> str | None:
    """The schema's revision; None for an empty database."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        if tables:
            raise StoreCorruptError(f"{place} is a database, but not a study store; give a new file")
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _foreign_keys(connection: Connection, is_sqlite: bool, state: str) -> None:
    if is_sqlite:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.cursor().execute(f"PRAGMA foreign_keys = {state}")


def _migrate(connection: Connection, place: str) -> None:
    """Runs the migrations that are missing, inside the transaction of the connection."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import migrations

    folder = migrations.__path__[0]
    config = Config()
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = _revision(connection, place)  # again: another process may have been faster
    if found is not None and found not in known:
        raise StoreVersionError(
            f"the store {place} was written by a newer Archfront (tables {found}, this one knows {SCHEMA_REVISION}); "
            "upgrade Archfront"
        )
    command.upgrade(config, "head")
