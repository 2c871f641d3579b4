"""Searches as processes of their own: started by a request, they outlive it, and end cleanly with the service.

The service keeps no search in its memory. A worker is `nas resume STUDY`, which holds the study's lock and writes to
the store; the service only waits for its end, to say in the store why a search could not run.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from api.problems import ApiError
from nas.errors import NasError
from nas.store import Store

__all__ = ["Launch", "Workers", "launch_worker", "log_path"]

Launch = Callable[[Store, str], "subprocess.Popen[bytes]"]

_STOP_WITHIN_S = 30.0
_ENDED_WELL = (0, 130, -signal.SIGINT)  # finished; interrupted while it searched; interrupted while it started
_log = logging.getLogger(__name__)


def log_path(store: Store, study_id: str) -> Path:
    """Where a worker's standard error goes: a file beside the store."""
    return store.artifact_dir.with_suffix(".logs") / f"{study_id}.log"


def launch_worker(store: Store, study_id: str) -> subprocess.Popen[bytes]:
    """Starts `nas resume` for a study, in a session of its own, so that a Ctrl-C here is not its own.

    The store's URL goes by the environment: it may hold a password, and every user sees the command line of a process.
    """
    path = log_path(store, study_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "nas.cli", "resume", study_id, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "ARCHFRONT_STORE": store.url},
            start_new_session=True,
        )


class Workers:
    """The worker processes that this service has started and that still run.

    Args:
        store: where a worker's failure is written.
        launch: starts the worker of a study.
        max_running: further searches are refused while so many run.
    """

    def __init__(self, store: Store, launch: Launch, max_running: int) -> None:
        self._store = store
        self._launch = launch
        self._max_running = max_running
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._waiting: list[threading.Thread] = []
        self._changes = threading.Lock()

    def check_room(self) -> None:
        """Raises ApiError when as many searches run as may."""
        if len(self._running) >= self._max_running:
            detail = f"{len(self._running)} searches are running; this service runs at most {self._max_running} at once"
            raise ApiError("too-many-searches", detail, headers={"Retry-After": "60"})

    def start(self, study_id: str) -> None:
        """Starts the search of a study; returns at once."""
        with self._changes:
            self.check_room()
            process = self._launch(self._store, study_id)
            self._running[study_id] = process
        thread = threading.Thread(target=self._wait, args=(study_id, process), name=f"worker {study_id}", daemon=True)
        self._waiting.append(thread)
        thread.start()

    def stop(self) -> None:
        """Interrupts all workers, as Ctrl-C would, and waits until they have ended; kills those that do not."""
        deadline = time.monotonic() + _STOP_WITHIN_S
        for process in list(self._running.values()):
            process.send_signal(signal.SIGINT)
        for process in list(self._running.values()):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        for thread in self._waiting:
            thread.join()

    def _wait(self, study_id: str, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with self._changes:
            del self._running[study_id]
        if code not in _ENDED_WELL:
            self._record_failure(study_id, code)

    def _record_failure(self, study_id: str, code: int) -> None:
        """A worker that could not run at all leaves its study as it was: the reason goes into the store here."""
        reason = _last_line(log_path(self._store, study_id)) or f"the worker ended with code {code} and said nothing"
        _log.error("search %s ended with code %d: %s", study_id, code, reason)
        try:
            self._store.add_event(study_id, "worker_failed", {"exit_code": code, "detail": reason})
            self._store.set_study_state(study_id, "stopped" if code < 0 else "fail")
        except NasError as error:
            _log.error("the failure of search %s could not be stored: %s", study_id, error)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
