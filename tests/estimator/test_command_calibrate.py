"""`estimator calibrate`, called as a user calls it, and `estimator size` after it."""

from __future__ import annotations

import json

import pytest

from estimator.calibrating import machine
from estimator.calibrating.machine import Probe
from estimator.calibrating.profiles import profile_path
from estimator.cli import main
from estimator.validating.rows import reference_rows

QUIET = Probe(
    num_threads=2,
    fp32_flops_per_s=1e11,
    int8_flops_per_s=3e11,
    bandwidth_bytes_per_s=1e10,
    operator_s=1e-6,
    others_share=0.0,
)
SIZE = ("size", "gpt2-large", "--batch-size", "4", "--sequence-length", "1024")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Calibrations of this test alone."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))


@pytest.fixture
def points(tmp_path):
    """The measured runs that come with the package, as a user has them in a file."""
    rows = reference_rows("gpu_latency_fp32.tsv")
    path = tmp_path / "points.tsv"
    path.write_text("\n".join(["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]))
    return path


@pytest.fixture
def probed(monkeypatch):
    """A probe that takes no time; returns what it will find."""
    found = [QUIET]
    monkeypatch.setattr(machine, "probe_machine", lambda say: tuple(found))
    return found


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *arguments):
    """The JSON document of a command that must succeed and be silent on stderr."""
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def prefill(capsys, device):
    return document(capsys, *SIZE, "--device", device)["latency"]["prefill_s"]


def test_a_calibrated_device_is_used_by_size(capsys, points):
    """The time moves to what was measured, its interval narrows, its origin becomes predicted."""
    before = prefill(capsys, "mi210")
    code, out, err = run(capsys, "calibrate", "--device", "AMD MI210", "--from", points)
    assert code == 0
    assert "5 points" in out
    assert "next: estimator size bert-large --device mi210" in err
    after = prefill(capsys, "MI210")
    assert (before["origin"], after["origin"]) == ("modelled", "predicted")
    assert after["high"] / after["low"] < before["high"] / before["low"]
    assert after["low"] < 0.367 < after["high"]  # gpt2-large, 4 x 1024, as it was measured
    origins = document(capsys, *SIZE, "--device", "mi210")["origins"]
    assert origins["latency.prefill_s"] == "predicted"


def test_forgetting_brings_the_class_back(capsys, points):
    """And says when there was nothing to forget."""
    before = prefill(capsys, "l4")
    run(capsys, "calibrate", "--device", "l4", "--from", points)
    assert prefill(capsys, "l4") != before
    assert run(capsys, "calibrate", "--device", "L4", "--forget")[:2] == (0, "the calibration of l4 is gone\n")
    assert prefill(capsys, "l4") == before
    assert run(capsys, "calibrate", "--device", "L4", "--forget")[:2] == (0, "l4 had no calibration\n")
    assert document(capsys, "calibrate", "--device", "l4", "--forget") == {"device": "l4", "forgotten": False}


def test_json_holds_what_was_learnt(capsys, points):
    """One document: the fractions, how many points, where it is kept."""
    found = document(capsys, "calibrate", "--device", "l4", "--from", points)
    assert (found["device"], found["points"], found["path"]) == ("l4", 5, str(profile_path("l4")))
    assert found["achievable"]["learnt"] == ["fp32_fraction"]
    assert json.loads(profile_path("l4").read_text())["achievable"] == found["achievable"]


def test_the_table_says_what_no_point_tells(capsys, points):
    """Fractions of other kinds stay those of the class, visibly."""
    _, out, _ = run(capsys, "calibrate", "--device", "l4", "--from", points)
    (matrix,) = (line for line in out.splitlines() if line.startswith("matrix_fraction"))
    assert matrix.endswith("no point")


def test_this_machine_becomes_a_device(capsys, probed):
    """After calibrating, size knows it, with measured rates and predicted times."""
    code, _, err = run(capsys, *SIZE, "--device", "this-machine")
    assert (code, err) == (3, "estimator: this machine was not calibrated yet: run `estimator calibrate`\n")
    code, out, err = run(capsys, "calibrate")
    assert code == 0
    assert "100 GFLOP/s" in out
    assert "next: estimator size gpt2 --device this-machine" in err
    assert prefill(capsys, "This Machine")["origin"] == "predicted"
    assert document(capsys, "devices", "this-machine")["peak_flops_per_s"] == {"fp32": 1e11, "int8": 3e11}
    assert "estimator calibrate" in run(capsys, "devices", "this-machine")[1]
    assert run(capsys, "compare", "gpt2", "gpt2-medium", "--device", "this-machine")[0] == 0
    assert run(capsys, "calibrate", "--forget")[:2] == (0, "the calibration of this-machine is gone\n")
    assert run(capsys, *SIZE, "--device", "this-machine")[0] == 3


def test_a_busy_machine_is_said(capsys, probed):
    """In the table and in the document."""
    assert document(capsys, "calibrate")["warnings"] == []
    probed[0] = Probe(**{name: getattr(QUIET, name) for name in QUIET.__slots__} | {"others_share": 0.7})
    assert "calibrate again" in run(capsys, "calibrate", "--device", "this-machine")[1]
    (warning,) = document(capsys, "calibrate")["warnings"]
    assert "others used over a tenth of the cores" in warning


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--device", "l5", "--from", "POINTS"), 3, "unknown device 'l5'; did you mean"),
        (("--device", "l4"), 3, "calibrate --device needs --from FILE"),
        (("--device", "t4", "--from", "POINTS"), 3, "has no row of t4; its rows are of"),
        (("--device", "l4", "--from", "absent.tsv"), 3, "cannot read absent.tsv: No such file"),
        (("--from", "POINTS"), 3, "give --device NAME with it"),
        (("--device", "l4", "--from", "POINTS", "--forget"), 3, "leave --from out"),
        (("--points", "POINTS"), 2, "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line(capsys, points, arguments, code, message):
    """With the exit code of input that is not understood, or of wrong usage; nothing on stdout."""
    given = [str(points) if argument == "POINTS" else argument for argument in arguments]
    got, out, err = run(capsys, "calibrate", *given)
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1 or code == 2


def test_a_folder_that_cannot_be_written_is_one_line(capsys, points, tmp_path):
    """It ran and failed: exit 1."""
    (tmp_path / "data").write_text("a file where the folder should be")
    code, _, err = run(capsys, "calibrate", "--device", "l4", "--from", points)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("estimator: ")


def test_a_broken_calibration_stops_size_with_one_line(capsys):
    """Never a silent fall back to the class."""
    profile_path("l4").parent.mkdir(parents=True)
    profile_path("l4").write_text("{")
    code, out, err = run(capsys, *SIZE, "--device", "l4")
    assert (code, out) == (3, "")
    assert "delete it, or calibrate again" in err
    assert run(capsys, "calibrate", "--device", "l4", "--forget")[0] == 0
    assert run(capsys, *SIZE, "--device", "l4")[0] == 0
