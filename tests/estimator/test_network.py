"""Counts over networks made by hand: closed forms, loops over pairs, every choice of experts."""

from __future__ import annotations

import dataclasses
import itertools
from statistics import mean

import pytest

from estimator.blocks.common import attention, experts
from estimator.flops import attended_pairs, causal_discount_flops, count_flops
from estimator.memory import (
    count_kv_cache_bytes,
    count_state_bytes,
    count_weight_bytes,
    estimate_memory,
    widest_moments,
)
from estimator.network import Block, Layer, Network, Stack, Weight, stored_weights
from estimator.params import count_params
from estimator.phases import BlockRun, decode_runs, prefill_runs
from estimator.roofline import count_read_bytes
from estimator.sizing import estimate
from estimator.workload import Workload

NAMES = (
    *("experts", "latent", "recurrent", "stateful", "chunked", "shared_cache"),
    *("encoder_decoder", "fixed_source", "shared_layers", "images"),
)
D, V, F = 24, 100, 40
ATTENTION = 2 * D * D + 2 * D * 12  # N=4, K=2, H=6
FEED_FORWARD = 3 * D * F


@pytest.mark.parametrize("name", NAMES)
def test_parts_stacks_and_layers_sum_to_the_total(networks, name):
    """Three partitions of the same weights; what lies outside the layers is in the stacks."""
    network = networks[name]
    count = count_params(network)
    assert count.total == sum(weight.num_elements for _, _, weight in stored_weights(network))
    assert sum(count.by_part.values()) == sum(count.by_stack.values()) == count.total
    assert count.embedding + count.non_embedding == count.total
    for stack in network.stacks:
        outside = sum(weight.num_elements for block in (*stack.before, *stack.after) for weight in block.weights)
        assert sum(count.by_layer[stack.name]) + outside == count.by_stack[stack.name]


@pytest.mark.parametrize("name", NAMES)
def test_operators_sum_to_the_total(networks, name):
    """Both phases; the causal count is at most the full one."""
    flops = count_flops(networks[name], Workload(batch_size=2, prompt_length=9, generated_length=4, num_images=2))
    assert sum(flops.prefill_by_operator.values()) == flops.prefill_flops
    assert 0 < flops.prefill_causal_flops <= flops.prefill_flops
    if flops.decode_by_operator is not None:
        assert sum(flops.decode_by_operator.values()) == flops.decode_flops_per_token


@pytest.mark.parametrize("name", NAMES)
def test_total_memory_is_the_sum(networks, name):
    """Nothing is added that is not shown."""
    memory = estimate_memory(networks[name], Workload(batch_size=2, generated_length=3, num_images=1))
    shown = memory.weights_bytes + memory.kv_cache_bytes + memory.state_bytes + memory.activations_bytes
    assert memory.total_bytes == shown + memory.runtime_bytes


def test_experts_by_hand(networks):
    """Three layers of a router 24*6, 6 experts of 3*24*8 of which 2 run, a shared one of 3*24*16 and its gate of 24."""
    network = networks["experts"]
    count = count_params(network)
    expert, always = 3 * D * 8, D * 6 + 3 * D * 16 + D
    assert count.by_part["experts"] == 3 * (6 * expert + always)
    assert count.total - count.active == 3 * 4 * expert
    assert count.active_non_embedding == count.active - V * D
    flops = count_flops(network, Workload(batch_size=2, prompt_length=5))
    assert flops.prefill_by_operator["experts"] == 2 * 10 * 3 * (2 * expert + always)
    assert flops.decode_by_operator["experts"] == 2 * 3 * (2 * expert + always)


def test_quantised_experts_leave_the_router(networks):
    """int8: a byte an element and a scale an output of every expert; the router and the gate keep their type."""
    block = next(block for block in networks["experts"].main.blocks if block.part == "experts")
    stack = Stack(name="decoder", hidden_size=D, layers=(Layer(blocks=(block,)),))
    network = Network(architecture="decoder", stacks=(stack,), model_type="hand")
    matrices = 6 * 3 * D * 8 + 3 * D * 16
    scales = 4 * (6 * (8 + 8 + D) + 16 + 16 + D)
    workload = Workload(weight_dtype="int8", activation_dtype="fp16")
    assert count_weight_bytes(network, workload) == matrices + scales + 2 * (6 * D + D)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4])
