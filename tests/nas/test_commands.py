"""What the commands that only look, ship and tidy up say, over a store that was filled without a search."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from estimator.figures import Figure
from nas.cli import main
from nas.objectives import Constraint, Objective
from nas.pareto import front_of
from nas.progress import ProgressView
from nas.records import Artifact
from nas.space import SearchSpace
from nas.spec import QualitySettings, StudySpec
from nas.standing import count_trials, describe_counts, num_paid, stored_counts
from nas.store import Store
from nas.study import Study

SPEC = StudySpec(space=SearchSpace.preset("decoder-nano"), num_trials=5)
# (bits per byte, decode seconds): trials 0 and 1 are on the front, trial 1 is the best in bits per byte.
FIGURES = ((3.0, 1e-5), (2.5, 2e-4), (2.6, 3e-4))


def measured(value: float) -> Figure:
    return Figure(value=value, low=value * 0.98, high=value * 1.03, origin="measured")


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def store(url):
    with Store.open(url) as store:
        yield store


def fill(store, spec=SPEC, name="first"):
    """Three complete trials, a failed one, two that repeat a complete and one that repeats the failed one."""
    study = store.create_study(spec, name)
    params = list(spec.space.sample(len(FIGURES) + 1, seed=1))
    configs = [spec.space.to_config(choice) for choice in params]
    for choice, config, (bits, latency_s) in zip(params, configs, FIGURES, strict=False):
        trial = store.start_trial(study.id, params=choice, config=config)
        figures = {"bits_per_byte": measured(bits), "decode_latency_s": measured(latency_s)}
        figures |= {"prefill_latency_s": measured(latency_s), "params": Figure(value=90_000, origin="counted")}
        store.finish_trial(study.id, trial.number, "complete", figures=figures)
    trial = store.start_trial(study.id, params=params[-1], config=configs[-1])
    store.finish_trial(study.id, trial.number, "fail", error_type="crash", error_text="[red]it crashed")
    for first in (0, 0):
        store.start_trial(study.id, params=params[first], config=configs[first], state="complete", duplicate_of=first)
    store.start_trial(study.id, params=params[-1], config=configs[-1], state="pruned", duplicate_of=3)
    return study


def test_counts_keep_repeated_trials_apart_everywhere(store):
    """From records or by SQL: 3 complete, 1 failed, 3 repeated, whatever state those have."""
    study = fill(store)
    counts = count_trials(store.trials(study.id))
    assert counts == {"running": 0, "complete": 3, "pruned": 0, "fail": 1, "repeated": 3}
    assert stored_counts(store, study.id) == counts
    assert num_paid(counts) == 4
    assert describe_counts(counts) == "3 complete, 1 failed, 3 repeated"
    assert describe_counts(count_trials([])) == "0 complete"


def test_live_view_counts_as_everything_else_does(store):
    """A search of many repeated trials never shows a negative count."""
    fill(store)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, color_system=None)
    with ProgressView(Study.load(store, "first"), console=console):
        pass
    assert "3 complete, 1 failed, 3 repeated" in screen.getvalue()
    assert "4/5" in screen.getvalue()


def test_list_counts_what_was_paid_for_and_reads_no_trial(store, url, capsys, monkeypatch):
    """Repeated trials do not make it 7 of 5."""
    fill(store)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a list needs counts alone")

    monkeypatch.setattr(Store, "trials", refuse)
    assert main(["list", "--store", url]) == 0
    assert " 4 of 5 " in capsys.readouterr().out
    assert main(["list", "--json", "--store", url]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["complete"], entry["fail"], entry["repeated"]) == (3, 1, 3)


def test_killed_study_is_stopped_wherever_it_is_shown(store, url, capsys, tmp_path):
    """`running` without a process that holds the study: list, show and report say stopped."""
    study = fill(store)
    store.set_study_state(study.id, "running")
    commands = (["list"], ["list", "--json"], ["show", "first"], ["show", "first", "--json"])
    for words in commands:
        assert main([*words, "--store", url]) == 0
        printed = capsys.readouterr().out
        assert "stopped" in printed
        assert not re.search(r"\brunning\b(?!\": 0)", printed)
    assert main(["report", "first", "--store", url]) == 0
    assert ", stopped, created" in (tmp_path / "report.html").read_text()
    with store.lock_study(study.id):
        assert main(["list", "--store", url]) == 0
    assert " running " in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "code", "left"), [("", 2, 1), ("n\n", 1, 1), ("\n", 1, 1), ("y\n", 0, 0)])
def test_delete_asks_on_standard_error(store, url, capsys, monkeypatch, answer, code, left):
    """Without an answer it says what to give; standard output stays empty."""
    fill(store)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert main(["delete", "first", "--store", url]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "delete first with 7 trials? [y/N]" in captured.err
    assert ("give --yes" in captured.err) == (code == 2)
    assert len(store.list_studies()) == left


def run_nas(url, *words, **environment):
    """`nas` as a process of its own, with its bytes."""
    return subprocess.run(
        [sys.executable, "-m", "nas.cli", *words, "--store", url],
        capture_output=True,
        env={**os.environ, **environment},
    )


def test_tables_are_readable_without_unicode(store, url):
    """An output that knows ASCII alone gets microseconds as us, and no traceback."""
    fill(store, name="größer")
    result = run_nas(url, "pareto", "größer", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert result.returncode == 0, result.stderr
    assert b"10.0 us" in result.stdout
    assert rb"gr\xf6\xdfer" in result.stdout


@pytest.fixture
def model(store):
    """A complete trial with a real ONNX file of random weights; gives the file's path."""
    from estimator.onnx_builder import build_onnx

    spec = replace(
        SPEC, quality=QualitySettings(evaluator="none"), objectives=(Objective("file_bytes"), Objective("params"))
    )
    study = store.create_study(spec, "model")
    (params,) = spec.space.sample(1, seed=1)
    config = spec.space.to_config(params)
    store.artifact_dir.mkdir(parents=True)
    built = build_onnx(config, path=store.artifact_dir / "model.onnx")
    artifact = Artifact(
        sha256=built.sha256,
        path="model.onnx",
        file_bytes=built.file_bytes,
        opset=built.opset,
        num_params=built.num_params,
        weight_dtype=built.weight_dtype,
        weights_path="model.safetensors",
        architecture_hash=built.architecture_hash,
    )
    store.save_artifact(artifact)
    trial = store.start_trial(study.id, params=params, config=config)
    store.attach_artifact(study.id, trial.number, built.sha256)
    figures = {"file_bytes": Figure(value=built.file_bytes, origin="measured")}
    figures["params"] = Figure(value=built.num_params, origin="counted")
    store.finish_trial(study.id, trial.number, "complete", figures=figures)
    return built.path


