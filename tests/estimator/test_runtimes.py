"""Runtimes: which one is meant, what it takes, and combinations that do not go together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from estimator.devices import get_device, load_devices
from estimator.errors import InputError
from estimator.memory import estimate_memory
from estimator.runtimes import CUDA_CONTEXT_BYTES, RUNTIMES, base_bytes, resolve_runtime, runs_on, runtime_bytes
from estimator.sizing import estimate
from estimator.workload import ATTENTIONS, RUNTIME_NAMES, Workload

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SPARE = {"weights_bytes": 1000, "outputs_bytes": 70, "spare_bytes": 300}


def test_runtimes_are_those_that_a_workload_may_name():
    """In the same order."""
    assert tuple(RUNTIMES) == RUNTIME_NAMES


def test_the_default_follows_the_device():
    """ONNX Runtime on CPUs and without a device, PyTorch on NVIDIA's GPUs, none where there is no model."""
    assert resolve_runtime(None, None).name == "onnxruntime-cpu"
    for device in load_devices().values():
        runtime = resolve_runtime(None, device)
        if device.kind == "cpu":
            assert runtime.name == "onnxruntime-cpu"
        elif "nvidia" in device.label.lower() and device.kind == "gpu":
            assert runtime.name == "pytorch-cuda", device.name
        else:
            assert runtime is None, device.name


@pytest.mark.parametrize(
    ("runtime", "device", "words"),
    [
        ("onnxruntime-cpu", "h100", "needs a CPU, and NVIDIA H100 SXM5 80 GB is none; choose onnxruntime-cuda or"),
        ("pytorch-cpu", "apple-m4-max", "needs a CPU"),
        ("pytorch-cuda", "raspberry-pi-5", "needs an NVIDIA GPU.*choose onnxruntime-cpu or pytorch-cpu"),
        ("onnxruntime-cuda", "mi300x", "needs an NVIDIA GPU"),
    ],
)
def test_a_runtime_on_the_wrong_device_is_refused(small, runtime, device, words):
    """Says what it needs, and what would run there; `runs_on` answers the same."""
    workload = Workload(runtime=runtime)
    with pytest.raises(InputError, match=words):
        estimate(small, workload, get_device(device))
    assert not runs_on(workload, get_device(device))


def test_attention_that_a_runtime_does_not_have_is_refused(small):
    """ONNX Runtime's CPU kernel stores the scores; all others may do either."""
    with pytest.raises(InputError, match="onnxruntime-cpu has no fused attention, only eager"):
        estimate(small, Workload(attention="fused"))
    for runtime in RUNTIME_NAMES[1:]:
        for attention in ATTENTIONS:
            workload = Workload(runtime=runtime, attention=attention)
            assert estimate_memory(small, workload).attention == attention


def test_the_process_by_hand():
    """A base, shares of weights and of spare moments in percent, and the outputs where they are copied."""
    taken = {name: runtime_bytes(RUNTIMES[name], None, **SPARE) for name in RUNTIMES}
    base = base_bytes(RUNTIMES["pytorch-cuda"], None)
    assert base.value == CUDA_CONTEXT_BYTES.value + 8_519_680
    assert taken["onnxruntime-cpu"].value == 11_000_000 + 450 + 70
    assert (taken["onnxruntime-cpu"].low, taken["onnxruntime-cpu"].high) == (11_000_100, 11_000_920)
    assert taken["pytorch-cuda"].value == base.value + 150
    assert (taken["pytorch-cuda"].low, taken["pytorch-cuda"].high) == (base.low, base.high + 300)
    assert taken["onnxruntime-cuda"].value == base.value + 440 + 150 + 70


def test_workspaces_grow_with_the_generation():
    """From Hopper on cuBLAS keeps 32 MiB."""
    sizes = {name: base_bytes(RUNTIMES["pytorch-cuda"], get_device(name)).value for name in ("t4", "a100-80gb", "h100")}
    assert sizes["t4"] == sizes["a100-80gb"] == sizes["h100"] - 33_554_432 + 8_519_680


@pytest.mark.parametrize("name", RUNTIME_NAMES)
def test_the_total_lies_in_its_interval(random_configs, name):
    """And is the tensors and the runtime; of the tensors nothing depends on the runtime but the activations."""
    for config in random_configs[:30]:
        memory = estimate_memory(config, Workload(prompt_length=9, generated_length=40, runtime=name))
        assert memory.runtime == name
        assert memory.tensors_bytes < memory.total_low_bytes <= memory.total_bytes <= memory.total_high_bytes
        parts = memory.weights_bytes + memory.kv_cache_bytes + memory.state_bytes + memory.activations_bytes
        assert (memory.tensors_bytes, memory.total_bytes) == (parts, parts + memory.runtime_bytes)
        phases = memory.prefill_activations_bytes, memory.decode_activations_bytes
        assert memory.activations_bytes == max(phases)


def test_eager_attention_holds_eight_bytes_a_score(small):
    """In 16 bit scores, fp32 softmax and its copy, in fp32 scores and softmax: four heads of 50 x 50."""
    for dtype in ("fp32", "bf16"):
        workload = Workload(prompt_length=50, activation_dtype=dtype, runtime="pytorch-cuda", attention="eager")
        wide = dataclasses.replace(small, vocab_size=10, intermediate_size=8)
        fused = dataclasses.replace(workload, attention="fused")
        size = 4 if dtype == "fp32" else 2
        eager_bytes = estimate_memory(wide, workload).activations_bytes
        assert eager_bytes - estimate_memory(wide, fused).activations_bytes == 8 * 4 * 50 * 50
        assert estimate_memory(wide, fused).activations_bytes == size * 50 * (64 + 2 * 64 + 2 * 32)


def test_measured_runs_lie_in_the_interval():
    """The peaks of benchmarks/pytorch_memory.py, from its own figures: tensors and runtime as they are modelled now."""
    result = json.loads((RESULTS / "pytorch_memory.json").read_text("utf-8"))
    runtime = RUNTIMES["pytorch-cpu"]
    for row in result["rows"]:
        sizes = {"weights_bytes": row["weights_bytes"], "outputs_bytes": 0, "spare_bytes": row["spare_bytes"]}
        extra = runtime_bytes(runtime, None, **sizes)
        low, high = row["tensors_bytes"] + extra.low, row["tensors_bytes"] + extra.high
        assert low <= row["peak_bytes"] <= high * 1.01, row
    assert 0.85 <= result["total_ratio_median"] <= 1.15
