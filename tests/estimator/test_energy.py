"""estimate_energy: measured power and energy from outside, and what must hold for every device."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.cost.energy import estimate_energy
from estimator.cost.facility import facility_of, kwh_of
from estimator.cost.power import POWER_CLASSES, power_class_of
from estimator.devices import get_device, load_devices
from estimator.errors import InputError
from estimator.latency import estimate_latency
from estimator.readers.source import read_source
from estimator.validating.comparisons import compare_class, summarise
from estimator.workload import Workload

REFERENCE = Path(__file__).parents[2] / "estimator" / "reference"
BF16 = Workload(weight_dtype="bf16", activation_dtype="bf16", kv_cache_dtype="bf16", prompt_length=512)


def _energy(model="llama-3.1-8b", device="h100", facility=None, **changes):
    workload = dataclasses.replace(BF16, **changes)
    found = get_device(device)
    latency = estimate_latency(read_source(model).network, workload, found)
    return estimate_energy(latency, found, workload, facility)


def _measured():
    return list(csv.DictReader((REFERENCE / "energy_h100.tsv").read_text("utf-8").splitlines(), delimiter="\t"))


@pytest.mark.parametrize("row", _measured(), ids=lambda row: f"{row['model']} x {row['batch_size']}")
def test_energy_holds_measured_requests(row):
    """Power and joules per output token within 15 % and in their intervals: ML.ENERGY, H100, bf16."""
    energy = _energy(row["model"], batch_size=int(row["batch_size"]), generated_length=512)
    joules, watts = float(row["joules_per_output_token"]), float(row["power_w"])
    assert energy.output_token_j.value == pytest.approx(joules, rel=0.15)
    assert energy.output_token_j.low <= joules <= energy.output_token_j.high
    assert energy.decode_w.value == pytest.approx(watts, rel=0.15)
    assert energy.decode_w.low <= watts <= energy.decode_w.high


# Averages of Qwen3-8B's chat requests on the ML.ENERGY leaderboard v3.0: joules per output token, watts.
@pytest.mark.parametrize(
    ("device", "batch_size", "generated", "joules", "watts"),
    [("h100", 8, 650, 0.444, 427), ("h100", 128, 650, 0.0966, 574), ("b200", 16, 650, 0.2552, 530)],
)
def test_energy_holds_another_model_and_a_newer_device(device, batch_size, generated, joules, watts):
    """Both lie in their intervals."""
    energy = _energy("qwen3-8b", device, batch_size=batch_size, generated_length=generated)
    assert energy.output_token_j.low <= joules <= energy.output_token_j.high
    assert energy.decode_w.low <= watts <= energy.decode_w.high


def test_energy_is_power_times_time():
    """Below the power limit, and additive over prompt and tokens."""
    workload = dataclasses.replace(BF16, batch_size=4, generated_length=100)
    device = get_device("h100")
    latency = estimate_latency(read_source("llama-3.1-8b").network, workload, device)
    energy = estimate_energy(latency, device, workload)
    assert energy.prefill_w.value == 700
    prefill_j = energy.prefill_j.value
    assert prefill_j >= latency.prefill_s.time_s.value * 700
    token_j = latency.decode_s_per_token.time_s.value * energy.decode_w.value / 4
    assert energy.prefill_j_per_token.value == pytest.approx(prefill_j / (4 * 512))
    assert energy.decode_j_per_token.value == pytest.approx(token_j)
    assert energy.request_j.value == pytest.approx(prefill_j / 4 + 100 * token_j)
    assert energy.output_token_j.value == pytest.approx(energy.request_j.value / 100)


def test_power_rises_with_the_batch_and_stops_at_the_limit():
    """From above idle to no more than the TDP."""
    watts = [_energy(batch_size=batch, generated_length=8).decode_w for batch in (1, 16, 64, 256, 1024)]
    assert [figure.value for figure in watts] == sorted(figure.value for figure in watts)
    assert watts[0].value < watts[-1].value
    assert all(0.1 * 700 < figure.value <= 700 and figure.high <= 700 for figure in watts)


def test_a_given_power_replaces_the_model():
    """Energy is then that power times the time, whatever the device's class."""
    energy = _energy(facility=facility_of(get_device("h100"), power_w=350.0), generated_length=1)
    assert energy.prefill_w.value == energy.decode_w.value == 350.0
    latency = estimate_latency(read_source("llama-3.1-8b").network, BF16, get_device("h100"))
    assert energy.prefill_j.value == pytest.approx(350.0 * latency.prefill_s.time_s.value)


def test_facility_multiplies_energy_and_carbon():
    """Wh = J · PUE / 3600; kg = kWh · grid."""
    energy = _energy(facility=facility_of(None, pue=1.25, grid_kg_per_kwh=0.4), generated_length=64)
    assert energy.request_wh.value == pytest.approx(energy.request_j.value * 1.25 / 3600)
    assert energy.request_kg_co2e.value == pytest.approx(energy.request_wh.value / 1000 * 0.4)
    assert kwh_of(3.6e6, 1.0) == 1.0


def test_money_is_device_time_and_electricity():
    """A million output tokens cost their device-hours; electricity adds its kilowatt-hours; no price, no cost."""
    asked = {"batch_size": 8, "generated_length": 256}
    plain = _energy(facility=facility_of(None, price_per_hour=2.0), **asked)
    workload = dataclasses.replace(BF16, **asked)
    latency = estimate_latency(read_source("llama-3.1-8b").network, workload, get_device("h100"))
    expected = latency.request_s / 3600 * 2.0 / (8 * 256) * 1e6
    assert plain.money_per_million_output_tokens.value == pytest.approx(expected)
    powered = _energy(facility=facility_of(None, price_per_hour=2.0, price_per_kwh=0.3), **asked)
    added = kwh_of(powered.output_token_j.value * 1e6, powered.facility.pue) * 0.3
    assert powered.money_per_million_output_tokens.value == pytest.approx(expected + added)
    assert _energy(**asked).money_per_million_output_tokens is None


