"""How many bytes a config needs: weights, KV cache, activations, runtime. Formulas in docs/formulas.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

from estimator.config import Layer, TransformerConfig
from estimator.devices import Device
from estimator.flops import kept_tokens
from estimator.weights import is_linear, weight_shapes
from estimator.workload import DTYPE_BYTES, Workload

__all__ = [
    "INT4_BLOCK",
    "RUNTIME_BASE_BYTES",
    "RUNTIME_WEIGHTS_PERCENT",
    "MemoryEstimate",
    "count_kv_cache_bytes",
    "count_read_bytes",
    "count_weight_bytes",
    "estimate_memory",
    "layer_kv_elements",
    "layer_live_elements",
    "output_elements",
    "output_live_elements",
    "runtime_bytes",
    "weight_bytes",
]

INT4_BLOCK = 32  # inputs that share one fp16 scale; MatMulNBits pads a row to whole blocks
_INT8_SCALE_BYTES = 4  # one fp32 scale per output channel
_INT4_SCALE_BYTES = 2
# ONNX Runtime 1.32 on a CPU, measured by benchmarks/runtime_memory.py: loading adds 11 MB and, beside the weights,
# packed copies of about 0.45 of them (0.03 to 0.85 in 48 runs: the allocator gives memory back or not).
RUNTIME_BASE_BYTES = 11_000_000
RUNTIME_WEIGHTS_PERCENT = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a request. Weights, KV cache and state are counted; activations and runtime are modelled.

    `runtime_bytes` is what ONNX Runtime adds on a CPU, and None on a GPU, for which there is no model yet; the total
    then leaves it out.
    """

    weights_bytes: int
    kv_cache_bytes: int
    state_bytes: int
    activations_bytes: int
    runtime_bytes: int | None
    total_bytes: int


def estimate_memory(config: TransformerConfig, workload: Workload, device: Device | None = None) -> MemoryEstimate:
    """Bytes of each kind at the end of the request, when the cache is full, with the activations of prefill.

    Without a device the runtime is ONNX Runtime on a CPU. A GPU runs attention without storing the scores.
    """
    on_cpu = device is None or device.kind == "cpu"
    activation_bytes = workload.batch_size * int(DTYPE_BYTES[workload.activation_dtype])
    weights = count_weight_bytes(config, workload)
    kv_cache = count_kv_cache_bytes(config, workload, workload.context_length)
    activations = activation_bytes * _activation_elements(config, workload.prompt_length, on_cpu)
    outputs = activation_bytes * output_elements(config, workload.prompt_length) + kv_cache
    runtime = runtime_bytes(weights, outputs) if on_cpu else None
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        state_bytes=0,  # recurrent layers would hold some; no config that can be described has them
        activations_bytes=activations,
        runtime_bytes=runtime,
        total_bytes=weights + kv_cache + activations + (runtime or 0),
    )


def count_weight_bytes(config: TransformerConfig, workload: Workload) -> int:
    """Bytes of all stored weights in the workload's weight type."""
    return sum(weight_bytes(name, shape, workload) for name, shape in weight_shapes(config).items())


def count_read_bytes(config: TransformerConfig, workload: Workload) -> int:
    """Bytes of the weights that a forward pass reads in full: all but the tables in which it looks up single rows.

    A tied token table is read in full by the head.
    """
    head_reads_table = config.tie_word_embeddings and config.head in ("causal_lm", "masked_lm")
    return sum(
        weight_bytes(name, shape, workload)
        for name, shape in weight_shapes(config).items()
        if name not in ("embed_positions.weight", "embed_token_types.weight")
        and (name != "embed_tokens.weight" or head_reads_table)
    )


