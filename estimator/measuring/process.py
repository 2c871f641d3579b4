"""Runs the child process of a measurement within its limits, and leaves no process and no file of it behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from estimator import errors
from estimator.errors import MeasurementError, StorageFullError
from estimator.ort_session import NO_TELEMETRY

__all__ = ["run_child"]

_COMMAND = (sys.executable, "-m", "estimator.measuring.child")
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory")


def run_child(request: dict[str, Any], *, time_limit_s: float, memory_limit_bytes: int) -> dict[str, Any]:
    """The child's result.

    It runs in a process group of its own, with a temporary folder of its own. However it ends, the whole group is
    killed and the folder removed. Standard input stays open as long as the child may run: its end tells the child that
    its parent is gone.

    Raises:
        EstimatorError: as the child raised it.
        MeasurementError: reason time_limit, out_of_memory or crash.
        StorageFullError: there is no room for a temporary folder.
    """
    request = request | {"time_limit_s": time_limit_s, "memory_limit_bytes": memory_limit_bytes}
    try:
        folder = tempfile.TemporaryDirectory(prefix="archfront-measuring-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageFullError(f"a measurement needs a temporary folder, and none can be made: {error}") from error
    with folder:
        output, talk, code = _run(request, Path(folder.name), time_limit_s)
    return _answer(output, talk, code, memory_limit_bytes)


def _run(request: dict[str, Any], folder: Path, time_limit_s: float) -> tuple[bytes, str, int]:
    """What the child wrote, what it and the runtime said, and its exit code."""
    late = threading.Event()
    with (folder / "answer").open("w+b") as output, (folder / "talk").open("w+b") as talk:
        child: subprocess.Popen[bytes] | None = None
        timer: threading.Timer | None = None

        def stop() -> None:
            late.set()
            _kill_group(child)

        # A signal's exception may come between any two lines: whatever exists by then is ended. A child that is not
        # known here yet finds the end of its standard input.
        try:
            child = subprocess.Popen(
                [*_COMMAND, str(folder)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=talk,
                start_new_session=True,
                env=NO_TELEMETRY | os.environ | {"TMPDIR": str(folder)},
            )
            timer = threading.Timer(time_limit_s, stop)
            timer.daemon = True
            timer.start()
            assert child.stdin is not None
            with child.stdin:
                with contextlib.suppress(BrokenPipeError):  # it died before it could read; its exit code says how
                    child.stdin.write(json.dumps(request).encode() + b"\n")
                code = child.wait()
        finally:
            _end(child, timer)
        if late.is_set():
            raise MeasurementError(f"stopped at the time limit of {time_limit_s:g} s", reason="time_limit")
        output.seek(0)
        talk.seek(0)
        return output.read(), talk.read().decode(errors="replace"), code


def _end(child: subprocess.Popen[bytes] | None, timer: threading.Timer | None) -> None:
    if timer is not None:
        timer.cancel()
    _kill_group(child)
    if child is not None and child.stdin is not None:
        child.stdin.close()
        child.wait()
    if timer is not None and timer.is_alive():
        timer.join()  # it may be about to kill: the number of an ended group could be another's later


def _kill_group(child: subprocess.Popen[bytes] | None) -> None:
    """Ends the child and what it has started; the group's number is not given again while one of them lives."""
    if child is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses for a group that has ended
        os.killpg(child.pid, signal.SIGKILL)


def _answer(output: bytes, talk: str, code: int, memory_limit_bytes: int) -> dict[str, Any]:
    try:
        answer = json.loads(output)
    except ValueError:
        raise _death(code, talk, memory_limit_bytes) from None
    if "error" in answer:
        raise _rebuilt(answer["error"]["type"], answer["error"]["message"], memory_limit_bytes)
    result: dict[str, Any] = answer["result"]
    return result


def _rebuilt(name: str, message: str, memory_limit_bytes: int) -> Exception:
    if name == "MemoryError":
        return _out_of_memory(message, memory_limit_bytes)
    if name in errors.__all__:
        kind: type[errors.EstimatorError] = getattr(errors, name)
        return kind(message)
    return MeasurementError(message, reason="crash")


def _death(code: int, talk: str, memory_limit_bytes: int) -> MeasurementError:
    """What an end without an answer means."""
    last = next((line for line in reversed(talk.splitlines()) if line.strip()), "")
    if code == -signal.SIGKILL:  # not from the timer
        text = "the measuring process was killed (SIGKILL), as the kernel does when memory runs out"
        return MeasurementError(text, reason="out_of_memory")
    if code == -signal.SIGXCPU:
        return MeasurementError("stopped at the limit of its processor time (SIGXCPU)", reason="time_limit")
    if any(words in talk for words in _OUT_OF_MEMORY):
        return _out_of_memory(last, memory_limit_bytes)
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    return MeasurementError(f"the measuring process {how}{': ' if last else ''}{last}", reason="crash")


def _out_of_memory(message: str, memory_limit_bytes: int) -> MeasurementError:
    text = f"memory ran out, at most {memory_limit_bytes / 1e9:.1f} GB; a smaller batch, prompt or model may fit"
    return MeasurementError(f"{text} ({message})", reason="out_of_memory")
