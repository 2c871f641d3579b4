"""`nas` as a user types it: one small real search, all that can be done with it, and what can be typed wrong."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from nas.cli import main
from nas.objectives import OBJECTIVES

SPACE = """
name = "tiny"
[base]
vocab_size = 256
max_position_embeddings = 64
num_attention_heads = 2
[choices]
num_hidden_layers = [1, 2]
hidden_size = [16, 32]
intermediate_size_per_layer = [32, 64]
"""
TEXT = "the quick brown fox jumps over the lazy dog and finds that it sleeps in the sun\n" * 300
NUM_TRIALS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a space and a text, and one finished search in `studies.db`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(SPACE)
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHFRONT_DATA", str(folder / "data"))
        patch.delenv("ARCHFRONT_STORE", raising=False)
        patch.chdir(folder)
        assert main(search("--name", "first", "--report", "report.html")) == 0
        yield folder


def search(*more: str) -> list[str]:
    return [
        *("search", "--space", "tiny.toml", "--data", "text.txt", "--store", "sqlite:///studies.db"),
        *("--trials", str(NUM_TRIALS), "--train-tokens", "4096", "--sequence-length", "32", "--prompt-length", "16"),
        *("--threads", "1", "--seed", "3", *more),
    ]


def nas(*words: str) -> list[str]:
    return [*words, "--store", "sqlite:///studies.db"]


def json_of(capsys: pytest.CaptureFixture[str], argv: Sequence[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(argv) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.usefixtures("folder")
def test_every_complete_trial_is_measured_and_scored_from_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Each trial has raw latency samples, a score, and figures whose origin says so, all of one existing file."""
    document = json_of(capsys, nas("show", "first", "--json"))
    trials = [t for t in document["trials"] if t["duplicate_of"] is None]  # type: ignore[attr-defined]
    assert sum(t["state"] == "complete" for t in trials) == NUM_TRIALS
    for trial in (t for t in trials if t["state"] == "complete"):
        artifact, measurement = trial["artifact"], trial["measurement"]
        assert (Path("studies.artifacts") / artifact["path"]).is_file()
        assert measurement["artifact_sha256"] == artifact["sha256"]
        assert measurement["prefill"]["raw_samples_s"]
        assert measurement["decode"]["raw_samples_s"]
        assert 0 < trial["figures"]["bits_per_byte"]["value"] < 9
        assert trial["figures"]["bits_per_byte"]["origin"] == "measured"
        assert trial["figures"]["decode_latency_s"]["origin"] == "measured"
        assert trial["figures"]["params"]["origin"] == "counted"
        assert trial["figures"]["params"]["value"] == artifact["num_params"]


@pytest.mark.usefixtures("folder")
def test_pareto_document_has_the_keys_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    """study, objectives, points with trial, config and values, reference, hypervolume."""
    document = json_of(capsys, nas("pareto", "latest", "--json"))
    assert {"study", "objectives", "points", "reference", "hypervolume"} <= set(document)
    points = document["points"]
    assert isinstance(points, list)
    assert points
    for point in points:
        assert {"trial", "config", "values"} <= set(point)
        assert set(point["values"]) == {"bits_per_byte", "decode_latency_s"}
        for figure in point["values"].values():
            assert {"value", "low", "high", "origin"} == set(figure)


@pytest.mark.usefixtures("folder")
def test_tables_name_every_figure_of_the_front(capsys: pytest.CaptureFixture[str]) -> None:
    """The front as people see it has the architecture, parameters, quality, both latencies, memory and file size."""
    for argv in (nas("pareto", "first"), nas("show", "first"), nas("list"), nas("show", "first", "0")):
        assert main(argv) == 0
    printed = capsys.readouterr().out
    for heading in ("architecture", "parameters", "bits per byte", "prefill latency", "decode latency", "peak memory"):
        assert heading in printed
    assert "file size" in printed
    assert "tiny" in printed


