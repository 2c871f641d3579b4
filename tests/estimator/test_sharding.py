"""The share of one of several devices: what is divided, and what is whole on each."""

from __future__ import annotations

import pytest

from estimator.fitting.sharding import kept_heads, shard_network, widest_split
from estimator.memory import count_kv_cache_bytes, count_weight_bytes
from estimator.network import stored_weights
from estimator.params import count_params
from estimator.readers.source import read_bundled
from estimator.weights import network_of
from estimator.workload import Workload


def test_one_device_holds_everything(small):
    """A share of one is the network itself."""
    network = network_of(small)
    assert shard_network(network, 1) is network


@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_shares_of_a_llama_divide_all_but_the_norms(num_devices):
    """Closed form: norms are 2 D per layer and D at the end, everything else of Llama-3.1-8B divides evenly."""
    network = read_bundled("llama-3.1-8b").network
    norms = 65 * 4096
    whole, share = (count_params(n).total for n in (network, shard_network(network, num_devices)))
    assert share == norms + (whole - norms) // num_devices


def test_key_value_heads_are_whole_beyond_one_per_device():
    """16 devices for 8 heads: each holds one head's cache and matrices, not half of them."""
    network = read_bundled("llama-3.1-8b").network
    workload = Workload()
    cache = count_kv_cache_bytes(network, workload)
    assert count_kv_cache_bytes(shard_network(network, 8), workload) == cache // 8
    assert count_kv_cache_bytes(shard_network(network, 16), workload) == cache // 8
    repeated = [w for _, _, w in stored_weights(shard_network(network, 16)) if w.name == "repeated_key_values"]
    assert len(repeated) == 32
    assert {weight.shape for weight in repeated} == {(2 * 128 - 2 * 64, 4096)}


def test_shares_together_hold_at_least_the_whole(random_configs):
    """Rounding and repetition only add; a share is never larger than the whole but for repeated heads."""
    workload = Workload()
    for config in random_configs[:40]:
        network = network_of(config)
        for num_devices in (2, 4):
            share = shard_network(network, num_devices)
            assert num_devices * count_weight_bytes(share, workload) >= count_weight_bytes(network, workload)
            assert count_weight_bytes(share, workload) <= count_weight_bytes(network, workload)
            assert num_devices * count_kv_cache_bytes(share, workload) >= count_kv_cache_bytes(network, workload)


def test_a_latent_cache_has_no_heads_and_stays_whole():
    """The cache of latent attention is read by every head, so every device keeps it."""
    from estimator.blocks.common import latent_attention

    block = latent_attention(
        hidden_size=64,
        num_attention_heads=8,
        q_lora_rank=None,
        kv_lora_rank=64,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    )
    assert block.attention is not None
    assert kept_heads(block.attention) is None


def test_heads_limit_the_number_of_devices(small):
    """The largest power of two up to the fewest heads."""
    assert widest_split(network_of(small)) == 4
    assert widest_split(read_bundled("gpt2").network) == 8