def test_experts_read_are_the_mean_over_all_choices(num_rows):
    """Every way in which rows can choose 2 of 4 experts, each as likely as the others."""
    choices = itertools.product(itertools.combinations(range(4), 2), repeat=num_rows)
    expected = mean(len(set(itertools.chain(*rows))) for rows in choices)
    block = experts(hidden_size=1000, intermediate_size=500, num_experts=4, num_experts_per_tok=2)
    stack = Stack(name="decoder", hidden_size=1000, layers=(Layer(blocks=(block,)),), is_causal=True)
    run = BlockRun(stack=stack, block=block, owns_weights=True, num_sequences=1, num_rows=num_rows, num_keys=num_rows)
    router, expert = 4 * 1000, 3 * 1000 * 500
    assert count_read_bytes([run], Workload()) == pytest.approx(4 * (router + expected * expert), abs=3)


def test_read_experts_grow_to_all(networks):
    """One token reads k of E, very many read them all, and never more."""
    network = networks["experts"]
    stored = count_weight_bytes(network, Workload())
    read = [count_read_bytes(decode_runs(network, w), w) for w in (Workload(batch_size=n) for n in (1, 3, 300))]
    assert read[0] < read[1] < read[2] == stored
    assert stored - read[0] == 4 * 3 * 4 * 3 * D * 8


def test_latent_cache_keeps_latent_and_rotary_key(networks):
    """7 + 2 elements a token and layer, whatever the heads."""
    workload = Workload(batch_size=3, prompt_length=10, generated_length=5, kv_cache_dtype="bf16")
    assert count_kv_cache_bytes(networks["latent"], workload) == 3 * 2 * 2 * 15 * 9


def test_latent_attention_by_hand(networks):
    """q 24*10 + 10*28, latent 24*9 + 7*32, output 12*24; heads of 7 for keys and 3 for values."""
    matrices = D * 10 + 10 * 28 + D * 9 + 7 * 32
    flops = count_flops(networks["latent"], Workload(prompt_length=6)).prefill_by_operator
    assert flops["qkv_projection"] == 2 * 2 * 6 * matrices
    assert flops["output_projection"] == 2 * 2 * 6 * 12 * D
    assert flops["attention_scores"] == 2 * 2 * 6 * 6 * 4 * 7
    assert flops["attention_values"] == 2 * 2 * 6 * 6 * 4 * 3


def test_recurrent_layers_keep_a_state_and_no_cache(networks):
    """Two of three layers have a state of 5*24 + 3*24; the third keeps the last 5 tokens."""
    network = networks["recurrent"]
    for tokens in (3, 50):
        workload = Workload(batch_size=2, prompt_length=tokens, activation_dtype="fp16")
        assert count_state_bytes(network, workload) == 2 * 2 * 2 * 8 * D
        assert count_kv_cache_bytes(network, workload) == 2 * 4 * min(tokens, 5) * 24
    assert count_kv_cache_bytes(networks["stateful"], Workload()) == 0


def test_recurrent_flops_are_linear_in_the_tokens(networks):
    """Matrices 24*48 + 24*24, a convolution of 24*4, and 480 FLOPs with the state, for each of two layers."""
    flops = [count_flops(networks["stateful"], Workload(prompt_length=n)) for n in (10, 20)]
    layers = 2 * (2 * (D * 2 * D + D * D + 4 * D) + 4 * D * 5)
    assert [f.prefill_by_operator["state_space"] for f in flops] == [10 * layers, 20 * layers]
    assert flops[0].decode_flops_per_token == flops[1].decode_flops_per_token == layers + 2 * D * V


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16, 20])
def test_chunked_prompts_cost_what_a_walk_over_their_chunks_adds_up(networks, num_tokens):
    """Chunks of 8 tokens: padded, shorter at the end, or with the rest token by token."""
    chunks = [min(8, num_tokens - start) for start in range(0, num_tokens, 8)]

    def walk(sizes):
        pairs = sum(7 for size in sizes for _ in range(size) for _ in range(size))
        boundaries = sum(5 for _ in range(num_whole(sizes) + 1) for _ in range(num_whole(sizes) + 1))
        return 31 * sum(sizes) + pairs + boundaries

    def num_whole(sizes):
        return sum(size == 8 for size in sizes)

    whole = [size for size in chunks if size == 8]
    rest = num_tokens - 8 * len(whole)
    expected = walk([8] * len(chunks)) + walk(chunks) + walk(whole) + 13 * rest + 3 * 11
    matrices = 3 * 2 * num_tokens * D * D
    flops = count_flops(networks["chunked"], Workload(batch_size=2, prompt_length=num_tokens))
    assert flops.prefill_by_operator["state_space"] == 2 * (expected + matrices)
    assert flops.decode_by_operator["state_space"] == 3 * (13 + 2 * D * D)


