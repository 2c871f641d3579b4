"""How many bytes a model needs: weights, KV cache, state, activations, runtime. Formulas in docs/formulas.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.devices import Device
from estimator.network import Block, Network, Stack, Weight, stored_weights
from estimator.phases import block_keys, block_rows, cached_tokens, running_stacks, source_tokens, stack_rows
from estimator.weights import network_of
from estimator.workload import DTYPE_BYTES, Workload

__all__ = [
    "INT4_BLOCK",
    "INT4_SCALE_BYTES",
    "INT8_SCALE_BYTES",
    "RUNTIME_BASE_BYTES",
    "RUNTIME_WEIGHTS_PERCENT",
    "MemoryEstimate",
    "Moment",
    "block_moment",
    "count_kv_cache_bytes",
    "count_state_bytes",
    "count_weight_bytes",
    "end_moment",
    "estimate_memory",
    "output_elements",
    "runtime_bytes",
    "weight_bytes",
    "widest_moments",
]

INT4_BLOCK = 32  # inputs that share one fp16 scale; MatMulNBits pads a row to whole blocks
INT8_SCALE_BYTES = 4  # one fp32 scale per output channel
INT4_SCALE_BYTES = 2
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is alive of one sequence (or image): `live_width` elements a row, and the scores of `num_heads` heads."""

    num_rows: int
    live_width: int
    num_heads: int = 0
    num_keys: int = 0

    def count_elements(self, score_copies: int = 1) -> int:
        """All elements: rows * (width + copies * heads * keys)."""
        return self.num_rows * (self.live_width + score_copies * self.num_heads * self.num_keys)


# Half precision: the scores (2 bytes), their softmax in fp32 (4) and its half-precision copy (2). fp32: scores and
# probabilities (4 each). Source: eager_attention_forward of transformers 5.24.
_EAGER_SCORE_BYTES = 8
_NOTHING = Moment(num_rows=0, live_width=0)


def estimate_memory(
    model: TransformerConfig | Network,
    workload: Workload,
    device: Device | None = None,
    *,
    stored_bytes: int | None = None,
    fused_attention: bool = True,
) -> MemoryEstimate:
    """Bytes of each kind at the end of the request, when the cache is full, with the activations of prefill.

    Without a device the runtime is ONNX Runtime on a CPU. A GPU runs attention without storing the scores, or as
    PyTorch does without `fused_attention`: scores and probabilities of a layer take 8 bytes each at their peak.
    `stored_bytes` are those of the weights as a file holds them, in place of the workload's weight type.
    """
    network = network_of(model)
    on_cpu = device is None or device.kind == "cpu"
    activation_bytes = workload.batch_size * int(DTYPE_BYTES[workload.activation_dtype])
    weights = count_weight_bytes(network, workload) if stored_bytes is None else stored_bytes
    kv_cache = count_kv_cache_bytes(network, workload)
    state = count_state_bytes(network, workload)
    activations = activation_bytes * _activation_elements(network, workload, on_cpu, fused_attention)
    rows = stack_rows(network, network.main, workload)
    outputs = activation_bytes * output_elements(network, rows) + kv_cache
    runtime = runtime_bytes(weights, outputs) if on_cpu else None
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        state_bytes=state,
        activations_bytes=activations,
        runtime_bytes=runtime,
        total_bytes=weights + kv_cache + state + activations + (runtime or 0),
    )


def count_weight_bytes(model: TransformerConfig | Network, workload: Workload) -> int:
    """Bytes of all stored weights in the workload's weight type."""
    return sum(weight_bytes(weight, workload) for _, _, weight in stored_weights(network_of(model)))


