"""How many floating-point operations a config needs, by operator.

1 multiply-add = 2 FLOPs. What counts is what PyTorch's FlopCounterMode counts: the matrix products. The tables and the
reasons stand in docs/formulas.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.config import Layer, TransformerConfig
from estimator.weights import layer_shapes
from estimator.workload import Workload

__all__ = ["OPERATORS", "FlopCount", "count_flops", "kept_tokens", "layer_flops", "matmul_flops", "output_flops"]

OPERATORS = (
    "qkv_projection",
    "attention_scores",
    "attention_values",
    "output_projection",
    "feed_forward",
    "head",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopCount:
    """FLOPs of one prefill of the whole batch, and of one more token of one sequence.

    The decode figures are None for an encoder, which generates nothing.
    """

    prefill_flops: int
    decode_flops_per_token: int | None
    prefill_by_operator: dict[str, int]
    decode_by_operator: dict[str, int] | None


def count_flops(config: TransformerConfig, workload: Workload) -> FlopCount:
    """FLOPs of prefill (B sequences of L tokens) and of decode (one token on a context of `context_length` tokens).

    Prefill attends from all L tokens to all L tokens, decode from 1 token to C + 1, or to the window where that is
    shorter, because the cache keeps no more.

    Ignores: causal and window masks (prefill computes the full square, as FlopCounterMode counts it), softmax, norms,
        activations, rotary positions, embedding lookups, bias additions.
    Source: torch.utils.flop_counter, PyTorch 2.13; equal to it on the meta device (tests/estimator/test_flops.py).
    """
    length = workload.prompt_length
    prefill = _stack_flops(config, workload.batch_size, length, tuple(length for _ in config.layers))
    if not config.is_causal:
        return FlopCount(
            prefill_flops=sum(prefill.values()),
            decode_flops_per_token=None,
            prefill_by_operator=prefill,
            decode_by_operator=None,
        )
    keys = tuple(kept_tokens(layer, workload.context_length + 1) for layer in config.layers)
    decode = _stack_flops(config, 1, 1, keys)
    return FlopCount(
        prefill_flops=sum(prefill.values()),
        decode_flops_per_token=sum(decode.values()),
        prefill_by_operator=prefill,
        decode_by_operator=decode,
    )


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """FLOPs of a product [rows, inner] x [inner, columns]: the one place where a multiply-add becomes 2."""
    return 2 * rows * inner * columns


def kept_tokens(layer: Layer, num_tokens: int) -> int:
    """How many of the last `num_tokens` tokens the layer attends to, and keeps in its cache."""
    return num_tokens if layer.sliding_window is None else min(num_tokens, layer.sliding_window)


def layer_flops(config: TransformerConfig, layer: Layer, num_tokens: int, num_keys: int) -> dict[str, int]:
    """FLOPs of one layer for `num_tokens` tokens that attend to `num_keys` keys each."""
    flops = dict.fromkeys(OPERATORS, 0)
    for name, shape in layer_shapes(config, layer):
        if len(shape) == 2:
            operator = _operator_of(name)
            flops[operator] = flops[operator] + matmul_flops(num_tokens, shape[1], shape[0])
    flops["attention_scores"] = matmul_flops(num_tokens, layer.query_size, num_keys)
    flops["attention_values"] = matmul_flops(num_tokens, num_keys, layer.query_size)
    return flops


def output_flops(config: TransformerConfig, num_sequences: int, num_tokens: int) -> int:
    """FLOPs of the head: the logits of every token, or the pooler on the first token of every sequence."""
    hidden = config.hidden_size
    if config.head == "pooler":
        return matmul_flops(num_sequences, hidden, hidden)
    if config.head == "none":
        return 0
    logits = matmul_flops(num_sequences * num_tokens, hidden, config.vocab_size)
    if config.head == "masked_lm":
        return logits + matmul_flops(num_sequences * num_tokens, hidden, hidden)
    return logits


def _stack_flops(
    config: TransformerConfig, num_sequences: int, num_tokens: int, keys_per_layer: tuple[int, ...]
) -> dict[str, int]:
    total = dict.fromkeys(OPERATORS, 0)
    for layer, num_keys in zip(config.layers, keys_per_layer, strict=True):
        for operator, flops in layer_flops(config, layer, num_sequences * num_tokens, num_keys).items():
            total[operator] += flops
    total["head"] = output_flops(config, num_sequences, num_tokens)
    return total


def _operator_of(name: str) -> str:
    if ".mlp." in name:
        return "feed_forward"
    return "output_projection" if name.endswith(".o_proj.weight") else "qkv_projection"
