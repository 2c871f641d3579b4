"""What the roofline divides: bytes read, by closed forms, and the peak that binds."""

from __future__ import annotations

import dataclasses

import pytest

from estimator.devices import get_device
from estimator.memory import count_weight_bytes
from estimator.phases import decode_runs, prefill_runs
from estimator.roofline import count_read_bytes, peak_rate
from estimator.weights import network_of
from estimator.workload import Workload


def _read(config, workload):
    return count_read_bytes(prefill_runs(network_of(config), workload), workload)


def test_read_bytes_leave_out_lookup_tables(small):
    """An untied token table is looked up, a tied one is multiplied with; position tables are always looked up."""
    workload = Workload()
    table = small.vocab_size * small.hidden_size * 4
    assert count_weight_bytes(small, workload) - _read(small, workload) == table
    tied = dataclasses.replace(small, tie_word_embeddings=True, position_embedding="learned")
    positions = tied.max_position_embeddings * tied.hidden_size * 4
    assert count_weight_bytes(tied, workload) - _read(tied, workload) == positions


def test_decode_reads_the_weights_of_prefill(small):
    """Both phases pass through every matrix of a decoder."""
    workload = Workload(batch_size=3)
    assert count_read_bytes(decode_runs(network_of(small), workload), workload) == _read(small, workload)


def test_quantised_weights_are_read_quantised(small):
    """A pass reads what is stored, but the table."""
    workload = Workload(weight_dtype="int4", activation_dtype="bf16")
    table = small.vocab_size * small.hidden_size * 2
    assert _read(small, workload) == count_weight_bytes(small, workload) - table


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
