"""Bytes of an optimizer's states, exact against PyTorch's optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from estimator.network import Weight

__all__ = ["optimizer_bytes"]

_STATES = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "lamb": 2}
# bitsandbytes: two states of one byte per element, and an fp32 maximum for each block of 256; tensors of fewer than
# 4,096 elements stay in fp32. Source: Dettmers et al., arXiv:2110.02861; bitsandbytes/optim/optimizer.py, `init_state`
# of Optimizer2State and the default `min_8bit_size`.
_BLOCK_8BIT, _LEAST_8BIT = 256, 4096


def optimizer_bytes(weights: Iterable[tuple[str, Weight]], optimizer: str, state_bytes: int) -> int:
    """Bytes of the optimizer's states, `state_bytes` per element; `weights` are pairs of part and weight.

    adafactor keeps a row and a column of every matrix (arXiv:1804.04235). muon keeps one momentum for the matrices of
    the layers, and AdamW's two states for everything else: tables, head, routers, norms. adam-8bit: see the comment.

    Ignores: the scalar step counters, 4 bytes a tensor, which PyTorch keeps on the CPU.
    """
    return sum(_state_bytes(part, weight, optimizer, state_bytes) for part, weight in weights)


def _state_bytes(part: str, weight: Weight, optimizer: str, state_bytes: int) -> int:
    """All copies of one weight."""
    elements = math.prod(weight.shape)
    if optimizer == "adafactor" and len(weight.shape) >= 2:
        kept = math.prod(weight.shape[:-2]) * (weight.shape[-2] + weight.shape[-1]) * state_bytes
    elif optimizer == "adafactor":
        kept = elements * state_bytes
    elif optimizer == "adam-8bit":
        kept = 2 * 4 * elements if elements < _LEAST_8BIT else 2 * (elements + 4 * -(-elements // _BLOCK_8BIT))
    elif optimizer == "muon":
        is_matrix = weight.role == "linear" and weight.quantized and part != "head"
        kept = (1 if is_matrix else 2) * elements * state_bytes
    else:
        kept = _STATES[optimizer] * elements * state_bytes
    return weight.copies * kept if weight.stored else 0
