"""The command `estimator models`, as a user runs it."""

from __future__ import annotations

import json

import pytest

from estimator.cli import main
from estimator.readers.source import bundled_models


def _run(capsys, *arguments):
    code = main(["models", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_models_lists_every_bundled_name(capsys):
    """One line for each, with its exact count, after the headings; what to do next on stderr."""
    code, out, err = _run(capsys)
    heading, *lines = out.splitlines()
    assert code == 0
    assert heading.startswith("name")
    assert [line.split()[0] for line in lines] == list(bundled_models())
    assert "124,439,808" in next(line for line in lines if line.startswith("gpt2 "))
    assert "estimator size" in err


def test_models_json_has_what_the_table_has(capsys):
    """Totals, active parameters of experts, stacks and classes."""
    code, out, err = _run(capsys, "--json", "mixtral-8x7b")
    (row,) = json.loads(out)["models"]
    assert (code, err) == (0, "")
    idle = 32 * 6 * 3 * 4096 * 14336  # layers, experts that are not chosen, matrices
    assert row["params"] == {"total": 46_702_792_704, "active": 46_702_792_704 - idle}
    assert (row["architecture"], row["class"], row["layers"]) == ("decoder", "MixtralForCausalLM", {"decoder": 32})


def test_models_takes_a_part_of_the_name(capsys):
    """In any case; nothing found is one line and code 3."""
    assert "whisper-tiny" in _run(capsys, "WHISPER")[1]
    code, out, err = _run(capsys, "no such")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1


def test_size_help_stays_short(capsys):
    """It points to this command instead of printing every name."""
    with pytest.raises(SystemExit):
        main(["size", "--help"])
    text = capsys.readouterr().out
    assert "estimator models" in text
    assert sum(name in text.split() for name in bundled_models()) < 15
