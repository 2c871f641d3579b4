"""Two files in alternation: the verdict on a clock that the test turns, and the command on real sessions."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from estimator.cli import main
from estimator.config import TransformerConfig
from estimator.errors import CorruptFileError, InputError
from estimator.measuring import MeasurementPlan, measure_pair
from estimator.measuring.comparison import PhaseComparison, compare_phase
from estimator.measuring.protocol import measure_paired
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
LEARNED = replace(CONFIG, position_embedding="learned", max_position_embeddings=16)
ENCODER = replace(CONFIG, architecture="encoder", head="masked_lm", position_embedding="learned")
PLAN = MeasurementPlan(num_threads=1, max_seconds=0.05, time_limit_s=120.0)
QUICK = ("--max-seconds", "0.05", "--threads", "1", "--sequence-length", "16")


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))


class Machine:
    """A clock that calls advance, on a machine whose load swings between none and the double, with noise."""

    def __init__(self, noise: float, seed: int) -> None:
        self.now_s = 0.0
        self._noise = noise
        self._generator = np.random.default_rng(seed)

    def __call__(self) -> float:
        return self.now_s

    def work(self, duration_s: float) -> None:
        load = 1.0 if self.now_s % 1.8 < 0.7 else 2.0
        self.now_s += duration_s * load * float(self._generator.lognormal(0, self._noise))


def compared(a_s: float, b_s: float, *, noise: float = 0.01, seed: int = 0) -> PhaseComparison:
    machine, plan = Machine(noise, seed), MeasurementPlan(max_seconds=3.0)
    blocks = measure_paired(
        lambda: machine.work(b_s),
        lambda: machine.work(a_s),
        is_parallel=True,
        precision=plan.precision,
        max_seconds=plan.max_seconds,
        seed=0,
        clock=machine,
    )
    answer = {"blocks": {"prefill": asdict(blocks)}, "past_length": {"prefill": 0}}
    return compare_phase("prefill", answer, Workload(), plan)


@pytest.mark.parametrize(
    ("a_s", "b_s", "verdict"),
    [
        (0.004, 0.004, "same"),
        (0.004, 0.0036, "faster"),
        (0.004, 0.0044, "slower"),
        (0.1, 0.001, "faster"),
        (0.001, 0.1, "slower"),
    ],
)
def test_ratio_holds_on_a_machine_whose_load_swings(a_s: float, b_s: float, verdict: str) -> None:
    """The ratio is that of the durations within 5 %, be it 1 or 100, although the clock says up to the double."""
    found = compared(a_s, b_s)
    assert found.ratio == pytest.approx(b_s / a_s, rel=0.05)
    assert found.low <= found.ratio <= found.high
    assert found.verdict == verdict


def test_equal_files_are_seldom_told_apart() -> None:
    """On forty machines where single calls swing by a fifth, at most six find one of two equal files faster."""
    verdicts = [compared(0.04, 0.04, noise=0.2, seed=seed).verdict for seed in range(40)]
    assert sum(verdict in ("faster", "slower") for verdict in verdicts) <= 6
    assert "undecided" in verdicts


def test_twenty_times_the_vocabulary_is_slower_and_back(tmp_path: Path) -> None:
    """A and B are not mixed up: a model with a far larger output is slower as B, and as A makes the other faster."""
    small = build_onnx(CONFIG, path=tmp_path / "small.onnx").path
    large = build_onnx(replace(CONFIG, vocab_size=200_000), path=tmp_path / "large.onnx").path
    slower = measure_pair(small, large, Workload(prompt_length=16), plan=PLAN)
    faster = measure_pair(large, small, Workload(prompt_length=16), plan=PLAN)
    for comparison, verdict in ((slower, "slower"), (faster, "faster")):
        assert comparison.decode is not None
        assert (comparison.prefill.verdict, comparison.decode.verdict) == (verdict, verdict)
        assert (comparison.decode.sequence_length, comparison.decode.past_length) == (1, 16)
    assert (slower.a_sha256, slower.b_sha256) == (faster.b_sha256, faster.a_sha256)
    assert slower.b_file_bytes == large.stat().st_size


def test_phases_of_both_are_compared(tmp_path: Path) -> None:
    """An encoder and a decoder share prefill; two contexts that differ are no comparison."""
    decoder = build_onnx(CONFIG, path=tmp_path / "decoder.onnx").path
    encoder = build_onnx(ENCODER, path=tmp_path / "encoder.onnx").path
    assert measure_pair(encoder, decoder, Workload(prompt_length=16), plan=PLAN).decode is None
    learned = build_onnx(LEARNED, path=tmp_path / "learned.onnx").path
    with pytest.raises(InputError, match="16 and 15 tokens"):
        measure_pair(decoder, learned, Workload(prompt_length=16), plan=PLAN)
    with pytest.raises(CorruptFileError, match=r"nowhere\.onnx"):
        measure_pair(decoder, tmp_path / "nowhere.onnx", plan=PLAN)


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "archfront", **CONFIG.to_dict()}))
    return str(path)


def test_one_source_with_two_weight_types(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A in fp32, B in int8, as JSON with both files, their ratio and all samples, for each prompt."""
    options = ("--weight-dtype", "fp32,int8", *QUICK, "--sequence-length", "4,16", "--json")
    assert main(["measure", "--compare", config_file, config_file, *options]) == 0
    workloads = json.loads(capsys.readouterr().out)["workloads"]
    assert [document["prefill"]["sequence_length"] for document in workloads] == [4, 16]
    for document in workloads:
        assert (document["a"]["weight_dtype"], document["b"]["weight_dtype"]) == ("fp32", "int8")
        assert document["a"]["sha256"] != document["b"]["sha256"]
        for phase in ("prefill", "decode"):
            found = document[phase]
            assert 0 < found["low"] <= found["ratio"] <= found["high"]
            assert len(found["a_samples_s"]) == len(found["b_samples_s"]) + 1


def test_file_beside_a_config_as_a_table(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People read both names, a row for each phase and what B is; temporary files are gone."""
    path = build_onnx(CONFIG, path=tmp_path / "model.onnx").path
    assert main(["measure", "--compare", str(path), config_file, *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"A: {path}")
    assert lines[2].startswith(f"B: {config_file}")
    rows = {line.split()[0]: line.split()[-1] for line in lines[4:6]}
    assert set(rows) == {"prefill", "decode"}
    assert set(rows.values()) <= {"faster", "slower", "same", "undecided"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--compare", "gpt2"), 2, "--compare"),
        (("gpt2", "--compare", "gpt2", "gpt2"), 3, "leave 'gpt2' out"),
        ((), 3, "--compare A B"),
        (("gpt2", "--weight-dtype", "fp32,int8"), 3, "give one"),
        (("--compare", "gpt2", "gpt2", "--weight-dtype", "fp32,int8,int4"), 2, "at most two"),
        (("--compare", "gpt2", "gpt2", "--weight-dtype", "fp32,fp8"), 2, "fp8"),
        (("--compare", "gpt2", "gpt2", "--generate", "2", "--whole-request"), 3, "--whole-request"),
        (("--compare", "gpt2", "nowhere.onnx"), 3, "nowhere.onnx"),
        (("--compare", "gpt2", "no-such-model"), 3, "no-such-model"),
    ],
)
def test_impossible_comparison_is_one_line(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, said: str
) -> None:
    """The documented exit code, what is wrong, no traceback."""
    try:
        found = main(["measure", *options])
    except SystemExit as end:  # argparse
        found = int(end.code or 0)
    assert found == code
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[-1]
    assert captured.out == ""
