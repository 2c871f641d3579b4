"""The child process: results, limits, deaths, and no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from estimator.errors import MeasurementError
from nas.errors import EvaluationError
from nas.executor import ChildExecutor


def _pid() -> int:
    return os.getpid()


def _divide(a: float, b: float) -> float:
    return a / b


def _sleep_for_ever() -> None:
    signal.pause()


def _die(number: int) -> None:
    os.kill(os.getpid(), number)


def _leave(code: int) -> None:
    raise SystemExit(code)


def _exhaust_memory() -> None:
    raise MemoryError


def _raise_runtime_error(text: str) -> None:
    raise RuntimeError(text)


def _raise_evaluation_error() -> None:
    raise EvaluationError("the loss is not finite", reason="numerics")


def _raise_measurement_error() -> None:
    raise MeasurementError("says out of memory, but has a reason", reason="time_limit")


def _raise_error_that_cannot_travel() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("only here")


def _report(count: int, *, progress: Callable[[int], None]) -> str:
    for step in range(count):
        progress(step)
    return "done"


def _ignores_sigint() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _start_grandchild() -> int:
    return subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]).pid


def _print(text: str) -> None:
    print(text, flush=True)


@pytest.fixture(scope="module")
def executor() -> Iterator[ChildExecutor]:
    """One child for the whole file, as in a search."""
    with ChildExecutor() as executor:
        yield executor


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while _is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        os.sched_yield()


def _is_alive(pid: int) -> bool:
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_run_returns_the_result_of_another_process(executor: ChildExecutor) -> None:
    """A function runs elsewhere and its value comes back."""
    assert executor.run(_divide, 1.0, b=4.0) == 0.25
    assert executor.run(_pid) != os.getpid()


def test_run_keeps_the_child_alive_between_calls(executor: ChildExecutor) -> None:
    """Libraries are loaded once: the same process answers again, after an exception as well."""
    first = executor.run(_pid)
    with pytest.raises(ZeroDivisionError):
        executor.run(_divide, 1.0, 0.0)
    assert executor.run(_pid) == first


def test_run_forwards_progress_in_order(executor: ChildExecutor) -> None:
    """What the function reports arrives at the callback before the result."""
    seen: list[int] = []
    assert executor.run(_report, 5, on_progress=seen.append) == "done"
    assert seen == [0, 1, 2, 3, 4]


def test_run_raises_the_childs_exception_with_its_traceback(executor: ChildExecutor) -> None:
    """The exception keeps its type, its attributes and a note with the child's traceback."""
    with pytest.raises(EvaluationError, match="the loss is not finite") as caught:
        executor.run(_raise_evaluation_error)
    assert caught.value.reason == "numerics"
    assert "_raise_evaluation_error" in caught.value.__notes__[0]


def test_run_names_an_exception_that_cannot_travel(executor: ChildExecutor) -> None:
    """A class that exists only in the child arrives as a RuntimeError with its name and text."""
    with pytest.raises(RuntimeError, match="LocalError: only here"):
        executor.run(_raise_error_that_cannot_travel)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (_exhaust_memory, ()),
        (_raise_runtime_error, ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes",)),
        (_raise_runtime_error, ("std::bad_alloc",)),
    ],
)
def test_run_names_exhausted_memory(executor: ChildExecutor, function: Callable[..., None], args: tuple[str]) -> None:
    """Python's, PyTorch's and C++'s ways to say that memory ran out have one reason."""
    with pytest.raises(EvaluationError, match="memory ran out") as caught:
        executor.run(function, *args)
    assert caught.value.reason == "out_of_memory"


def test_run_leaves_a_reason_that_is_already_given(executor: ChildExecutor) -> None:
    """An error that carries its own reason is not reinterpreted by its words."""
    with pytest.raises(MeasurementError) as caught:
        executor.run(_raise_measurement_error)
    assert caught.value.reason == "time_limit"


@pytest.mark.parametrize(
    ("function", "argument", "reason", "words"),
    [
        (_die, signal.SIGSEGV, "crash", "SIGSEGV"),
        (_die, signal.SIGKILL, "out_of_memory", "SIGKILL"),
        (_leave, 7, "crash", "exit code 7"),
    ],
)
def test_run_survives_the_death_of_the_child(
    executor: ChildExecutor, function: Callable[..., None], argument: int, reason: str, words: str
) -> None:
    """A dead child is an evaluation error that names the signal; the next call has a fresh child."""
    with pytest.raises(EvaluationError, match=words) as caught:
        executor.run(function, argument)
    assert caught.value.reason == reason
    assert executor.run(_divide, 6.0, 3.0) == 2.0


def test_run_stops_at_the_time_limit(executor: ChildExecutor) -> None:
    """A function that never ends is killed, and its process is gone."""
    pid = executor.run(_pid)
    with pytest.raises(EvaluationError, match=r"time limit of 0\.01 s") as caught:
        executor.run(_sleep_for_ever, time_limit_s=0.01)
    assert caught.value.reason == "time_limit"
    assert not _is_alive(pid)


def test_run_ends_the_child_when_the_parent_is_interrupted(executor: ChildExecutor) -> None:
    """Ctrl-C while waiting ends the running call and passes on."""
    pid = executor.run(_pid)

    def interrupt(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.run(_report, 1, on_progress=interrupt)
    assert not _is_alive(pid)


def test_close_ends_what_the_function_started() -> None:
    """A process that an evaluator leaves running does not outlive the executor."""
    with ChildExecutor() as executor:
        grandchild = executor.run(_start_grandchild)
    _wait_until_gone(grandchild)


def test_child_ignores_the_interrupt_signal(executor: ChildExecutor) -> None:
    """Ctrl-C is the parent's business; the signal is ignored, not held back."""
    assert executor.run(_ignores_sigint)


def test_child_prints_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to the parent's data alone."""
    with ChildExecutor() as executor:
        executor.run(_print, "an evaluator talks")
    assert capfd.readouterr() == ("", "an evaluator talks\n")


def test_child_ends_when_the_parent_is_killed() -> None:
    """SIGKILL on the parent leaves no orphan, not even one that is busy."""
    program = (
        "import signal, sys\n"
        "from nas.executor import ChildExecutor\n"
        "import os\n"
        "if __name__ == '__main__':\n"
        "    executor = ChildExecutor()\n"
        "    print(executor.run(os.getpid), flush=True)\n"
        "    executor.run(signal.pause)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    _wait_until_gone(child)
