"""Where the FLOPs of an estimate come from, operator by operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from estimator.explaining.terms import Row, plus, terms_sum
from estimator.flops import attended_pairs, causal_discount_flops, operator_of
from estimator.phases import BlockRun, decode_runs, prefill_runs
from estimator.sizing import Estimate

__all__ = ["explain_compute"]

_SOURCE = "config; a multiply-add is 2 FLOPs; masks not discounted (docs/formulas.md)"
_CAUSAL_SOURCE = "config; pairs of tokens that a causal mask or a window leaves (docs/formulas.md)"
_FORMULAS = {
    "attention_scores": "Σ layers 2·rows·keys·N·H",
    "attention_values": "Σ layers 2·rows·keys·N·h",
    "feed_forward": "Σ layers, matrices 2·rows·D·F",
    "experts": "Σ layers, matrices 2·rows·in·out, k times for experts",
    "state_space": "Σ layers (Σ matrices 2·rows·in·out + FLOPs of products with the state, by token and chunk)",
}
_PROJECTION = "Σ matrices 2·rows·in·out"


def explain_compute(result: Estimate) -> Iterator[Row]:
    """Rows for every FLOP count of both phases."""
    network, compute = result.network, result.compute
    runs = list(prefill_runs(network, result.workload))
    where = "rows = B·L, keys = L" if network.architecture != "encoder-decoder" else "rows and keys as each stack runs"
    yield from _operators("prefill", runs, compute.prefill_by_operator, where)
    total = plus(compute.prefill_by_operator)
    yield "compute.prefill_flops", "sum of the operators", total, compute.prefill_flops, _SOURCE
    yield _causal(result, runs)
    if compute.decode_by_operator is None or compute.decode_flops_per_token is None:
        return
    runs = list(decode_runs(network, replace(result.workload, batch_size=1)))
    where = "rows = 1, keys = min(C + 1, W), S in cross-attention"
    yield from _operators("decode", runs, compute.decode_by_operator, where)
    total = plus(compute.decode_by_operator)
    yield "compute.decode_flops_per_token", "sum of the operators", total, compute.decode_flops_per_token, _SOURCE


def _operators(phase: str, runs: list[BlockRun], flops: dict[str, int], where: str) -> Iterator[Row]:
    terms: dict[str, list[tuple[int, ...]]] = {operator: [] for operator in flops}
    for run in runs:
        for operator, term in _block_terms(run):
            terms[operator].append(term)
    for operator, value in flops.items():
        formula = f"{_FORMULAS.get(operator, _PROJECTION)}; {where}"
        yield f"compute.{phase}_by_operator.{operator}", formula, terms_sum(terms[operator]), value, _SOURCE


def _block_terms(run: BlockRun) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Operator and factors of every product that a block computes, as `flops.block_flops` adds them up."""
    block = run.block
    for weight in block.weights:
        if weight.role in ("linear", "convolution"):
            copies = (weight.active_copies,) if weight.active_copies != 1 else ()
            yield operator_of(block, weight), (2, run.num_rows, *copies, *weight.shape)
    if block.attention is not None:
        heads = block.attention.num_attention_heads
        yield "attention_scores", (2, run.num_rows, run.num_keys, heads, block.attention.key_head_dim)
        yield "attention_values", (2, run.num_rows, run.num_keys, heads, block.attention.value_head_dim)
    if block.recurrence is not None and run.is_step:
        yield block.part, (run.num_rows, block.recurrence.token_flops)
    elif block.recurrence is not None:
        for factors in block.recurrence.prefill_terms(run.num_rows // run.num_sequences):
            if 0 not in factors:
                yield block.part, (run.num_sequences, *factors)


def _causal(result: Estimate, runs: Iterable[BlockRun]) -> Row:
    numbers = str(result.compute.prefill_flops)
    formula = "prefill FLOPs; nothing is masked"
    masked = terms_sum(_masked_term(run) for run in runs if causal_discount_flops(run))
    if masked != "0":
        numbers = f"{numbers} - ({masked})"
        formula = "prefill FLOPs − Σ layers 2·B·masked pairs·N·(H + h); pairs = L·L − w·(w + 1)/2 − (L − w)·w,"
        formula += " w = min(L, W)"
    return "compute.prefill_causal_flops", formula, numbers, result.compute.prefill_causal_flops, _CAUSAL_SOURCE


def _masked_term(run: BlockRun) -> tuple[int, ...]:
    attention = run.block.attention
    assert attention is not None
    tokens = run.num_rows // run.num_sequences
    pairs = tokens * tokens - attended_pairs(attention, tokens)
    width = attention.key_head_dim + attention.value_head_dim
    return 2, run.num_sequences, pairs, attention.num_attention_heads, width
