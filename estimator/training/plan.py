"""How a model is trained: optimizer, number types, what is recomputed, what is divided, what else is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from estimator.errors import InputError

__all__ = [
    "BASE_DTYPES",
    "CHECKPOINTING",
    "LORA_TARGETS",
    "OPTIMIZERS",
    "PRECISIONS",
    "SERVER_STATES",
    "TEACHER_DTYPES",
    "ContinualPlan",
    "FederatedPlan",
    "LoraPlan",
    "ParallelPlan",
    "TrainingPlan",
]

# Bytes per parameter, by precision: (weights, gradients, optimizer state, further copies).
# fp32 and bf16: everything in that type, as PyTorch's optimizers do. amp-*: fp32 throughout, and the half-precision
# copies of matrices that autocast makes. mixed-*: half-precision weights and gradients beside fp32 master weights and
# states, as Megatron and DeepSpeed do (ZeRO, arXiv:1910.02054, section 3.1: 2 + 2 + 12 bytes with Adam).
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
LORA_TARGETS = ("query-value", "attention", "all-linear")
BASE_DTYPES = ("fp32", "fp16", "bf16", "int8", "int4", "nf4")
TEACHER_DTYPES = ("fp32", "fp16", "bf16", "int8", "int4")
# fp32 states per exchanged parameter on a server. Source: Reddi et al., arXiv:2003.00295, algorithms 1 and 2.
SERVER_STATES = {"fedavg": 0, "fedavgm": 1, "fedadagrad": 1, "fedadam": 2, "fedyogi": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPlan:
    """Only adapters are trained: two factors of `rank` beside every targeted matrix of the layers.

    targets: "query-value" (as in the paper), "attention" (all its matrices) or "all-linear" (every matrix of the
    layers). base_dtype: the type of the frozen weights, None for that of the precision; nf4 makes it QLoRA.
    Source: LoRA, arXiv:2106.09685; QLoRA, arXiv:2305.14314.
    """

    rank: int = 16
    targets: str = "all-linear"
    base_dtype: str | None = None

    def __post_init__(self) -> None:
        _check_integers(self, rank=1)
        _check_choices(self, targets=LORA_TARGETS, base_dtype=(None, *BASE_DTYPES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """How many devices share the work, and what each one holds.

    zero_stage: over `data` devices, 1 shards optimizer states and master weights, 2 also gradients, 3 also weights.
    tensor: matrices are divided, norms and biases are not. sequence_parallel: what lies between the matrices is divided
    over the same devices too. pipeline: layers are divided, tables go to the first device, the head to the last.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    zero_stage: int = 0
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        _check_integers(self, data=1, tensor=1, pipeline=1)
        _check_choices(self, zero_stage=(0, 1, 2, 3))
        if self.zero_stage and self.data == 1:
            raise InputError(
                f"zero_stage {self.zero_stage} shards over data-parallel devices; data must be 2 or more, not 1"
            )
        if self.sequence_parallel and self.tensor == 1:
            raise InputError("sequence_parallel divides over tensor-parallel devices; tensor must be 2 or more, not 1")

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return self.data * self.tensor * self.pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinualPlan:
    """What learning one task after another keeps.

    ewc: a Fisher diagonal and an anchor copy of every trained weight (arXiv:1612.00796). replay_samples: sequences of
    token ids in a buffer on the device. columns: frozen earlier columns of a progressive network; column i is joined to
    each of the i before it by a lateral matrix [D, D] in every layer (arXiv:1606.04671).
    """

    ewc: bool = False
    replay_samples: int = 0
    columns: int = 0

    def __post_init__(self) -> None:
        _check_integers(self, replay_samples=0, columns=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedPlan:
    """Rounds of federated learning: the server sends weights to `clients_per_round`, each trains, and sends them back.

    exchange: "trained" sends what is trained (the adapters of a LoRA plan, else everything), "full" the whole model.
    server_optimizer: fedavg averages; fedavgm and fedadagrad keep one fp32 state, fedadam and fedyogi two.
    """

    clients_per_round: int = 10
    exchange: str = "trained"
    server_optimizer: str = "fedavg"

    def __post_init__(self) -> None:
        _check_integers(self, clients_per_round=1)
        _check_choices(self, exchange=("trained", "full"), server_optimizer=tuple(SERVER_STATES))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How a model is trained. `batch_size` is the micro-batch of one device.

    checkpointing: none keeps what backward needs; selective computes norms, activation functions and attention scores
        again (Megatron's selective recomputation); full keeps the input of each layer, reversible the output of the
        last.
    fused_attention: scores are never stored. dropout: masks are kept, where it follows attention and feed-forward.
    gradient_accumulation_steps: micro-batches per update. sparse_masks: a mask of one byte for every trained matrix
    element. teacher_dtype: the type of a teacher's weights, None without distillation.

    Raises:
        InputError: names the field and what would be right.
    """

    batch_size: int = 1
    sequence_length: int = 1024
    optimizer: str = "adamw"
    precision: str = "mixed-bf16"
    checkpointing: str = "none"
    fused_attention: bool = True
    dropout: bool = False
    gradient_accumulation_steps: int = 1
    sparse_masks: bool = False
    teacher_dtype: str | None = None
    lora: LoraPlan | None = None
    parallel: ParallelPlan = field(default_factory=ParallelPlan)
    continual: ContinualPlan = field(default_factory=ContinualPlan)
    federated: FederatedPlan | None = None

    def __post_init__(self) -> None:
        _check_integers(self, batch_size=1, sequence_length=1, gradient_accumulation_steps=1)
        _check_choices(
            self,
            optimizer=OPTIMIZERS,
            precision=tuple(PRECISIONS),
            checkpointing=CHECKPOINTING,
            teacher_dtype=(None, *TEACHER_DTYPES),
        )

    @property
    def sequences_per_update(self) -> int:
        """The batch that one update of the weights sees."""
        return self.batch_size * self.gradient_accumulation_steps * self.parallel.data

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one gradient.

        PyTorch accumulates in the gradient itself, whatever the number of micro-batches. Megatron and DeepSpeed
        accumulate bf16 gradients in fp32, because sums in bf16 lose the small ones.
        """
        if self.precision == "mixed-bf16" and self.gradient_accumulation_steps > 1:
            return 4
        return PRECISIONS[self.precision][1]


def _check_integers(plan: Any, **least: int) -> None:
    for name, smallest in least.items():
        value = getattr(plan, name)
        if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value < 2**31:
            raise InputError(f"{name} must be an integer from {smallest} to 2^31 - 1, not {value!r}")


def _check_choices(plan: Any, **choices: tuple[object, ...]) -> None:
    for name, allowed in choices.items():
        value = getattr(plan, name)
        if isinstance(value, bool) or value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")
