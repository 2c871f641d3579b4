"""Sizing in reverse, held against brute force: what is said to be the largest fits, and one step more does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimator.config import TransformerConfig
from estimator.devices import get_device, load_devices
from estimator.fitting.devices import find_devices, fit_num_devices
from estimator.fitting.limits import (
    LONGEST,
    Limits,
    Request,
    best_weight_dtype,
    broken_limit,
    demand_of,
    fit_batch_size,
    fit_context,
    fit_device,
    fit_weight_dtypes,
    largest,
)
from estimator.network import Block, Network, Stack, Weight
from estimator.readers.source import read_bundled
from estimator.runtimes import RUNTIMES, base_bytes
from estimator.sizing import estimate
from estimator.weights import network_of
from estimator.workload import WEIGHT_DTYPES, Workload

L4, PI = get_device("l4"), get_device("raspberry-pi-5")


def request_of(model, **workload):
    """A request in bf16 but for what is given."""
    types = {"weight_dtype": "bf16", "activation_dtype": "bf16", "kv_cache_dtype": "bf16"}
    return Request(network=network_of(model), workload=Workload(**(types | workload)))


def encoder(**fields):
    """A small BERT-like model with learned positions."""
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    others = {"intermediate_size": 64, "max_position_embeddings": 40, "architecture": "encoder", "head": "masked_lm"}
    return TransformerConfig(**(sizes | others | {"position_embedding": "learned"} | fields))


def only_weights(num_bytes):
    """What is left of a model of which nothing but its weights is known."""
    weights = (Weight(name="w", shape=(num_bytes // 32, 8), role="other"),)
    stack = Stack(name="model", hidden_size=1, layers=(), before=(Block(name="", part="other", weights=weights),))
    return Network(architecture="encoder", stacks=(stack,), model_type="gguf", has_only_weights=True)


def brute_force(request, limits, field, most):
    """The largest value up to `most`, each tried, by `estimate` itself."""
    best = None
    for value in range(1, most + 1):
        workload = replace(request.workload, **{field: value})
        result = estimate(request.network, workload, limits.device)
        time = result.latency and (result.latency.decode_s_per_token or result.latency.prefill_s).time_s.value
        too_slow = limits.max_latency_s is not None and time > limits.max_latency_s
        first = limits.max_first_token_s
        too_slow = too_slow or (first is not None and result.latency.prefill_s.time_s.value > first)
        if result.memory.total_bytes <= limits.memory_bytes and not too_slow:
            best = value
    return best


def capped(value, most):
    """What a scan up to `most` can find of a value."""
    return None if value is None else min(value, most)


@pytest.mark.parametrize("most", [1, 2, 37, 64, 1000])
def test_largest_is_the_last_that_holds(most):
    """Against a scan, for every place of the edge; the number of questions stays logarithmic."""
    for edge in range(min(most + 2, 80)):
        asked = []

        def broken(value, edge=edge, asked=asked):
            asked.append(value)
            return "edge" if value > edge else None

        found = largest(broken, most)
        holding = [value for value in range(1, most + 1) if value <= edge]
        assert found == (max(holding, default=None), "edge" if edge < most else None)
        assert len(asked) <= 2 * most.bit_length() + 1


@pytest.mark.parametrize("device", [L4, PI, None], ids=["gpu", "cpu", "no device"])
def test_largest_batch_and_context_are_those_of_a_scan(small, device):
    """Budgets of memory from too little to ample: decoder and encoder, on both kinds of device."""
    for model in (small, encoder()):
        request = request_of(model, prompt_length=8, batch_size=2)
        for factor in (0.5, 1.01, 1.3):
            limits = Limits(
                device=device, max_memory_bytes=factor * demand_of(request, Limits(device=device)).memory.total_bytes
            )
            answer = fit_batch_size(request, limits)
            most = 150
            assert capped(answer.value, most) == brute_force(request, limits, "batch_size", most)
            positions = model.max_position_embeddings
            assert fit_context(request, limits).value == brute_force(request, limits, "prompt_length", positions)


@pytest.mark.parametrize("budget", ["max_latency_s", "max_first_token_s"])
def test_time_budgets_are_met_by_one_and_not_by_the_next(small, budget):
    """Batch and context under a budget of time are those of a scan, and the budget binds."""
    request = request_of(small, prompt_length=16)
    time = demand_of(request, Limits(device=PI)).latency
    phase = time.prefill_s if budget == "max_first_token_s" else time.decode_s_per_token
    for factor, name in ((3.0, "batch_size"), (1.01, "prompt_length"), (2.0, "prompt_length")):
        limits = Limits(device=PI, **{budget: factor * phase.time_s.value})
        fit = fit_batch_size if name == "batch_size" else fit_context
        answer = fit(request, limits)
        most = small.max_position_embeddings if name == "prompt_length" else 200
        assert capped(answer.value, most) == brute_force(request, limits, name, most)
        words = {"max_latency_s": "latency budget", "max_first_token_s": "first-token budget"}
        assert answer.binds in (words[budget], "positions")
        assert answer.binds != "positions" or answer.value == small.max_position_embeddings


def test_batch_on_a_gpu_is_the_room_divided_by_what_a_sequence_takes():
    """Closed form: the runtime's base is fixed; cache, activations and what is reserved for them are linear."""
    request = request_of(read_bundled("llama-3.1-8b").network, prompt_length=2048, generated_length=256)
    limits = Limits(device=L4)
    memory = demand_of(request, limits).memory
    base = base_bytes(RUNTIMES["pytorch-cuda"], L4).value
    per_sequence = memory.total_bytes - memory.weights_bytes - base
    answer = fit_batch_size(request, limits)
    assert answer.value == (int(24e9 * 0.9) - memory.weights_bytes - base) // per_sequence
    assert broken_limit(answer.demand, limits) is None


