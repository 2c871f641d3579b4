"""The options for training of `estimator size`, called as a user calls them."""

from __future__ import annotations

import json
import math

import pytest

from estimator.cli import main


def test_size_training_prints_one_document(capsys):
    """The JSON has plan, bytes by kind that add up, and whether the device holds them."""
    assert main(["size", "gpt2", "--training", "--device", "t4", "--json", "--federated-clients", "5"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    assert training["total_bytes"] == sum(training["memory"].values())
    assert training["fits"] is True
    assert training["plan"]["optimizer"] == "adamw"
    assert training["trained_params"] == 124_439_808
    assert training["federated"]["round_bytes"] == 2 * 5 * 2 * 124_439_808
    assert training["origins"]["total_bytes"] == "modelled"


def test_size_training_prints_a_section(capsys):
    """The table shows every kind, and what the fullest of the devices holds."""
    options = ["--zero-stage", "2", "--data-parallel", "8", "--ewc", "--device", "t4"]
    assert main(["size", "gpt2", "--training", *options]) == 0
    section = capsys.readouterr().out.split("\ntraining with ")[1]
    assert "the fullest of 8 devices" in section
    for kind in ("weights", "gradients", "optimizer", "copies", "activations", "loss", "EWC fisher", "fits"):
        assert f"  {kind}" in section


def test_size_without_training_says_nothing_of_it(capsys):
    """The document has no training object unless it is asked for."""
    assert main(["size", "gpt2", "--json"]) == 0
    assert "training" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_size_training_explains_its_figures(optimizer, capsys):
    """Numbers put in give the figure, up to rounding up."""
    options = ["--optimizer", optimizer, "--zero-stage", "1", "--data-parallel", "3", "--checkpointing", "full"]
    assert main(["size", "gpt2", "--training", "--explain", "--json", *options]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    rows = {row["figure"].removeprefix("training."): row for row in training["explain"]}
    assert set(rows) == {*training["memory"], "total_bytes"}
    for row in rows.values():
        value = eval(row["numbers"].replace("×", "*"), {"max": max})
        assert math.ceil(value) == row["value"]


def test_explain_prints_the_training_figures(capsys):
    """They follow those of inference."""
    assert main(["size", "gpt2", "--training", "--explain"]) == 0
    assert "training.gradients_bytes = 248,879,616   (modelled)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lora-rank", "8"], "--lora-rank needs --training"),
        (["--ewc"], "--ewc needs --training"),
        (["--training", "--base-dtype", "nf4"], "--base-dtype needs --lora-rank"),
        (["--training", "--server-optimizer", "fedadam"], "--server-optimizer needs --federated-clients"),
        (["--training", "--optimizer", "adamax"], "invalid choice: 'adamax'"),
        (["--training", "--lora-rank", "0"], "must be an integer from 1"),
    ],
)
def test_wrong_usage_of_training_options_ends_with_two(options, said, capsys):
    """A usage error names the option that is missing or wrong."""
    with pytest.raises(SystemExit) as stop:
        main(["size", "gpt2", *options])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--zero-stage", "1"], "give --data-parallel 2 or more"),
        (["--sequence-parallel"], "give --tensor-parallel 2 or more"),
        (["--teacher", "no-such-model"], "neither a file, a folder nor a bundled model"),
        (["--pipeline-parallel", "13"], "the model has 12"),
    ],
)
def test_impossible_training_options_end_with_three(options, said, capsys):
    """One line says what would be right."""
    assert main(["size", "gpt2", "--training", *options]) == 3
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""