def weight_bytes(weight: Weight, workload: Workload) -> int:
    """Bytes of one weight, all its copies, with its scales.

    int8: out*in + 4*out (one fp32 scale per output channel). int4: each row in blocks of 32 inputs, the last one
    padded, each 16 bytes and an fp16 scale. Both leave what is not a quantised linear in the activation type.
    """
    if weight.role == "linear" and weight.quantized:
        out, inner = weight.shape
        if workload.weight_dtype == "int8":
            return weight.copies * (out * inner + INT8_SCALE_BYTES * out)
        if workload.weight_dtype == "int4":
            blocks = -(-inner // INT4_BLOCK)
            return weight.copies * out * blocks * (INT4_BLOCK // 2 + INT4_SCALE_BYTES)
    is_float = workload.weight_dtype not in ("int8", "int4")
    dtype = workload.weight_dtype if is_float else workload.activation_dtype
    return weight.copies * math.prod(weight.shape) * int(DTYPE_BYTES[dtype])


def count_kv_cache_bytes(model: TransformerConfig | Network, workload: Workload, num_tokens: int | None = None) -> int:
    """Bytes of keys and values after `num_tokens` tokens (default: at the end of the request).

    The sum over layers of B * min(C, W) * elements per token; cross-attention keeps the encoder's tokens. 0 for an
    encoder. Layers that share weights each keep their own cache.

    Ignores: scales of an int8 cache, padding to pages.
    """
    network = network_of(model)
    if not network.is_causal:
        return 0
    tokens = cached_tokens(network, workload) if num_tokens is None else num_tokens
    source, elements = source_tokens(network, workload), 0
    for block in network.main.blocks:
        if block.attention is not None:
            kept = source if block.attention.is_cross else block.attention.kept_tokens(tokens)
            elements += kept * block.attention.cached_elements
    return workload.batch_size * elements * int(DTYPE_BYTES[workload.kv_cache_dtype])


def count_state_bytes(model: TransformerConfig | Network, workload: Workload) -> int:
    """Bytes of recurrent and convolution states of all sequences, in the activation type but for what stays fp32."""
    network = network_of(model)
    if not network.is_causal:
        return 0
    states = [block.recurrence for block in network.main.blocks if block.recurrence is not None]
    in_fp32 = sum(state.fp32_elements for state in states)
    others = sum(state.state_elements for state in states) - in_fp32
    size, fp32_size = (int(DTYPE_BYTES[dtype]) for dtype in (workload.activation_dtype, "fp32"))
    return workload.batch_size * (others * size + in_fp32 * fp32_size)


def block_moment(block: Block, num_rows: int, num_keys: int, *, scores_stored: bool) -> Moment:
    """The widest moment of a block for one sequence.

    Attention: D + (N+2K)H + NH a row, the residual, q, k, v and the result, and the scores where they are stored.
    Feed-forward: 2D + F a row, the residual, the input and the inner tensor, which is there twice when gated.
    """
    heads = block.attention.num_attention_heads if block.attention is not None and scores_stored else 0
    return Moment(num_rows=num_rows, live_width=block.live_width, num_heads=heads, num_keys=num_keys)


def end_moment(hidden_size: int, logits_width: int, num_rows: int) -> Moment:
    """What is alive for one sequence when the head has run: the hidden states, and the logits of every row."""
    return Moment(num_rows=num_rows, live_width=hidden_size + logits_width)


def widest_moments(
    network: Network, stack: Stack, workload: Workload, *, scores_stored: bool
) -> tuple[Moment, Moment, Moment]:
    """The widest moments of a stack in prefill: where rows mix (attention, states), where they do not, at the end."""
    rows, source = stack_rows(network, stack, workload), source_tokens(network, workload)
    logits_width = network.logits_width if stack is network.main else 0
    mixing, others = [_NOTHING], [_NOTHING]
    for block in (block for layer in stack.layers for block in layer.blocks):
        own_rows, keys = block_rows(block, rows, source), block_keys(block, rows, source)
        moments = mixing if block.part in ("attention", "state_space") else others
        moments.append(block_moment(block, own_rows, keys, scores_stored=scores_stored))
    widest = max(mixing, key=Moment.count_elements), max(others, key=Moment.count_elements)
    return *widest, end_moment(stack.hidden_size, logits_width, rows)


def output_elements(network: Network, num_rows: int) -> int:
    """Elements of one sequence's result: the logits of every row, or the hidden states of a model without logits."""
    return num_rows * (network.logits_width or network.main.hidden_size)


def runtime_bytes(weights_bytes: int, outputs_bytes: int) -> int:
    """Bytes that ONNX Runtime adds on a CPU: its own, packed copies of a share of the weights, a copy of the outputs.

    The outputs are the result and the present key-values, which are handed over as copies.
    Source: benchmarks/runtime_memory.py.
    """
    return RUNTIME_BASE_BYTES + weights_bytes * RUNTIME_WEIGHTS_PERCENT // 100 + outputs_bytes


def _activation_elements(network: Network, workload: Workload, on_cpu: bool, fused_attention: bool) -> int:
    """Elements of one sequence. A GPU's allocator reuses memory between moments, ONNX Runtime's CPU arena hardly."""
    eager_copies = _EAGER_SCORE_BYTES // int(DTYPE_BYTES[workload.activation_dtype])
    score_copies = 1 if on_cpu else 0 if fused_attention else eager_copies
    stacks = running_stacks(network, workload)
    return max(_stack_live_elements(network, stack, workload, on_cpu, score_copies) for stack in stacks)


def _stack_live_elements(network: Network, stack: Stack, workload: Workload, on_cpu: bool, score_copies: int) -> int:
    moments = widest_moments(network, stack, workload, scores_stored=score_copies > 0)
    widths = [moment.count_elements(score_copies) for moment in moments]
    return (workload.num_images if stack.optional else 1) * (sum(widths) if on_cpu else max(widths))
