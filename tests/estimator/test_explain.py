"""Derivations: the numbers shown must give the value shown."""

from __future__ import annotations

import pytest

from estimator.devices import get_device
from estimator.explain import derive
from estimator.readers.source import read_source
from estimator.sizing import estimate
from estimator.workload import Workload


def _evaluate(numbers):
    return eval(numbers.replace("×", "*"), {"__builtins__": {}, "max": max})


def _assert_derivations_hold(result):
    rows = derive(result)
    for row in rows:
        assert _evaluate(row.numbers) == pytest.approx(row.value, rel=1e-12), row
        assert row.origin == result.origins[row.figure]
        assert row.formula
        assert row.source
    return {row.figure for row in rows}


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("device", [None, "raspberry-pi-5", "l4", "apple-m4-max"])
def test_numbers_give_the_value(random_configs, weights, device):
    """Every formula, evaluated as shown, is the figure; mixed layers included."""
    place = None if device is None else get_device(device)
    workload = Workload(batch_size=3, prompt_length=20, generated_length=5, weight_dtype=weights)
    for config in random_configs[:30]:
        _assert_derivations_hold(estimate(config, workload, place))


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
def test_all_figures_of_a_decoder_are_derived(name):
    """Everything with an origin is explained, but what is a sum or a copy of another figure."""
    result = estimate(read_source(name).config, Workload(), get_device("raspberry-pi-5"))
    plain = {"params.active", "params.embedding", "params.non_embedding", "memory.state_bytes", "fits"}
    assert _assert_derivations_hold(result) == set(result.origins) - plain