@pytest.mark.usefixtures("folder")
def test_same_search_again_pays_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A second study of the same seed is answered from the store: same files, same figures, no cost."""
    assert main(search("--name", "second")) == 0
    first = json_of(capsys, nas("show", "first", "--json"))["trials"]
    second = json_of(capsys, nas("show", "second", "--json"))["trials"]
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert [trial["figures"] for trial in first] == [trial["figures"] for trial in second]
    assert {o["cost_s"] for trial in second for o in trial["observations"]} == {0.0}


@pytest.mark.usefixtures("folder")
def test_resume_extends_the_budget_and_a_finished_study_answers_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """`search --exist-ok` shows a finished study; `resume --trials` goes on from there."""
    assert main(search("--name", "first", "--exist-ok")) == 0
    before = json_of(capsys, nas("show", "first", "--json"))["trials"]
    assert main(nas("resume", "first", "--trials", str(NUM_TRIALS + 1), "--quiet")) == 0
    after = json_of(capsys, nas("show", "first", "--json"))["trials"]
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert after[: len(before)] == before
    assert sum(t["state"] == "complete" and t["duplicate_of"] is None for t in after) == NUM_TRIALS + 1


def test_report_is_one_file_that_asks_for_nothing(folder: Path) -> None:
    """The report holds its data and its library, and no address outside itself that a browser would load."""
    html = (folder / "report.html").read_text()
    assert "first" in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", html)


@pytest.mark.usefixtures("folder")
def test_export_ships_the_measured_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The exported ONNX file is byte for byte the trial's; the card and the checkpoint stand beside it."""
    trial = json_of(capsys, nas("show", "first", "0", "--json"))
    assert main(nas("export", "first", "0", str(tmp_path / "model"))) == 0
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    (onnx_file,) = (tmp_path / "model").glob("*.onnx")
    stored = Path("studies.artifacts") / trial["artifact"]["path"]  # type: ignore[index]
    assert onnx_file.read_bytes() == stored.read_bytes()


