"""Energy, cost and training compute in `estimator size`, as a user runs it."""

from __future__ import annotations

import json
import math

import pytest

from estimator.cli import main

TRAINING = ("size", "gpt-3-175b", "--sequence-length", "2048", "--training-tokens", "300B", "--achieved", "24.6T")
PUBLISHED = ("--num-devices", "10000", "--power", "330", "--pue", "1.1", "--grid", "0.429")
REQUEST = ("size", "llama-3.1-8b", "--device", "h100", "--sequence-length", "512", "--generate", "64")


def _run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _document(capsys, *arguments):
    code, out, err = _run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_size_with_a_device_tells_energy(capsys):
    """Each figure of the JSON has value, low, high and origin; the table shows them; sources of the defaults."""
    energy = _document(capsys, *REQUEST)["energy"]
    for name in ("prefill_j", "decode_j_per_token", "request_j", "output_token_j", "request_wh", "request_kg_co2e"):
        assert energy[name]["low"] < energy[name]["value"] < energy[name]["high"]
        assert energy[name]["origin"] == "modelled"
    assert energy["money_per_million_output_tokens"] is None
    assert "Uptime" in energy["facility"]["pue_source"]
    out = _run(capsys, *REQUEST)[1]
    assert "energy per request" in out
    assert "money" not in out


def test_size_without_a_device_tells_no_energy(capsys):
    """Neither of the objects is there unless asked for."""
    document = _document(capsys, "size", "gpt2")
    assert "energy" not in document
    assert "training_compute" not in document


def test_prices_make_money(capsys):
    """Twice the price, twice the money; years alone take the published price."""
    one, two = (
        _document(capsys, *REQUEST, "--price-per-hour", price)["energy"]["money_per_million_output_tokens"]["value"]
        for price in ("2.5", "5")
    )
    assert two == pytest.approx(2 * one)
    assert "money, 1M output" in _run(capsys, *REQUEST, "--purchase-price", "30000", "--years", "4")[1]
    code, _, err = _run(capsys, *REQUEST, "--purchase-price", "30000")
    assert code == 3
    assert "--years" in err


def test_training_of_gpt_3_prints_its_published_figures(capsys):
    """3,640 petaflop/s-days, 1,287 MWh, 552 t and 14.8 days, from the published inputs."""
    training = _document(capsys, *TRAINING, *PUBLISHED)["training_compute"]
    assert training["petaflop_days"]["value"] == pytest.approx(3640, rel=0.002)
    assert training["energy_kwh"]["value"] == pytest.approx(1_287_000, rel=0.002)
    assert training["co2e_kg"]["value"] == pytest.approx(552_100, rel=0.002)
    assert training["wall_days"]["value"] == pytest.approx(14.8, abs=0.1)
    assert training["flops"]["exact"] > training["flops"]["rule"] == 6 * 174_604_259_328 * 300 * 10**9
    out = _run(capsys, *TRAINING, *PUBLISHED)[1]
    assert "1,288 MWh" in out
    assert "rule 6·N·D" in out


def test_lengths_that_models_fix_are_told(capsys):
    """An encoder-decoder needs its target; images have rows of their own."""
    without = _run(capsys, "size", "t5-small", "--training-tokens", "1B")[1]
    assert "not known without --target-length" in without
    assert (
        "sequences of 626"
        in _run(
            capsys, "size", "t5-small", "--training-tokens", "1B", "--sequence-length", "512", "--target-length", "114"
        )[1]
    )
    assert "sequences of 197" in _run(capsys, "size", "vit-base-patch16-224", "--training-tokens", "1B")[1]


def test_checkpointing_and_type_change_the_run(capsys):
    """A fourth forward pass; fp32 runs at the fp32 rate of the device."""
    asked = ("size", "gpt2", "--training-tokens", "1B", "--device", "a100-80gb")
    plain = _document(capsys, *asked)["training_compute"]
    again = _document(capsys, *asked, "--training", "--checkpointing", "full")["training_compute"]
    slow = _document(capsys, *asked, "--weight-dtype", "fp32")["training_compute"]
    assert again["flops"]["exact"] * 3 == plain["flops"]["exact"] * 4
    assert slow["device_hours"]["value"] > 5 * plain["device_hours"]["value"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("size", "gpt2", "--achieved", "5T"),
        ("size", "gpt2", "--num-devices", "8"),
        ("size", "gpt2", "--pue", "1.2"),
        ("size", "gpt2", "--price-per-hour", "2"),
        ("size", "gpt2", "--training-tokens", "many"),
        ("size", "gpt2", "--training-tokens", "1B", "--utilisation", "-5%"),
        ("size", "gpt2", "--device", "t4", "--grid", "nan"),
    ],
)
def test_options_that_change_nothing_are_wrong_usage(capsys, arguments):
    """Code 2, and the last line names the option."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    assert arguments[-2] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--training-tokens", "1B", "--utilisation", "40%"),
        ("--training-tokens", "1B", "--utilisation", "140%", "--device", "t4"),
        ("--training-tokens", "1B", "--utilisation", "40%", "--achieved", "1T", "--device", "t4"),
        ("--device", "t4", "--pue", "0.5"),
    ],
)
def test_impossible_numbers_are_one_line(capsys, arguments):
    """Code 3 and no traceback."""
    code, out, err = _run(capsys, "size", "gpt2", *arguments)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (*REQUEST, "--price-per-hour", "2.5", "--price-per-kwh", "0.2"),
        (*REQUEST, "--power", "400"),
        ("size", "bert-base-uncased", "--device", "t4"),
        (*TRAINING, *PUBLISHED, "--price-per-hour", "1"),
        (*TRAINING, "--device", "v100"),
    ],
)
def test_explanations_give_their_values(capsys, arguments):
    """The numbers of each derivation of energy and training compute, put into Python, give the figure."""
    document = _document(capsys, *arguments, "--explain")
    figures = [row for row in document["explain"]["figures"] if row["figure"].startswith(("energy.", "training_"))]
    known = {
        f"{part}.{name}"
        for part in ("energy", "training_compute")
        for name, figure in document.get(part, {}).items()
        if isinstance(figure, dict) and "value" in figure
    }
    assert known <= {row["figure"] for row in figures}
    for row in figures:
        value = eval(row["numbers"].replace("×", "*"), {"__builtins__": {}, "min": min})
        assert math.isclose(value, row["value"], rel_tol=1e-9), row
        assert row["source"]
    assert "how each figure is derived" in _run(capsys, *arguments, "--explain")[1]
