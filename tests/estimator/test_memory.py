"""estimate_memory: bytes of real tensors, of packed weights, of public tables, and of ONNX files."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from estimator.devices import get_device
from estimator.memory import count_kv_cache_bytes, count_weight_bytes, estimate_memory
from estimator.params import count_params
from estimator.readers.huggingface import read_config
from estimator.readers.source import read_source
from estimator.runtimes import RUNTIME_BASE_BYTES, RUNTIME_WEIGHTS_PERCENT
from estimator.sizing import estimate
from estimator.weights import is_linear, weight_shapes
from estimator.workload import Workload

GOLDEN = Path(__file__).parents[2] / "estimator" / "reference"
MIB = 2**20


def _rows(name):
    return list(csv.DictReader((GOLDEN / name).read_text("utf-8").splitlines(), delimiter="\t"))


@pytest.mark.parametrize(
    "row",
    [row for row in _rows("params_truth.tsv") if row["kv_cache_mib_4096_bf16_batch1"]],
    ids=lambda row: row["config"],
)
def test_kv_cache_equals_the_truth_table(row):
    """4,096 tokens, bf16, batch 1."""
    config = read_source(GOLDEN / "configs" / f"{row['config']}.json").network
    workload = Workload(prompt_length=4096, kv_cache_dtype="bf16")
    memory = estimate_memory(config, workload)
    assert memory.kv_cache_bytes == float(row["kv_cache_mib_4096_bf16_batch1"]) * MIB


@pytest.mark.parametrize(("tokens", "window"), [(3, None), (20, None), (20, 8), (5, 8)])
def test_kv_cache_equals_the_tensors_of_transformers(tokens, window):
    """The bytes of the keys and values that a Mistral model holds, in fp32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    hf = transformers.MistralConfig(**sizes, num_key_value_heads=2, vocab_size=50, sliding_window=window)
    with torch.device("meta"):
        model = transformers.MistralForCausalLM(hf).eval()
    with torch.no_grad():
        cache = model(torch.zeros(2, tokens, dtype=torch.long, device="meta"), use_cache=True).past_key_values
    held = sum(part.numel() * 4 for layer in cache.layers for part in (layer.keys, layer.values))
    config, _, _ = read_config(hf.to_dict() | {"architectures": ["MistralForCausalLM"]})
    counted = count_kv_cache_bytes(config, Workload(batch_size=2), tokens)
    # transformers drops the oldest token of a full window before the next one comes, we count the window in full
    dropped = 2 * 2 * 2 * 2 * 8 * 4 if window is not None and tokens >= window else 0
    assert counted == held + dropped


def test_encoder_has_no_cache():
    """BERT keeps no keys and values."""
    memory = estimate_memory(read_source("bert-base-uncased").network, Workload())
    assert (memory.kv_cache_bytes, memory.state_bytes) == (0, 0)


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_float_weights_take_their_bytes(random_configs, dtype, size):
    """Parameters times bytes, whatever the activations are."""
    for config in random_configs[:30]:
        workload = Workload(weight_dtype=dtype, activation_dtype="fp16")
        assert count_weight_bytes(config, workload) == size * count_params(config).total