@pytest.mark.usefixtures("folder")
def test_generate_continues_the_prompt(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The prompt and so many more bytes, the same each time without temperature."""
    texts = []
    for _ in range(2):
        assert main(nas("generate", "first", "0", "--prompt", "the ", "--max-new-tokens", "12")) == 0
        texts.append(capfdbinary.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith(b"the ")
    assert len(texts[0]) == 4 + 12 + 1


@pytest.mark.usefixtures("folder")
def test_limits_rule_out_candidates_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    """With --max-params, pruned trials have a reason and no file, and complete ones keep the limit."""
    assert main(search("--name", "limited", "--max-params", "12K", "--trials", "2")) == 0
    trials = json_of(capsys, nas("show", "limited", "--json"))["trials"]
    assert isinstance(trials, list)
    for trial in trials:
        within = trial["figures"]["params"]["value"] <= 12_000
        assert within == (trial["state"] == "complete")
        assert within or ("params" in trial["error_text"] and trial["artifact"] is None)


@pytest.mark.usefixtures("folder")
def test_exhausted_space_ends_the_search_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A budget beyond the space ends with what there is."""
    Path("one.toml").write_text(SPACE.replace("[1, 2]", "[1]").replace("[16, 32]", "[16]").replace("[32, 64]", "[32]"))
    assert main([*search("--name", "one", "--trials", "5"), "--space", "one.toml"]) == 0
    assert "no new candidate is left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--space", "decoder-huge"), 2, "decoder-huge"),
        (("--space", "missing.toml"), 2, r"missing\.toml"),
        (("--objective", "beauty"), 2, "beauty"),
        (("--objective", "beauty"), 2, "bits_per_byte"),
        (("--sampler", "oracle"), 2, "oracle.*tpe"),
        (("--device", "abacus"), 2, "abacus.*cpu"),
        (("--max-latency", "20MB"), 2, "20MB"),
        (("--max-latency", "soon"), 2, "soon"),
        (("--max-params", "10"), 2, "params"),
        (("--max-latency", "1ns"), 2, "latency"),
        (("--trials", "0"), 2, "trials"),
        (("--report", "empty"), 2, "empty is not a file"),
        (("--threads", "0"), 2, "threads"),
        (("--weight-dtype", "int3"), 2, "fp32"),
        (("--prompt-length", "0"), 2, "prompt_length"),
        (("--batch-size", "-1"), 2, "batch_size"),
        (("--data", ""), 2, "--data"),
        (("--seed", "99999999999999999999"), 2, r"2\^31"),
        (("--space", "deep.toml"), 2, "4096"),
        (("--space", "letters.toml"), 2, "vocab_size 100"),
        (("--data", "nowhere"), 3, "nowhere"),
        (("--data", "empty"), 3, "empty"),
        (("--data", "binary.bin"), 3, r"binary\.bin"),
        (("--data", "short.txt"), 3, r"short\.txt"),
        (("--quality", "no_such_module:score"), 2, "no_such_module"),
        (("--quality", "dance"), 2, "dance"),
        (("--name", "first"), 2, "resume first"),
        (("--store", "nonsense"), 2, "nonsense"),
        (("--store", "sqlite:////no/such/folder/x.db"), 1, "no/such/folder"),
        (("--store", "sqlite:///text.txt"), 1, r"text\.txt"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    """One line on standard error, the documented exit code, no study and no traceback."""
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "binary.bin").write_bytes(bytes(range(256)) * 50)
    (folder / "short.txt").write_text("short")
    (folder / "deep.toml").write_text(SPACE.replace("[1, 2]", "[1, 1000000000]"))
    (folder / "letters.toml").write_text(SPACE.replace("256", "100"))
    argv = search(*words)
    if "--data" in words:
        argv[argv.index("text.txt")] = words[1]
    if "--quality" in words:
        del argv[argv.index("--data") : argv.index("--data") + 2]
    before = len(json_of(capsys, nas("list", "--json")))
    assert exit_code(argv) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert re.search(said, lines[-1]), captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert len(json_of(capsys, nas("list", "--json"))) == before
    assert (folder / "text.txt").read_text() == TEXT


