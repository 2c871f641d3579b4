"""Objectives, limits and quantities with units."""

from __future__ import annotations

import pytest

from nas.errors import ObjectiveError
from nas.objectives import (
    ALIASES,
    OBJECTIVES,
    Constraint,
    Objective,
    default_objectives,
    parse_constraint,
    parse_objective,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("20ms", "s", 0.020),
        ("1.5 s", "s", 1.5),
        ("250us", "s", 250e-6),
        ("2min", "s", 120.0),
        ("200MB", "bytes", 200e6),
        ("200mb", "bytes", 200e6),
        ("1.5GiB", "bytes", 1.5 * 2**30),
        ("12 KiB", "bytes", 12 * 1024),
        ("5M", "", 5e6),
        ("500k", "", 500e3),
        ("1_000", "", 1000.0),
        ("2.5e6", "", 2.5e6),
        ("3GFLOPs", "flops", 3e9),
        ("3P", "flops", 3e15),
        ("2.5", "bits", 2.5),
        (0.02, "s", 0.02),
    ],
)
def test_quantity_is_read_into_base_units(text: str, unit: str, value: float) -> None:
    """Every suffix has its factor; a number is in base units already."""
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "unit", "right"),
    [
        ("20", "s", "20ms"),  # a bare number has no unit to read it in
        ("20MB", "s", "20ms"),
        ("20ms", "bytes", "200MB"),
        ("5ms", "", "5M"),
        ("-3ms", "s", "20ms"),
        ("0ms", "s", "20ms"),
        ("", "s", "20ms"),
        ("fast", "s", "20ms"),
        ("1e999s", "s", "20ms"),
        (float("nan"), "s", "20ms"),
        (True, "", "5M"),
    ],
)
def test_wrong_quantity_says_what_would_be_right(text: str, unit: str, right: str) -> None:
    """The message shows the text and an example in the right unit."""
    with pytest.raises(ObjectiveError, match=right):
        parse_quantity(text, unit)


def test_latency_is_the_phase_that_dominates() -> None:
    """Decode for a decoder, prefill for an encoder."""
    assert parse_objective("latency", "decoder").name == "decode_latency_s"
    assert parse_objective("latency", "encoder").name == "prefill_latency_s"
    assert [objective.name for objective in default_objectives("encoder")] == ["bits_per_byte", "prefill_latency_s"]


def test_every_alias_names_a_row_of_the_table() -> None:
    """A short name resolves to a full one."""
    for alias, full in ALIASES.items():
        assert parse_objective(alias, "decoder").name == full
        assert full in OBJECTIVES


def test_objective_knows_its_direction_or_needs_one() -> None:
    """A name of the table has its own direction, any other must be given one."""
    assert Objective("params").direction == "minimize"
    assert Objective("accuracy", "maximize").minimized is False
    with pytest.raises(ObjectiveError, match="give a direction"):
        Objective("accuracy")
    with pytest.raises(ObjectiveError, match="params is to minimize"):
        Objective("params", "maximize")
    with pytest.raises(ObjectiveError, match="minimize or maximize"):
        Objective("accuracy", "up")
    with pytest.raises(ObjectiveError, match="lower case"):
        Objective("bits per byte", "minimize")


def test_unknown_name_is_refused_with_the_list() -> None:
    """A typing error shows every name that there is."""
    with pytest.raises(ObjectiveError, match=r"bits_per_byte.*params") as caught:
        parse_objective("parms", "decoder")
    assert all(name in str(caught.value) for name in OBJECTIVES)


def test_constraint_is_parsed_with_the_unit_of_its_objective() -> None:
    """`--max-memory 200MB` limits the peak; a limit of another unit names the option."""
    assert parse_constraint("memory", "200MB", "decoder") == Constraint("peak_memory_bytes", 200e6)
    with pytest.raises(ObjectiveError, match="limit on memory: '20ms'"):
        parse_constraint("memory", "20ms", "decoder")


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), "5M", True])
def test_constraint_refuses_a_limit_that_is_no_positive_number(limit: object) -> None:
    """A limit is a positive finite number."""
    with pytest.raises(ObjectiveError, match="limit on params"):
        Constraint("params", limit)  # type: ignore[arg-type]


def test_violation_is_the_share_of_the_limit() -> None:
    """Zero at the limit, which is still met; half above it at one and a half times the limit."""
    constraint = Constraint("params", 200.0)
    assert (constraint.violation(200.0), constraint.violation(300.0)) == (0.0, 0.5)
    assert constraint.is_met(200.0)
    assert not constraint.is_met(200.5)
