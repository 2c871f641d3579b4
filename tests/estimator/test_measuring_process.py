"""The child process: real sessions on a small graph, and everything that can go wrong with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from estimator.config import TransformerConfig
from estimator.errors import CorruptFileError, InputError, MeasurementError
from estimator.measuring import Measurement, MeasurementPlan, host_fingerprint, measure
from estimator.measuring.quiet_times import QuietTimes, keep_quiet_times, known_quiet_times
from estimator.measuring.whole_request import request_call
from estimator.measuring.yardstick import YARDSTICKS
from estimator.onnx_builder import build_onnx
from estimator.ort_session import make_inputs, open_session
from estimator.workload import Workload

DECODER = TransformerConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=128,
)
ENCODER = TransformerConfig(
    architecture="encoder",
    head="masked_lm",
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
    position_embedding="learned",
)
PLAN = MeasurementPlan(num_threads=1, max_seconds=0.1, time_limit_s=120.0)
WORKLOAD = Workload(prompt_length=16, generated_length=4)
QUIET_S = dict.fromkeys(YARDSTICKS, 0.001)


@pytest.fixture(autouse=True)
def user_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_onnx(DECODER, path=tmp_path_factory.mktemp("measuring") / "model.onnx").path


@pytest.fixture
def no_children_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) == before


@pytest.mark.usefixtures("no_children_left")
def test_measurement_says_what_was_measured(decoder: Path) -> None:
    """Both phases with raw samples, the file's sha256, the device with its threads, memory over the baseline."""
    found = measure(decoder, WORKLOAD, plan=PLAN)
    assert found.decode is not None
    assert found.artifact_sha256 == build_onnx(DECODER, path=decoder.with_name("again.onnx")).sha256
    assert found.file_bytes == decoder.stat().st_size
    assert (found.device.num_threads, found.device.provider) == (1, "cpu")
    assert (found.prefill.sequence_length, found.prefill.past_length) == (16, 0)
    assert (found.decode.sequence_length, found.decode.past_length) == (1, 20)
    for phase in (found.prefill, found.decode):
        assert 0 < phase.low_s <= phase.normalised_s <= phase.high_s
        assert all(sample > 0 for block in phase.raw_samples_s for sample in block)
        assert len(phase.yardstick_samples_s) == len(phase.raw_samples_s) + 1
        assert phase.p99_s >= phase.p90_s >= phase.raw_median_s
    assert 0 < found.peak_memory_bytes < 500_000_000
    assert found.load_s > 0
    assert found.first_inference_s > 0
    assert Measurement.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_whole_request_is_measured_and_composed(decoder: Path) -> None:
    """Prefill and three times the middle step, beside the same in a row; and the record survives JSON."""
    found = measure(decoder, replace(WORKLOAD, generated_length=3), plan=PLAN, whole_request=True)
    request = found.request
    assert request is not None
    assert (request.num_steps, request.step.past_length, request.measured.phase) == (3, 17, "request")
    assert request.composed_s == pytest.approx(found.prefill.normalised_s + 3 * request.step.normalised_s)
    assert request.composed_low_s <= request.composed_s <= request.composed_high_s
    assert request.difference == pytest.approx(request.measured.normalised_s / request.composed_s - 1)
    assert min(min(block) for block in request.measured.raw_samples_s) > 0
    assert Measurement.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_whole_request_runs_what_the_model_would(decoder: Path) -> None:
    """The last step's cache holds prompt and steps, and its logits are those of one call over all tokens."""
    session = open_session(decoder, num_threads=1)
    asked = Recorder(session)
    workload = replace(WORKLOAD, generated_length=3)
    request_call(asked, DECODER, workload, device="cpu", seed=0)()
    names = [output.name for output in session.get_outputs()]
    last = dict(zip(names, asked.written, strict=True))
    assert last["present.0.key"].shape[2] == 16 + 3
    whole = {"input_ids": np.concatenate(asked.tokens, axis=1), "position_ids": np.arange(19)[None]}
    empty = make_inputs(DECODER, batch_size=1, sequence_length=19)
    expected = dict(zip(names, session.run(None, empty | whole), strict=True))
    for name, value in last.items():
        wanted = expected[name][:, -1:] if name == "logits" else expected[name]
        np.testing.assert_allclose(value[:, -1:] if name == "logits" else value, wanted, rtol=1e-4, atol=1e-5)


