"""Searches as processes: started, reaped, interrupted; what goes wrong is in the store."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from api.problems import ApiError
from api.workers import Workers, launch_worker, log_path
from nas.spec import StudySpec
from nas.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        yield store


@pytest.fixture
def study(store):
    return store.create_study(StudySpec.from_dict({"space": "decoder-nano", "num_trials": 1}))


def script(code: str, stdout: int = subprocess.DEVNULL):
    """A launcher of workers that run this code; their standard error goes where a real worker's goes."""

    def launch(store: Store, study_id: str) -> subprocess.Popen[bytes]:
        path = log_path(store, study_id)
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", code], stderr=log, stdout=stdout, start_new_session=True)

    return launch


def run_to_its_end(store: Store, study_id: str, code: str) -> None:
    workers = Workers(store, script(code), max_running=1)
    workers.start(study_id)
    for thread in threading.enumerate():
        if thread.name == f"worker {study_id}":
            thread.join()


def test_a_worker_that_ends_well_leaves_no_event(store, study):
    """Exit code 0: the study is as the worker left it."""
    run_to_its_end(store, study.id, "pass")
    assert store.events(study.id) == ()
    assert store.find_study(study.id).state == "new"


def test_a_worker_that_fails_leaves_its_last_words(store, study):
    """The study fails, and the store says why."""
    run_to_its_end(store, study.id, "import sys; print('warm up', file=sys.stderr); sys.exit('nas: no such folder')")
    (event,) = store.events(study.id)
    assert (event.kind, event.payload) == ("worker_failed", {"exit_code": 1, "detail": "nas: no such folder"})
    assert store.find_study(study.id).state == "fail"


def test_a_worker_that_is_killed_can_be_resumed(store, study):
    """Killed from outside: stopped, not failed."""
    run_to_its_end(store, study.id, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert store.find_study(study.id).state == "stopped"
    assert store.events(study.id)[0].payload["exit_code"] == -9


def test_stop_interrupts_workers_and_waits_for_them(store, study):
    """A worker gets Ctrl-C, not a kill, and has the time to say farewell."""
    code = """
import signal, sys, threading
def end(*_):
    print('farewell', file=sys.stderr)
    sys.exit(130)
signal.signal(signal.SIGINT, end)
print('ready', flush=True)
signal.pause()
"""
    processes = []

    def launch(store, study_id):
        processes.append(script(code, subprocess.PIPE)(store, study_id))
        assert processes[0].stdout.readline() == b"ready\n"
        return processes[0]

    workers = Workers(store, launch, max_running=1)
    workers.start(study.id)
    with pytest.raises(ApiError, match="at most 1"):
        workers.start(study.id)
    workers.stop()
    processes[0].stdout.close()
    assert processes[0].returncode == 130
    assert log_path(store, study.id).read_text() == "farewell\n"
    assert store.events(study.id) == ()
    workers.check_room()


def test_the_real_worker_says_why_it_cannot_run(store):
    """`nas resume` in a process of its own, over the store's own URL: data that is not there ends the search."""
    spec = StudySpec.from_dict({"space": "decoder-nano", "num_trials": 1, "quality": {"data": ["/no/such/folder"]}})
    study = store.create_study(spec)
    workers = Workers(store, launch_worker, max_running=1)
    workers.start(study.id)
    for thread in threading.enumerate():
        if thread.name == f"worker {study.id}":
            thread.join()
    (event,) = store.events(study.id)
    assert event.payload["exit_code"] == 3
    assert "/no/such/folder" in event.payload["detail"]
    assert log_path(store, study.id).parent.name == "studies.logs"
    assert "Traceback" not in log_path(store, study.id).read_text()
