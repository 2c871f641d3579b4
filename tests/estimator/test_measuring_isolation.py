"""Candidates that crash, spin, ask for too much or start processes: failed measurements that leave nothing behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from estimator.config import TransformerConfig
from estimator.errors import InputError, MeasurementError, StorageFullError
from estimator.measuring import MeasurementPlan, host_fingerprint, measure
from estimator.measuring.limits import default_memory_limit_bytes
from estimator.measuring.process import run_child
from estimator.measuring.quiet_times import QuietTimes, keep_quiet_times
from estimator.measuring.yardstick import YARDSTICKS
from estimator.onnx_builder import build_onnx
from estimator.workload import Workload

CONFIG = TransformerConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)
PLAN = MeasurementPlan(num_threads=1, max_seconds=0.01, precision=0.5, time_limit_s=120.0)
WORKLOAD = Workload(prompt_length=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_onnx(CONFIG, path=tmp_path_factory.mktemp("isolation") / "model.onnx").path


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no child, no open file more than before, nothing in the folder for temporary files.

    Quiet times are there beforehand, so that no test waits for a quiet machine.
    """
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))
    times = QuietTimes(seconds=dict.fromkeys(YARDSTICKS, 0.001), is_final=True)
    keep_quiet_times(host_fingerprint(num_threads=1), times)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    this = psutil.Process()
    children, num_files = set(this.children(recursive=True)), this.num_fds()
    yield
    assert set(this.children(recursive=True)) == children
    assert this.num_fds() == num_files
    assert list(folder.iterdir()) == []


def with_nodes(model: Path, path: Path, nodes: list[onnx.NodeProto], *constants: onnx.TensorProto) -> Path:
    """The model with nodes before its own ones, and their last output as an output of the graph."""
    proto = onnx.load(model)
    own = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *own])
    proto.graph.initializer.extend(constants)
    proto.graph.output.append(helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None))
    onnx.save(proto, path)
    return path


def constant(name: str, values: object, kind: type = np.int64) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, dtype=kind), name)


@pytest.fixture
def greedy(model: Path, tmp_path: Path) -> Path:
    """Multiplies two matrices of 100 GB each, whose size no one can know before the first call."""
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["greedy_shape"]),
        helper.make_node("Mul", ["greedy_shape", "greedy_factor"], ["greedy_sizes"]),
        helper.make_node("ConstantOfShape", ["greedy_sizes"], ["greedy_matrix"]),
        helper.make_node("Transpose", ["greedy_matrix"], ["greedy_other"]),
        helper.make_node("MatMul", ["greedy_matrix", "greedy_other"], ["greedy_product"]),
    ]
    return with_nodes(model, tmp_path / "greedy.onnx", nodes, constant("greedy_factor", [160_000, 40_000]))


@pytest.fixture
def endless(model: Path, tmp_path: Path) -> Path:
    """Adds one to a number for as long as it is let."""
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [helper.make_node("Loop", ["endless_trips", "endless_go", "endless_x"], ["endless_y"], body=body)]
    constants = (
        constant("endless_trips", 2**62),
        constant("endless_go", True, np.bool_),
        constant("endless_x", [1.0], np.float32),
    )
    return with_nodes(model, tmp_path / "endless.onnx", nodes, *constants)


def test_nothing_is_left_of_a_measurement(model: Path) -> None:
    """The yardstick of these tests: what ends well leaves nothing either."""
    assert measure(model, WORKLOAD, plan=PLAN).prefill.normalised_s > 0


def test_model_that_asks_for_100_gb_is_out_of_memory(greedy: Path) -> None:
    """An allocation above the limit fails at once, and the reason says how much there was."""
    plan = MeasurementPlan(num_threads=1, memory_limit_bytes=2 * 10**9)
    with pytest.raises(MeasurementError, match=r"at most 2\.0 GB; a smaller batch") as caught:
        measure(greedy, WORKLOAD, plan=plan)
    assert caught.value.reason == "out_of_memory"


def test_memory_limit_is_that_of_the_plan(model: Path) -> None:
    """A cache of 102 MB, and as much for what is written, fits into 1 GB and not into 128 MiB."""
    workload = Workload(prompt_length=4, generated_length=400_000)
    enough = replace(PLAN, memory_limit_bytes=10**9)
    assert measure(model, workload, plan=enough).peak_memory_bytes > 2 * 10**8
    with pytest.raises(MeasurementError, match=r"at most 0\.1 GB"):
        measure(model, workload, plan=replace(PLAN, memory_limit_bytes=2**27))


