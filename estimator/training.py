"""How many bytes training takes: weights, gradients, optimizer, activations, loss. Formulas in docs/formulas.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from estimator.config import TransformerConfig
from estimator.errors import InputError
from estimator.kept_activations import kept_bytes
from estimator.network import Network, Weight, stored_weights
from estimator.weights import network_of

__all__ = [
    "CHECKPOINTING",
    "OPTIMIZERS",
    "PRECISIONS",
    "TrainingMemory",
    "TrainingPlan",
    "estimate_training_memory",
    "optimizer_bytes",
]

# What a training step keeps per parameter, by precision: (weights, gradients, optimizer state, further copies).
# fp32 and bf16: everything in that type, as PyTorch's optimizers do. amp-*: fp32 throughout, and the half-precision
# copies that autocast caches. mixed-*: half-precision weights and gradients beside fp32 master weights and states, as
# Megatron and DeepSpeed do (ZeRO, arXiv:1910.02054, section 3.1: 2 + 2 + 12 bytes with Adam).
PRECISIONS = {
    "fp32": (4, 4, 4, 0),
    "bf16": (2, 2, 2, 0),
    "amp-fp16": (4, 4, 4, 2),
    "amp-bf16": (4, 4, 4, 2),
    "mixed-fp16": (2, 2, 4, 4),
    "mixed-bf16": (2, 2, 4, 4),
}
OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam", "adamw", "lamb", "adafactor", "adam-8bit", "muon")
CHECKPOINTING = ("none", "selective", "full", "reversible")
_STATES = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "lamb": 2}
# bitsandbytes: two states of one byte per element, and an fp32 maximum for each block of 256; tensors of fewer than
# 4,096 elements stay in fp32. Source: Dettmers et al., arXiv:2110.02861, and the package's `min_8bit_size`.
_BLOCK_8BIT, _LEAST_8BIT = 256, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How a model is trained. `batch_size` is the micro-batch of one device and step.

    checkpointing: none keeps what backward needs; selective computes attention scores again; full keeps the input of
        each layer; reversible keeps the output of the last.
    lora_rank: only adapters of this rank on the layers' linears are trained, 0 trains everything; `base_dtype` is then
        the type of the frozen weights (int4 for QLoRA), None for that of the precision.
    fused_attention: scores are not kept. zero_stage: 1 shards optimizer states over `data_parallel` devices, 2 also
        gradients, 3 also weights. tensor_parallel and pipeline_parallel divide layers' weights and activations.
    ewc: elastic weight consolidation keeps a Fisher diagonal and an anchor copy of every trained weight.
    replay_samples: sequences of token ids in a replay buffer on the device. columns: frozen earlier columns of a
        progressive network. sparse_masks: a bit mask (one byte) for every trained matrix.
    """

    batch_size: int = 1
    sequence_length: int = 1024
    optimizer: str = "adamw"
    precision: str = "mixed-bf16"
    checkpointing: str = "none"
    fused_attention: bool = True
    gradient_accumulation_steps: int = 1
    lora_rank: int = 0
    base_dtype: str | None = None
    zero_stage: int = 0
    data_parallel: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    ewc: bool = False
    replay_samples: int = 0
    columns: int = 0
    sparse_masks: bool = False

    def __post_init__(self) -> None:
        positive = (
            "batch_size",
            "sequence_length",
            "gradient_accumulation_steps",
            "data_parallel",
            "tensor_parallel",
            "pipeline_parallel",
        )
        for name in (*positive, "lora_rank", "replay_samples", "columns", "zero_stage"):
            value, least = getattr(self, name), 1 if name in positive else 0
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                raise InputError(f"{name} must be an integer from {least} to 2^31 - 1, not {value!r}")
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("precision", tuple(PRECISIONS)),
            ("checkpointing", CHECKPOINTING),
            ("zero_stage", (0, 1, 2, 3)),
            ("base_dtype", (None, "fp32", "fp16", "bf16", "fp8", "int8", "int4")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}, not {getattr(self, name)!r}")
        if self.zero_stage and self.data_parallel == 1:
            raise InputError("zero_stage shards over data_parallel devices; set data_parallel to 2 or more")
        if self.base_dtype is not None and not self.lora_rank:
            raise InputError("base_dtype is the type of frozen weights; it needs a lora_rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes on one device at the peak of a training step; all modelled.

    `copies_bytes` are master weights or autocast's half-precision copies; `loss_bytes` the logits and what the loss
    makes of them; `extras_bytes` what the plan adds by name.
    """

    trained_params: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    copies_bytes: int
    activations_bytes: int
    loss_bytes: int
    extras_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        kinds = (self.weights_bytes, self.gradients_bytes, self.optimizer_bytes, self.copies_bytes)
        return sum(kinds) + self.activations_bytes + self.loss_bytes + sum(self.extras_bytes.values())


def estimate_training_memory(model: TransformerConfig | Network, plan: TrainingPlan) -> TrainingMemory:
    """Bytes on one device at the peak of a step: the end of the forward pass, when the loss is computed.

    Gradients exist from the end of the first backward pass on, so they count at the peak of every later step.

    Ignores: temporary buffers of communication and of the optimizer's step, fragmentation.
    """
    network = network_of(model)
    per_weight, per_gradient, per_state, per_copy = PRECISIONS[plan.precision]
    base = [weight for _, _, weight in stored_weights(network)]
    trained = list(_adapters(base, plan.lora_rank)) if plan.lora_rank else base
    shares = _Shares(plan)
    base_elements, trained_elements = _elements(base), _elements(trained)
    weights = base_elements * per_weight
    if plan.lora_rank:
        frozen = base_elements * per_weight if plan.base_dtype is None else _frozen_bytes(base, plan)
        weights = frozen + trained_elements * per_weight
    kept, loss = kept_bytes(network, plan.batch_size, plan.sequence_length, plan)
    return TrainingMemory(
        trained_params=trained_elements,
        weights_bytes=shares.of_weights(weights, from_stage=3),
        gradients_bytes=shares.of_weights(trained_elements * per_gradient, from_stage=2),
        optimizer_bytes=shares.of_weights(optimizer_bytes(trained, plan.optimizer, per_state), from_stage=1),
        copies_bytes=shares.of_weights(trained_elements * per_copy, from_stage=1),
        activations_bytes=shares.of_activations(kept),
        loss_bytes=_divide(loss, plan.tensor_parallel),
        extras_bytes=_extras(base_elements, trained, plan, per_weight),
    )


def optimizer_bytes(weights: Iterable[Weight], optimizer: str, state_bytes: int) -> int:
    """Bytes of the optimizer's states, `state_bytes` per element.

    adafactor keeps a row and a column of every matrix (arXiv:1804.04235). muon keeps one momentum for the matrices of
    the layers and AdamW's two states for everything else. adam-8bit: see the comment above.
    """
    return sum(weight.copies * _state_bytes(weight, optimizer, state_bytes) for weight in weights)


def _state_bytes(weight: Weight, optimizer: str, state_bytes: int) -> int:
    elements = math.prod(weight.shape)
    if optimizer == "adafactor":
        is_factored = len(weight.shape) >= 2
        kept = math.prod(weight.shape[:-2]) * (weight.shape[-2] + weight.shape[-1]) if is_factored else elements
        return kept * state_bytes
    if optimizer == "adam-8bit":
        if elements < _LEAST_8BIT:
            return 2 * 4 * elements
        return 2 * (elements + 4 * -(-elements // _BLOCK_8BIT))
    if optimizer == "muon":
        is_matrix = weight.role == "linear" and weight.quantized
        return (1 if is_matrix else 2) * elements * state_bytes
    return _STATES[optimizer] * elements * state_bytes


def _adapters(base: list[Weight], rank: int) -> Iterable[Weight]:
    """LoRA's two factors of every linear in the layers, A [rank, in] and B [out, rank]. Source: arXiv:2106.09685."""
    for weight in base:
        if weight.role == "linear" and weight.quantized:
            out, inner = weight.shape
            for shape in ((rank, inner), (out, rank)):
                yield Weight(name=f"{weight.name}.lora", shape=shape, copies=weight.copies)


def _frozen_bytes(base: list[Weight], plan: TrainingPlan) -> int:
    from estimator.memory import weight_bytes
    from estimator.workload import Workload

    assert plan.base_dtype is not None
    activations = "fp32" if plan.precision == "fp32" else "bf16"
    workload = Workload(weight_dtype=plan.base_dtype, activation_dtype=activations)
    return sum(weight_bytes(weight, workload) for weight in base)


def _extras(base_elements: int, trained: list[Weight], plan: TrainingPlan, per_weight: int) -> dict[str, int]:
    elements = _elements(trained)
    extras = {}
    if plan.ewc:
        extras["ewc_fisher_bytes"] = elements * per_weight
        extras["ewc_anchor_bytes"] = elements * per_weight
    if plan.replay_samples:
        extras["replay_buffer_bytes"] = plan.replay_samples * plan.sequence_length * 8  # token ids are int64
    if plan.columns:
        extras["columns_bytes"] = plan.columns * base_elements * per_weight
    if plan.sparse_masks:
        extras["masks_bytes"] = sum(weight.num_elements for weight in trained if weight.role == "linear")
    return extras


class _Shares:
    """What one device holds of the whole."""

    def __init__(self, plan: TrainingPlan) -> None:
        self._plan = plan
        self._model_parallel = plan.tensor_parallel * plan.pipeline_parallel

    def of_weights(self, whole: int, *, from_stage: int) -> int:
        sharded = self._plan.data_parallel if self._plan.zero_stage >= from_stage else 1
        return _divide(whole, self._model_parallel * sharded)

    def of_activations(self, whole: int) -> int:
        # the first stage of a pipeline holds as many micro-batches in flight as there are stages
        return _divide(whole, self._plan.tensor_parallel)


def _elements(weights: Iterable[Weight]) -> int:
    return sum(weight.num_elements for weight in weights)


def _divide(whole: int, parts: int) -> int:
    return -(-whole // parts)
