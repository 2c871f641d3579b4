"""Runs a pure function in a child process with a time limit; whatever happens there, this process lives on.

The child is started with `spawn`, stays alive between calls (heavy libraries load once) and leads a process group of
its own, so that ending it ends what it started, too. It reads its calls from a pipe and answers with progress
messages and one outcome; its standard output goes to standard error. When this process dies, however it dies, the
child ends itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, TypeVar

from estimator.errors import EstimatorError
from nas.errors import EvaluationError, NasError

__all__ = ["ChildExecutor"]

R = TypeVar("R")

# What the libraries say when memory runs out; none of them raises MemoryError.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "failed to allocate")
_MEMORY_ADVICE = "memory ran out; allow a smaller model or batch"


class ChildExecutor:
    """Runs one picklable function at a time in a child process that stays alive between calls.

    Use it as a context manager. Functions and arguments travel by pickle, so the function must be importable.
    """

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> ChildExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        function: Callable[..., R],
        *args: Any,
        time_limit_s: float | None = None,
        on_progress: Callable[[Any], None] | None = None,
        **kwargs: Any,
    ) -> R:
        """What `function(*args, **kwargs)` returns in the child.

        With `on_progress`, the function also gets `progress`, a callable whose argument arrives at `on_progress`.
        An exception of the function is raised here, with the child's traceback as a note. When this call ends in any
        other way than with a result or such an exception, the child is gone and the next call starts a fresh one.

        Raises:
            EvaluationError: reason time_limit, out_of_memory or crash (the child died; its signal is named).
        """
        call = pickle.dumps((function, args, kwargs, on_progress is not None))
        deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        try:
            connection = self._started()
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # it died between calls: `_outcome` says how
                connection.send_bytes(call)
            kind, value = self._outcome(connection, deadline, on_progress)
        except TimeoutError:
            self.close()
            raise EvaluationError(f"stopped at the time limit of {time_limit_s:g} s", reason="time_limit") from None
        except BaseException:
            self.close()
            raise
        if kind == "error":
            raise _rebuilt(*value)
        result: R = value
        return result

    def close(self) -> None:
        """Ends the child and everything it started; a later `run` starts a fresh one."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            _kill(self._process)
        self._connection = self._process = None

    def _started(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name="archfront-executor")
            with _interrupts_held_back():
                self._process.start()
            theirs.close()
        return self._connection

    def _outcome(
        self, connection: Connection, deadline: float | None, on_progress: Callable[[Any], None] | None
    ) -> tuple[str, Any]:
        while True:
            remaining_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not connection.poll(remaining_s):
                raise TimeoutError
            try:
                kind, value = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own child wrote it
            except (EOFError, ConnectionResetError):
                raise self._death() from None
            if kind != "progress":
                return kind, value
            if on_progress is not None:
                on_progress(value)

    def _death(self) -> EvaluationError:
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        if code >= 0:
            return EvaluationError(f"the child process ended with exit code {code}", reason="crash")
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            text = f"the child process was killed ({name}), as the kernel does when memory runs out"
            return EvaluationError(text, reason="out_of_memory")
        return EvaluationError(f"the child process crashed ({name})", reason="crash")


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it has no group of its own yet, or has ended
        process.kill()
    process.join()
    process.close()


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A child started meanwhile cannot be interrupted before it has chosen to ignore it: no traceback on Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection) -> None:
    """The child's loop: one call after the other until the parent closes the pipe."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parent's standard output carries data alone
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes(), connection))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _answer(call: bytes, connection: Connection) -> bytes:
    try:
        function, args, kwargs, with_progress = pickle.loads(call)  # noqa: S301 - our own parent wrote it
        if with_progress:
            kwargs["progress"] = lambda message: connection.send_bytes(pickle.dumps(("progress", message)))
        return pickle.dumps(("result", function(*args, **kwargs)))
    except Exception as error:
        return _pickled_error(error)


def _pickled_error(error: Exception) -> bytes:
    if _is_out_of_memory(error):
        error = EvaluationError(f"{_MEMORY_ADVICE} ({type(error).__name__}: {error})", reason="out_of_memory")
    error.add_note(f"In the child process:\n{''.join(traceback.format_exception(error))}")
    try:
        message = pickle.dumps(("error", (type(error), error.args, error.__dict__)))
        pickle.loads(message)  # noqa: S301 - the line above wrote it
    except Exception:  # its class or a detail cannot travel; its text can
        message = pickle.dumps(("error", (RuntimeError, (f"{type(error).__name__}: {error}",), {})))
    return message


def _rebuilt(kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    """The child's exception. Pickle alone cannot rebuild those with keyword arguments of their own."""
    try:
        error = kind(*args)
    except TypeError:
        error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, NasError | EstimatorError):  # these carry a reason of their own
        return False
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