def test_purchase_price_is_spread_over_years():
    """A published price needs only the years; prices in part, twice or without a source are refused."""
    device = next(device for device in load_devices().values() if device.price_usd is not None)
    facility = facility_of(device, years=4)
    assert facility.price_per_hour == pytest.approx(device.price_usd / (4 * 365.25 * 24))
    assert device.sources["price_usd"].title in facility.price_source
    assert facility_of(device, years=4, purchase_price=35_064.0).price_per_hour == pytest.approx(1.0)
    for wrong in ({"purchase_price": 1000.0}, {"years": 3.0, "price_per_hour": 1.0}, {"years": 0.0}):
        with pytest.raises(InputError):
            facility_of(device, **wrong)
    with pytest.raises(InputError, match="published"):
        facility_of(dataclasses.replace(device, price_usd=None), years=3)


@pytest.mark.parametrize(("name", "value"), [("pue", 0.9), ("grid_kg_per_kwh", -1.0), ("power_w", float("nan"))])
def test_impossible_facilities_are_refused(name, value):
    """The message names the number."""
    with pytest.raises(InputError, match=name):
        facility_of(None, **{name: value})


def test_defaults_name_their_sources():
    """Overhead of data centres for servers, none elsewhere; the world's grid; no price."""
    server, board = facility_of(get_device("h100")), facility_of(get_device("raspberry-pi-5"))
    assert "Uptime" in server.pue_source
    assert server.pue > board.pue == 1.0
    assert "IEA" in server.grid_source
    assert not server.has_price


def test_encoders_and_devices_without_power():
    """An encoder has no decode; a device whose power is not published has no energy until one is given."""
    energy = _energy("bert-base-uncased")
    assert energy.decode_j_per_token is energy.output_token_j is energy.decode_w is None
    assert energy.request_j.value == pytest.approx(energy.prefill_j.value)
    unknown = dataclasses.replace(get_device("h100"), tdp_w=None)
    latency = estimate_latency(read_source("gpt2").network, BF16, unknown)
    assert estimate_energy(latency, unknown, BF16) is None
    assert estimate_energy(latency, unknown, BF16, facility_of(unknown, power_w=300.0)) is not None


def test_every_device_with_power_and_time_has_an_energy():
    """Finite, ordered intervals and a power within the limit, over the whole table."""
    network = read_source("gpt2").network
    seen = 0
    for device in load_devices().values():
        latency = estimate_latency(network, BF16, device)
        energy = None if latency is None else estimate_energy(latency, device, BF16)
        if energy is None:
            assert latency is None or device.tdp_w is None
            continue
        seen += 1
        assert energy.prefill_w.value <= device.tdp_w
        assert all(f.low <= f.value <= f.high for f in energy.figures().values() if f is not None)
    assert seen >= 40


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 512),
    st.integers(1, 4096),
    st.integers(0, 512),
    st.sampled_from(["h100", "t4", "epyc-9654", "mi300x"]),
)
def test_energy_is_additive_and_grows_with_the_request(batch, prompt, generated, device):
    """A request is its prompt and its tokens, and one more token never makes it cheaper."""
    energy = _energy("gpt2", device, batch_size=batch, prompt_length=prompt, generated_length=generated)
    more = _energy("gpt2", device, batch_size=batch, prompt_length=prompt, generated_length=generated + 1)
    assert more.request_j.value > energy.request_j.value
    together = energy.prefill_j.value + batch * generated * energy.decode_j_per_token.value
    assert energy.request_j.value * batch == pytest.approx(together)


def test_energy_is_what_is_moved_and_computed():
    """The closed form: awake seconds, bytes over the bandwidth and FLOPs over the peak, times 700 W."""
    device, workload = get_device("h100"), dataclasses.replace(BF16, batch_size=8, generated_length=1)
    latency = estimate_latency(read_source("llama-3.1-8b").network, workload, device)
    power, phase = power_class_of(device), latency.decode_s_per_token
    seconds = (
        power.awake_share * phase.time_s.value
        + power.bandwidth_share * phase.bytes_moved / 3.35e12
        + power.compute_share * phase.flops / 989.5e12
    )
    token = estimate_energy(latency, device, workload).decode_j_per_token
    assert token.value == pytest.approx(700 * seconds / 8)


def test_power_classes_are_shares_of_the_limit():
    """A device that does nothing draws less than its limit; every device has a class with a source."""
    for power in POWER_CLASSES.values():
        assert 0 < power.awake_share < 1
        assert power.awake_share + power.compute_share > 1
        assert power.above >= power.below > 1
    assert all(power_class_of(device).source for device in load_devices().values())


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("request-energy", 0.10),
        ("request-power", 0.10),
        ("training-energy", 0.005),
        ("training-co2e", 0.005),
        ("training-hours", 0.10),
    ],
)
def test_reference_classes_stay_within_their_errors(name, error):
    """Mean absolute error of each class of `estimator validate`; every interval holds what was measured."""
    found = summarise(name, compare_class(name))
    assert found.refused == 0
    assert found.mean_absolute_error <= error
    assert found.coverage in (None, 1.0)
