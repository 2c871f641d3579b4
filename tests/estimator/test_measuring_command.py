"""`estimator measure` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from estimator.cli import main
from estimator.config import TransformerConfig
from estimator.measuring import host_fingerprint
from estimator.measuring.quiet_times import QuietTimes, keep_quiet_times
from estimator.measuring.yardstick import YARDSTICKS
from estimator.onnx_builder import build_onnx

QUICK = ("--max-seconds", "0.1", "--threads", "1", "--sequence-length", "16")
CONFIG = TransformerConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet times are there beforehand, so that no test waits for a quiet machine."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))
    times = QuietTimes(seconds=dict.fromkeys(YARDSTICKS, 0.001), is_final=True)
    keep_quiet_times(host_fingerprint(num_threads=1), times)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "archfront", **CONFIG.to_dict()}))
    return path


def test_json_has_the_keys_of_the_contract(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both phases, memory measured and predicted, the device, the protocol, the file; numbers with their origin."""
    assert main(["measure", str(config_file), *QUICK, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for phase in ("prefill", "decode"):
        assert {"normalised_s", "low_s", "high_s", "raw_median_s", "p90_s", "p99_s", "verdict"} <= set(document[phase])
    assert document["memory"]["peak_bytes"] > 0
    assert document["memory"]["predicted_bytes"] > 0
    assert document["device"]["num_threads"] == 1
    assert document["protocol"]["max_seconds"] == 0.1
    assert len(document["artifact"]["sha256"]) == 64
    assert set(document["machine"]) == {"before", "after"}
    assert document["request"] is None
    assert set(document["origins"].values()) == {"measured", "modelled"}


def test_every_combination_of_sizes_is_measured(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two prompts and two batch sizes are four documents, each as for one workload alone, of one file."""
    sizes = ("--sequence-length", "4,16,4", "--batch-size", "1,2")
    assert main(["measure", str(config_file), *QUICK, *sizes, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"workloads"}
    found = [(one["workload"]["batch_size"], one["prefill"]["sequence_length"]) for one in document["workloads"]]
    assert found == [(1, 4), (1, 16), (2, 4), (2, 16)]
    assert [one["decode"]["past_length"] for one in document["workloads"]] == [4, 16, 4, 16]
    assert len({one["artifact"]["sha256"] for one in document["workloads"]}) == 1


def test_whole_request_stands_beside_its_parts(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sum of prefill and steps, the time of the whole in a row, and how far they lie apart."""
    request = ("--generate", "3", "--whole-request")
    assert main(["measure", str(config_file), *QUICK, *request]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("request  ") for line in lines)
    assert any("prefill and 3 times a step" in line and "measured whole" in line for line in lines)


def test_file_of_ours_is_measured_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An .onnx file keeps its sha256, and its weight type need not be said."""
    artifact = build_onnx(CONFIG, path=tmp_path / "model.onnx", weight_dtype="int4-g128-zp")
    assert main(["measure", str(artifact.path), *QUICK, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    facts = {"sha256": artifact.sha256, "file_bytes": artifact.file_bytes, "weight_dtype": "int4-g128-zp"}
    assert document["artifact"] == facts
    assert document["workload"]["weight_dtype"] == "int4-g128-zp"


def test_table_shows_both_phases_and_the_next_step(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People read a row for each phase, memory beside its estimate, and what to do next."""
    assert main(["measure", str(config_file), *QUICK]) == 0
    captured = capsys.readouterr()
    rows = [line.split()[0] for line in captured.out.splitlines()]
    assert {"prefill", "decode", "peak", "file"} <= set(rows)
    assert "next: estimator size" in captured.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--weight-dtype", "fp8"), 2, "fp8"),
        (("--threads", "100000"), 3, "cores"),
        (("--batch-size", "0"), 3, "batch_size"),
        (("--provider", "abacus"), 3, "abacus"),
        (("--precision", "2"), 3, "precision"),
        (("--threads", "0"), 3, "num_threads"),
        (("--sequence-length", "0"), 3, "prompt_length"),
        (("--sequence-length", "16,0"), 3, "prompt_length"),
        (("--sequence-length", "16,many"), 2, "16,many"),
        (("--batch-size", ""), 2, "whole number"),
        (("--whole-request",), 3, "--generate"),
        (("--time-limit", "0.01"), 1, "time limit"),
    ],
)
def test_bad_option_is_one_line_that_names_it(
    config_file: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, said: str
) -> None:
    """The documented exit code and the thing's name; no traceback, nothing on standard output."""
    try:
        found = main(["measure", str(config_file), *QUICK, *options])
    except SystemExit as end:  # argparse
        found = int(end.code or 0)
    assert found == code
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there ends with exit code 3."""
    assert main(["measure", "nowhere.onnx", *QUICK]) == 3
    assert "nowhere.onnx" in capsys.readouterr().err


def test_terminated_command_leaves_nothing_behind(config_file: Path, tmp_path: Path) -> None:
    """SIGTERM while it measures: the child is gone, and so is the model that was built for it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-m", "estimator.cli", "measure", str(config_file), "--precision", "1e-9"]
    running = subprocess.Popen([*command, "--max-seconds", "600"], env={**os.environ, "TMPDIR": str(folder)})
    watched = psutil.Process(running.pid)
    children: list[psutil.Process] = []
    while not children:
        children = watched.children()
    running.terminate()
    assert running.wait() == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert list(folder.iterdir()) == []