def exit_code(argv: Sequence[str]) -> int:
    try:
        return main(argv)
    except SystemExit as end:  # argparse
        return int(end.code or 0)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "nobody"), "nobody.*the latest: "),
        (("show", "first", "999"), "999"),
        (("pareto", "nobody"), "nobody"),
        (("resume", "nobody"), "nobody"),
        (("export", "first", "999", "x"), "999"),
        (("generate", "first", "999", "--prompt", "x"), "999"),
        (("delete", "nobody", "--yes"), "nobody"),
    ],
)
def test_unknown_study_or_trial_is_named(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    """What is not in the store is named, with what is."""
    assert main(nas(*words)) == 2
    captured = capsys.readouterr().err
    assert re.search(said, captured)
    assert len(captured.strip().splitlines()) == 1


def test_store_of_a_newer_version_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A version that this one does not know is refused, and the file stays as it was."""
    assert main(["list", "--store", "sqlite:///newer.db"]) == 0
    with closing(sqlite3.connect(folder / "newer.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from-the-future'")
    assert main(["list", "--store", "sqlite:///newer.db"]) == 1
    assert re.search("newer", capsys.readouterr().err)


def test_failed_candidate_is_stored_with_its_reason_and_the_search_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's evaluator that fails on wide models: those trials fail with its words, the others complete."""
    (folder / "picky.py").write_text(
        "def score(config, onnx_path):\n"
        "    if config.hidden_size > 16:\n"
        "        raise ValueError('too wide for my taste')\n"
        "    return 1.0 + config.num_hidden_layers\n"
    )
    argv = search("--name", "picky", "--trials", "6")
    del argv[argv.index("--data") : argv.index("--data") + 2]
    assert main([*argv, "--quality", "picky:score"]) == 0
    trials = json_of(capsys, nas("show", "picky", "--json"))["trials"]
    assert isinstance(trials, list)
    wide = [t for t in trials if t["config"]["hidden_size"] > 16 and t["state"] != "pruned"]
    narrow = [t for t in trials if t["config"]["hidden_size"] == 16]
    assert wide
    assert narrow
    assert all(t["state"] == "fail" and "too wide for my taste" in t["error_text"] for t in wide)
    assert all(t["state"] == "complete" for t in narrow)


@pytest.mark.parametrize(
    ("returned", "said"),
    [("{'zork': 3}", "zork"), ("{'bits_per_byte': 3, 'params': 7}", "params"), ("float('nan')", "nan")],
)
def test_evaluator_that_oversteps_fails_its_trials(
    folder: Path, capsys: pytest.CaptureFixture[str], returned: str, said: str
) -> None:
    """Figures that are unknown, counted elsewhere or not finite fail the trial; nothing is relabelled."""
    module = f"overstep_{said}"
    (folder / f"{module}.py").write_text(f"def score(config, onnx_path):\n    return {returned}\n")
    argv = search("--name", module, "--trials", "1", "--quality", f"{module}:score")
    del argv[argv.index("--data") : argv.index("--data") + 2]
    assert main(argv) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    (trial,) = json_of(capsys, nas("show", module, "--json"))["trials"]  # type: ignore[misc]
    assert (trial["state"], trial["figures"]["params"]["origin"]) == ("fail", "counted")


def test_evaluator_has_objectives_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name and a direction that only the user's evaluator knows is searched for like any other."""
    (folder / "taste.py").write_text("def score(config, onnx_path):\n    return {'taste': config.hidden_size}\n")
    argv = search(
        "--name", "taste", "--quality", "taste:score", "--objective", "taste:maximize", "--objective", "params"
    )
    del argv[argv.index("--data") : argv.index("--data") + 2]
    assert main(argv) == 0
    points = json_of(capsys, nas("pareto", "taste", "--json"))["points"]
    assert isinstance(points, list)
    assert all(point["values"]["taste"]["value"] == point["config"]["hidden_size"] for point in points)


def test_resume_refuses_a_budget_below_what_is_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A total that is smaller than the trials there are is a mistake, not a wish."""
    assert main(nas("resume", "first", "--trials", "1")) == 2
    assert "--trials is the new total" in capsys.readouterr().err


def test_interrupt_stops_cleanly_and_says_how_to_go_on(folder: Path) -> None:
    """Ctrl-C in the middle of a trial: exit code 130, the command to go on with, no traceback, no process left."""
    argv = search("--name", "interrupted", "--train-tokens", "100000000")
    command = [sys.executable, "-m", "nas.cli", *argv]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert process.stderr is not None
    with process.stderr:
        assert "study interrupted" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        talk = process.stderr.read()
    assert process.wait() == 130
    assert "nas resume interrupted" in talk
    assert "Traceback" not in talk


@pytest.mark.usefixtures("folder")
def test_delete_removes_the_study_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Another study still answers, and the deleted one is not found."""
    assert main(search("--name", "doomed")) == 0
    assert main(nas("delete", "doomed", "--yes")) == 0
    assert main(nas("show", "doomed")) == 2
    assert json_of(capsys, nas("show", "first", "--json"))["trials"]


@pytest.mark.parametrize("words", [(), ("search",), ("resume",), ("export",), ("db", "upgrade")])
def test_help_teaches(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """--help of every level ends with exit code 0 and says what things are for."""
    assert exit_code([*words, "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_search_help_lists_every_objective(capsys: pytest.CaptureFixture[str]) -> None:
    """No objective is a secret."""
    exit_code(["search", "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert all(name in text for name in OBJECTIVES)
