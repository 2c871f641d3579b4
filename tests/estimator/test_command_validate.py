"""`estimator validate`, called as a user calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from estimator.cli import main
from estimator.validating import comparisons as validation
from estimator.validating.comparisons import CLASSES, Comparison, ReferenceClass, compare_class

DOCS = Path(__file__).parents[2] / "docs" / "validation.md"


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def poor(monkeypatch):
    """One class that holds every kind of comparison."""
    rows = (
        Comparison(name="near", reference=1.0, value=1.1, low=0.9, high=1.2),
        Comparison(name="far", reference=1.0, value=3.0, low=2.0, high=4.0),
        Comparison(name="same", reference=1.0, value=1.0),
        Comparison(name="none", reference=1.0, value=None, refusal="not understood"),
    )
    chosen = {"parameters": ReferenceClass(compare=lambda: rows, unit="s", held_against="a stopwatch")}
    monkeypatch.setattr(validation, "CLASSES", chosen)
    monkeypatch.setattr("estimator.commands.validate.CLASSES", chosen)


def test_every_class_is_shown(capsys):
    """Its line, what it is held against, the farthest row of each, and what to do next."""
    code, out, err = run(capsys, "validate")
    assert code == 0
    table, _, held = out.partition("held against")
    for name, chosen in CLASSES.items():
        assert re.search(rf"^{name} +\d+", table, re.MULTILINE)
        assert chosen.held_against in held
    assert "farthest off" in table
    assert re.fullmatch(r"\nnext: estimator validate --class \S+ --rows\n", err)
    assert max(map(len, out.splitlines())) <= 120


def test_large_errors_are_an_answer(capsys, poor):
    """Exit 0: saying how far off it is, is what was asked. Next is what was refused or is farthest off."""
    code, out, err = run(capsys, "validate")
    assert code == 0
    assert re.search(r"^parameters +4 +1 +1 +70\.0% +\+200\.0% +50%$", out, re.MULTILINE)
    assert "far " in out.partition("farthest off")[2].splitlines()[2]
    assert "--class parameters --rows" in err


def test_rows_are_sorted_by_error(capsys, poor):
    """Farthest first, refusals last; each with reference, ours, error and whether the interval held."""
    _, out, _ = run(capsys, "validate", "--rows")
    lines = [line.split() for line in out.splitlines() if line.startswith("  ") and "reference" not in line][:4]
    assert [words[0] for words in lines] == ["far", "near", "same", "none"]
    assert " ".join(lines[0][1:]) == "1 s 3 s +200.0% outside of the interval"
    assert lines[1][-1] == "+10.0%"
    assert lines[2][-1] == "exact"
    assert " ".join(lines[3]) == "none 1 s refused: not understood"


def test_json_holds_every_comparison(capsys):
    """By class: the summary, unit, truth, and all rows with their errors."""
    code, out, err = run(capsys, "validate", "--json")
    assert (code, err) == (0, "")
    classes = json.loads(out)["classes"]
    assert [found["name"] for found in classes] == list(CLASSES)
    for found in classes:
        assert len(found["comparisons"]) == found["count"] > 0
        assert found["held_against"] == CLASSES[found["name"]].held_against
        for row in found["comparisons"]:
            assert row["error"] == pytest.approx(row["value"] / row["reference"] - 1)


def test_chosen_classes_alone_are_compared(capsys):
    """In the table's order, however they are asked for."""
    _, out, _ = run(capsys, "validate", "--class", "kv-cache", "--class", "parameters", "--json")
    assert [found["name"] for found in json.loads(out)["classes"]] == ["parameters", "kv-cache"]
    _, out, _ = run(capsys, "validate", "--class", "decode-latency", "--rows")
    assert "gpu-latency" not in out
    assert all(comparison.name in out for comparison in compare_class("decode-latency"))


def test_unknown_classes_are_wrong_usage(capsys):
    """argparse names those that there are."""
    code, out, err = run(capsys, "validate", "--class", "speed")
    assert (code, out) == (2, "")
    assert "'parameters', 'kv-cache'" in err


def test_help_names_the_classes(capsys):
    """All of them."""
    code, out, _ = run(capsys, "validate", "--help")
    assert code == 0
    assert all(name in " ".join(out.split()) for name in CLASSES)


def test_the_page_shows_what_the_command_prints():
    """docs/validation.md has a section for every class, and its table is that of the command."""
    text = DOCS.read_text(encoding="utf-8")
    assert re.findall(r"^### `(\S+)`$", text, re.MULTILINE) == list(CLASSES)
    table = text.partition("```text\n")[2].partition("```")[0]
    assert re.findall(r"^(\S+) +\d+", table, re.MULTILINE) == list(CLASSES)
    for name in CLASSES:
        count = len(compare_class(name))
        assert re.search(rf"^{name} +{count} ", table, re.MULTILINE), f"{name} has {count} rows now"
