"""Derivations: the numbers shown must give the value shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from estimator.devices import get_device
from estimator.explaining.figures import derive
from estimator.explaining.terms import terms_sum
from estimator.readers.source import read_source
from estimator.runtimes import RUNTIME_BASE_BYTES, RUNTIME_WEIGHTS_PERCENT, RUNTIMES
from estimator.sizing import estimate
from estimator.weight_formats import weight_format
from estimator.workload import Workload

REFERENCE = Path(__file__).parents[2] / "estimator" / "reference"


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


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("device", [None, "l4"])
def test_numbers_give_the_value_for_networks(networks, weights, device):
    """Experts, latents, states, cross-attention, shared layers and images, each with two images and a batch."""
    place = None if device is None else get_device(device)
    for name, network in networks.items():
        for images in (0, 2):
            workload = Workload(
                batch_size=3,
                prompt_length=20,
                generated_length=5,
                num_images=images,
                weight_dtype=weights,
                activation_dtype="bf16",
            )
            result = estimate(network, workload, place)
            unexplained = set(result.origins) - _assert_derivations_hold(result)
            plain = {f"params.by_layer.{stack.name}" for stack in network.stacks} | {"fits"}
            zero = {"memory.state_bytes"} if name not in ("recurrent", "stateful", "chunked") else set()
            zero |= {"memory.kv_cache_bytes"} if not network.is_causal else set()
            assert unexplained - plain == zero, name


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("cache", [("fp8", "head"), ("int8", "token"), ("int4", None), ("int4", "head")])
def test_numbers_give_the_value_in_every_way_to_run(networks, runtime, cache):
    """Runtimes, attention, caches with scales, weights in blocks and doubly quantised, logits of the last position."""
    ways = [("fp8", "128x128"), ("nf4", None), ("mxfp4", None), ("int4", "channel")]
    for network, (dtype, size) in zip(networks.values(), 4 * ways, strict=False):
        for attention in RUNTIMES[runtime].attentions:
            workload = Workload(
                batch_size=3,
                prompt_length=20,
                generated_length=5,
                num_images=1,
                weight_dtype=dtype,
                weight_format=weight_format(dtype, size, zero_points=dtype == "int4"),
                activation_dtype="bf16",
                kv_cache_dtype=cache[0],
                kv_scales=cache[1],
                attention=attention,
                logits="last",
                runtime=runtime,
            )
            _assert_derivations_hold(estimate(network, workload))


@pytest.mark.parametrize("path", sorted((REFERENCE / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_numbers_give_the_value_for_published_models(path):
    """Every public config of the truth table, with images where it reads them."""
    workload = Workload(batch_size=2, prompt_length=100, generated_length=7, num_images=1, weight_dtype="int4")
    _assert_derivations_hold(estimate(read_source(path).network, workload, get_device("raspberry-pi-5")))


def test_equal_terms_are_grouped():
    """Twelve layers of the same matrix are one term, and so are experts and other copies of a weight."""
    rows = {row.figure: row for row in derive(estimate(read_source("gpt2").network))}
    assert rows["params.by_part.attention"].numbers == "48 × 768 × 768 + 48 × 768"
    assert rows["params.active"].numbers == str(rows["params.total"].value)


def test_experts_that_rest_are_named(networks):
    """Three layers, four of six experts with three matrices of 8 * 24 each."""
    rows = {row.figure: row for row in derive(estimate(networks["experts"]))}
    total = int(rows["params.total"].value)
    assert rows["params.active"].numbers == f"{total} - (6 × 4 × 8 × 24 + 3 × 4 × 24 × 8)"
    assert "(E − k)" in rows["params.active"].formula


def test_formulas_name_what_the_network_has(networks):
    """Latents, windows and cross-attention are in the formula of a network that has them, and in no other's."""
    formulas = {
        name: {row.figure: row.formula for row in derive(estimate(network))} for name, network in networks.items()
    }
    cache = {name: rows.get("memory.kv_cache_bytes", "") for name, rows in formulas.items()}
    assert {name for name, formula in cache.items() if "c + r" in formula} == {"latent"}
    assert {name for name, formula in cache.items() if "min(C, W)" in formula} == {"recurrent"}
    assert {name for name, formula in cache.items() if "S·" in formula} == {"encoder_decoder", "fixed_source"}
    assert {name for name, rows in formulas.items() if "memory.state_bytes" in rows} == {
        "recurrent",
        "stateful",
        "chunked",
    }


def test_weights_of_a_file_are_its_bytes(networks):
    """In place of a formula that the file does not follow; what is read is scaled to them."""
    for network in networks.values():
        _assert_derivations_hold(estimate(network, Workload(), get_device("t4"), stored_bytes=12_345))
    rows = {row.figure: row for row in derive(estimate(networks["experts"], stored_bytes=12_345))}
    assert rows["memory.weights_bytes"].numbers == "12345"
    assert "file" in rows["memory.weights_bytes"].source


def test_only_weights_are_explained_where_only_weights_are_known(networks):
    """No cache, no FLOPs and no time are derived for a list of tensors."""
    network = dataclasses.replace(networks["experts"], has_only_weights=True)
    figures = _assert_derivations_hold(estimate(network, Workload(), get_device("t4")))
    assert {figure for figure in figures if not figure.startswith("params.")} == {"memory.weights_bytes"}


def test_constants_of_the_runtime_are_those_of_the_model(small):
    """The text says what the code adds."""
    rows = {row.figure: row for row in derive(estimate(small))}
    formula = rows["memory.runtime_bytes"].formula
    assert f"{RUNTIME_BASE_BYTES / 1e6:g} MB" in formula
    assert f"{RUNTIME_WEIGHTS_PERCENT / 100:g} · weights" in formula


@pytest.mark.parametrize(
    ("terms", "text"),
    [([], "0"), ([(5,)], "5"), ([(3, 4), (2,), (3, 4)], "2 × 3 × 4 + 2"), ([(1, 1)] * 3, "3 × 1 × 1")],
)
def test_sum_of_terms(terms, text):
    """Equal terms once, in the order of their first."""
    assert terms_sum(terms) == text


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
def test_all_figures_of_a_decoder_are_derived(name):
    """Everything with an origin is explained, but the layers one by one and what is 0 by nature."""
    result = estimate(read_source(name).network, Workload(), get_device("raspberry-pi-5"))
    plain = {"params.by_layer.decoder", "memory.state_bytes", "fits"}
    assert _assert_derivations_hold(result) == set(result.origins) - plain