def test_default_memory_limit_is_a_share_of_machine_and_container(tmp_path: Path) -> None:
    """Four fifths of the lower of both; no limit of the container is none."""
    total = psutil.virtual_memory().total
    container, none = tmp_path / "memory.max", tmp_path / "none"
    container.write_text(f"{total // 2}\n", encoding="ascii")
    none.write_text("max\n", encoding="ascii")
    assert default_memory_limit_bytes(limits=(container, none)) == int(0.8 * (total // 2))
    assert default_memory_limit_bytes(limits=(none, tmp_path / "missing")) == int(0.8 * total)


def test_memory_limit_that_holds_nothing_is_refused() -> None:
    """A limit below what the yardsticks need is no limit but a mistake."""
    with pytest.raises(InputError, match="memory_limit_bytes"):
        MeasurementPlan(memory_limit_bytes=1000)


def test_model_that_never_ends_is_stopped_at_the_time_limit(endless: Path) -> None:
    """A loop without end inside the runtime."""
    with pytest.raises(MeasurementError, match="time limit of 4 s") as caught:
        measure(endless, WORKLOAD, plan=MeasurementPlan(num_threads=1, time_limit_s=4.0))
    assert caught.value.reason == "time_limit"


def instead_of_the_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The child process runs `code` where it would load the file: limits, folder and parent are as ever."""
    script = (
        "import os, resource, signal, subprocess, sys, tempfile\n"
        "from pathlib import Path\n"
        "from estimator.measuring import child\n"
        f"def crash(*_, **__):\n{textwrap.indent(code, '    ')}\n"
        "child.open_session = crash\n"
        "sys.exit(child.main())"
    )
    monkeypatch.setattr("estimator.measuring.process._COMMAND", (sys.executable, "-c", script))


SEGFAULT = "import ctypes; ctypes.string_at(0)"
RUNAWAY = "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass"
BAD_ALLOC = "os.write(2, b\"terminate called after throwing an instance of 'std::bad_alloc'\\n\"); os.abort()"


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (SEGFAULT, "crash", "SIGSEGV"),
        ("os.abort()", "crash", "SIGABRT"),
        ("os.write(2, b'assertion failed\\n'); os._exit(7)", "crash", "exit code 7: assertion failed"),
        (BAD_ALLOC, "out_of_memory", "memory ran out"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "out_of_memory", "SIGKILL"),
        ("raise RuntimeError('kernel not found')", "crash", "kernel not found"),
        (RUNAWAY, "time_limit", "processor time"),
    ],
)
def test_crash_is_a_failed_measurement_with_its_reason(
    model: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str, said: str
) -> None:
    """Whatever ends the child, with a file half written in its folder."""
    instead_of_the_child(monkeypatch, f"Path(tempfile.gettempdir(), 'half').write_text('x')\n{code}")
    with pytest.raises(MeasurementError, match=said) as caught:
        measure(model, WORKLOAD, plan=PLAN)
    assert caught.value.reason == reason


@pytest.mark.parametrize("ending", ["os._exit(1)", "child.time.sleep(600)"])
def test_grandchild_ends_with_the_measurement(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: str
) -> None:
    """A process that the child started is killed with it, be it that the child ended or that its time did."""
    note = tmp_path / "note"
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    code = f"started = subprocess.Popen({sleeper})\nPath({str(note)!r}).write_text(str(started.pid))\n{ending}"
    instead_of_the_child(monkeypatch, code)
    with pytest.raises(MeasurementError):
        measure(model, WORKLOAD, plan=MeasurementPlan(num_threads=1, time_limit_s=6.0))
    assert not is_running(int(note.read_text()))


def is_running(number: int) -> bool:
    """Whether the process is still there after ten seconds; one that ended and was not collected yet is not."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
    return True


def test_limits_hold_inside_the_child(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No core file, no file above a gibibyte, processor time for time limit and threads; soft or hard, none is open."""
    names = ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_CPU")
    limits = ", ".join(f"resource.getrlimit(resource.{name})" for name in names)
    instead_of_the_child(monkeypatch, f"raise RuntimeError(({limits}))")
    with pytest.raises(MeasurementError) as caught:
        measure(model, WORKLOAD, plan=PLAN)
    assert f"((0, 0), ({2**30}, {2**30}), (250, 260))" in str(caught.value)
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("is_busy", [False, True])
def test_killed_parent_leaves_no_file(model: Path, is_busy: bool) -> None:
    """SIGKILL of the parent, at once or while the child works: it ends and removes the folder that the parent made."""
    code = (
        "from estimator.measuring import MeasurementPlan, measure\n"
        f"measure({str(model)!r}, plan=MeasurementPlan(max_seconds=600, precision=1e-9))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(parent.pid).children()
    while is_busy and children[0].num_threads() < 2:  # it watches its parent from its second thread
        assert children[0].is_running()
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_no_room_for_a_folder_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no temporary folder can be made, one line says so."""

    def refuse(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(StorageFullError, match="No space left"):
        measure(model, WORKLOAD, plan=PLAN)


def test_many_measurements_leak_nothing(model: Path) -> None:
    """After two to warm up, ten more leave as many files, threads and children, and the memory where it was."""
    this = psutil.Process()
    for _ in range(2):
        measure(model, WORKLOAD, plan=PLAN)
    before = (this.num_fds(), this.num_threads(), this.memory_info().rss)
    for _ in range(10):
        measure(model, WORKLOAD, plan=PLAN)
    after = (this.num_fds(), this.num_threads(), this.memory_info().rss)
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 10_000_000
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == []


def test_signal_between_start_and_wait_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception of a signal that comes before the timer runs ends the child as well, at once."""

    def interrupted(timer: threading.Timer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Timer, "start", interrupted)
    before = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        run_child({}, time_limit_s=600, memory_limit_bytes=10**9)
    assert psutil.Process().children() == before