def test_everything_grows_with_batch_and_lengths(random_configs, hybrids_or_decoders):
    """What bisection rests on: memory and both times never fall when batch or prompt grow."""
    for network in [*map(network_of, random_configs[:25]), *hybrids_or_decoders]:
        for field, values in (
            ("batch_size", (1, 2, 3, 9, 64)),
            ("prompt_length", (1, 2, 3, 63, 64, 65, 130, 256, 257)),
        ):
            demands = [demand_of(request_of(network, **{field: value}), Limits(device=L4)) for value in values]
            rows = [
                [d.memory.total_bytes for d in demands],
                [d.latency.prefill_s.time_s.value for d in demands],
                [d.latency.decode_s_per_token.time_s.value for d in demands if d.latency.decode_s_per_token],
            ]
            assert all(row == sorted(row) for row in rows), (network.model_type, field)


@pytest.fixture
def hybrids_or_decoders():
    """Networks of bundled models with caches of many kinds."""
    return [read_bundled(name).network for name in ("gpt2", "mistral-7b", "qwen3-0.6b")]


def test_what_binds_a_batch_is_the_part_that_grows():
    """Weights take most of the memory, but the next sequence fails by its cache."""
    request = request_of(read_bundled("llama-2-7b").network, prompt_length=3000, generated_length=1000)
    answer = fit_batch_size(request, Limits(device=L4))
    assert answer.value is not None
    assert answer.binds == "KV cache"
    assert f"at {answer.value + 1}" in answer.detail


def test_weights_bind_when_not_even_one_sequence_fits():
    """A model that is larger than the device has no batch, no context, and its weights are why."""
    request = request_of(read_bundled("llama-3.1-70b").network)
    for answer in (fit_batch_size(request, Limits(device=L4)), fit_context(request, Limits(device=L4))):
        assert (answer.value, answer.binds) == (None, "weights")


