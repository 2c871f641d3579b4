"""Which rows pass through which block in prefill and in decode: what FLOPs, bytes read and time have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from estimator.network import Block, Network, Stack
from estimator.workload import Workload

__all__ = [
    "BlockRun",
    "block_keys",
    "block_rows",
    "cached_tokens",
    "decode_runs",
    "logits_rows",
    "longest_sequence",
    "prefill_runs",
    "running_stacks",
    "source_tokens",
    "stack_rows",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRun:
    """One block as it runs: `num_rows` rows in all pass through it, and each attends to `num_keys` keys.

    `stack` is where it stands; `num_sequences` the sequences (or images) that the rows belong to. `owns_weights` is
    False where the weights are those of an earlier layer. `is_step`: each row is one more token of its sequence.
    """

    stack: Stack
    block: Block
    owns_weights: bool
    num_sequences: int
    num_rows: int
    num_keys: int
    is_step: bool = False


def prefill_runs(network: Network, workload: Workload) -> Iterator[BlockRun]:
    """Every block as it runs in prefill: all stacks on their whole input; a decoder behind an encoder on one token."""
    for stack in running_stacks(network, workload):
        sequences = workload.batch_size * (workload.num_images if stack.optional else 1)
        rows = stack_rows(network, stack, workload)
        source = source_tokens(network, workload)
        for _, block, owns_weights in stack.named_blocks():
            is_head = stack is network.main and block.part == "head" and block.positions is None
            own_rows = logits_rows(network, workload) if is_head else block_rows(block, rows, source)
            yield BlockRun(
                stack=stack,
                block=block,
                owns_weights=owns_weights,
                num_sequences=sequences,
                num_rows=sequences * own_rows,
                num_keys=block_keys(block, rows, source),
            )


def decode_runs(network: Network, workload: Workload) -> Iterator[BlockRun]:
    """Every block of the generating stack as it runs for one more token of each sequence, when the cache is full.

    Nothing for an encoder. A layer with a window attends to no more keys than it keeps.
    """
    if not network.is_causal:
        return
    keys, source = cached_tokens(network, workload) + 1, source_tokens(network, workload)
    for _, block, owns_weights in network.main.named_blocks():
        if block.positions is not None:
            continue
        attends = keys if block.attention is None else block.attention.kept_tokens(keys)
        yield BlockRun(
            stack=network.main,
            block=block,
            owns_weights=owns_weights,
            num_sequences=workload.batch_size,
            num_rows=workload.batch_size,
            num_keys=source if block.attention is not None and block.attention.is_cross else attends,
            is_step=True,
        )


def running_stacks(network: Network, workload: Workload) -> tuple[Stack, ...]:
    """The stacks that run for this workload: optional ones only when there is input for them."""
    return tuple(stack for stack in network.stacks if workload.num_images or not stack.optional)


def stack_rows(network: Network, stack: Stack, workload: Workload) -> int:
    """Rows of one sequence (or image) that a stack reads in prefill."""
    if stack.length is not None:
        return stack.length
    is_target = network.architecture == "encoder-decoder" and stack is network.main
    return 1 if is_target else workload.prompt_length


def logits_rows(network: Network, workload: Workload) -> int:
    """Rows of one sequence whose logits prefill computes: all, or the last where no more are asked for.

    An encoder always computes all.
    """
    if workload.logits == "last" and network.is_causal:
        return 1
    return stack_rows(network, network.main, workload)


def source_tokens(network: Network, workload: Workload) -> int:
    """Rows that cross-attention reads: the encoder's, or in a decoder those of all images of a sequence."""
    if network.architecture != "encoder-decoder":
        return workload.num_images * sum(stack.length or 0 for stack in network.stacks if stack.optional)
    return stack_rows(network, network.stacks[-2], workload)


def cached_tokens(network: Network, workload: Workload) -> int:
    """Tokens in the generating stack's cache at the end of the request."""
    if network.architecture == "encoder-decoder":
        return 1 + workload.generated_length
    return workload.context_length


def longest_sequence(network: Network, workload: Workload) -> int:
    """Positions that the longest sequence of the request takes.

    A prompt and what follows it are one sequence in a decoder, and two in an encoder-decoder. Rows whose number is
    fixed, such as an image's, are not counted.
    """
    if network.architecture != "encoder-decoder":
        return workload.context_length if network.main.length is None else 0
    prompt = workload.prompt_length if network.stacks[-2].length is None else 0
    return max(prompt, cached_tokens(network, workload))


def block_rows(block: Block, rows: int, source: int) -> int:
    """Rows of one sequence that pass through a block, of the stack's `rows` and the encoder's `source` rows."""
    if block.positions is None:
        return rows
    return source if isinstance(block.positions, str) else block.positions


def block_keys(block: Block, rows: int, source: int) -> int:
    """Keys that each row of a block attends to: the encoder's rows in cross-attention, else the stack's."""
    return source if block.attention is not None and block.attention.is_cross else rows
