"""The comparison with other tools: verdicts, tallies and tables on figures checked by hand; no tool is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import peers

NAMES = ("a", "b", "c", "d", "e")
PARAMS = {"a": 1000, "b": 1000, "c": 1000, "d": 1000, "e": None}
CASES = [
    peers.Case(name=name, path=Path(f"{name}.json"), truth={"params": PARAMS[name], "kv_cache_bytes": None})
    for name in NAMES
]


def answers(params, seconds_s=1.0):
    """One answer a case, with these parameter counts."""
    return {
        name: peers.Answer(figures={"params": figure, "kv_cache_bytes": None}, seconds_s=seconds_s)
        for name, figure in zip(NAMES, params, strict=True)
    }


@pytest.mark.parametrize(
    ("figure", "truth", "margin", "verdict"),
    [
        (124_439_808, 124_439_808, 0.01, "exact"),
        (124_439_808.0, 124_439_808, 0.01, "exact"),
        (1010, 1000, 0.01, "within"),
        (990, 1000, 0.01, "within"),
        (1001, 1000, 0.0, "wrong"),
        (1011, 1000, 0.01, "wrong"),
        (989, 1000, 0.01, "wrong"),
        (1006, 1000, 0.005, "wrong"),
        (0, 1000, 0.01, "wrong"),
        (None, 1000, 0.01, "refused"),
    ],
)
def test_a_figure_gets_its_verdict(figure, truth, margin, verdict):
    """The margin belongs to "within"; a zero is an answer, and a wrong one."""
    assert peers.classify(figure, truth, margin) == verdict


def test_tally_counts_only_known_truth():
    """Exact, 0.5 % off, 2 % off and silent: one each; the case without truth is not counted."""
    assert peers.tally(CASES, answers([1000, 1005, 1020, None, 7]), "params") == {
        "exact": 1,
        "within": 1,
        "wrong": 1,
        "refused": 1,
    }


def test_tables_show_each_tool_and_error():
    """The summary has the counts in the order of its heads; the details show how far a figure is off."""
    given = {"ours": answers([1000, 1000, 1000, 1000, 1]), "other": answers([1000, 1005, 1020, None, 7])}
    summary = peers.summary_table(CASES, given, "params")
    assert summary[0] == "| tool | exact | within 1 % | wrong | refused |"
    assert summary[2:] == ["| ours | 4 | 0 | 0 | 0 |", "| other | 1 | 1 | 1 | 1 |"]
    assert peers.detail_table(CASES, given, "params")[2:] == [
        "| a | 1,000 | exact | exact |",
        "| b | 1,000 | exact | +0.50 % |",
        "| c | 1,000 | exact | wrong +2.00 % |",
        "| d | 1,000 | exact | refused |",
    ]


def test_time_ratio_is_the_median_over_configs():
    """3, 3, 3, 3 and 9 seconds against 2 seconds: 1.5."""
    slow = answers([1] * 5, 3.0) | {"e": peers.Answer(figures={}, seconds_s=9.0)}
    assert peers.time_ratio(slow, answers([1] * 5, 2.0)) == 1.5


def test_cache_truth_is_read_in_bytes(tmp_path):
    """274.5 MiB are 287,834,112 bytes; an empty field is not known."""
    table = tmp_path / "truth.tsv"
    table.write_text(
        "config\tparams\tclass\tkv_cache_mib_4096_bf16_batch1\tnote\nx\t12\tX\t274.5\t\ny\t\tY\t\tno truth\n", "utf-8"
    )
    x, y = peers.read_cases(table)
    assert x.truth == {"params": 12, "kv_cache_bytes": 287_834_112}
    assert y.truth == {"params": None, "kv_cache_bytes": None}
    assert x.path == tmp_path / "configs" / "x.json"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('no such family')", "no such family"),
        ("import sys; sys.exit(3)", "exit status 3"),
        ("print('not a document')", "its output could not be read"),
        ("print('{}')", "its output could not be read"),
        ("import signal; signal.pause()", "no answer within 1 s"),
    ],
)
def test_whatever_goes_wrong_is_a_refusal_with_its_reason(code, reason):
    """A crash, an empty exit, noise, a missing figure and a process that hangs."""
    answer = peers.ask([sys.executable, "-c", code], ours=False, limit_s=1.0 if "pause" in code else 60.0)
    assert answer.figures == {"params": None, "kv_cache_bytes": None}
    assert all(text.startswith(reason) for text in answer.reasons.values())


@pytest.mark.parametrize("ours", [True, False])
def test_an_answer_is_read_from_either_document(ours):
    """Ours is the document of `estimator size --json`; the others' is the one that ask.py prints."""
    documents = {
        True: {"params": {"total": 5}, "memory": {"kv_cache_bytes": 6}},
        False: {"params": 5, "kv_cache_bytes": 6, "reasons": {}},
    }
    answer = peers.ask([sys.executable, "-c", f"print({json.dumps(documents[ours])!r})"], ours=ours, limit_s=60.0)
    assert answer.figures == {"params": 5, "kv_cache_bytes": 6}


def test_asking_an_absent_tool_is_answered_with_a_reason(tmp_path):
    """ask.py never ends in a traceback: its document says what is missing."""
    (tmp_path / "config.json").write_text("{}", "utf-8")
    answer = peers.ask([sys.executable, str(peers.ASK), "vramcalc", str(tmp_path)], ours=False, limit_s=60.0)
    assert answer.figures == {"params": None, "kv_cache_bytes": None}
    assert answer.reasons["params"].startswith("ModuleNotFoundError")


def test_compared_tools_have_fixed_versions():
    """Every line of the requirements is a comment or name==version, and each compared tool is among them."""
    lines = [line for line in peers.REQUIREMENTS.read_text("utf-8").splitlines() if not line.startswith("#")]
    names = {line.partition("==")[0] for line in lines if line.partition("==")[2]}
    assert len(names) == len(lines)
    assert set(peers.PEERS) <= names
    assert "torch" not in names


def test_reasons_name_no_temporary_folder():
    """What a tool says of a path is the same in every run."""
    answer = peers.Answer(figures={}, reasons={"params": "/tmp/x1/gpt2/config.json: no"}, seconds_s=1.0)
    assert peers.without_folder(answer, "/tmp/x1").reasons == {"params": "gpt2/config.json: no"}


def test_published_configs_have_one_row_each():
    """Both tables of truth name exactly the configs beside them."""
    for table in peers.TABLES:
        names = [case.name for case in peers.read_cases(table)]
        assert sorted(names) == sorted(path.stem for path in (table.parent / "configs").glob("*.json"))