def test_positions_bind_a_context_that_memory_would_hold(small):
    """Generated tokens take positions too."""
    request = request_of(small, generated_length=28)
    answer = fit_context(request, Limits(device=L4))
    assert (answer.value, answer.binds) == (100, "positions")
    assert "129 positions of 128" in answer.detail


def test_learned_positions_bind_every_answer():
    """A sequence that has no positions fits no batch and no number of devices."""
    request = request_of(encoder(), prompt_length=41)
    limits = Limits(device=L4)
    for answer in (fit_batch_size(request, limits), fit_device(request, limits), fit_num_devices(request, limits)):
        assert (answer.value, answer.binds) == (None, "positions")


def test_reserve_and_memory_budget_both_limit(small):
    """The tighter one counts."""
    assert Limits(device=L4, reserve=0.25).memory_bytes == 18_000_000_000
    assert Limits(device=L4, reserve=0.25, max_memory_bytes=1e9).memory_bytes == 1_000_000_000
    assert Limits(max_memory_bytes=1e9).memory_bytes == 1_000_000_000
    assert Limits(device=get_device("core-i7-8700k")).memory_bytes is None
    request = request_of(read_bundled("llama-3.1-8b").network)
    assert fit_device(request, Limits(device=L4)).value == 1
    assert fit_device(request, Limits(device=L4, reserve=0.4)).value is None


def test_a_device_sold_without_memory_asks_for_it(small):
    """There is no answer, and the reason names the option; with it there is one."""
    device = get_device("core-i7-8700k")
    answer = fit_batch_size(request_of(small), Limits(device=device))
    assert (answer.value, answer.binds) == (None, None)
    assert "--max-memory" in answer.detail
    assert fit_batch_size(request_of(small), Limits(device=device, max_memory_bytes=1e9)).value > 1


def test_nothing_but_weights_known_answers_for_memory_alone():
    """Types and devices are answered; batch, context and times are not."""
    request = Request(network=only_weights(32_000_000), workload=Workload())
    limits = Limits(device=L4)
    assert fit_device(request, limits).value == 1
    for fit in (fit_batch_size, fit_context):
        assert fit(request, limits).value is None
        assert "nothing but its weights" in fit(request, limits).detail
    assert fit_device(request, replace(limits, max_latency_s=1.0)).value is None


def test_weight_types_fit_by_their_bytes_and_the_most_precise_is_named():
    """Llama-3.1-8B on 16 GB: int8 and int4 only; no type wider than the stored one is ever named."""
    network = read_bundled("llama-3.1-8b").network
    requests = {dtype: request_of(network, weight_dtype=dtype) for dtype in WEIGHT_DTYPES}
    answers = fit_weight_dtypes(requests, Limits(device=get_device("t4")))
    fitting = {dtype for dtype, answer in answers.items() if answer.value}
    assert {"int8", "int4"} <= fitting
    assert not fitting & {"fp32", "fp16", "bf16"}
    assert best_weight_dtype(answers, "bf16") in fitting - {"int4"}
    all_fit = fit_weight_dtypes(requests, Limits(device=get_device("h100")))
    assert best_weight_dtype(all_fit, "bf16") == "bf16"
    assert best_weight_dtype(all_fit, "fp16") == "fp16"
    assert best_weight_dtype(all_fit, "fp32") == "fp32"
    assert best_weight_dtype(fit_weight_dtypes(requests, Limits(max_memory_bytes=1e9)), "bf16") is None


def test_num_devices_is_the_smallest_power_of_two():
    """70 billion parameters in bf16 take two H100s, and one in int4."""
    network = read_bundled("llama-3.1-70b").network
    answer = fit_num_devices(request_of(network), Limits(device=get_device("h100")))
    assert (answer.value, answer.binds) == (2, "weights")
    assert answer.demand.memory.total_bytes <= 72e9
    assert fit_num_devices(request_of(network, weight_dtype="int4"), Limits(device=get_device("h100"))).value == 1
    assert fit_num_devices(request_of(network), Limits(device=L4)).value == 8
    too_small = fit_num_devices(request_of(network), Limits(max_memory_bytes=1e9))
    assert (too_small.value, too_small.binds) == (None, "weights")
    assert "64" in too_small.detail