def test_fp32_part_of_a_state_stays_fp32(networks):
    """50 of 70 elements in each of three layers, whatever the activations."""
    workload = Workload(batch_size=2, activation_dtype="bf16")
    assert count_state_bytes(networks["chunked"], workload) == 2 * 3 * (50 * 4 + 20 * 2)


def test_layer_that_reads_anothers_cache_keeps_none(networks):
    """It attends all the same."""
    network = networks["shared_cache"]
    assert count_kv_cache_bytes(network, Workload(prompt_length=10)) == 4 * 10 * 24
    assert count_flops(network, Workload(prompt_length=10)).prefill_by_operator["attention_scores"] == 2 * 2 * 100 * D


def test_encoder_decoder_phases(networks):
    """The encoder reads the prompt, the decoder its first token; later steps leave the encoder's keys as they are."""
    network, workload = networks["encoder_decoder"], Workload(batch_size=2, prompt_length=10, generated_length=4)
    prefill = [(run.num_rows, run.num_keys) for run in prefill_runs(network, workload) if run.block.part == "attention"]
    own, cross, source = (2, 1), (2, 10), (20, 1)
    assert prefill == [(20, 10)] * 2 + [own, cross, source] * 3
    decode = [(run.num_rows, run.num_keys) for run in decode_runs(network, workload) if run.block.part == "attention"]
    assert decode == [(2, 6), (2, 10)] * 3
    flops = count_flops(network, workload)
    assert flops.prefill_by_operator["head"] == 2 * 2 * D * V
    matrices = ATTENTION + 2 * D * D + FEED_FORWARD  # of one decoder layer for one token
    assert flops.decode_flops_per_token == 2 * (3 * (matrices + 2 * (6 + 10) * D) + D * V)


def test_encoder_decoder_cache(networks):
    """Three layers keep 1 + 4 of their own tokens at 2*2*6 elements, and 10 of the encoder's at 2*4*6."""
    workload = Workload(batch_size=2, prompt_length=10, generated_length=4)
    assert count_kv_cache_bytes(networks["encoder_decoder"], workload) == 2 * 4 * 3 * (5 * 24 + 10 * 48)


def test_source_of_fixed_length_ignores_the_prompt(networks):
    """An audio encoder reads its 50 rows, however long the prompt."""
    network = networks["fixed_source"]
    figures = [
        (count_flops(network, workload), estimate_memory(network, workload))
        for workload in (Workload(prompt_length=3, generated_length=2), Workload(prompt_length=90, generated_length=2))
    ]
    assert figures[0] == figures[1]
    assert figures[0][1].kv_cache_bytes == 4 * 3 * (3 * 24 + 50 * 48)


def test_cross_keys_are_alive_for_the_encoders_rows(networks):
    """In prefill the decoder has one row; the keys and values that it makes of 50 rows are wider than that row."""
    network = networks["fixed_source"]
    mixing, _, end = widest_moments(network, network.main, Workload(), score_copies=0)
    assert mixing.count_elements() == 50 * 2 * D
    assert end.count_elements() == D + V


def test_positions_are_compared_sequence_by_sequence(networks):
    """Of 30 positions 25 and 29 in two sequences fit, 31 in one do not; a fixed source is not compared."""
    network = networks["encoder_decoder"]
    assert not estimate(network, Workload(prompt_length=25, generated_length=28)).warnings
    for workload in (Workload(prompt_length=31), Workload(prompt_length=2, generated_length=30)):
        (warning,) = estimate(network, workload).warnings
        assert "31 tokens" in warning
    assert not estimate(networks["fixed_source"], Workload(prompt_length=31)).warnings


def test_shared_layers_count_once_and_run_four_times(networks):
    """One layer's weights in all; four layers' work; the weights are read once."""
    network = networks["shared_layers"]
    owned = dataclasses.replace(
        network,
        stacks=(
            dataclasses.replace(
                network.main,
                layers=tuple(dataclasses.replace(layer, owns_weights=True) for layer in network.main.layers),
            ),
        ),
    )
    shared, full = count_params(network), count_params(owned)
    layer = ATTENTION + D + 2 * 12 + D + FEED_FORWARD  # with biases of q, k, v and a norm
    assert full.total - shared.total == 3 * layer
    assert shared.by_layer["encoder"] == (layer, 0, 0, 0)
    assert count_flops(network, Workload()) == count_flops(owned, Workload())
    workload = Workload()
    read = [count_read_bytes(prefill_runs(each, workload), workload) for each in (network, owned)]
    assert read[1] - read[0] == 4 * 3 * layer


