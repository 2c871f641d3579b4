"""estimate: one record, its JSON contract, its origins and warnings."""

from __future__ import annotations

import dataclasses
import json

import pytest

from estimator import Workload, estimate
from estimator.devices import get_device
from estimator.figures import ORIGINS
from estimator.readers.source import read_source


def _numbers(document, path=""):
    """Paths of all numbers, lists of numbers and truth values of a JSON document."""
    for key, value in document.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and "origin" in value:  # carries the word for everything in it
            yield from [here] if "value" in value else []
        elif isinstance(value, dict):
            yield from _numbers(value, here)
        elif isinstance(value, int | float | list | tuple):
            yield here


def test_json_has_the_keys_of_the_contract():
    """The keys that the command line promises, with a device."""
    document = estimate(read_source("gpt2").network, Workload(), get_device("t4")).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert {"name", "architecture"} <= set(document["model"])
    assert {"total", "active", "by_part"} <= set(document["params"])
    assert set(document["memory"]) == {
        *("weights_bytes", "kv_cache_bytes", "state_bytes", "activations_bytes", "runtime_bytes", "total_bytes"),
        *("prefill_activations_bytes", "decode_activations_bytes", "total_low_bytes", "total_high_bytes"),
        *("runtime", "attention"),
    }
    assert {"prefill_flops", "decode_flops_per_token"} <= set(document["compute"])
    for phase in ("prefill_s", "decode_s_per_token"):
        assert {"value", "low", "high", "origin"} <= set(document["latency"][phase])
    assert document["fits"] is True
    assert isinstance(document["warnings"], list)


def _assert_figures_have_origins(result):
    document = result.to_dict()
    shown = {key: document[key] for key in ("params", "memory", "compute", "latency", "fits") if key in document}
    assert set(_numbers(shown)) == set(document["origins"])
    assert set(document["origins"].values()) <= set(ORIGINS)


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
@pytest.mark.parametrize("device", [None, "t4", "epyc-9654", "raspberry-pi-5"])
def test_every_figure_has_an_origin(name, device):
    """No number of params, memory, compute or latency is without its word, and no word is without its number."""
    place = None if device is None else get_device(device)
    _assert_figures_have_origins(estimate(read_source(name).network, Workload(), place))


def test_every_figure_of_a_network_has_an_origin(networks):
    """Experts, states and further stacks included."""
    for network in networks.values():
        _assert_figures_have_origins(estimate(network, Workload(num_images=1), get_device("t4")))


def test_counted_figures_do_not_depend_on_the_device(small):
    """A device adds a bound, it changes no count."""
    alone, placed = estimate(small), estimate(small, device=get_device("h100"))
    assert (alone.params, alone.compute) == (placed.params, placed.compute)
    assert alone.memory.weights_bytes == placed.memory.weights_bytes
    assert (alone.fits, alone.latency, alone.warnings) == (None, None, ())


@pytest.mark.parametrize(
    ("model", "device", "fits"),
    [("gpt2", "raspberry-pi-5", True), ("llama-2-7b", "raspberry-pi-5", False), ("gpt2", "epyc-9654", None)],
)
def test_fits_compares_with_the_memory(model, device, fits):
    """True, False, or None when the memory is not known."""
    result = estimate(read_source(model).network, Workload(), get_device(device))
    assert result.fits is fits
    assert (fits is True) == (not any("fit" in warning for warning in result.warnings))


def test_warning_for_more_tokens_than_positions(small):
    """Learned positions end, trained ones are exceeded."""
    learned = dataclasses.replace(small, position_embedding="learned")
    for config, words in ((small, "not trained"), (learned, "no learned positions")):
        assert not estimate(config, Workload(prompt_length=128)).warnings
        (warning,) = estimate(config, Workload(prompt_length=100, generated_length=29)).warnings
        assert words in warning
        assert "129" in warning


def test_warning_for_a_type_that_the_device_does_not_publish(small):
    """bf16 on a T4 is bounded by its fp32 rate, and says so."""
    workload = Workload(weight_dtype="bf16", activation_dtype="bf16", kv_cache_dtype="bf16")
    assert any("bf16" in warning for warning in estimate(small, workload, get_device("t4")).warnings)
    packed = dataclasses.replace(workload, weight_dtype="int4")  # multiplied in int8, which is published
    assert not any("bf16" in warning for warning in estimate(small, packed, get_device("t4")).warnings)


def test_missing_rates_give_no_latency_and_a_warning(small):
    """Apple publishes no rate for the M4 Max."""
    result = estimate(small, device=get_device("apple-m4-max"))
    assert result.latency is None
    assert result.to_dict()["latency"]["prefill_s"] is None
    assert any("no latency" in warning for warning in result.warnings)


def test_warning_for_an_encoder_that_should_generate():
    """An accepted option must change something."""
    result = estimate(read_source("bert-base-uncased").network, Workload(generated_length=4))
    assert any("encoder" in warning for warning in result.warnings)