class Recorder:
    """A session that notes the tokens it is given and what the last call wrote."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.tokens: list[np.ndarray] = []
        self.written: list[np.ndarray] = []

    def get_outputs(self) -> list[onnxruntime.NodeArg]:
        outputs: list[onnxruntime.NodeArg] = self._session.get_outputs()
        return outputs

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding) -> None:
        self._session.run_with_iobinding(binding.binding)
        self.written = [value.numpy() for value in binding.binding.get_outputs()]


class Binding:
    """An I/O binding that notes the tokens."""

    def __init__(self, recorder: Recorder) -> None:
        self.binding = recorder._session.io_binding()
        self._recorder = recorder

    def bind_ortvalue_input(self, name: str, value: onnxruntime.OrtValue) -> None:
        if name == "input_ids":
            self._recorder.tokens.append(value.numpy())
        self.binding.bind_ortvalue_input(name, value)

    def __getattr__(self, name: str) -> object:
        return getattr(self.binding, name)


def test_encoder_has_no_whole_request(tmp_path: Path) -> None:
    """An encoder generates nothing, and a request without generated tokens is prefill."""
    path = build_onnx(ENCODER, path=tmp_path / "encoder.onnx").path
    with pytest.raises(InputError, match="encoder"):
        measure(path, Workload(prompt_length=16, generated_length=1), plan=PLAN, whole_request=True)
    with pytest.raises(InputError, match="generated_length"):
        measure(path, Workload(prompt_length=16), plan=PLAN, whole_request=True)


def test_measurement_that_was_kept_earlier_is_read(decoder: Path) -> None:
    """Records without p99, request and machine states, as stores of before hold them, get what their samples say."""
    found = measure(decoder, WORKLOAD, plan=PLAN)
    document = json.loads(json.dumps(found.to_dict()))
    for name in ("request", "machine_before", "machine_after"):
        del document[name]
    for phase in ("prefill", "decode"):
        del document[phase]["p99_s"]
    assert Measurement.from_dict(document) == replace(found, machine_before=None, machine_after=None)


def test_encoder_has_no_decode(tmp_path: Path) -> None:
    """An encoder is measured in prefill alone."""
    path = build_onnx(ENCODER, path=tmp_path / "encoder.onnx").path
    assert measure(path, Workload(prompt_length=16), plan=PLAN).decode is None


def test_learned_positions_end_the_context(tmp_path: Path) -> None:
    """A prompt of all positions leaves the measured token the last of them."""
    config = TransformerConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        position_embedding="learned",
    )
    path = build_onnx(config, path=tmp_path / "model.onnx").path
    found = measure(path, Workload(prompt_length=24), plan=PLAN)
    assert found.decode is not None
    assert found.decode.past_length == 23


def test_context_beyond_the_learned_positions_is_refused(tmp_path: Path) -> None:
    """Another context than the one asked for is never measured in silence."""
    config = replace(DECODER, position_embedding="learned")
    path = build_onnx(config, path=tmp_path / "model.onnx").path
    with pytest.raises(InputError, match="128 learned positions"):
        measure(path, Workload(prompt_length=100, generated_length=29), plan=PLAN)


def test_past_key_values_count_as_the_models_memory(decoder: Path) -> None:
    """A context of 100,000 tokens takes its cache more than a short one: 51 MB in, and as much again out."""
    short = measure(decoder, WORKLOAD, plan=PLAN)
    long = measure(decoder, replace(WORKLOAD, generated_length=100_000), plan=PLAN)
    cache_bytes = 2 * 2 * 100_000 * 2 * 8 * 4  # layers, key and value, tokens, heads, head size, fp32
    assert long.peak_memory_bytes - short.peak_memory_bytes > 1.8 * cache_bytes


@pytest.mark.usefixtures("no_children_left")
def test_time_limit_ends_the_child(decoder: Path) -> None:
    """A child over its time is killed, and the error says so."""
    with pytest.raises(MeasurementError, match=r"time limit of 0\.05 s") as caught:
        measure(decoder, WORKLOAD, plan=MeasurementPlan(time_limit_s=0.05))
    assert caught.value.reason == "time_limit"


def test_memory_that_is_not_there_is_named(decoder: Path) -> None:
    """A batch of terabytes ends as out_of_memory, not as a crash."""
    with pytest.raises(MeasurementError, match="smaller batch") as caught:
        measure(decoder, Workload(batch_size=2**30, prompt_length=2**12), plan=PLAN)
    assert caught.value.reason == "out_of_memory"


def test_crash_of_the_runtime_is_named(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that dies of a signal is a crash with that signal's name."""
    start = subprocess.Popen

    def crash(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        assert command[0] == sys.executable
        code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        return start([sys.executable, "-c", code], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", crash)
    with pytest.raises(MeasurementError, match="SIGSEGV") as caught:
        measure(decoder, WORKLOAD, plan=PLAN)
    assert caught.value.reason == "crash"


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" + bytes(100)])
def test_corrupt_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """A file that is no ONNX model of ours is one line that names it."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"broken\.onnx"):
        measure(path, WORKLOAD, plan=PLAN)


def test_missing_file_and_provider_are_refused(decoder: Path, tmp_path: Path) -> None:
    """What is not there is named."""
    with pytest.raises(CorruptFileError, match=r"nowhere\.onnx"):
        measure(tmp_path / "nowhere.onnx", WORKLOAD, plan=PLAN)
    with pytest.raises(InputError, match="abacus"):
        measure(decoder, WORKLOAD, plan=PLAN, provider="abacus")


def test_child_ends_when_its_parent_is_killed(decoder: Path) -> None:
    """SIGKILL of the parent closes the child's standard input, and the child ends itself."""
    code = (
        "import sys; from estimator.measuring import MeasurementPlan, measure\n"
        f"measure({str(decoder)!r}, plan=MeasurementPlan(max_seconds=600, precision=1e-9))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    watched = psutil.Process(parent.pid)
    children: list[psutil.Process] = []
    while not children:
        children = watched.children()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_quiet_times_are_kept_for_later_processes(decoder: Path) -> None:
    """A measurement uses the quiet time that is kept, to the bit, and its result is in proportion to it."""
    device = host_fingerprint(num_threads=1)
    keep_quiet_times(device, quiet(times=7))
    found = measure(decoder, WORKLOAD, plan=PLAN)
    assert found.prefill.yardstick_quiet_s == 0.007
    assert found.prefill.contention < 0.85
    assert any("was not quiet" in text for text in found.warnings)


def quiet(*, times: float = 1.0, is_final: bool = True) -> QuietTimes:
    return QuietTimes(seconds={name: value * times for name, value in QUIET_S.items()}, is_final=is_final)


def test_first_of_many_processes_decides_the_quiet_times() -> None:
    """Eight at once, each with times of its own: all are told the same, and it is what the file holds."""
    device = host_fingerprint()
    offers = [quiet(times=1 + index) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda offer: keep_quiet_times(device, offer)[0], offers))
    assert kept.count(kept[0]) == 8
    assert known_quiet_times(device) == (kept[0], None)


def test_quiet_times_of_a_busy_machine_give_way() -> None:
    """Provisional times go down until final ones come, which stay."""
    device = host_fingerprint()
    for offer, holds in (
        (quiet(times=2, is_final=False), quiet(times=2, is_final=False)),
        (quiet(times=3, is_final=False), quiet(times=2, is_final=False)),
        (quiet(times=1.5, is_final=False), quiet(times=1.5, is_final=False)),
        (quiet(times=1.6), quiet(times=1.6)),
        (quiet(times=1.2), quiet(times=1.6)),
        (quiet(times=1.1, is_final=False), quiet(times=1.6)),
    ):
        assert keep_quiet_times(device, offer) == (holds, None)
        assert known_quiet_times(device) == (holds, None)


@pytest.mark.parametrize("content", ["", "[]", '{"quiet_s": {"compute-1": "fast"}}', '{"quiet_s": {"compute-1": -1}}'])
def test_corrupt_quiet_times_are_replaced_with_a_warning(user_data: Path, content: str) -> None:
    """A damaged file is no reason to stop, and none to stay silent."""
    device = host_fingerprint()
    path = user_data / "yardsticks" / f"{device.hash}.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    times, warning = known_quiet_times(device)
    assert times is None
    assert warning is not None
    assert str(path) in warning
    assert keep_quiet_times(device, quiet()) == (quiet(), None)
    assert known_quiet_times(device) == (quiet(), None)


def test_quiet_times_that_cannot_be_kept_are_a_warning(user_data: Path) -> None:
    """Where the data folder cannot be made, the times hold for this measurement and the record says so."""
    user_data.write_text("a file where the folder should be", encoding="utf-8")
    times, warning = keep_quiet_times(host_fingerprint(), quiet())
    assert times == quiet()
    assert warning is not None
    assert "could not be kept" in warning


def test_fingerprint_tells_devices_apart() -> None:
    """Same machine and threads, same hash; another thread count or provider is another device."""
    device = host_fingerprint(num_threads=1)
    assert device.hash == host_fingerprint(num_threads=1).hash
    assert (
        len({device.hash, host_fingerprint(num_threads=2).hash, host_fingerprint(provider="cuda", num_threads=1).hash})
        == 3
    )
    assert device.memory_bytes == psutil.virtual_memory().total
    assert device.cpu_model


@pytest.mark.parametrize(
    ("change", "named"),
    [({"num_threads": 0}, "num_threads"), ({"precision": 2.0}, "precision"), ({"max_seconds": 0.0}, "max_seconds")],
)
def test_impossible_plan_is_refused_by_name(change: dict[str, float], named: str) -> None:
    """A plan that cannot be carried out never starts a process."""
    with pytest.raises(InputError, match=named):
        MeasurementPlan(**change)  # type: ignore[arg-type]