def weight_bytes(name: str, shape: tuple[int, ...], workload: Workload) -> int:
    """Bytes of one weight with its scales.

    int8: out*in + 4*out (one fp32 scale per output channel). int4: each row in blocks of 32 inputs, the last one
    padded, each 16 bytes and an fp16 scale. Both leave what is not `is_linear` in the activation type.
    """
    if workload.weight_dtype == "int8" and is_linear(name):
        return math.prod(shape) + _INT8_SCALE_BYTES * shape[0]
    if workload.weight_dtype == "int4" and is_linear(name):
        blocks = -(-shape[1] // INT4_BLOCK)
        return shape[0] * blocks * (INT4_BLOCK // 2 + _INT4_SCALE_BYTES)
    is_float = workload.weight_dtype not in ("int8", "int4")
    dtype = workload.weight_dtype if is_float else workload.activation_dtype
    return math.prod(shape) * int(DTYPE_BYTES[dtype])


def count_kv_cache_bytes(config: TransformerConfig, workload: Workload, num_tokens: int) -> int:
    """Bytes of keys and values after `num_tokens` tokens: sum over layers of 2*B*min(C, W)*K*H elements.

    0 for an encoder. Layers that share weights each keep their own cache.

    Ignores: scales of an int8 cache, padding to pages.
    """
    if not config.is_causal:
        return 0
    elements = sum(layer_kv_elements(layer, kept_tokens(layer, num_tokens)) for layer in config.layers)
    return workload.batch_size * elements * int(DTYPE_BYTES[workload.kv_cache_dtype])


def layer_kv_elements(layer: Layer, num_kept: int) -> int:
    """Elements of one sequence's keys and values in one layer that keeps `num_kept` tokens."""
    return 2 * num_kept * layer.key_value_size


def layer_live_elements(
    config: TransformerConfig, layer: Layer, num_tokens: int, scores_stored: bool
) -> tuple[int, int]:
    """Elements alive for one sequence of L tokens at the two widest moments of a layer: attention and feed-forward.

    Attention: L*(D + (N+2K)H + NH), the residual, q, k, v and the result, plus N*L*L scores where they are stored.
    Feed-forward: L*(2D + F), the residual, the input and the inner tensor, which is there twice when gated.
    """
    scores = layer.num_attention_heads * num_tokens * num_tokens if scores_stored else 0
    attention = num_tokens * (config.hidden_size + 2 * layer.query_size + 2 * layer.key_value_size) + scores
    inner = layer.intermediate_size * (2 if config.gated_mlp else 1)
    return attention, num_tokens * (2 * config.hidden_size + inner)


def output_live_elements(config: TransformerConfig, num_tokens: int) -> int:
    """Elements alive for one sequence when the head has run: the hidden states, and the logits of every token."""
    logits = config.vocab_size if config.head in ("causal_lm", "masked_lm") else 0
    return num_tokens * (config.hidden_size + logits)


def output_elements(config: TransformerConfig, num_tokens: int) -> int:
    """Elements of one sequence's result: the logits of every token, or the hidden states of a model without logits."""
    return num_tokens * (config.vocab_size if config.head in ("causal_lm", "masked_lm") else config.hidden_size)


def runtime_bytes(weights_bytes: int, outputs_bytes: int) -> int:
    """Bytes that ONNX Runtime adds on a CPU: 11 MB, packed copies of 0.45 of the weights, and a copy of the outputs.

    The outputs are the result and the present key-values, which are handed over as copies.
    Source: benchmarks/runtime_memory.py.
    """
    return RUNTIME_BASE_BYTES + weights_bytes * RUNTIME_WEIGHTS_PERCENT // 100 + outputs_bytes


def _activation_elements(config: TransformerConfig, length: int, on_cpu: bool) -> int:
    """Elements of one sequence. A GPU's allocator reuses memory between moments, ONNX Runtime's CPU arena hardly."""
    moments = [layer_live_elements(config, layer, length, scores_stored=on_cpu) for layer in config.layers]
    widest = (max(m[0] for m in moments), max(m[1] for m in moments), output_live_elements(config, length))
    return sum(widest) if on_cpu else max(widest)
