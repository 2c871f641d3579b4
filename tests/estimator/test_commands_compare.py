"""The command line `estimator compare`, called as a user calls it."""

from __future__ import annotations

import json

import pytest

from estimator.cli import main
from estimator.comparing import FIGURES


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """A function: exit code, stdout and stderr of one command, without this user's calibrations."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))

    def call(*arguments):
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_compare_says_of_each_model_what_size_says(run):
    """The estimate of each source is the document of `estimator size`; ratios are to the first."""
    options = ("--device", "l4", "--generate", "16", "--batch-size", "2")
    code, out, err = run("compare", "gpt2", "mistral-7b", "bert-base-uncased", *options, "--json")
    assert (code, err) == (0, "")
    models = json.loads(out)["models"]
    for model in models:
        sized = json.loads(run("size", model["source"], *options, "--json")[1])
        assert {key: sized[key] for key in model["estimate"]} == model["estimate"]
        assert model["figures"]["params_total"]["value"] == sized["params"]["total"]
        assert set(model["figures"]) == set(FIGURES)
    gpt2, mistral, bert = models
    assert mistral["ratios"]["params_total"] == pytest.approx(7_241_732_096 / 124_439_808)
    assert gpt2["ratios"]["total_bytes"] == 1.0
    assert bert["figures"]["decode_flops_per_token"] is None
    assert bert["ratios"]["decode_s_per_token"] is None


def test_the_table_has_a_column_for_each_model(run):
    """More models than a line holds go on below, beside the first."""
    names = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "mistral-7b"]
    code, out, err = run("compare", *names, "--device", "l4")
    assert code == 0
    heads = [line.split() for line in out.splitlines() if line.strip().startswith("gpt2 ")]
    assert heads == [["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"], ["gpt2", "mistral-7b"]]
    assert max(len(line) for line in out.splitlines() if not line.startswith("warning")) <= 120
    assert "next: estimator compare" in err


def test_a_bad_source_hides_no_other(run):
    """The others are shown, the bad one is named on stderr, and the exit code is 3."""
    code, out, err = run("compare", "nothing-of-the-kind", "gpt2", "mistral-7b")
    assert code == 3
    assert "124.4 M" in out
    assert "estimator: nothing-of-the-kind: " in err
    code, out, _ = run("compare", "gpt2", "nothing-of-the-kind", "--json")
    models = json.loads(out)["models"]
    assert code == 3
    assert [model["source"] for model in models] == ["gpt2", "nothing-of-the-kind"]
    assert models[0]["error"] is None
    assert models[1]["estimate"] is None
    assert "neither a file" in models[1]["error"]


def test_no_good_source_at_all_prints_no_table(run):
    """Every source is named with its reason."""
    code, out, err = run("compare", "nope-1", "nope-2")
    assert (code, out) == (3, "")
    assert "nope-1" in err
    assert "nope-2" in err


def test_the_same_source_twice_has_ratios_of_one(run):
    """Nothing is lost when a source is repeated."""
    code, out, _ = run("compare", "gpt2", "gpt2", "--json")
    models = json.loads(out)["models"]
    assert (code, len(models)) == (0, 2)
    assert set(models[1]["ratios"].values()) <= {1.0, None}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gpt2"], 3, "at least two sources"),
        ([], 2, "the following arguments are required: SOURCE"),
        (["gpt2", "mistral-7b", "--device", "nope"], 3, "unknown device 'nope'"),
        (["gpt2", "mistral-7b", "--html", "."], 3, "is a folder"),
    ],
)
def test_wrong_usage_is_one_clear_line(run, arguments, code, message):
    """No traceback; the line names what would be right."""
    found, _, err = run("compare", *arguments)
    assert found == code
    assert message in err
    assert "Traceback" not in err


def test_each_warning_is_said_once_with_its_models(run):
    """A prompt that is too long for two of three is one line."""
    _, out, _ = run("compare", "gpt2", "gpt2-medium", "llama-3.1-8b", "--sequence-length", "2000")
    lines = [line for line in out.splitlines() if "more than the 1,024" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: gpt2, gpt2-medium: ")


def test_help_teaches_by_examples(run):
    """The command explains itself."""
    code, out, _ = run("compare", "--help")
    assert code == 0
    assert "--html FILE" in out
    assert "estimator compare llama-3.1-8b mistral-7b" in out