def test_quantised_weights_equal_really_packed_arrays(random_configs):
    """int8 and int4 bytes are those of NumPy arrays packed as the convention says."""
    np = pytest.importorskip("numpy")
    for config in random_configs[:30]:
        int8, int4 = 0, 0
        for name, shape in weight_shapes(config).items():
            if not is_linear(name):
                kept = np.zeros(shape, np.float16).nbytes
                int8, int4 = int8 + kept, int4 + kept
                continue
            int8 += np.zeros(shape, np.int8).nbytes + np.zeros(shape[0], np.float32).nbytes
            padded = np.pad(np.zeros(shape, np.uint8), ((0, 0), (0, -shape[1] % 32)))
            int4 += (padded[:, ::2] | padded[:, 1::2] << 4).nbytes
            int4 += np.zeros((shape[0], padded.shape[1] // 32), np.float16).nbytes
        for dtype, expected in (("int8", int8), ("int4", int4)):
            assert count_weight_bytes(config, Workload(weight_dtype=dtype, activation_dtype="fp16")) == expected


def test_weight_bytes_shrink_with_the_type():
    """fp32 > bf16 > int8 > int4 for a real model."""
    config = read_source("qwen2.5-0.5b").network
    sizes = [
        count_weight_bytes(config, Workload(weight_dtype=dtype, activation_dtype="bf16"))
        for dtype in ("fp32", "bf16", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_activations_by_hand(small):
    """B=2 L=20: attention 20*(64 + 2*64 + 2*32) + 4*20*20 = 6720, MLP 20*(2*64 + 2*96) = 6400, head 20*164 = 3280.

    A CPU's arena keeps all three; a GPU stores no scores and reuses the memory of the widest, the MLP. A step of decode
    has 1 row and 21 keys: 64 + 128 + 64 + 4*21 = 340, 320, and 164.
    """
    workload = Workload(batch_size=2, prompt_length=20)
    assert estimate_memory(small, workload).activations_bytes == 2 * 4 * (6720 + 6400 + 3280)
    assert estimate_memory(small, workload, get_device("t4")).activations_bytes == 2 * 4 * 6400
    assert estimate_memory(small, workload).decode_activations_bytes == 2 * 4 * (340 + 320 + 164)
    assert estimate_memory(small, workload, get_device("t4")).decode_activations_bytes == 2 * 4 * 320


def test_widest_layer_counts(small):
    """One wide layer is as wide as if all were."""
    mixed = dataclasses.replace(small, intermediate_size_per_layer=(10, 400))
    uniform = dataclasses.replace(small, intermediate_size=400)
    for device in (None, get_device("t4")):
        both = [estimate_memory(config, Workload(), device).activations_bytes for config in (mixed, uniform)]
        assert both[0] == both[1]


@pytest.mark.parametrize(("model", "row"), [("llama-3.2-1b", 0), ("qwen2.5-1.5b", 3)])
def test_gpu_total_is_close_to_a_published_peak(model, row):
    """Peak memory of bf16 inference on an RTX A6000, as published with vramcalc: within 2 %."""
    published = _rows("training_memory.tsv")[row]
    assert published["model"] == model
    assert published["mode"] == "inference bf16"
    workload = Workload(
        batch_size=int(published["batch_size"]),
        prompt_length=int(published["sequence_length"]),
        weight_dtype="bf16",
        activation_dtype="bf16",
        kv_cache_dtype="bf16",
    )
    total = estimate_memory(read_source(model).network, workload, get_device("rtx-a6000")).tensors_bytes
    assert total == pytest.approx(float(published["peak_gb"]) * 1e9, rel=0.02)


def test_total_is_the_sum(random_configs):
    """Nothing is added that is not shown."""
    for config in random_configs:
        memory = estimate_memory(config, Workload(prompt_length=11, generated_length=4, kv_cache_dtype="int8"))
        shown = memory.weights_bytes + memory.kv_cache_bytes + memory.state_bytes + memory.activations_bytes
        assert memory.total_bytes == shown + memory.runtime_bytes


def test_runtime_on_a_cpu_by_hand(small):
    """A base, a share of the weights, and copies of the logits and of the cache."""
    memory = estimate_memory(small, Workload(batch_size=2, prompt_length=20))
    logits = 2 * 20 * 100 * 4
    packed = memory.weights_bytes * RUNTIME_WEIGHTS_PERCENT // 100
    assert memory.runtime_bytes == RUNTIME_BASE_BYTES + packed + logits + memory.kv_cache_bytes


def test_runtime_without_a_model_is_unknown_rather_than_zero(small):
    """Apple's and AMD's GPUs have none, so there is no number, and the total is that of the tensors."""
    for device in ("apple-m4-max", "mi300x"):
        memory = estimate_memory(small, Workload(), get_device(device))
        assert (memory.runtime, memory.runtime_bytes) == (None, None)
        assert memory.total_bytes == memory.tensors_bytes == memory.total_low_bytes == memory.total_high_bytes


@pytest.mark.parametrize("field", ["batch_size", "prompt_length", "generated_length"])
def test_cache_grows_with_the_workload(small, field):
    """More sequences or tokens, more cache."""
    base = Workload()
    grown = dataclasses.replace(base, **{field: getattr(base, field) + 1})
    assert estimate_memory(small, grown).kv_cache_bytes > estimate_memory(small, base).kv_cache_bytes


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_weight_bytes_are_those_of_the_onnx_file(small, tmp_path, dtype, tied):
    """The file that is built holds the counted bytes and, beside them, a graph of a few kilobytes a layer."""
    pytest.importorskip("onnx")
    from estimator.onnx_builder import build_onnx

    config = dataclasses.replace(small, vocab_size=2000, intermediate_size=800, tie_word_embeddings=tied)
    artifact = build_onnx(config, path=tmp_path / "model.onnx", weight_dtype=dtype)
    counted = count_weight_bytes(config, Workload(weight_dtype=dtype))
    assert 0 < artifact.file_bytes - counted < 10_000 * config.num_hidden_layers
    assert artifact.num_params == count_params(config).total


@pytest.mark.parametrize(("dtype", "size"), [("fp8", 1.0), ("int8", 1.0), ("int4", 0.5)])
@pytest.mark.parametrize("scales", [None, "head", "token"])
def test_quantised_cache_equals_packed_arrays(dtype, size, scales):
    """Llama-3.1-8B: 32 layers of 8 heads of 128 for keys and for values, two sequences of 50 tokens.

    A scale per head is fp32 and the same for all tokens and sequences; one per token is fp16.
    """
    workload = Workload(batch_size=2, prompt_length=50, kv_cache_dtype=dtype, kv_scales=scales)
    elements, heads = int(2 * 50 * 32 * 2 * 8 * 128 * size), 32 * 2 * 8
    own = scales or {"fp8": "head", "int8": "token", "int4": "token"}[dtype]
    extra = heads * 4 if own == "head" else 2 * 50 * heads * 2
    network = read_source("llama-3.1-8b").network
    assert count_kv_cache_bytes(network, workload) == elements + extra


def test_latent_and_cross_caches_have_scales_of_their_own(networks):
    """A latent is one vector of a token; keys and values of the encoder are as many as heads, for its tokens."""
    for name, vectors in (("latent", None), ("encoder_decoder", 3 * (5 * 2 * 2 + 10 * 2 * 4))):
        network = networks[name]
        plain = Workload(prompt_length=10, generated_length=4, kv_cache_dtype="fp8", kv_scales="token")
        heads = dataclasses.replace(plain, kv_scales="head")
        layers = sum(block.attention is not None for block in network.main.blocks)
        by_token, by_head = (count_kv_cache_bytes(network, workload) for workload in (plain, heads))
        if vectors is None:
            assert by_token - by_head == 14 * layers * 2 - layers * 4
        else:
            assert by_token - by_head == vectors * 2 - 3 * (2 * 2 + 2 * 4) * 4


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "pytorch-cuda"])
def test_logits_of_the_last_position_save_memory_and_work(runtime):
    """Of 512 positions 511 rows of the head, in logits, results and FLOPs."""
    from estimator.flops import count_flops

    network = read_source("gpt2").network
    every = Workload(prompt_length=512, runtime=runtime)
    last = dataclasses.replace(every, logits="last")
    saved = estimate_memory(network, every).total_bytes - estimate_memory(network, last).total_bytes
    rows = 511 * 50257
    assert saved == 2 * 4 * rows if runtime == "onnxruntime-cpu" else saved > 0
    assert count_flops(network, every).prefill_flops - count_flops(network, last).prefill_flops == 2 * rows * 768


def test_a_step_with_stored_scores_can_be_wider_than_the_prompt(small):
    """One token of prompt, many of context: the scores of the step decide."""
    memory = estimate_memory(small, Workload(prompt_length=1, generated_length=5000))
    assert memory.decode_activations_bytes > memory.prefill_activations_bytes
    assert memory.activations_bytes == memory.decode_activations_bytes


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("bert-base-uncased", {"kv_cache_dtype": "int8"}, "keeps no keys and values"),
        ("bert-base-uncased", {"logits": "last"}, "an encoder computes all logits"),
        ("gpt2", {"kv_cache_dtype": "int8", "logits": "last", "attention": "eager"}, None),
    ],
)
def test_options_that_change_nothing_are_named(model, changes, words):
    """A warning, and none where the option does something."""
    warnings = estimate(read_source(model).network, Workload(**changes)).warnings
    assert [words in warning for warning in warnings] == ([] if words is None else [True])
