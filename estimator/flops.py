"""How many floating-point operations a model needs, by operator.

1 multiply-add = 2 FLOPs. What counts is what PyTorch's FlopCounterMode counts: matrix products and convolutions. The
tables and the reasons stand in docs/formulas.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.network import Attention, Block, Network, Weight
from estimator.phases import BlockRun, decode_runs, prefill_runs
from estimator.weights import network_of
from estimator.workload import Workload

__all__ = [
    "OPERATORS",
    "FlopCount",
    "attended_pairs",
    "block_flops",
    "causal_discount_flops",
    "count_flops",
    "matmul_flops",
    "operator_of",
]

# Every model has these in its breakdown, if only as 0. Others are named after their part of the model.
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

    `prefill_causal_flops` leaves out the products that a causal mask makes useless: attention over L*(L+1)/2 pairs of
    tokens instead of L*L, or over those within the window. It equals `prefill_flops` for an encoder. The decode figures
    are None for an encoder, which generates nothing.
    """

    prefill_flops: int
    prefill_causal_flops: int
    decode_flops_per_token: int | None
    prefill_by_operator: dict[str, int]
    decode_by_operator: dict[str, int] | None


def count_flops(model: TransformerConfig | Network, workload: Workload) -> FlopCount:
    """FLOPs of prefill (B sequences of L tokens) and of decode (one token on a full cache).

    Prefill attends from all L tokens to all L tokens, decode from 1 token to C + 1, or to the window where that is
    shorter, because the cache keeps no more. An encoder-decoder's prefill is the encoder over L tokens and the decoder
    over its first one.

    Ignores: causal and window masks (prefill computes the full square, as FlopCounterMode counts it), softmax, norms,
        activations, rotary positions, embedding lookups, bias additions.
    Source: torch.utils.flop_counter, PyTorch 2.13; equal to it on the meta device (tests/estimator/test_flops.py).
    """
    network = network_of(model)
    runs = list(prefill_runs(network, workload))
    prefill = _by_operator(runs)
    total = sum(prefill.values())
    decode = None
    if network.is_causal:
        decode = _by_operator(decode_runs(network, dataclasses.replace(workload, batch_size=1)))
    return FlopCount(
        prefill_flops=total,
        prefill_causal_flops=total - sum(causal_discount_flops(run) for run in runs),
        decode_flops_per_token=None if decode is None else sum(decode.values()),
        prefill_by_operator=prefill,
        decode_by_operator=decode,
    )


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """FLOPs of a product [rows, inner] x [inner, columns]: the one place where a multiply-add becomes 2."""
    return 2 * rows * inner * columns


def block_flops(block: Block, num_rows: int, num_keys: int, num_prompts: int | None = None) -> dict[str, int]:
    """FLOPs of one block by operator, for `num_rows` rows that attend to `num_keys` keys each.

    `num_prompts` is how many prompts the rows make up; None where each row is the next token of its own sequence.
    """
    flops: dict[str, int] = {}
    for weight in block.weights:
        if weight.role in ("linear", "convolution"):
            operator = operator_of(block, weight)
            products = matmul_flops(num_rows, math.prod(weight.shape[1:]), weight.shape[0])
            flops[operator] = flops.get(operator, 0) + weight.active_copies * products
    if block.attention is not None:
        heads = block.attention.num_attention_heads
        flops["attention_scores"] = matmul_flops(num_rows, heads * block.attention.key_head_dim, num_keys)
        flops["attention_values"] = matmul_flops(num_rows, num_keys, heads * block.attention.value_head_dim)
    if block.recurrence is not None:
        products = num_rows * block.recurrence.token_flops
        if num_prompts is not None:
            products = num_prompts * block.recurrence.prefill_flops(num_rows // num_prompts)
        flops[block.part] = flops.get(block.part, 0) + products
    return flops


def causal_discount_flops(run: BlockRun) -> int:
    """FLOPs of attention in prefill between pairs of tokens that a causal mask or a window separates."""
    attention = run.block.attention
    if attention is None or attention.is_cross or not run.stack.is_causal:
        return 0
    tokens = run.num_rows // run.num_sequences
    width = attention.num_attention_heads * (attention.key_head_dim + attention.value_head_dim)
    return run.num_sequences * matmul_flops(tokens * tokens - attended_pairs(attention, tokens), width, 1)


def attended_pairs(attention: Attention, num_tokens: int) -> int:
    """Pairs of a token and one that it attends to under a causal mask: itself and those before it within the window."""
    kept = attention.kept_tokens(num_tokens)
    return kept * (kept + 1) // 2 + (num_tokens - kept) * kept


def operator_of(block: Block, weight: Weight) -> str:
    """The operator that a matrix belongs to: the two projections of attention, else the part of the model."""
    if block.part != "attention":
        return block.part
    return "output_projection" if weight.name.startswith("o_proj") else "qkv_projection"


def _by_operator(runs: Iterable[BlockRun]) -> dict[str, int]:
    total = dict.fromkeys(OPERATORS, 0)
    for run in runs:
        prompts = None if run.is_step else run.num_sequences
        for operator, flops in block_flops(run.block, run.num_rows, run.num_keys, prompts).items():
            total[operator] = total.get(operator, 0) + flops
    return total
