"""quantization_config of published checkpoints: what their files weigh, in closed form."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from estimator.memory import count_weight_bytes
from estimator.readers.quantization_config import read_quantization
from estimator.readers.source import source_of_values
from estimator.sized_source import request_of, size_source

LENGTHS = {"batch_size": 1, "prompt_length": 16, "generated_length": 0}
LLAMA_LINEARS = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
LLAMA_REST = 6_738_415_616 - LLAMA_LINEARS  # two tables and norms
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


def _values(folder, name):
    return json.loads(resources.files("estimator").joinpath(folder, f"{name}.json").read_text("utf-8"))


def _llama(table, **others):
    return source_of_values(_values("models", "llama-2-7b") | {"quantization_config": table} | others, "llama-2-7b")


def _bytes(source, **others):
    request = request_of(source, **LENGTHS, **others)
    return count_weight_bytes(request.network, request.workload)


def test_gpt_oss_has_experts_in_mxfp4_and_the_rest_in_bf16():
    """24 layers of 32 experts of 3 x 2880 x 2880; the published checkpoint is 13.76 GB."""
    source = source_of_values(_values("reference/configs", "gpt-oss-20b"), "gpt-oss-20b")
    request = request_of(source, **LENGTHS)
    assert (request.workload.weight_dtype, request.workload.activation_dtype) == ("mxfp4", "bf16")
    assert request.warnings == source.warnings
    experts = 24 * 32 * 3 * 2880 * 2880
    assert _bytes(source) == experts * 17 // 32 + 2 * (20_914_757_184 - experts)
    assert _bytes(source) == pytest.approx(13.76e9, rel=1e-3)


def test_deepseek_v3_is_fp8_in_blocks_of_128():
    """All matrices of the layers but routers, an fp32 scale for each 128 x 128; tables, head and norms in bf16."""
    source = source_of_values(_values("reference/configs", "deepseek-v3"), "deepseek-v3")
    total = sum(size_source(source, **LENGTHS).params.by_part.values())
    ffn, expert = 7168 * 18432, 7168 * 2048
    attention = [(1536, 7168), (24576, 1536), (576, 7168), (32768, 512), (7168, 16384)]
    matrices = 61 * [*attention] + 3 * [(18432, 7168)] * 3 + 58 * 257 * [(2048, 7168)] * 3
    elements = 61 * sum(a * b for a, b in attention) + 3 * 3 * ffn + 58 * 257 * 3 * expert
    scales = sum(-(-a // 128) * -(-b // 128) for a, b in matrices)
    assert _bytes(source) == elements + 4 * scales + 2 * (total - elements)
    assert size_source(source, **LENGTHS).workload.weight_format.rows == 128


def test_llama_in_gptq_is_as_published():
    """4 bits in groups of 128 with packed zero points and an int32 per input: about 3.9 GB, as on the hub."""
    source = _llama(GPTQ)
    groups = LLAMA_LINEARS // 128
    order = 4 * 32 * (6 * 4096 + 11008)
    expected = LLAMA_LINEARS // 2 + 2 * groups + groups // 2 + order + 2 * LLAMA_REST
    assert _bytes(source) == expected
    assert expected == pytest.approx(3.9e9, rel=0.01)
    assert source.weight_dtype == "int4"


@pytest.mark.parametrize(
    ("table", "per_linear", "dtype"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 0.5 + 2.5 / 128, "int4"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True}, 0.5 + 2.5 / 64, "int4"),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 0.5 + (1 + 4 / 256) / 64, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5 + 4 / 64, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1 + 4 * 1_359_872 / LLAMA_LINEARS, "int8"),
        ({"quant_method": "fbgemm_fp8"}, 1 + 4 * 1_359_872 / LLAMA_LINEARS, "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, 1.0, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 1 + 4 / 128**2, "fp8"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, 3 / 8 + (2 + 3 / 8) / 128, "int3"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5 + 1 / 16, "nvfp4"),
    ],
)
def test_other_methods_take_what_their_parts_take(table, per_linear, dtype):
    """Bytes per element of the linear layers; 1,359,872 rows in all of them. What is kept once is below 0.2 %."""
    source = _llama(table)
    assert source.warnings == ()
    assert source.weight_dtype == dtype
    assert _bytes(source) == pytest.approx(per_linear * LLAMA_LINEARS + 2 * LLAMA_REST, rel=2e-3)


@pytest.mark.parametrize(
    ("weights", "per_linear"),
    [
        ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}, 0.5 + 2 / 128),
        ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": False}, 0.5 + 2.5 / 128),
        ({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}, 1 + 2 * 1_359_872 / LLAMA_LINEARS),
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, 1.0),
        ({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x128"}, 1 + 2 / 128**2),
        ({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, 0.5 + 1 / 16),
    ],
)
def test_compressed_tensors_with_one_group(weights, per_linear):
    """Every linear layer but those to ignore; the head is one that has to be named."""
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    table = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}
    assert _bytes(_llama(table)) == pytest.approx(per_linear * LLAMA_LINEARS + 2 * LLAMA_REST, rel=1e-4)
    assert _bytes(_llama(table | {"ignore": []})) < _bytes(_llama(table))


@pytest.mark.parametrize(
    ("patterns", "layers", "projections"),
    [
        (["model.layers.0.mlp"], 1, 3),
        (["model.layers.*.mlp.down_proj"], 32, 1),
        ([r"re:.*down_proj$"], 32, 1),
        (["model.layers.3.mlp.up_proj", "model.layers.4.mlp.up_proj"], 2, 1),
        (["down_proj"], 32, 1),
        (["model.layers.1"], 1, None),
        (["model.layers.99.mlp"], 0, 0),
    ],
)
def test_modules_that_are_not_converted_stay(patterns, layers, projections):
    """By whole names, with wildcards, by their ends; layer 1 is not layer 10 to 19."""
    table = {"quant_method": "fp8", "modules_to_not_convert": patterns}
    mlp, attention = 4096 * 11008, 4 * 4096**2
    kept = layers * (3 * mlp + attention if projections is None else projections * mlp)
    num = layers * (7 if projections is None else projections)
    assert _bytes(_llama(table)) - _bytes(_llama({"quant_method": "fp8"})) == kept - 4 * num


def test_modules_that_are_not_found_are_named():
    """Except those that no format quantises."""
    names = ["model.layers.0.strange", "model.layers.0.input_layernorm"]
    table = {"quant_method": "fp8", "modules_to_not_convert": names}
    (warning,) = request_of(_llama(table), **LENGTHS).warnings
    assert "model.layers.0.strange" in warning
    assert "input_layernorm" not in warning


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"quant_method": "aqlm"}, "quantization method 'aqlm' is not known"),
        ({"quant_method": ["gptq"]}, "is not known"),
        ({"bits": 4}, "quantization method None is not known"),
        ({"quant_method": "gptq", "bits": 5}, "quantization in 5 bits is not known"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "groups of 0"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "is not a list"),
        ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "one group of settings"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*mlp": {"bits": 8}}}, "other settings"),
        ("gptq", "is not known"),
    ],
)
def test_what_is_not_known_is_said_and_counts_in_the_dtype(table, words):
    """One warning that names it; the size is that of the unquantised model."""
    source = _llama(table, torch_dtype="float16")
    (warning,) = source.warnings
    assert re.search(re.escape(words), warning)
    assert _bytes(source) == 2 * 6_738_415_616


def test_a_type_that_is_asked_for_goes_first():
    """The checkpoint's own type as the checkpoint has it, another one as usual, and a group size as given."""
    source = _llama(GPTQ)
    assert _bytes(source, weight_dtype="int4") == _bytes(source)
    assert _bytes(source, weight_dtype="bf16") == 2 * 6_738_415_616
    assert _bytes(source, group_size="64") == _bytes(_llama(None), weight_dtype="int4", group_size="64")


def test_what_is_kept_is_not_quantised_in_another_type():
    """Marks of the checkpoint hold for its own type alone."""
    table = {"quant_method": "fp8", "modules_to_not_convert": ["down_proj"]}
    assert _bytes(_llama(table), weight_dtype="int8") == _bytes(_llama(None), weight_dtype="int8")


def test_nested_configs_are_read():
    """A multimodal config may hold both in its text_config."""
    table = {"text_config": {"quantization_config": GPTQ}}
    assert read_quantization(table)[0].method == "gptq"
    assert read_quantization({"text_config": {}}) == (None, ())


def test_many_patterns_take_no_time():
    """20,000 names and as many wildcards end at once."""
    names = [f"model.layers.{i}.mlp.q_proj" for i in range(19_000)] + [f"*{i}*" * 50 for i in range(1000)]
    assert request_of(_llama({"quant_method": "fp8", "modules_to_not_convert": names}), **LENGTHS).warnings
