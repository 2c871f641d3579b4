"""Training compute: PyTorch's own counter, the published training runs, and the rule."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from estimator.cost.facility import facility_of
from estimator.devices import get_device
from estimator.errors import InputError
from estimator.figures import Figure
from estimator.params import count_params
from estimator.readers.source import read_source, source_of_values
from estimator.training.compute import (
    PETAFLOP_DAY,
    TrainingRun,
    count_training_flops,
    estimate_training_compute,
    estimate_training_cost,
)

REFERENCE = Path(__file__).parents[2] / "estimator" / "reference"
TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def _rows(field):
    rows = csv.DictReader((REFERENCE / "training_energy.tsv").read_text("utf-8").splitlines(), delimiter="\t")
    return [row for row in rows if row[field]]


def test_exact_count_equals_the_counter_over_forward_and_backward():
    """FlopCounterMode on the meta device over a step of training with eager attention, to the last digit."""
    transformers = pytest.importorskip("transformers")
    sizes = {name: value for name, value in TINY.items() if name not in ("model_type", "architectures")}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, attn_implementation="eager"))
        tokens = torch.zeros((1, 16), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    run = TrainingRun(tokens=16 * 1000, sequence_length=16)
    counted = count_training_flops(source_of_values(TINY, "tiny").network, run).exact
    assert counted == 1000 * counter.get_total_flops()


def test_full_checkpointing_adds_one_forward_pass():
    """4 passes instead of 3; the rule does not know of it."""
    network = read_source("gpt2").network
    plain = count_training_flops(network, TrainingRun(tokens=10**9, sequence_length=1024))
    again = count_training_flops(network, TrainingRun(tokens=10**9, sequence_length=1024, checkpointing="full"))
    assert again.exact / plain.exact == pytest.approx(4 / 3)
    assert again.rule == plain.rule


def test_counts_of_gpt_3_are_those_published():
    """Brown et al. (arXiv:2005.14165, table D.1): 3.14e23 FLOP, 3,640 petaflop/s-days."""
    compute = estimate_training_compute(read_source("gpt-3-175b").network, TrainingRun(tokens=300 * 10**9))
    assert compute.flops.rule == pytest.approx(3.14e23, rel=0.002)
    assert compute.cost.petaflop_days.value == pytest.approx(3640, rel=0.002)
    assert compute.flops.rule_non_embedding < compute.flops.rule < compute.flops.exact_causal < compute.flops.exact
    assert compute.cost.device_hours is None


@pytest.mark.parametrize("row", _rows("training_flops"), ids=lambda row: row["model"])
def test_published_inputs_give_published_energy(row):
    """Megawatt-hours and tonnes of Patterson et al. and LLMCarbon from their inputs within 1 %, days within 2.5 %."""
    rate = float(row["achieved_flops_per_s"])
    run = TrainingRun(tokens=1, num_devices=int(row["num_devices"]), achieved_flops_per_s=rate)
    numbers = {"power_w": row["power_w"], "pue": row["pue"], "grid_kg_per_kwh": row["grid_kg_per_kwh"]}
    facility = facility_of(None, **{name: float(number) for name, number in numbers.items()})
    flops = Figure(value=float(row["training_flops"]), origin="published")
    cost = estimate_training_cost(flops, run, None, facility)
    assert cost.energy_kwh.value / 1e3 == pytest.approx(float(row["energy_mwh"]), rel=0.01)
    assert cost.co2e_kg.value / 1e3 == pytest.approx(float(row["co2e_t"]), rel=0.01)
    assert cost.wall_days.value == pytest.approx(float(row["days"]), rel=0.025)


def test_gpt_3_from_its_config_gives_published_energy():
    """From parameters counted here: 1,287 MWh and 552 t within 0.2 %, 14.8 days within 0.1."""
    run = TrainingRun(tokens=300 * 10**9, num_devices=10_000, achieved_flops_per_s=24.6e12)
    device = get_device("v100")
    facility = facility_of(device, power_w=330.0, pue=1.1, grid_kg_per_kwh=0.429)
    cost = estimate_training_compute(read_source("gpt-3-175b").network, run, device, facility).cost
    assert cost.energy_kwh.value / 1e3 == pytest.approx(1287, rel=0.002)
    assert cost.co2e_kg.value / 1e3 == pytest.approx(552.1, rel=0.002)
    assert cost.wall_days.value == pytest.approx(14.8, abs=0.1)


@pytest.mark.parametrize("row", _rows("device_hours"), ids=lambda row: row["model"])
def test_hours_of_llama_lie_in_the_interval(row):
    """GPU-hours of LLaMA on A100 80 GB from the class's share of the peak: within 20 %, and in the interval."""
    run = TrainingRun(tokens=round(float(row["tokens"])), sequence_length=2048)
    cost = estimate_training_compute(read_source(row["model"]).network, run, get_device(row["device"])).cost
    hours = float(row["device_hours"])
    assert cost.device_hours.value == pytest.approx(hours, rel=0.2)
    assert cost.device_hours.low <= hours <= cost.device_hours.high


