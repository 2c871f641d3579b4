"""Adapters of low rank: which matrices get them, and the bytes of what stays frozen beside them."""

from __future__ import annotations

from collections.abc import Iterable

from estimator.memory import weight_bytes
from estimator.network import Block, Weight
from estimator.training.plan import PRECISIONS, LoraPlan
from estimator.weight_formats import FORMATS
from estimator.workload import Workload

__all__ = ["adapters", "frozen_bytes", "is_target", "nf4_bytes"]


def is_target(block: Block, weight: Weight, targets: str) -> bool:
    """Whether a matrix gets an adapter. `targets` is one of LORA_TARGETS; routers, tables and heads never do."""
    if weight.role != "linear" or not weight.quantized or block.part in ("head", "embedding", "other"):
        return False
    if targets == "all-linear":
        return True
    return block.part == "attention" and (targets == "attention" or weight.name[:2] in ("q_", "v_"))


def adapters(block: Block, weight: Weight, plan: LoraPlan) -> tuple[Weight, ...]:
    """A [rank, in] and B [out, rank] of a targeted matrix, else nothing. Source: arXiv:2106.09685, section 4.1."""
    if not weight.stored or not is_target(block, weight, plan.targets):
        return ()
    out, inner = weight.shape
    shapes = (("A", (plan.rank, inner)), ("B", (out, plan.rank)))
    return tuple(
        Weight(name=f"{weight.name}.lora_{name}", shape=shape, copies=weight.copies, active_copies=weight.active_copies)
        for name, shape in shapes
    )


def frozen_bytes(weights: Iterable[Weight], plan: LoraPlan, precision: str) -> int:
    """Bytes of the frozen weights in `base_dtype`, the others than matrices in the precision's own type."""
    weights = tuple(weights)
    per_weight = PRECISIONS[precision][0]
    if plan.base_dtype is None:
        return per_weight * sum(weight.num_elements for weight in weights)
    workload = Workload(weight_dtype=plan.base_dtype, activation_dtype="fp32" if per_weight == 4 else "bf16")
    return sum(weight_bytes(weight, workload) for weight in weights)


def nf4_bytes(weight: Weight) -> int:
    """Bytes of a matrix in NF4 with double quantisation: two weights a byte, and about 0.127 bit more for each.

    Ignores: the tables of levels, 64 bytes a matrix and 1 KiB in all.
    """
    return weight.copies * FORMATS["nf4"].count_bytes(*weight.shape) if weight.stored else 0