def test_devices_are_those_that_an_estimate_says_fit(small):
    """From the smallest on, each with its room; equal to asking every device."""
    request = request_of(read_bundled("gpt2-xl").network, weight_dtype="fp32", activation_dtype="fp32")
    devices = load_devices()
    found = [device.name for device, _ in find_devices(request, Limits(), devices, lambda name: None)]
    fits = {
        name
        for name, device in devices.items()
        if device.memory_bytes is not None
        and estimate(request.network, request.workload, device).memory.total_bytes <= 0.9 * device.memory_bytes
    }
    assert set(found) == fits
    sizes = [devices[name].memory_bytes for name in found]
    assert sizes == sorted(sizes)


def test_a_budget_of_time_leaves_out_slow_devices_and_those_without_rates():
    """Every device that is left meets it."""
    request = request_of(read_bundled("gpt2").network)
    found = list(find_devices(request, Limits(max_latency_s=0.002), load_devices(), lambda name: None))
    assert found
    assert all(demand.latency.decode_s_per_token.time_s.value <= 0.002 for _, demand in found)
    everything = list(find_devices(request, Limits(), load_devices(), lambda name: None))
    assert len(found) < len(everything)


def test_energy_is_that_of_a_sequence_and_falls_with_the_batch():
    """A budget between the energies of batch 1 and of the largest batch is met by the batch, not by one sequence."""
    request = request_of(read_bundled("llama-3.1-8b").network, generated_length=64)
    alone = demand_of(request, Limits(device=L4, max_energy_j=1.0)).request_j
    limits = Limits(device=L4, max_energy_j=alone / 2)
    assert fit_device(request, limits).binds == "energy budget"
    answer = fit_batch_size(request, limits)
    assert answer.value == fit_batch_size(request, Limits(device=L4)).value
    assert answer.demand.request_j < alone / 2
    assert fit_batch_size(request, Limits(device=L4, max_energy_j=alone / 1e6)).binds == "energy budget"
    assert "no published power" in fit_device(request, Limits(device=PI, max_energy_j=1.0)).detail


def test_an_encoder_is_bound_by_the_time_of_its_pass():
    """It has no decode, so the latency budget is for the only pass there is."""
    request = request_of(encoder(), prompt_length=40)
    time = demand_of(request, Limits(device=PI)).latency
    assert time.decode_s_per_token is None
    assert (
        fit_device(request, Limits(device=PI, max_latency_s=time.prefill_s.time_s.value / 2)).binds == "latency budget"
    )


def test_a_fixed_input_has_no_longest_prompt():
    """An image encoder reads a number of patches that no option changes."""
    stack = replace(network_of(encoder()).main, length=16)
    network = replace(network_of(encoder()), stacks=(stack,), max_position_embeddings=None)
    assert "fixed" in fit_context(request_of(network), Limits(device=L4)).detail


def test_without_any_bound_the_answer_is_what_can_be_asked():
    """The largest number that a workload takes, and that nothing binds."""
    assert largest(lambda value: None) == (LONGEST, None)


def test_a_type_without_a_rate_has_no_time_and_others_do():
    """A TPU publishes bf16 but no fp32: a budget of time is answered for the one and not for the other."""
    network, limits = read_bundled("gpt2").network, Limits(device=get_device("tpu-v5e"), max_latency_s=1.0)
    assert fit_device(request_of(network), limits).value == 1
    unknown = fit_device(request_of(network, weight_dtype="fp32", activation_dtype="fp32"), limits)
    assert (unknown.value, unknown.binds) == (None, None)
    assert "no published fp32 rate" in unknown.detail
