"""Trials as rows: what people read must be what was stored."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.objectives import Objective, parse_quantity
from nas.records import Observation, TrialRecord
from nas.space import SearchSpace
from nas.spec import QualitySettings, StudySpec
from nas.table import best_trials, column_of, describe_config, format_figure, format_value, front_rows, table_columns

CONFIG = TransformerConfig(
    vocab_size=256,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=256,
    intermediate_size_per_layer=(256, 512, 512, 256),
    max_position_embeddings=512,
)
NOW = datetime(2026, 8, 1, tzinfo=UTC)


def make_trial(number: int, figures: dict[str, Figure], state: str = "complete") -> TrialRecord:
    return TrialRecord(
        study_id="s",
        number=number,
        state=state,
        params={},
        config=CONFIG,
        architecture_hash=CONFIG.architecture_hash(),
        observations=tuple(
            Observation(objective=name, figure=figure, cost_s=0.0, created_at=NOW) for name, figure in figures.items()
        ),
        created_at=NOW,
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00123, "s", "1.23 ms"),
        (0.0000456, "s", "45.6 µs"),
        (2.5, "s", "2.50 s"),
        (12_345_678, "bytes", "12.3 MB"),
        (1_500_000_000, "bytes", "1.50 GB"),
        (123_456, "", "123K"),
        (1_240_000, "", "1.24M"),
        (17, "", "17"),
        (0, "bytes", "0 B"),
        (3.2e9, "flops", "3.20 GFLOPs"),
        (2.61234, "bits", "2.612"),
        (0.123456, "number", "0.1235"),
    ],
)
def test_format_value_picks_the_unit_that_reads_best(value, unit, text):
    """Three digits (four without a scale) in a unit that keeps the number between 1 and 1000."""
    assert format_value(value, unit) == text


def test_format_value_rounds_into_the_next_unit():
    """999,999 is 1.00M, never 1,000K; 999.6 µs is 1.00 ms."""
    assert format_value(999_999, "") == "1.00M"
    assert format_value(999.6e-6, "s") == "1.00 ms"


@given(st.floats(min_value=1e-5, max_value=900), st.sampled_from(["s", "bytes", "flops"]))
def test_format_value_can_be_read_back(number, unit):
    """The parser of limits reads what the table shows, to half a unit of the third digit."""
    value = number if unit == "s" else number * 1e6
    assert parse_quantity(format_value(value, unit).replace(" ", ""), unit) == pytest.approx(value, rel=5.1e-3)


def test_format_figure_shows_the_interval_in_the_unit_of_the_value():
    """A low end below 1 ms stays in milliseconds beside a value of 1 ms."""
    assert format_figure(Figure(value=1.02e-3, low=0.98e-3, high=1.1e-3, origin="measured"), "s") == (
        "1.02 ms [0.980, 1.10]"
    )
    assert format_figure(Figure(value=5e6, origin="counted"), "") == "5.00M"


def test_describe_config_names_sizes_and_ranges():
    """One line: layers, width, heads, feed-forward widths, norm and activation."""
    assert describe_config(CONFIG) == "4L x 128, 4/2 heads, ffn 256-512, rms, gated silu"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_hidden_layers": 2, "intermediate_size_per_layer": None}, "2L x 128"),
        ({"num_key_value_heads": 4}, "4 heads"),
        ({"num_key_value_heads_per_layer": (1, 2, 4, 4)}, "4/1-4 heads"),
        ({"norm_type": "layer_norm", "norm_placement": "post"}, "layer norm after"),
        ({"gated_mlp": False, "hidden_act": "gelu"}, "plain gelu"),
        ({"weight_source_per_layer": (0, 0, 2, 2)}, "2 stored layers"),
        ({"weight_source_per_layer": (0, 0, 0, 0)}, "1 stored layer"),
        ({"sliding_window_per_layer": (None, 32, 64, None)}, "window 32-64"),
        ({"position_embedding": "learned"}, "learned positions"),
        ({"qk_norm": True}, "query-key norm"),
        ({"mlp_bias": True}, "biases"),
        ({"tie_word_embeddings": False}, "untied"),
    ],
)
def test_describe_config_tells_networks_apart(change, part):
    """Whatever a search may choose shows in the line."""
    text = describe_config(replace(CONFIG, **change))
    assert part in text.split(", ")
    assert part not in describe_config(CONFIG).split(", ")


def test_table_columns_keep_the_standard_ones_and_add_the_studys_own():
    """A figure told from outside becomes a column under its own name."""
    objectives = (Objective("loss", "minimize"), Objective("params"))
    spec = StudySpec(space=SearchSpace.preset("decoder-nano"), objectives=objectives)
    names = [column.name for column in table_columns(spec)]
    assert names == [
        "params",
        "bits_per_byte",
        "prefill_latency_s",
        "decode_latency_s",
        "peak_memory_bytes",
        "file_bytes",
        "loss",
    ]
    assert column_of("loss").label == "loss"


@pytest.mark.parametrize(
    ("space", "evaluator", "label"),
    [
        ("decoder-nano", "train", "bits per byte"),
        ("encoder-small", "train", "masked bits per byte"),
        ("encoder-small", "mine:score", "bits per byte"),
    ],
)
def test_column_of_a_trained_encoders_score_says_masked(space, evaluator, label):
    """What an encoder that we trained scores is of masked bytes; what a user's evaluator scores is the user's word."""
    spec = StudySpec(space=SearchSpace.preset(space), quality=QualitySettings(evaluator=evaluator))
    assert column_of("bits_per_byte", spec).label == label
    assert column_of("params", spec).label == "parameters"


def test_front_rows_keep_order_and_leave_unknown_figures_empty():
    """A cell has value, interval and origin, or nothing at all."""
    latency = Figure(value=2e-3, low=1.9e-3, high=2.2e-3, origin="measured")
    trials = [make_trial(7, {"decode_latency_s": latency}), make_trial(3, {})]
    columns = [column_of("decode_latency_s")]
    first, second = front_rows(trials, columns)
    assert (first.trial, second.trial) == (7, 3)
    assert (first.cells[0].text, first.cells[0].interval, first.cells[0].origin) == (
        "2.00 ms",
        "[1.90, 2.20]",
        "measured",
    )
    assert second.cells[0].figure is None
    assert second.cells[0].text == ""


def test_best_trials_follow_each_direction():
    """The smallest of what is minimised, the largest of what is maximised, among complete trials only."""
    objectives = [Objective("loss", "minimize"), Objective("reward", "maximize"), Objective("params")]
    trials = [
        make_trial(0, {"loss": Figure(value=2, origin="measured"), "reward": Figure(value=1, origin="measured")}),
        make_trial(1, {"loss": Figure(value=3, origin="measured"), "reward": Figure(value=5, origin="measured")}),
        make_trial(2, {"loss": Figure(value=0, origin="measured")}, state="fail"),
    ]
    assert [(objective.name, trial.number) for objective, trial in best_trials(trials, objectives)] == [
        ("loss", 0),
        ("reward", 1),
    ]


def test_digits_never_show_an_exponent_for_large_counts():
    """A trillion parameters are written out."""
    assert re.fullmatch(r"[\d,.]+B", format_value(4.2e12, ""))
