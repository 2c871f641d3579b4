"""The store as a file: many processes, a full disk, damaged and foreign files, locks."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from estimator.figures import Figure
from nas.database import Database, artifact_dir, place_of, resolve_url
from nas.errors import StoreCorruptError, StoreError, StoreVersionError, UsageError
from nas.space import SearchSpace
from nas.spec import StudySpec
from nas.store import Store, upgrade_store

SPEC = StudySpec(space=SearchSpace.preset("decoder-nano"))
NUM_PROCESSES = 8
NUM_TRIALS = 6


def write_trials(url: str, seed: int) -> None:
    """One of several writers: opens the store (perhaps first of all) and stores trials as a search does."""
    with Store.open(url) as store:
        study = store.create_study(SPEC, f"study-{seed}")
        shared = next(study for study in store.list_studies() if study.name.startswith("study-"))
        for params in SPEC.space.sample(NUM_TRIALS, seed):
            trial = store.start_trial(study.id, params=params, config=SPEC.space.to_config(params))
            store.add_observation(study.id, trial.number, "params", Figure(value=1.0, origin="counted"))
            store.add_event(shared.id, "trial", {"writer": seed})
            store.finish_trial(
                study.id, trial.number, "complete", figures={"loss": Figure(value=1.0, origin="measured")}
            )


def _fill(store: Store) -> None:
    """Writes far more than the free space of a few pages."""
    for number in range(1000):
        store.create_study(SPEC, f"study-{number}")


def test_many_processes_write_at_once_and_none_fails(tmp_path: Path) -> None:
    """Eight processes open the same new file and write: every trial is there, events have no gap."""
    url = f"sqlite:///{tmp_path}/shared.db"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_trials, args=(url, seed)) for seed in range(NUM_PROCESSES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * NUM_PROCESSES
    with Store.open(url) as store:
        studies = store.list_studies()
        assert [store.count_trials(study.id)["complete"] for study in studies] == [NUM_TRIALS] * NUM_PROCESSES
        assert all(len(trial.observations) == 2 for study in studies for trial in store.trials(study.id))
        ids = sorted(event.id for study in studies for event in store.events(study.id))
        assert ids == list(range(1, NUM_PROCESSES * NUM_TRIALS + 1))


def test_sqlite_file_is_in_the_modes_it_promises(tmp_path: Path) -> None:
    """WAL, foreign keys, full durability, and a patient wait for other writers."""
    database = Database(resolve_url(f"sqlite:///{tmp_path}/modes.db"))
    with database.reading() as session:
        modes = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert modes == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 60_000}
    database.close()


def test_writing_begins_with_the_lock_and_reading_without(tmp_path: Path) -> None:
    """While one writes, others read the state before it; BEGIN IMMEDIATE holds the lock before the first statement."""
    url = f"sqlite:///{tmp_path}/lock.db"
    with Store.open(url) as store:
        store.create_study(SPEC, "before")
        writer = Database(resolve_url(url))
        with writer.writing() as session:
            session.connection()
            assert [study.name for study in store.list_studies()] == ["before"]
            other = sqlite3.connect(tmp_path / "lock.db", timeout=0)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()
        writer.close()


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """The message names the file, and the file is left as it was."""
    path = tmp_path / "notes.db"
    path.write_bytes(b"These are my notes, not a database. " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreCorruptError, match=r"notes\.db is not a SQLite database"):
        Store.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_damaged_database_is_refused(tmp_path: Path) -> None:
    """A page of garbage inside is seen at the latest when it is read."""
    path = tmp_path / "damaged.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.create_study(SPEC, "first")
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(StoreCorruptError, match=r"damaged\.db is damaged"), Store.open(f"sqlite:///{path}") as store:
        store.find_study("first")


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """No tables of ours are added to a file that has others."""
    path = tmp_path / "places.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE places (name TEXT)")
    connection.commit()
    with pytest.raises(StoreCorruptError, match=r"places\.db is a database, but not a study store"):
        Store.open(f"sqlite:///{path}")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("places",)]
    connection.close()


def test_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """It is not touched; the message says to upgrade."""
    path = tmp_path / "newer.db"
    Store.open(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    for opening in (Store.open, upgrade_store):
        with pytest.raises(StoreVersionError, match=r"newer\.db was written by a newer .*9999.*upgrade"):
            opening(f"sqlite:///{path}")


def test_missing_folder_and_a_folder_as_file_are_named(tmp_path: Path) -> None:
    """One line with the path and what would be right."""
    for path in (tmp_path / "nowhere" / "study.db", tmp_path):
        with pytest.raises(StoreError, match=f"the store {path} cannot be opened: its folder must exist"):
            Store.open(f"sqlite:///{path}")


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A store opened read-only can be read; writing says what to do."""
    path = tmp_path / "study.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.create_study(SPEC, "first")
    with Store.open(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert store.find_study("first").name == "first"
        with pytest.raises(StoreError, match=f"the store {path} cannot be written: make the file"):
            store.create_study(SPEC, "second")


def test_full_disk_loses_only_the_write_that_did_not_fit(tmp_path: Path) -> None:
    """With its pages limited the file cannot grow: the error says so, and all before it is intact."""
    with Store.open(f"sqlite:///{tmp_path}/full.db") as store:
        store.create_study(SPEC, "first")
        with store._database.reading() as session:
            pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()
            session.connection().exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"full\.db cannot grow: no space left"):
            _fill(store)
        assert store.find_study("first").spec == SPEC


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("demo/archfront.db", "not a store's URL; give one such as sqlite:///folder/name.db"),
        ("oracledb9://host/db", "unknown kind of store 'oracledb9'"),
    ],
)
def test_url_that_is_not_understood_is_refused(url: str, message: str) -> None:
    """A path is not a URL, and not every scheme is a database."""
    with pytest.raises((StoreError, UsageError), match=message):
        Store.open(url)


