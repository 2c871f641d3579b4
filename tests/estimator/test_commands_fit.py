"""The command line `estimator fit`, called as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from estimator.cli import main
from estimator.workload import WEIGHT_DTYPES
from tests.estimator.file_samples import safetensors_bytes


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """A function: exit code, stdout and stderr of one command, without this user's calibrations."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))

    def call(*arguments):
        try:
            code = main(["fit", *arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def answer(run):
    """A function: the JSON document of a command that must succeed and be silent on stderr."""

    def call(*arguments):
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


def test_fit_on_a_device_answers_every_question(answer):
    """Value, what binds, origin, and the figures at the value, for batch, context, devices and each weight type."""
    document = answer("llama-3.1-8b", "--device", "l4", "--sequence-length", "2048", "--generate", "256")
    assert document["limits"]["memory_bytes"] == 21_600_000_000
    assert document["fits"]["value"] is True
    for name in ("batch_size", "context", "num_devices"):
        assert document[name]["origin"] == "modelled"
        assert document[name]["at"]["memory"]["total_bytes"] <= 21_600_000_000
        assert document[name]["at"]["latency"]["prefill_s"]["low"] is not None
    assert document["batch_size"]["binds"] in ("KV cache", "activations")
    assert set(document["weight_dtypes"]) == set(WEIGHT_DTYPES)
    assert document["weight_dtypes"]["fp32"]["fits"] is False
    assert document["weight_dtype"]["value"] == "bf16"
    assert document["num_devices"]["value"] == 1
    assert "norms" in document["num_devices"]["replicated"]
    assert "devices" not in document


def test_size_agrees_that_the_batch_fits_and_the_next_does_not(answer, capsys):
    """What `fit` calls the largest is held against `size` at that batch and at the next."""
    asked = ("gpt2", "--device", "l4", "--sequence-length", "512", "--generate", "128")
    largest = answer(*asked, "--reserve", "0%")["batch_size"]["value"]
    for batch, fits in ((largest, True), (largest + 1, False)):
        main(["size", *asked, "--batch-size", str(batch), "--json"])
        assert json.loads(capsys.readouterr().out)["fits"] is fits


def test_fit_without_a_device_names_the_smallest_and_the_cheapest(answer):
    """Each of the devices has room; the cheapest is among them and none of them is cheaper."""
    devices = answer("gpt2-xl", "--weight-dtype", "fp16")["devices"]
    fitting = devices["fitting"]
    assert devices["smallest"] == fitting[0]
    assert devices["smallest"]["memory_bytes"] == min(row["memory_bytes"] for row in fitting)
    prices = [row["price_usd"] for row in fitting if row["price_usd"] is not None]
    assert devices["cheapest"]["price_usd"] == min(prices)
    assert all(row["needs"]["memory"]["total_bytes"] <= 0.9 * row["memory_bytes"] for row in fitting)


def test_the_table_says_what_binds_and_what_is_next(run):
    """Data on stdout, the next step on stderr."""
    code, out, err = run("llama-3.1-70b", "--device", "h200")
    assert code == 0
    assert "weights bind" in out
    assert "whole on every device" in " ".join(out.split())
    assert "<- the most precise that fits" in out
    assert err == "\nnext: estimator size llama-3.1-70b --device h200 --weight-dtype int8\n"


def test_every_budget_changes_the_answer(answer):
    """An option that is accepted changes something."""
    asked = ("gpt2", "--device", "l4", "--generate", "64")
    free = answer(*asked)
    budgets = {"--max-memory": "1GB", "--max-latency": "3ms", "--max-first-token": "6ms", "--reserve": "50%"}
    for option, text in budgets.items():
        assert answer(*asked, option, text)["batch_size"]["value"] < free["batch_size"]["value"], option
    assert answer(*asked, "--max-energy", "1mJ")["fits"]["binds"] == "energy budget"
    assert answer(*asked, "--max-latency", "1us")["batch_size"]["binds"] == "latency budget"


def test_a_budget_without_a_device_chooses_devices(answer):
    """Fewer devices decode a token in 2 ms than hold the model."""
    everything = answer("gpt2")["devices"]["fitting"]
    fast = answer("gpt2", "--max-latency", "2ms")["devices"]["fitting"]
    assert 0 < len(fast) < len(everything)
    assert all(row["needs"]["latency"]["decode_s_per_token"]["value"] <= 0.002 for row in fast)


def test_memory_alone_is_a_device_too(answer):
    """--max-memory without a device answers what fits, beside the devices."""
    document = answer("gpt2", "--max-memory", "2GB")
    assert document["context"] | {"at": None} == {
        "value": 1024,
        "binds": "positions",
        "detail": "at 1,025: 1,025 positions of 1,024",
        "origin": "modelled",
        "at": None,
    }
    assert document["devices"]["smallest"] is not None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 3, "fit needs a SOURCE"),
        (["gpt2", "--space", "decoder-nano"], 3, "not both"),
        (["gpt2", "--max-params", "1M", "--device", "l4"], 3, "--max-params goes with --space"),
        (["gpt2", "--seed", "0", "--device", "l4"], 3, "--seed goes with --space"),
        (["gpt2", "--device", "nope"], 3, "unknown device 'nope'"),
        (["nope", "--device", "l4"], 3, "neither a file, a folder nor a bundled model"),
        (["gpt2", "--max-memory", "8 apples"], 2, "is not a size such as 200MB"),
        (["gpt2", "--reserve", "100%"], 2, "must be a share from 0% to below 100%"),
        (["gpt2", "--reserve", "nan"], 2, "must be a share from 0% to below 100%"),
        (["--space", "decoder-nano"], 3, "nothing limits the space"),
        (["--space", "decoder-nano", "--max-latency", "5ms"], 3, "needs --device"),
        (["--space", "nope", "--device", "l4"], 3, "unknown space 'nope'"),
        (
            ["--space", "decoder-nano", "--device", "apple-m4", "--max-latency", "5ms"],
            3,
            "no published fp32 rate",
        ),
        (["--space", "decoder-nano", "--device", "raspberry-pi-5", "--max-energy", "5J"], 3, "no published power"),
    ],
)
def test_wrong_usage_is_one_clear_line(run, arguments, code, message):
    """No traceback; the line names what would be right."""
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("estimator")]) == 1


