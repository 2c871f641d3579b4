"""How many bytes training takes: weights, gradients, optimizer, activations, loss. Formulas in docs/formulas.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from estimator.config import TransformerConfig
from estimator.errors import InputError
from estimator.memory import count_weight_bytes
from estimator.network import Block, Network, Weight, stored_weights
from estimator.training.kept_activations import Keeping, loss_bytes
from estimator.training.lora import adapters, frozen_bytes
from estimator.training.optimizer_states import optimizer_bytes
from estimator.training.plan import (
    CHECKPOINTING,
    OPTIMIZERS,
    PRECISIONS,
    SERVER_STATES,
    ContinualPlan,
    FederatedPlan,
    LoraPlan,
    ParallelPlan,
    TrainingPlan,
)
from estimator.training.stages import Stage, divide_network
from estimator.weights import network_of
from estimator.workload import Workload

__all__ = [
    "CHECKPOINTING",
    "OPTIMIZERS",
    "PRECISIONS",
    "ContinualPlan",
    "FederatedMemory",
    "FederatedPlan",
    "LoraPlan",
    "ParallelPlan",
    "TrainingMemory",
    "TrainingPlan",
    "estimate_federated_memory",
    "estimate_training_memory",
    "optimizer_bytes",
]

_Weights = list[tuple[Block, Weight]]
_TOKEN_ID_BYTES, _FP32_BYTES = 8, 4  # PyTorch's token ids are int64


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes on one device at the peak of a training step, on the device that needs most; all modelled.

    `trained_params` are the whole model's, `device_params` those of the device before ZeRO shards them.
    `copies_bytes` are master weights, or the copies that autocast makes;
    `loss_bytes` the logits and what the loss makes of them; `extras_bytes` what the plan adds by name. `stage` is the
    place of that device in the pipeline.
    """

    trained_params: int
    device_params: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    copies_bytes: int
    activations_bytes: int
    loss_bytes: int
    extras_bytes: dict[str, int] = field(default_factory=dict)
    stage: int = 0

    @property
    def by_kind(self) -> dict[str, int]:
        """Kind -> bytes; they add up to the total."""
        return {
            "weights_bytes": self.weights_bytes,
            "gradients_bytes": self.gradients_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "copies_bytes": self.copies_bytes,
            "activations_bytes": self.activations_bytes,
            "loss_bytes": self.loss_bytes,
            **self.extras_bytes,
        }

    @property
    def total_bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(self.by_kind.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedMemory:
    """Bytes of a round of federated learning: what moves, and what the server holds when the updates are in.

    A client's memory is that of the training step on its device, the `TrainingMemory` of the same plan.
    """

    down_bytes_per_client: int
    up_bytes_per_client: int
    round_bytes: int
    server_weights_bytes: int
    server_updates_bytes: int
    server_optimizer_bytes: int

    @property
    def server_bytes(self) -> int:
        """Bytes on the server."""
        return self.server_weights_bytes + self.server_updates_bytes + self.server_optimizer_bytes


def estimate_training_memory(
    model: TransformerConfig | Network, plan: TrainingPlan, teacher: TransformerConfig | Network | None = None
) -> TrainingMemory:
    """Bytes on the fullest device at the peak of a step: when the loss passes its gradient back.

    Gradients count beside the activations: they are there when micro-batches are accumulated, when buffers of data
    parallelism hold them, and when they are zeroed in place. A loop that frees them before each forward pass peaks
    lower, by up to their bytes. `teacher` is the network to distil from, with the plan's `teacher_dtype`.

    Ignores: temporary buffers of communication, of the optimizer's step and of dequantised matrices; fragmentation.

    Raises:
        InputError: the plan does not fit the model: too many stages or tensor-parallel devices, no matrix to adapt, or
            a teacher without its type.
    """
    network = network_of(model)
    _check_plan(network, plan, teacher)
    stages = divide_network(network, plan.parallel.pipeline)
    memories = [_stage_memory(network, stage, plan, teacher) for stage in stages]
    return max(memories, key=lambda memory: memory.total_bytes)


def estimate_federated_memory(model: TransformerConfig | Network, plan: TrainingPlan) -> FederatedMemory:
    """Bytes that move in a round, and on the server, which keeps every client's update until all are in.

    Weights travel in the precision's type. The server holds the whole model in that type, the update of each client
    in it too, and its optimizer's states in fp32.
    """
    assert plan.federated is not None
    network, per_weight = network_of(model), PRECISIONS[plan.precision][0]
    whole = sum(weight.num_elements for _, _, weight in stored_weights(network))
    sends_all = plan.lora is None or plan.federated.exchange == "full"
    exchanged = whole if sends_all else _trained_params(network, plan)
    clients, adapters_elements = plan.federated.clients_per_round, 0 if sends_all else exchanged
    return FederatedMemory(
        down_bytes_per_client=exchanged * per_weight,
        up_bytes_per_client=exchanged * per_weight,
        round_bytes=2 * clients * exchanged * per_weight,
        server_weights_bytes=(whole + adapters_elements) * per_weight,
        server_updates_bytes=clients * exchanged * per_weight,
        server_optimizer_bytes=SERVER_STATES[plan.federated.server_optimizer] * exchanged * _FP32_BYTES,
    )


def _check_plan(network: Network, plan: TrainingPlan, teacher: TransformerConfig | Network | None) -> None:
    if any(block.part == "other" and block.weights for stack in network.stacks for block in stack.blocks):
        raise InputError(
            f"training cannot be sized for {network.model_type}: its weights are known, but not their layers;"
            " give a config.json of a family that `estimator` reads itself"
        )
    if (teacher is None) != (plan.teacher_dtype is None):
        raise InputError("distillation needs both a teacher and its teacher_dtype")
    heads = [block.attention.num_attention_heads for block in network.main.blocks if block.attention is not None]
    if heads and plan.parallel.tensor > min(heads):
        raise InputError(f"tensor must be at most the {min(heads)} attention heads, not {plan.parallel.tensor}")
    if plan.lora is not None and not _trained_params(network, plan):
        raise InputError(f"the model has no matrix that {plan.lora.targets} targets; choose other targets")


def _stage_memory(
    network: Network, stage: Stage, plan: TrainingPlan, teacher: TransformerConfig | Network | None
) -> TrainingMemory:
    per_weight, _, per_state, per_copy = PRECISIONS[plan.precision]
    owned = [(block, _share(weight, plan)) for block, weight in stage.weights]
    trained = owned
    if plan.lora is not None:
        trained = [(block, _share(weight, plan)) for block, weight in _adapters(stage.weights, plan.lora)]
    elements = _elements(trained)
    weights = elements * per_weight
    if plan.lora is not None:
        weights += frozen_bytes((weight for _, weight in owned), plan.lora, plan.precision)
    activations, loss = _activations(network, stage, plan)
    states = optimizer_bytes(((block.part, weight) for block, weight in trained), plan.optimizer, per_state)
    if plan.precision.startswith("mixed"):
        copies = _sharded(elements * per_copy, plan, from_stage=1)
    else:
        copies = _autocast_bytes(network, stage, trained, plan)
    return TrainingMemory(
        trained_params=_trained_params(network, plan),
        device_params=elements,
        weights_bytes=_sharded(weights, plan, from_stage=3),
        gradients_bytes=_sharded(elements * plan.gradient_bytes, plan, from_stage=2),
        optimizer_bytes=_sharded(states, plan, from_stage=1),
        copies_bytes=copies,
        activations_bytes=activations,
        loss_bytes=loss,
        extras_bytes=_extras(stage, trained, plan) | _teacher_bytes(network, stage, plan, teacher),
        stage=stage.index,
    )


def _activations(network: Network, stage: Stage, plan: TrainingPlan) -> tuple[int, int]:
    """Bytes kept on a device, and of the loss. While a layer is computed again the loss is gone already."""
    kept, again = stage.kept(network, Keeping.of(network, plan))
    loss = -(-loss_bytes(network, plan) // plan.parallel.tensor) if stage.is_last else 0
    held = kept.of_device(plan) * stage.micro_batches(plan)
    return held + max(0, again.of_device(plan) - loss), loss


def _autocast_bytes(network: Network, stage: Stage, trained: _Weights, plan: TrainingPlan) -> int:
    """Half-precision copies of every matrix and bias that autocast multiplies with; experts stay as they are.

    Checkpointed layers make theirs again, so that only those of the head are there when the loss is computed. Frozen
    weights that are not fp32 need none.
    """
    per_copy = PRECISIONS[plan.precision][3]
    if plan.lora is not None and plan.lora.base_dtype not in (None, "fp32"):
        return per_copy * _elements(trained)
    weights = list(stage.weights)
    if stage.index == 0 and stage.is_last:
        weights += [(block, weight) for block in network.main.after for weight in block.weights if not weight.stored]
    if plan.checkpointing in ("full", "reversible"):
        weights = [(block, weight) for block, weight in weights if block.part == "head"]
    multiplied = (
        _share(weight, plan)
        for block, weight in weights
        if (weight.role in ("linear", "bias") or block.part == "head") and not weight.name.startswith("experts.")
    )
    return per_copy * sum(weight.copies * math.prod(weight.shape) for weight in multiplied)


def _extras(stage: Stage, trained: _Weights, plan: TrainingPlan) -> dict[str, int]:
    per_weight, elements = PRECISIONS[plan.precision][0], _elements(trained)
    continual, extras = plan.continual, {}
    if continual.ewc:
        extras["ewc_fisher_bytes"] = elements * per_weight
        extras["ewc_anchor_bytes"] = elements * per_weight
    if continual.replay_samples:
        extras["replay_buffer_bytes"] = continual.replay_samples * plan.sequence_length * _TOKEN_ID_BYTES
    if continual.columns:
        columns, laterals = continual.columns, continual.columns * (continual.columns + 1) // 2
        lateral = sum(_divide(stack.hidden_size**2, plan.parallel.tensor) for stack, _ in stage.layers)
        whole = sum(_share(weight, plan).num_elements for _, weight in stage.weights)
        extras["columns_bytes"] = (columns * whole + laterals * lateral) * per_weight
    if plan.sparse_masks:
        extras["masks_bytes"] = sum(weight.num_elements for _, weight in trained if weight.role == "linear")
    return extras


def _teacher_bytes(
    network: Network, stage: Stage, plan: TrainingPlan, teacher: TransformerConfig | Network | None
) -> dict[str, int]:
    """The teacher's frozen weights. On the device of the loss its logits too, and at the widest moment of a loss on
    softened probabilities three fp32 tensors of their size: those of the teacher, of the student, and their product.
    """
    if teacher is None or plan.teacher_dtype is None:
        return {}
    of = network_of(teacher)
    activations = "fp32" if plan.precision == "fp32" else "bf16"
    workload = Workload(weight_dtype=plan.teacher_dtype, activation_dtype=activations)
    parts = plan.parallel.tensor * plan.parallel.pipeline
    found = {"teacher_weights_bytes": _divide(count_weight_bytes(of, workload), parts)}
    if stage.is_last:
        rows = plan.batch_size * (network.main.length or plan.sequence_length)
        logit_bytes = 4 if plan.precision == "fp32" else 2
        logits = rows * of.logits_width * (logit_bytes + 3 * _FP32_BYTES)
        found["teacher_logits_bytes"] = _divide(logits, plan.parallel.tensor)
    return found


def _sharded(whole: int, plan: TrainingPlan, *, from_stage: int) -> int:
    """What one of the data-parallel devices holds."""
    return _divide(whole, plan.parallel.data) if plan.parallel.zero_stage >= from_stage else whole


def _trained_params(network: Network, plan: TrainingPlan) -> int:
    if plan.lora is None:
        return sum(weight.num_elements for _, _, weight in stored_weights(network))
    owned = [block for stack in network.stacks for _, block, owns in stack.named_blocks() if owns]
    return _elements(_adapters(((block, weight) for block in owned for weight in block.weights), plan.lora))


def _adapters(weights: Iterable[tuple[Block, Weight]], plan: LoraPlan) -> Iterator[tuple[Block, Weight]]:
    return ((block, adapter) for block, weight in weights for adapter in adapters(block, weight, plan))


def _share(weight: Weight, plan: TrainingPlan) -> Weight:
    """What a tensor-parallel device holds of a weight: matrices and tables in parts along their longer side."""
    is_whole = weight.role not in ("linear", "embedding") or (weight.role == "linear" and not weight.quantized)
    if plan.parallel.tensor == 1 or is_whole:
        return weight
    longest = max(range(len(weight.shape)), key=lambda axis: weight.shape[axis])
    shape = tuple(_divide(n, plan.parallel.tensor) if axis == longest else n for axis, n in enumerate(weight.shape))
    return replace(weight, shape=shape)


def _elements(weights: Iterable[tuple[Block, Weight]]) -> int:
    return sum(weight.num_elements for _, weight in weights)


def _divide(whole: int, parts: int) -> int:
    return -(-whole // parts)
