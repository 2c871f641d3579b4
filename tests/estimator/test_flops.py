"""count_flops: equal to PyTorch's FlopCounterMode on the meta device, then properties."""

from __future__ import annotations

import dataclasses

import pytest

from estimator.flops import OPERATORS, count_flops, matmul_flops
from estimator.readers.huggingface import read_config
from estimator.readers.source import read_source
from estimator.workload import Workload

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 100}
IDS = {"bos_token_id": 1, "eos_token_id": 2}
LLAMA = TINY | IDS | {"num_key_value_heads": 2}
CASES = [
    ("Llama", "LlamaForCausalLM", LLAMA),
    ("Llama", "LlamaForCausalLM", LLAMA | {"head_dim": 24, "num_key_value_heads": 1, "attention_bias": True}),
    ("Llama", "LlamaModel", LLAMA),
    ("Mistral", "MistralForCausalLM", LLAMA | {"sliding_window": 5}),
    ("Qwen2", "Qwen2ForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    ("Qwen3", "Qwen3ForCausalLM", LLAMA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("GPT2", "GPT2LMHeadModel", IDS | {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100}),
    ("GPT2", "GPT2Model", IDS | {"n_embd": 48, "n_layer": 1, "n_head": 2, "n_inner": 50, "vocab_size": 100}),
    ("Bert", "BertModel", TINY),
    ("Bert", "BertForMaskedLM", TINY),
]


def _model(transformers, torch, family, class_name, fields):
    config = getattr(transformers, f"{family}Config")(**fields)
    with torch.device("meta"):
        return getattr(transformers, class_name)(config).eval()


def _counted(torch, call):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(("family", "class_name", "fields"), CASES, ids=lambda value: str(value)[:30])
def test_flops_equal_pytorchs_counter(family, class_name, fields):
    """Prefill of a batch, and one token on a filled cache, are exactly what FlopCounterMode counts on meta."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = _model(transformers, torch, family, class_name, fields)
    config, _, _ = read_config(model.config.to_dict() | {"architectures": [class_name]})
    flops = count_flops(config, Workload(batch_size=2, prompt_length=16))

    ids = torch.zeros(2, 16, dtype=torch.long, device="meta")
    assert flops.prefill_flops == _counted(torch, lambda: model(ids))
    if config.is_causal:
        with torch.no_grad():
            past = model(ids[:1], use_cache=True).past_key_values
        step = _counted(torch, lambda: model(ids[:1, :1], cache=past, use_cache=True))
        assert flops.decode_flops_per_token == step
    else:
        assert flops.decode_flops_per_token is None


def test_llama_2_7b_prefill_of_128_tokens_is_1700_gflop():
    """32 layers * 2*128*(4*4096^2 + 3*4096*11008) + 32 * 4*128^2*4096 + 2*128*4096*32000 = 1,700,001,742,848."""
    flops = count_flops(read_source("llama-2-7b").network, Workload(batch_size=1, prompt_length=128))
    layers = 32 * 2 * 128 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert flops.prefill_flops == layers + 32 * 4 * 128**2 * 4096 + 2 * 128 * 4096 * 32000 == 1_700_001_742_848


def test_multiply_add_is_two_flops():
    """A [2, 3] x [3, 5] product has 2*3*5 multiply-adds."""
    assert matmul_flops(2, 3, 5) == 60


def test_operators_sum_to_the_total(random_configs):
    """Nothing is counted twice or left out of the breakdown."""
    for config in random_configs:
        flops = count_flops(config, Workload(batch_size=2, prompt_length=9, generated_length=3))
        assert tuple(flops.prefill_by_operator) == OPERATORS
        assert sum(flops.prefill_by_operator.values()) == flops.prefill_flops
        assert (flops.decode_by_operator is None) == (config.architecture == "encoder")
        if flops.decode_by_operator is not None:
            assert sum(flops.decode_by_operator.values()) == flops.decode_flops_per_token


def test_attention_is_quadratic_and_the_rest_linear(small):
    """Twice the prompt: four times the attention, twice the matrices."""
    short = count_flops(small, Workload(prompt_length=10)).prefill_by_operator
    long = count_flops(small, Workload(prompt_length=20)).prefill_by_operator
    for operator in OPERATORS:
        factor = 4 if operator in ("attention_scores", "attention_values") else 2
        assert long[operator] == factor * short[operator] > 0


def test_prefill_is_linear_in_the_batch(random_configs):
    """Sequences do not see each other."""
    for config in random_configs[:40]:
        one, five = (count_flops(config, Workload(batch_size=b, prompt_length=7)).prefill_flops for b in (1, 5))
        assert five == 5 * one


def test_shared_layers_cost_as_much_as_owned_ones(small):
    """Reusing weights saves memory, not work."""
    shared = dataclasses.replace(small, weight_source_per_layer=(0, 0))
    assert count_flops(shared, Workload()) == count_flops(small, Workload())


def test_tied_head_costs_as_much_as_an_untied_one(small):
    """The logits are computed either way."""
    tied = dataclasses.replace(small, tie_word_embeddings=True)
    assert count_flops(tied, Workload()) == count_flops(small, Workload())


def test_window_limits_decode_but_not_prefill(small):
    """The mask of prefill is not discounted; the cache of decode keeps no more than the window."""
    windowed = dataclasses.replace(small, sliding_window=8)
    full, short = (count_flops(config, Workload(prompt_length=32)) for config in (small, windowed))
    assert full.prefill_flops == short.prefill_flops
    assert full.decode_by_operator["attention_scores"] == 2 * 2 * 33 * 64
    assert short.decode_by_operator["attention_scores"] == 2 * 2 * 8 * 64


def test_decode_grows_with_the_generated_tokens(small):
    """The context of decode is prompt plus generated tokens."""
    first = count_flops(small, Workload(prompt_length=10, generated_length=30))
    second = count_flops(small, Workload(prompt_length=40))
    assert first.decode_flops_per_token == second.decode_flops_per_token
    assert first.prefill_flops < second.prefill_flops
