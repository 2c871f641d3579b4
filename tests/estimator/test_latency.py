"""estimate_latency: closed forms, and measured runs from outside."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from statistics import mean

import pytest

from estimator.achievable import FRACTIONS, Achievable, achievable_of, device_class
from estimator.devices import get_device, load_devices
from estimator.flops import count_flops
from estimator.latency import count_operators, estimate_latency
from estimator.memory import count_kv_cache_bytes, count_state_bytes
from estimator.phases import decode_runs, prefill_runs
from estimator.readers.source import read_source
from estimator.roofline import count_read_bytes
from estimator.weights import network_of
from estimator.workload import Workload

GOLDEN = Path(__file__).parents[2] / "estimator" / "reference"


def _rows(name):
    return list(csv.DictReader((GOLDEN / name).read_text("utf-8").splitlines(), delimiter="\t"))


def _errors(pairs):
    """Mean absolute relative error of times against measured seconds, and the share that lies in the interval."""
    errors = [abs(figure.value / seconds - 1) for figure, seconds in pairs]
    inside = [figure.low <= seconds <= figure.high for figure, seconds in pairs]
    return mean(errors), mean(inside)


def test_forward_passes_measured_by_others_are_met():
    """25 fp32 forward passes on five GPUs, published with NeuSight: at most 35 % off on average, 80 % inside."""
    pairs = []
    for row in _rows("gpu_latency_fp32.tsv"):
        workload = Workload(batch_size=int(row["batch_size"]), prompt_length=int(row["sequence_length"]))
        device = get_device(row["device"])
        phase = estimate_latency(read_source(row["model"]).network, workload, device).prefill_s
        pairs.append((phase.time_s, float(row["latency_ms"]) / 1e3))
        assert phase.bound_s <= pairs[-1][1]  # no run beats the roofline
    error, inside = _errors(pairs)
    assert error <= 0.35
    assert inside >= 0.8


def test_decoding_measured_by_others_is_bounded():
    """Llama-3.1-8B on an H100, as published by ML.ENERGY; 512 tokens of context stand for its chat requests."""
    bf16 = {"weight_dtype": "bf16", "activation_dtype": "bf16", "kv_cache_dtype": "bf16"}
    for row in _rows("energy_h100.tsv"):
        workload = Workload(batch_size=int(row["batch_size"]), prompt_length=512, **bf16)
        network = read_source(row["model"]).network
        phase = estimate_latency(network, workload, get_device("h100")).decode_s_per_token
        assert phase.bound_s <= float(row["inter_token_latency_ms"]) / 1e3


@pytest.mark.parametrize("name", ["small", "experts", "recurrent", "encoder_decoder"])
def test_phases_by_hand(small, networks, name):
    """Prefill computes the batch; a decode step computes B tokens, and reads weights, cache and states."""
    device, workload = get_device("t4"), Workload(batch_size=3, prompt_length=50, generated_length=10)
    network = networks.get(name) or network_of(small)
    exact = Achievable(
        name="ideal",
        fp32_fraction=1.0,
        matrix_fraction=1.0,
        bandwidth_fraction=1.0,
        spread=2.0,
        origin="modelled",
        source="the peaks themselves",
    )
    latency = estimate_latency(network, workload, device, exact)
    flops = count_flops(network, workload)
    written = count_kv_cache_bytes(network, workload, 1 if name == "encoder_decoder" else 50)
    moved = count_read_bytes(prefill_runs(network, workload), workload) + written
    prefill = max(flops.prefill_flops / 8.1e12, moved / 320e9)
    kept = count_kv_cache_bytes(network, workload) + count_state_bytes(network, workload)
    moved = count_read_bytes(decode_runs(network, workload), workload) + kept
    decode = max(3 * flops.decode_flops_per_token / 8.1e12, moved / 320e9)
    assert latency.prefill_s.time_s.value == latency.prefill_s.bound_s == pytest.approx(prefill)
    assert latency.decode_s_per_token.time_s.value == pytest.approx(decode)
    assert latency.decode_s_per_token.limit == "bandwidth"
    assert latency.request_s == pytest.approx(prefill + 10 * decode)
    assert latency.tokens_per_s == pytest.approx(3 / decode)


@pytest.mark.parametrize("device", ["t4", "l4", "h100", "mi210", "raspberry-pi-5", "epyc-9654"])
def test_times_follow_the_fractions(small, device):
    """Each is the bound over the fraction of what binds; the interval holds it and never goes below the bound."""
    device, workload = get_device(device), Workload(batch_size=64, prompt_length=512)
    achievable = achievable_of(device)
    latency = estimate_latency(small, workload, device)
    for phase in (latency.prefill_s, latency.decode_s_per_token):
        figure = phase.time_s
        assert phase.bound_s <= figure.low <= figure.value <= figure.high
        assert figure.high == pytest.approx(achievable.spread * figure.value)
        assert figure.origin == "modelled"
        times = {
            "compute": phase.flops / (device.peak_flops_per_s["fp32"] * achievable.fp32_fraction),
            "bandwidth": phase.bytes_moved / (device.memory_bandwidth_bytes_per_s * achievable.bandwidth_fraction),
        }
        assert figure.value == pytest.approx(max(times.values()) + phase.overhead_s)
        assert phase.limit == max(times, key=times.get)


def test_unknown_rate_gives_no_time(small):
    """Never infinity, never a guess."""
    unknown = [
        dataclasses.replace(get_device("t4"), peak_flops_per_s={}),
        dataclasses.replace(get_device("t4"), memory_bandwidth_bytes_per_s=None),
    ]
    assert [estimate_latency(small, Workload(), device) for device in unknown] == [None, None]


def test_encoder_has_no_decode_time(networks):
    """It generates nothing."""
    latency = estimate_latency(networks["shared_layers"], Workload(), get_device("t4"))
    assert (latency.decode_s_per_token, latency.tokens_per_s) == (None, None)
    assert latency.request_s == latency.prefill_s.time_s.value > 0


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_larger_models_are_not_faster(small, field):
    """The time grows with every size."""
    device, workload = get_device("t4"), Workload()
    grown = dataclasses.replace(small, **{field: 4 * getattr(small, field)}, head_dim=16)
    before, after = (estimate_latency(config, workload, device) for config in (small, grown))
    assert after.prefill_s.bound_s > before.prefill_s.bound_s
    assert after.decode_s_per_token.bound_s > before.decode_s_per_token.bound_s


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("v100", "gpu"),
        ("h100", "gpu"),
        ("rtx-4090", "gpu"),
        ("apple-m1", "gpu"),
        ("l40s", "gpu-dense"),
        ("a10", "gpu-dense"),
        ("p4", "gpu-low-power"),
        ("t4", "gpu-low-power"),
        ("jetson-agx-orin", "gpu-low-power"),
        ("l4", "gpu-power-limited"),
        ("mi100", "gpu-cdna"),
        ("mi210", "gpu-cdna"),
        ("tpu-v5e", "accelerator"),
        ("epyc-9654", "cpu"),
    ],
)
def test_classes_follow_power_and_generation(device, expected):
    """The lower the power limit against what is promised, the lower the fraction; each class says where it is from."""
    assert device_class(get_device(device)) == expected
    assert achievable_of(get_device(device)).source


def test_every_device_has_fractions_below_one():
    """No class promises more than the data sheet."""
    for device in load_devices().values():
        achievable = achievable_of(device)
        assert all(0 < getattr(achievable, name) < 1 for name in FRACTIONS)
        assert achievable.spread > 1
        assert achievable.origin == "modelled"


@pytest.mark.parametrize("board", ["mi250", "mi250x"])
def test_a_program_uses_one_of_two_dies(small, board):
    """A board of two dies with the peaks of both takes as long as the board with one of them."""
    both, one = get_device(board), get_device("mi210")
    assert achievable_of(both).name == "gpu-cdna-one-die"
    for workload in (Workload(batch_size=64, prompt_length=512), Workload(batch_size=1)):
        times = [estimate_latency(small, workload, device) for device in (both, one)]
        assert times[0].prefill_s.time_s.value == pytest.approx(times[1].prefill_s.time_s.value, rel=0.06)
        decodes = [time.decode_s_per_token.time_s.value for time in times]
        assert decodes[0] == pytest.approx(decodes[1], rel=0.06)


def test_small_steps_take_their_operators(small):
    """A tiny model on a fast GPU waits for kernels, not for memory."""
    phase = estimate_latency(small, Workload(), get_device("h100")).decode_s_per_token
    operators = count_operators(decode_runs(network_of(small), Workload()))
    assert phase.overhead_s == pytest.approx(operators * achievable_of(get_device("h100")).operator_s)
    assert phase.overhead_s > phase.time_s.value / 2
    assert phase.to_dict()["overhead_s"] == phase.overhead_s


def test_origins_follow_what_was_learnt(small):
    """A learnt bandwidth makes decoding predicted, while prefill and with it the request stay modelled."""
    device, workload = get_device("t4"), Workload(batch_size=64, prompt_length=512)
    learnt = dataclasses.replace(achievable_of(device), learnt=("bandwidth_fraction",), learnt_spread=1.2)
    assert estimate_latency(small, Workload(), device, learnt).origins["decode_s_per_token"] == "predicted"
    latency = estimate_latency(small, workload, device, learnt)
    assert latency.prefill_s.fraction == "fp32_fraction"
    assert latency.origins["prefill_s"] == latency.origins["request_s"] == "modelled"
    everything = dataclasses.replace(learnt, learnt=FRACTIONS)
    assert set(estimate_latency(small, workload, device, everything).origins.values()) == {"predicted"}


@pytest.mark.parametrize(
    ("device", "dtype", "fraction"),
    [("p4", "bf16", "fp32_fraction"), ("t4", "bf16", "fp32_fraction"), ("t4", "fp16", "matrix_fraction")],
)
def test_types_without_a_rate_run_in_fp32(small, device, dtype, fraction):
    """And are held against the fraction of fp32."""
    workload = Workload(batch_size=64, prompt_length=512, weight_dtype=dtype, activation_dtype=dtype)
    assert estimate_latency(small, workload, get_device(device)).prefill_s.fraction == fraction
