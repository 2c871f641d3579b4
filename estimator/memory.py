"""How many bytes a model needs: weights, KV cache, state, activations, runtime. Formulas in docs/formulas.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.devices import Device
from estimator.network import Block, Network, Stack, Weight, stored_weights
from estimator.phases import (
    block_keys,
    block_rows,
    cached_tokens,
    logits_rows,
    running_stacks,
    source_tokens,
    stack_rows,
)
from estimator.runtimes import Runtime, Span, attention_of, resolve_runtime, runtime_bytes
from estimator.weights import network_of
from estimator.workload import DTYPE_BYTES, Workload

__all__ = [
    "KV_HEAD_SCALE_BYTES",
    "KV_TOKEN_SCALE_BYTES",
    "MemoryEstimate",
    "Moment",
    "block_moment",
    "cache_bytes",
    "cached_vectors",
    "count_kv_cache_bytes",
    "count_state_bytes",
    "count_weight_bytes",
    "decode_moments",
    "end_moment",
    "estimate_memory",
    "live_elements",
    "output_elements",
    "score_copies",
    "weight_bytes",
    "widest_moments",
]

# Scales of a quantised cache: one fp32 for all tokens of a head (vLLM's k_scale and v_scale), or one fp16 for each
# token of a head (LMDeploy's int8 and int4 caches).
KV_HEAD_SCALE_BYTES, KV_TOKEN_SCALE_BYTES = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a request. Weights, KV cache and state are counted; activations and runtime are modelled.

    `activations_bytes` are those of the wider phase. `runtime_bytes` is what the process takes beyond the tensors, and
    None on hardware for which there is no model; the total then leaves it out. `runtime` and `attention` say what was
    assumed. The total lies between `total_low_bytes` and `total_high_bytes`, as far as the runtime is uncertain.
    """

    weights_bytes: int
    kv_cache_bytes: int
    state_bytes: int
    activations_bytes: int
    runtime_bytes: int | None
    total_bytes: int
    total_low_bytes: int
    total_high_bytes: int
    prefill_activations_bytes: int
    decode_activations_bytes: int
    runtime: str | None
    attention: str

    @property
    def tensors_bytes(self) -> int:
        """The total without the runtime: what `torch.cuda.max_memory_allocated` reports."""
        return self.total_bytes - (self.runtime_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is alive of one sequence (or image), in elements.

    `live_width` for each row, the scores of `num_heads` heads `score_copies` times, and `num_logits` in all.
    """

    num_rows: int
    live_width: int
    num_heads: int = 0
    num_keys: int = 0
    score_copies: int = 1
    num_logits: int = 0

    def count_elements(self) -> int:
        """All elements: rows * (width + copies * heads * keys) + logits."""
        scores = self.score_copies * self.num_heads * self.num_keys
        return self.num_rows * (self.live_width + scores) + self.num_logits


_NOTHING = Moment(num_rows=0, live_width=0)
Moments = tuple[Moment, Moment, Moment]


def estimate_memory(
    model: TransformerConfig | Network,
    workload: Workload,
    device: Device | None = None,
    *,
    stored_bytes: int | None = None,
) -> MemoryEstimate:
    """Bytes of each kind at the end of the request, when the cache is full, with the activations of the wider phase.

    The runtime is the workload's, else that of the device: see `resolve_runtime`. `stored_bytes` are those of the
    weights as a file holds them, in place of the workload's weight type.

    Raises:
        InputError: the runtime does not run on the device, or has no such attention.
    """
    network, runtime = network_of(model), resolve_runtime(workload.runtime, device)
    attention = attention_of(workload, runtime)
    copies, reuses = score_copies(workload, runtime), runtime is None or runtime.reuses_activations
    weights = count_weight_bytes(network, workload) if stored_bytes is None else stored_bytes
    kv_cache, state = count_kv_cache_bytes(network, workload), count_state_bytes(network, workload)
    size = workload.batch_size * int(DTYPE_BYTES[workload.activation_dtype])
    prefill, spare = _prefill_elements(network, workload, copies, reuses)
    decode = live_elements(decode_moments(network, workload, copies), reuses)[0]
    outputs = size * output_elements(network, workload) + kv_cache
    activations = size * max(prefill, decode)
    tensors = weights + kv_cache + state + activations
    extra = Span(low=0, value=0, high=0)
    if runtime is not None:
        extra = runtime_bytes(runtime, device, weights_bytes=weights, outputs_bytes=outputs, spare_bytes=size * spare)
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        state_bytes=state,
        activations_bytes=activations,
        runtime_bytes=None if runtime is None else extra.value,
        total_bytes=tensors + extra.value,
        total_low_bytes=tensors + extra.low,
        total_high_bytes=tensors + extra.high,
        prefill_activations_bytes=size * prefill,
        decode_activations_bytes=size * decode,
        runtime=None if runtime is None else runtime.name,
        attention=attention,
    )


def count_weight_bytes(model: TransformerConfig | Network, workload: Workload) -> int:
    """Bytes of all stored weights in the workload's weight type."""
    return sum(weight_bytes(weight, workload) for _, _, weight in stored_weights(network_of(model)))


def weight_bytes(weight: Weight, workload: Workload) -> int:
    """Bytes of one weight, all its copies, with its scales.

    A quantised type is that of the matrices of the linear layers, stored as `workload.quantization` says. What is no
    quantised matrix has the type of the activations.
    """
    quantization = workload.quantization
    if quantization is not None and weight.role == "linear" and weight.quantized:
        out, inner = weight.shape
        return weight.copies * quantization.count_bytes(out, inner)
    return weight.copies * math.prod(weight.shape) * int(DTYPE_BYTES[workload.unquantized_dtype])


def count_kv_cache_bytes(model: TransformerConfig | Network, workload: Workload, num_tokens: int | None = None) -> int:
    """Bytes of keys and values after `num_tokens` tokens (default: at the end of the request), with their scales.

    The sum over layers of B * min(C, W) * elements per token; cross-attention keeps the encoder's tokens. 0 for an
    encoder. Layers that share weights each keep their own cache. See `Workload.kv_scales` for scales.

    Ignores: padding to pages, zero points.
    """
    network = network_of(model)
    if not network.is_causal:
        return 0
    tokens = cached_tokens(network, workload) if num_tokens is None else num_tokens
    source, elements, vectors, heads = source_tokens(network, workload), 0, 0, 0
    for block in network.main.blocks:
        if block.attention is not None:
            kept = source if block.attention.is_cross else block.attention.kept_tokens(tokens)
            elements += kept * block.attention.cached_elements
            vectors += kept * cached_vectors(block)
            heads += cached_vectors(block)
    return cache_bytes(workload, elements, vectors, heads)


def cached_vectors(block: Block) -> int:
    """Keys and values that a token leaves in a layer's cache, each of which may have a scale: 2K, or 1 latent."""
    attention = block.attention
    if attention is None:
        return 0
    if any("kv_a_proj" in weight.name for weight in block.weights):
        return 1
    return -(-2 * attention.cached_elements // (attention.key_head_dim + attention.value_head_dim))


def cache_bytes(workload: Workload, elements: int, vectors: int, heads: int) -> int:
    """Bytes of a cache of so many elements and vectors per sequence; `heads` are the vectors of one token."""
    bits = int(8 * DTYPE_BYTES[workload.kv_cache_dtype])
    stored = workload.batch_size * -(-elements * bits // 8)
    if workload.cache_scales == "token":
        return stored + workload.batch_size * vectors * KV_TOKEN_SCALE_BYTES
    return stored + (heads * KV_HEAD_SCALE_BYTES if workload.cache_scales == "head" else 0)


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


def score_copies(workload: Workload, runtime: Runtime | None) -> int:
    """How many elements of the activations' type are held for each score: 0 with fused attention.

    PyTorch's eager attention holds 8 bytes at its widest: in 16 bit the scores, their fp32 softmax and its copy, in
    fp32 the scores and their softmax.
    """
    if attention_of(workload, runtime) == "fused":
        return 0
    if runtime is None or runtime.score_bytes is None:
        return 1
    return runtime.score_bytes // int(DTYPE_BYTES[workload.activation_dtype])


def block_moment(block: Block, num_rows: int, num_keys: int, *, score_copies: int) -> Moment:
    """The widest moment of a block for one sequence.

    Attention: D + (N+2K)H + NH a row, the residual, q, k, v and the result, and the scores where they are stored.
    Feed-forward: 2D + F a row, the residual, the input and the inner tensor, which is there twice when gated.
    """
    heads = block.attention.num_attention_heads if block.attention is not None and score_copies else 0
    return Moment(
        num_rows=num_rows,
        live_width=block.live_width,
        num_heads=heads,
        num_keys=num_keys,
        score_copies=score_copies or 1,
    )


def end_moment(hidden_size: int, num_rows: int, num_logits: int) -> Moment:
    """What is alive for one sequence when the head has run: the hidden states, and the logits."""
    return Moment(num_rows=num_rows, live_width=hidden_size, num_logits=num_logits)


def widest_moments(network: Network, stack: Stack, workload: Workload, *, score_copies: int) -> Moments:
    """The widest moments of a stack in prefill: where rows mix (attention, states), where they do not, at the end."""
    rows, source = stack_rows(network, stack, workload), source_tokens(network, workload)
    num_logits = logits_rows(network, workload) * network.logits_width if stack is network.main else 0
    blocks = (block for layer in stack.layers for block in layer.blocks)
    runs = ((block, block_rows(block, rows, source), block_keys(block, rows, source)) for block in blocks)
    return _widest(runs, score_copies, end_moment(stack.hidden_size, rows, num_logits))


def decode_moments(network: Network, workload: Workload, score_copies: int) -> Moments:
    """The widest moments of a step of decode, when the cache is full; nothing for an encoder."""
    if not network.is_causal:
        return _NOTHING, _NOTHING, _NOTHING
    keys, source = cached_tokens(network, workload) + 1, source_tokens(network, workload)
    blocks = (block for layer in network.main.layers for block in layer.blocks if block.positions is None)
    runs = ((block, 1, _step_keys(block, keys, source)) for block in blocks)
    return _widest(runs, score_copies, end_moment(network.main.hidden_size, 1, network.logits_width))


def live_elements(moments: Moments, reuses: bool) -> tuple[int, int]:
    """Elements that the moments take, and those by which their sum exceeds that: none where no memory is reused."""
    widths = [moment.count_elements() for moment in moments]
    return (max(widths), sum(widths) - max(widths)) if reuses else (sum(widths), 0)


def output_elements(network: Network, workload: Workload) -> int:
    """Elements of one sequence's result: the logits, or the hidden states of a model without logits."""
    if network.logits_width:
        return logits_rows(network, workload) * network.logits_width
    return stack_rows(network, network.main, workload) * network.main.hidden_size


def _widest(runs: Iterable[tuple[Block, int, int]], score_copies: int, end: Moment) -> Moments:
    mixing, others = [_NOTHING], [_NOTHING]
    for block, rows, keys in runs:
        moments = mixing if block.part in ("attention", "state_space") else others
        moments.append(block_moment(block, rows, keys, score_copies=score_copies))
    return max(mixing, key=Moment.count_elements), max(others, key=Moment.count_elements), end


def _step_keys(block: Block, keys: int, source: int) -> int:
    if block.attention is None:
        return keys
    return source if block.attention.is_cross else block.attention.kept_tokens(keys)


def _prefill_elements(network: Network, workload: Workload, score_copies: int, reuses: bool) -> tuple[int, int]:
    """Elements of one sequence in prefill, and the spare ones, of the stack that takes most; images together."""
    found = []
    for stack in running_stacks(network, workload):
        times = workload.num_images if stack.optional else 1
        used, spare = live_elements(widest_moments(network, stack, workload, score_copies=score_copies), reuses)
        found.append((times * used, times * spare))
    return max(found)
