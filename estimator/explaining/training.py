"""Where each figure of a training step comes from: formula, numbers put in, origin, source."""

from __future__ import annotations

from collections.abc import Iterator

from estimator.explaining.figures import Derivation
from estimator.network import Network
from estimator.training.kept_activations import Keeping, loss_bytes
from estimator.training.memory import TrainingMemory
from estimator.training.plan import PRECISIONS, TrainingPlan
from estimator.training.stages import divide_network

__all__ = ["derive_training"]

_PRECISION_SOURCE = "ZeRO, arXiv:1910.02054, section 3.1; PyTorch's automatic mixed precision"
_NUM_STATES = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "lamb": 2}
_OTHER_STATES = {
    "adafactor": "a row and a column of every matrix, 1 state per parameter of the rest",
    "adam-8bit": "2 states of 1 byte, and 4 bytes for each block of 256; 8 bytes in tensors below 4,096",
    "muon": "1 state for the layers' matrices, 2 for the rest",
}
_STATE_SOURCES = {
    "adafactor": "Shazeer and Stern, arXiv:1804.04235; torch.optim.Adafactor",
    "adam-8bit": "Dettmers et al., arXiv:2110.02861; bitsandbytes",
    "lamb": "You et al., arXiv:1904.00962",
}


def derive_training(network: Network, plan: TrainingPlan, memory: TrainingMemory) -> tuple[Derivation, ...]:
    """A derivation of every kind of byte on the fullest device, in the order of `memory.by_kind`, and of the total."""
    rows = [*_parameters(plan, memory), *_activations(network, plan, memory), *_extras(memory)]
    numbers = " + ".join(str(size) for size in memory.by_kind.values())
    rows.append(("total_bytes", "sum of all kinds", numbers, memory.total_bytes, "the figures above"))
    return tuple(
        Derivation(
            figure=f"training.{figure}", formula=formula, numbers=numbers, value=value, origin="modelled", source=source
        )
        for figure, formula, numbers, value, source in rows
    )


def _parameters(plan: TrainingPlan, memory: TrainingMemory) -> Iterator[tuple[str, str, str, int, str]]:
    per_weight, _, per_state, per_copy = PRECISIONS[plan.precision]
    params, data, stage = memory.device_params, plan.parallel.data, plan.parallel.zero_stage

    def divided(from_stage: int) -> tuple[str, str]:
        return (" / data-parallel devices, rounded up", f" / {data}") if stage >= from_stage else ("", "")

    share, over = divided(3)
    frozen, numbers = "", f"{params} × {per_weight}{over}"
    if plan.lora is not None:
        frozen, numbers = f" + frozen weights in {plan.lora.base_dtype or 'the same type'}", str(memory.weights_bytes)
    weights = f"trained parameters · {per_weight}{frozen}{share}"
    yield "weights_bytes", weights, numbers, memory.weights_bytes, _PRECISION_SOURCE
    share, over = divided(2)
    gradients = f"trained parameters · {plan.gradient_bytes}{share}"
    numbers = f"{params} × {plan.gradient_bytes}{over}"
    yield "gradients_bytes", gradients, numbers, memory.gradients_bytes, _PRECISION_SOURCE
    share, over = divided(1)
    source = _STATE_SOURCES.get(plan.optimizer, f"states of torch.optim, {plan.optimizer}")
    if plan.optimizer in _NUM_STATES:
        states = f"trained parameters · states · {per_state}{share}"
        numbers = f"{params} × {_NUM_STATES[plan.optimizer]} × {per_state}{over}"
    else:
        states, numbers = f"{_OTHER_STATES[plan.optimizer]}{share}", str(memory.optimizer_bytes)
    yield "optimizer_bytes", states, numbers, memory.optimizer_bytes, source
    if plan.precision.startswith("mixed"):
        copies, numbers = f"master weights: trained parameters · {per_copy}{share}", f"{params} × {per_copy}{over}"
    else:
        copies, numbers = f"autocast's copies of matrices · {per_copy}", str(memory.copies_bytes)
    yield "copies_bytes", copies, numbers, memory.copies_bytes, _PRECISION_SOURCE


def _activations(
    network: Network, plan: TrainingPlan, memory: TrainingMemory
) -> Iterator[tuple[str, str, str, int, str]]:
    stage = divide_network(network, plan.parallel.pipeline)[memory.stage]
    kept, again = (part.of_device(plan) for part in stage.kept(network, Keeping.of(network, plan)))
    formula = "micro-batches in flight · kept by the blocks + what a layer keeps again, beyond the loss"
    numbers = f"{stage.micro_batches(plan)} × {kept} + max(0, {again} - {memory.loss_bytes})"
    source = "tensors that autograd saves, transformers 5.24 (kept_activations.py)"
    yield "activations_bytes", formula, numbers, memory.activations_bytes, source
    rows, per_row = plan.batch_size * (network.main.length or plan.sequence_length), network.logits_width
    if memory.loss_bytes:
        each = loss_bytes(network, plan) // (rows * per_row)
        numbers = f"{rows} × {per_row} × {each} / {plan.parallel.tensor}"
        formula = (
            "rows · V · bytes of logits, log-probabilities and two gradients / tensor-parallel devices, rounded up"
        )
        yield "loss_bytes", formula, numbers, memory.loss_bytes, "live tensors of a step of transformers 5.24"


def _extras(memory: TrainingMemory) -> Iterator[tuple[str, str, str, int, str]]:
    formulas = {
        "ewc_fisher_bytes": ("a diagonal of the Fisher information, one per trained parameter", "arXiv:1612.00796"),
        "ewc_anchor_bytes": ("a copy of every trained parameter", "arXiv:1612.00796"),
        "replay_buffer_bytes": ("samples · tokens · 8", "int64 token ids"),
        "columns_bytes": ("columns · weights + lateral matrices D·D between columns", "arXiv:1606.04671"),
        "masks_bytes": ("one byte per element of every trained matrix", "torch.bool"),
        "teacher_weights_bytes": ("the teacher's weights in their type", "arXiv:1503.02531"),
        "teacher_logits_bytes": ("rows · V · (logits + 3 fp32 tensors)", "live tensors of a softened loss"),
    }
    for figure, value in memory.extras_bytes.items():
        formula, source = formulas[figure]
        yield figure, formula, str(value), value, source