@pytest.mark.parametrize("prompt", ["hé".encode(), b"\xff\xfe"])
def test_generate_writes_the_prompts_own_bytes(model, url, prompt):
    """Whatever bytes the prompt is made of come out as they went in, on any output."""
    words = ("generate", "model", "0", "--max-new-tokens", "3", "--prompt", os.fsdecode(prompt))
    result = run_nas(url, *words, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(prompt)
    assert len(result.stdout) == len(prompt) + 3 + 1


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_generate_and_export_refuse_another_file_alike(model, url, capsys, damage):
    """One line, the same for both, and exit code 1."""
    if damage == "missing":
        model.unlink()
    else:
        model.write_bytes(model.read_bytes() + b"\0")
    said = []
    for words in (("generate", "model", "0", "--prompt", "x"), ("export", "model", "0", "out")):
        if words[0] == "export":
            (model.parent / "model.safetensors").write_bytes(b"")
        assert main([*words, "--store", url]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        said.append(captured.err)
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 1


@pytest.fixture
def narrow(monkeypatch):
    """Makes standard output a plain terminal of so many columns."""

    def resize(width: int) -> None:
        for name, value in (("FORCE_COLOR", "1"), ("NO_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(width))):
            monkeypatch.setenv(name, value)

    return resize


def test_front_says_where_every_figure_comes_from(store, url, capsys):
    """Each cell has its origin; the best in the first objective stands first."""
    fill(store)
    assert main(["pareto", "first", "--store", url]) == 0
    printed = capsys.readouterr().out
    assert printed.count("measured") == 2 * 3
    assert printed.count("counted") == 2
    assert printed.index("2.500") < printed.index("3.000")


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("words", [("pareto", "first"), ("show", "first"), ("show", "first", "0"), ("list",)])
def test_narrow_terminals_break_no_word_and_no_number(store, url, capsys, narrow, width, words):
    """A table that does not fit becomes a block for each row: no line is too long, no value is cut."""
    fill(store)
    narrow(width)
    assert main([*words, "--store", url]) == 0
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= width
    words_printed = printed.split()
    expected = ["first", "4", "5"] if words == ("list",) else ["10.0", "[2.940,", "3.090]", "measured"]
    for word in expected:
        assert any(word in printed_word for printed_word in words_printed), (word, printed)


def test_tables_show_markup_in_a_reason_as_text(store, url, capsys):
    """What looks like rich's markup is somebody's words."""
    fill(store)
    assert main(["show", "first", "--store", url]) == 0
    assert "fail: [red]it crashed" in capsys.readouterr().out


def test_study_without_a_feasible_trial_says_what_comes_nearest(store, url, capsys):
    """The nearest trial, its figure and the limit in people's units; nothing to type holds a placeholder."""
    from nas.next_commands import next_commands

    study = fill(store, replace(SPEC, constraints=(Constraint("decode_latency_s", 5e-6),)))
    assert main(["pareto", "first", "--store", url]) == 0
    printed = capsys.readouterr().out
    assert "trial 0 comes nearest: decode latency 10.0 µs where the limit is 5.00 µs" in printed
    commands = [command for command, _ in next_commands(study, front_of(study.spec, store.trials(study.id)), url)]
    assert [command.split()[1:3] for command in commands] == [["show", "first"], ["resume", "first"]]
    assert not any("TRIAL" in command for command in commands)


@pytest.mark.parametrize(
    ("change", "writes"),
    [
        ({}, True),
        ({"space": SearchSpace.preset("encoder-small"), "objectives": ()}, False),
        ({"quality": QualitySettings(evaluator="mine:score")}, False),
    ],
)
def test_next_commands_are_those_that_work(store, change, writes):
    """Only a decoder that was trained is asked to write."""
    from nas.next_commands import next_commands

    study = fill(store, replace(SPEC, **change))
    commands = [command for command, _ in next_commands(study, front_of(study.spec, store.trials(study.id)), None)]
    assert any(" generate first 1 " in command for command in commands) == writes
    assert sum(" export first 1 " in command for command in commands) == 1


@pytest.mark.parametrize("words", [("pareto", "coded"), ("show", "coded"), ("show", "coded", "0")])
def test_terminal_calls_the_score_of_encoders_masked(store, url, capsys, words):
    """Bits per byte behind a mask have a heading of their own."""
    fill(store, replace(SPEC, space=SearchSpace.preset("encoder-small"), objectives=()), name="coded")
    assert main([*words, "--store", url]) == 0
    assert "masked bits per byte" in " ".join(capsys.readouterr().out.split())


def test_report_refuses_a_folder(store, url, capsys, tmp_path):
    """One line that names the folder, wrong usage, no traceback."""
    fill(store)
    assert main(["report", "first", "-o", str(tmp_path), "--store", url]) == 2
    assert f"{tmp_path} is not a file; name the file" in capsys.readouterr().err