def test_pooler_runs_on_one_row(networks):
    """24*24 for each of two sequences; an encoder generates nothing."""
    flops = count_flops(networks["shared_layers"], Workload(batch_size=2, prompt_length=50))
    assert flops.prefill_by_operator["head"] == 2 * 2 * D * D
    assert flops.decode_flops_per_token is None
    assert flops.prefill_causal_flops == flops.prefill_flops
    assert count_kv_cache_bytes(networks["shared_layers"], Workload()) == 0


def test_optional_stack_runs_per_image_and_is_always_stored(networks):
    """36 patches of 3*4*4 through two layers of width 16, nine of them projected, for each image of each sequence."""
    network = networks["images"]
    workloads = [Workload(batch_size=2, prompt_length=5, num_images=images) for images in (0, 1, 2)]
    none, one, two = (count_flops(network, workload) for workload in workloads)
    layer = 2 * 16 * 24 + 2 * 16 * 12 + 3 * 16 * F  # matrices for one patch
    vision = 2 * (36 * (48 * 16 + 2 * layer) + 9 * 16 * D) + 2 * 2 * 2 * 36 * 36 * 24
    assert one.prefill_flops - none.prefill_flops == 2 * vision
    assert two.prefill_flops - none.prefill_flops == 4 * vision
    assert none.decode_flops_per_token == two.decode_flops_per_token
    read = [count_read_bytes(prefill_runs(network, workload), workload) for workload in workloads]
    assert read[0] < read[1] == read[2]
    assert count_params(network).by_stack["vision"] > 0
    memory = [estimate_memory(network, workload) for workload in workloads]
    assert memory[0].weights_bytes == memory[2].weights_bytes
    assert memory[0].activations_bytes < memory[1].activations_bytes < memory[2].activations_bytes


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 12])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 40])
def test_causal_discount_is_what_a_loop_over_pairs_masks(num_tokens, window):
    """A token attends to itself and to those before it, at most `window` in all."""
    block = attention(hidden_size=D, num_attention_heads=4, num_key_value_heads=2, head_dim=6, window=window)
    pairs = [(query, key) for query in range(num_tokens) for key in range(num_tokens)]
    attended = [(q, k) for q, k in pairs if k <= q and (window is None or q - k < window)]
    assert attended_pairs(block.attention, num_tokens) == len(attended)
    stack = Stack(name="decoder", hidden_size=D, layers=(Layer(blocks=(block,)),), is_causal=True)
    network = Network(architecture="decoder", stacks=(stack,), model_type="hand")
    flops = count_flops(network, Workload(batch_size=3, prompt_length=num_tokens))
    assert flops.prefill_flops - flops.prefill_causal_flops == 3 * 2 * (len(pairs) - len(attended)) * 4 * (6 + 6)


def test_only_causal_self_attention_is_discounted(networks):
    """Neither encoders nor cross-attention nor images have a mask to discount."""
    workload = Workload(batch_size=2, prompt_length=7, num_images=1)
    for name in ("encoder_decoder", "shared_layers", "images"):
        for run in prefill_runs(networks[name], workload):
            masked = run.stack.is_causal and run.block.attention is not None and not run.block.attention.is_cross
            tokens = run.num_rows // run.num_sequences
            assert causal_discount_flops(run) == (2 * 2 * tokens * (tokens - 1) // 2 * 4 * 12 if masked else 0)


def test_hash_tells_networks_apart(networks):
    """Every network, and every change of one weight, has a hash of its own."""
    hashes = {network.architecture_hash() for network in networks.values()}
    assert len(hashes) == len(networks)
    network = networks["stateful"]
    extra = Block(name="extra", part="norm", weights=(Weight(name="weight", shape=(1,), role="norm"),))
    changed = dataclasses.replace(network, stacks=(dataclasses.replace(network.main, after=(extra,)),))
    assert changed.architecture_hash() not in hashes
    assert network.architecture_hash() == dataclasses.replace(changed, stacks=network.stacks).architecture_hash()


def test_json_of_a_network_has_no_config(networks):
    """It can be sized and not built."""
    document = estimate(networks["images"], Workload(num_images=1)).to_dict()
    assert document["model"]["config"] is None
    assert [stack["name"] for stack in document["model"]["stacks"]] == ["vision", "decoder"]
    assert document["params"]["by_stack"].keys() == {"vision", "decoder"}