def test_fit_of_a_space_is_within_its_limits(answer):
    """The largest decoder-nano for a Raspberry Pi 5 at half of its memory and 300,000 parameters."""
    document = answer(
        "--space", "decoder-nano", "--device", "raspberry-pi-5", "--max-params", "300k", "--max-memory", "20MB"
    )
    assert document["method"] == "exact"
    assert document["params"] <= 300_000
    assert document["at"]["memory"]["total_bytes"] <= 20_000_000
    assert document["binds"] in ("parameters", "weights", "KV cache", "activations", "runtime")
    assert document["config"]["hidden_size"] in (64, 96, 128)


def test_fit_of_a_space_says_how_it_was_found(run):
    """Also when nothing fits, which is an answer."""
    code, out, _ = run("--space", "encoder-small", "--device", "raspberry-pi-5", "--max-latency", "1us")
    assert code == 0
    assert "none of its architectures fits" in out
    assert "latency budget" in out
    assert "exact: all" in out


def test_a_file_of_weights_is_answered_as_it_stores_them(answer, run, tmp_path):
    """Its bytes are those of the file; a wider type gains nothing, and what is not known is not answered."""
    header = {"w": {"dtype": "F16", "shape": [1000, 500], "data_offsets": [0, 1_000_000]}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(header, 1_000_000))
    document = answer(str(path), "--device", "l4")
    assert document["fits"]["value"] is True
    assert document["fits"]["at"]["memory"]["weights_bytes"] == 1_000_000
    assert document["weight_dtype"]["value"] == "as the file stores them"
    assert document["batch_size"]["value"] is None
    assert "nothing but its weights" in document["context"]["detail"]
    code, out, _ = run(str(path), "--device", "l4")
    assert code == 0
    assert "nothing but its weights" in out


def test_the_next_step_of_a_space_is_a_search_within_the_same_limits(run):
    """What is handed on is read back by `nas search` as the same numbers."""
    from nas.objectives import parse_quantity

    limits = ("--max-latency", "1.5ms", "--max-memory", "40MB", "--max-params", "300k")
    _, _, err = run("--space", "decoder-nano", "--device", "raspberry-pi-5", *limits)
    words = err.split()
    found = {name: words[words.index(name) + 1] for name in limits[::2]}
    assert parse_quantity(found["--max-latency"], "s") == 0.0015
    assert parse_quantity(found["--max-memory"], "bytes") == 40e6
    assert parse_quantity(found["--max-params"], "") == 300e3


def test_the_guide_shows_what_the_command_prints(run):
    """The first block of docs/howto/fit.md is a command and its output."""
    text = (Path(__file__).parents[2] / "docs" / "howto" / "fit.md").read_text(encoding="utf-8")
    command, *shown = text.split("```")[1].strip().splitlines()
    code, out, _ = run(*command.removeprefix("$ estimator fit ").split())
    assert code == 0
    assert out.splitlines()[: len(shown)] == shown


def test_help_teaches_by_examples(run):
    """Every budget is there with an example, and so is the default of what is kept free."""
    code, out, _ = run("--help")
    assert code == 0
    for shown in ("--max-latency", "such as 50ms", "--reserve SHARE", "(10%)", "estimator fit --space decoder-small"):
        assert shown in out


def test_fit_of_a_model_loads_no_numpy():
    """A single model needs no arrays, so the command starts fast."""
    program = (
        "import sys; from estimator.cli import main; main(['fit', 'gpt2', '--device', 'l4', '--json']);"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'torch', 'onnx')))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