@pytest.mark.parametrize("row", _rows("device_hours"), ids=lambda row: row["model"])
def test_energy_of_llama_follows_from_its_hours(row):
    """400 W, PUE 1.1, 0.385 kg/kWh: megawatt-hours within 1.5 %, tonnes within 3 % (printed without decimals)."""
    run = TrainingRun(tokens=1, achieved_flops_per_s=1e12)
    facility = facility_of(None, power_w=400.0, pue=1.1, grid_kg_per_kwh=0.385)
    flops = Figure(value=float(row["device_hours"]) * 3600 * 1e12, origin="published")
    cost = estimate_training_cost(flops, run, None, facility)
    assert cost.energy_kwh.value / 1e3 == pytest.approx(float(row["energy_mwh"]), rel=0.015)
    assert cost.co2e_kg.value / 1e3 == pytest.approx(float(row["co2e_t"]), rel=0.03)


def test_experts_count_by_what_is_active():
    """The rule takes the parameters that a token passes through, not all of them."""
    values = TINY | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    network = source_of_values(values, "tiny").network
    flops = count_training_flops(network, TrainingRun(tokens=1000, sequence_length=10))
    idle = 3 * 6 * 3 * 32 * 80  # layers, idle experts, matrices
    assert flops.parameters == count_params(network).total - idle
    assert flops.rule == 6 * 1000 * flops.parameters


def test_encoder_decoder_needs_a_target_length():
    """Without one the exact count is not known; with one every weight works on one of the two sequences."""
    network = read_source("t5-small").network
    without = count_training_flops(network, TrainingRun(tokens=10**6, sequence_length=512))
    assert without.exact is without.exact_causal is None
    assert without.rule > 0
    counted = count_training_flops(network, TrainingRun(tokens=10**6, sequence_length=512, target_length=114))
    assert 0.3 < counted.exact / counted.rule < 1.0


def test_time_needs_a_rate():
    """Given, by utilisation, or by class, which is less sure; none without a device."""
    network, device = read_source("gpt2").network, get_device("a100-80gb")
    ways = {
        "given": {"achieved_flops_per_s": 156e12},
        "share": {"utilisation": 0.5},
        "class": {},
        "fp32": {"dtype": "fp32"},
    }
    hours = {
        name: estimate_training_compute(network, TrainingRun(tokens=10**9, **way), device).cost.device_hours
        for name, way in ways.items()
    }
    assert hours["given"].value == pytest.approx(hours["share"].value)
    assert hours["class"].high / hours["class"].low > hours["share"].high / hours["share"].low
    assert hours["fp32"].value > 5 * hours["class"].value
    with pytest.raises(InputError, match="--device"):
        estimate_training_compute(network, TrainingRun(tokens=1, utilisation=0.5))


def test_devices_share_the_wall_time():
    """Hours, energy and money do not depend on how many devices share them; days do."""
    network, device = read_source("gpt2").network, get_device("h100")
    facility = facility_of(device, price_per_hour=2.0)
    one, eight = (
        estimate_training_compute(network, TrainingRun(tokens=10**9, num_devices=n), device, facility).cost
        for n in (1, 8)
    )
    assert one.device_hours == eight.device_hours
    assert one.wall_days.value == pytest.approx(8 * eight.wall_days.value)
    assert one.money.value == pytest.approx(2.0 * one.device_hours.value)
    assert one.petaflop_days.value * PETAFLOP_DAY == pytest.approx(6 * 124_439_808 * 1e9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"tokens": 10**19},
        {"tokens": 10, "sequence_length": 0},
        {"tokens": 10, "num_devices": 0},
        {"tokens": 10, "checkpointing": "some"},
        {"tokens": 10, "achieved_flops_per_s": float("inf")},
        {"tokens": 10, "utilisation": 1.5},
        {"tokens": 10, "utilisation": 0.5, "achieved_flops_per_s": 1e12},
    ],
)
def test_impossible_runs_are_refused(wrong):
    """One line that says what would be right."""
    with pytest.raises(InputError):
        TrainingRun(**wrong)