def test_store_is_found_without_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's ARCHFRONT_STORE first, else a file in the user's data folder, which is made."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("ARCHFRONT_STORE", raising=False)
    Store.open().close()
    assert (tmp_path / "data" / "archfront.db").is_file()
    monkeypatch.setenv("ARCHFRONT_STORE", f"sqlite:///{tmp_path}/mine.db")
    Store.open().close()
    assert (tmp_path / "mine.db").is_file()


def test_artefacts_lie_beside_a_sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """folder/name.db has folder/name.artifacts; a store elsewhere uses the user's data folder."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path))
    assert artifact_dir("sqlite:////work/demo/archfront.db") == Path("/work/demo/archfront.artifacts")
    assert artifact_dir("sqlite://") == artifact_dir("postgresql://u:secret@host/db") == tmp_path / "artifacts"


def test_study_is_run_by_one_process_until_it_dies(tmp_path: Path) -> None:
    """A second run names the process that holds the study; killing that process frees it at once."""
    url = f"sqlite:///{tmp_path}/study.db"
    code = (
        "import sys; from nas.store import Store\n"
        "store = Store.open(sys.argv[1])\n"
        "with store.lock_study(store.find_study('first').id):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with Store.open(url) as store:
        study = store.create_study(SPEC, "first")
        assert store.running_process(study.id) is None
        holder = subprocess.Popen(
            [sys.executable, "-c", code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert store.running_process(study.id) == holder.pid
            with pytest.raises(StoreError, match=f"study first is being run by process {holder.pid}"):
                store.delete_study(study.id)
            holder.kill()
        assert store.running_process(study.id) is None
        with store.lock_study(study.id):
            assert store.running_process(study.id) == os.getpid()
            with pytest.raises(StoreError, match="being run by process"), store.lock_study(study.id):
                pytest.fail("the study was locked twice")
        store.delete_study(study.id)
        assert list(store.artifact_dir.iterdir()) == []


def test_password_stays_out_of_messages() -> None:
    """A database is called by its URL without the password."""
    assert place_of(resolve_url("postgresql://user:hunter2@host/db")) == "postgresql://user:***@host/db"
