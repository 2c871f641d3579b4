"""bound_latency: closed forms, and measured runs that must lie in its interval."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from estimator.config import TransformerConfig
from estimator.devices import get_device
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes, count_weight_bytes
from estimator.phases import decode_runs, prefill_runs
from estimator.readers.source import read_source
from estimator.roofline import SLOWDOWN, bound_latency, bound_time, count_read_bytes, peak_rate
from estimator.weights import network_of
from estimator.workload import Workload

GOLDEN = Path(__file__).parents[1] / "golden"
DEVICES = {"P100": "p100", "V100": "v100", "L4": "l4", "A100-40GB-PCIe": "a100-40gb", "MI210": "mi210"}
OPT_1_3B = TransformerConfig(
    vocab_size=50272,
    hidden_size=2048,
    num_hidden_layers=24,
    num_attention_heads=32,
    intermediate_size=8192,
    max_position_embeddings=2050,
    hidden_act="relu",
    gated_mlp=False,
    norm_type="layer_norm",
    position_embedding="learned",
    attention_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
)


def _rows(name):
    return list(csv.DictReader((GOLDEN / name).read_text("utf-8").splitlines(), delimiter="\t"))


def _measured_model(name):
    if name == "opt-1.3b":
        return OPT_1_3B
    return read_source({"bert-large": "bert-large-uncased"}.get(name, name)).network


def _read(config, workload):
    return count_read_bytes(prefill_runs(network_of(config), workload), workload)


@pytest.mark.parametrize(
    "row", _rows("gpu_latency_fp32.tsv"), ids=lambda row: f"{row['model']}-{row['batch_size']}-{row['device']}"
)
def test_measured_forward_pass_lies_in_the_interval(row):
    """25 fp32 forward passes on five GPUs, published with NeuSight: none beats low, none takes longer than high."""
    workload = Workload(batch_size=int(row["batch_size"]), prompt_length=int(row["sequence_length"]))
    bound = bound_latency(_measured_model(row["model"]), workload, get_device(DEVICES[row["device"]])).prefill_s
    assert bound.low <= float(row["latency_ms"]) / 1e3 <= bound.high


@pytest.mark.parametrize("row", _rows("energy_h100.tsv"), ids=lambda row: row["batch_size"])
def test_measured_decoding_lies_in_the_interval(row):
    """Llama-3.1-8B on an H100, as published by ML.ENERGY; 512 tokens of context stand for its chat requests."""
    bf16 = {"weight_dtype": "bf16", "activation_dtype": "bf16", "kv_cache_dtype": "bf16"}
    workload = Workload(batch_size=int(row["batch_size"]), prompt_length=512, **bf16)
    bound = bound_latency(read_source(row["model"]).network, workload, get_device("h100")).decode_s_per_token
    assert bound.low <= float(row["inter_token_latency_ms"]) / 1e3 <= bound.high


@pytest.mark.parametrize(("flops", "read_bytes", "seconds", "limit"), [(8, 6, 4, "compute"), (8, 60, 20, "bandwidth")])
def test_bound_is_the_larger_of_the_two(flops, read_bytes, seconds, limit):
    """2 FLOP/s and 3 bytes/s."""
    figure, binds = bound_time(flops, read_bytes, 2.0, 3.0)
    assert (figure.value, figure.low, figure.high) == (seconds, seconds, SLOWDOWN * seconds)
    assert (binds, figure.origin) == (limit, "modelled")


@pytest.mark.parametrize(("peak", "bandwidth"), [(None, 1.0), (1.0, None)])
def test_unknown_rate_gives_no_time(peak, bandwidth):
    """Never infinity, never a guess."""
    assert bound_time(1, 1, peak, bandwidth) == (None, None)


def test_phases_by_hand(small):
    """Prefill computes the batch; a decode step computes B tokens and reads weights and cache."""
    device, workload = get_device("t4"), Workload(batch_size=3, prompt_length=50, generated_length=10)
    latency = bound_latency(small, workload, device)
    flops = count_flops(small, workload)
    weights = _read(small, workload)
    assert weights == count_read_bytes(decode_runs(network_of(small), workload), workload)
    prefill = max(flops.prefill_flops / 8.1e12, (weights + count_kv_cache_bytes(small, workload, 50)) / 320e9)
    decode = max(
        3 * flops.decode_flops_per_token / 8.1e12, (weights + count_kv_cache_bytes(small, workload, 60)) / 320e9
    )
    assert latency.prefill_s.value == pytest.approx(prefill)
    assert latency.decode_s_per_token.value == pytest.approx(decode)
    assert latency.decode_limit == "bandwidth"


def test_read_bytes_leave_out_lookup_tables(small):
    """An untied token table is looked up, a tied one is multiplied with; position tables are always looked up."""
    workload = Workload()
    table = small.vocab_size * small.hidden_size * 4
    assert count_weight_bytes(small, workload) - _read(small, workload) == table
    tied = dataclasses.replace(small, tie_word_embeddings=True, position_embedding="learned")
    positions = tied.max_position_embeddings * tied.hidden_size * 4
    assert count_weight_bytes(tied, workload) - _read(tied, workload) == positions


def test_encoder_has_no_decode_time():
    """BERT generates nothing."""
    latency = bound_latency(read_source("bert-base-uncased").network, Workload(), get_device("t4"))
    assert latency.prefill_s is not None
    assert (latency.decode_s_per_token, latency.decode_limit) == (None, None)


@pytest.mark.parametrize(
    ("weights", "activations", "device", "rate"),
    [
        ("fp32", "fp32", "t4", 8.1e12),
        ("fp16", "fp16", "t4", 65e12),
        ("int8", "fp16", "t4", 130e12),
        ("int4", "fp32", "t4", 130e12),
        ("bf16", "bf16", "t4", 8.1e12),  # no bf16 on a T4: it runs in fp32
        ("fp32", "fp32", "apple-m4-max", None),
    ],
)
def test_peak_follows_the_number_types(weights, activations, device, rate):
    """Quantised weights may use the int8 units."""
    assert peak_rate(Workload(weight_dtype=weights, activation_dtype=activations), get_device(device)) == rate


def test_peak_without_a_published_int8_rate_is_that_of_the_activations():
    """A device that publishes fp32 alone multiplies int8 weights in fp32."""
    device = dataclasses.replace(get_device("t4"), peak_flops_per_s={"fp32": 5e12})
    assert peak_rate(Workload(weight_dtype="int8", activation_dtype="bf16"), device) == 5e12


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_larger_models_are_not_faster(small, field):
    """The bound grows with every size."""
    device, workload = get_device("t4"), Workload()
    grown = dataclasses.replace(small, **{field: 4 * getattr(small, field)}, head_dim=16)
    before, after = (bound_latency(config, workload, device) for config in (small, grown))
    assert after.prefill_s.value > before.prefill_s.value
    assert after.decode_s_per_token.value > before.decode_s_per_token.value
