"""Memory of training in `estimator size`: its options, lines and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from estimator.commands.arguments import count
from estimator.display import shorten
from estimator.errors import InputError
from estimator.readers.source import read_source
from estimator.sizing import Estimate
from estimator.training.plan import (
    BASE_DTYPES,
    CHECKPOINTING,
    LORA_TARGETS,
    OPTIMIZERS,
    PRECISIONS,
    SERVER_STATES,
    TEACHER_DTYPES,
    ContinualPlan,
    FederatedPlan,
    LoraPlan,
    ParallelPlan,
    TrainingPlan,
)

if TYPE_CHECKING:
    from estimator.training.memory import FederatedMemory, TrainingMemory

__all__ = ["add_arguments", "explained_lines", "plan_of", "training_document", "training_lines"]

# Option -> the one that it needs beside --training.
_NEEDS = {
    "lora_targets": "lora_rank",
    "base_dtype": "lora_rank",
    "teacher_dtype": "teacher",
    "federated_exchange": "federated_clients",
    "server_optimizer": "federated_clients",
}


_FLAG = {"action": "store_true", "default": None}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--optimizer": {"choices": OPTIMIZERS, "help": "(adamw)"},
    "--precision": {"choices": tuple(PRECISIONS), "help": "(mixed-bf16: with fp32 master weights)"},
    "--checkpointing": {"choices": CHECKPOINTING, "help": "what the backward pass computes again (none)"},
    "--unfused-attention": _FLAG | {"help": "attention stores its scores"},
    "--dropout": _FLAG | {"help": "keep dropout masks"},
    "--accumulation-steps": {"type": count(1), "metavar": "N", "help": "micro-batches per update (1)"},
    "--sparse-masks": _FLAG | {"help": "a mask for every trained matrix"},
    "--lora-rank": {"type": count(1), "metavar": "R", "help": "train adapters of this rank alone"},
    "--lora-targets": {"choices": LORA_TARGETS, "help": "matrices that get adapters (all-linear)"},
    "--base-dtype": {"choices": BASE_DTYPES, "help": "type of the frozen weights; nf4 for QLoRA"},
    "--data-parallel": {"type": count(1), "metavar": "N", "help": "devices with batches of their own (1)"},
    "--zero-stage": {"type": int, "choices": (0, 1, 2, 3), "help": "what those devices shard (0)"},
    "--tensor-parallel": {"type": count(1), "metavar": "N", "help": "devices that divide matrices (1)"},
    "--sequence-parallel": _FLAG | {"help": "those devices divide what lies between the matrices too"},
    "--pipeline-parallel": {"type": count(1), "metavar": "N", "help": "devices that divide layers (1)"},
    "--teacher": {"metavar": "SOURCE", "help": "distil from this model"},
    "--teacher-dtype": {"choices": TEACHER_DTYPES, "help": "type of its weights (bf16)"},
    "--ewc": _FLAG | {"help": "elastic weight consolidation"},
    "--replay-samples": {"type": count(1), "metavar": "N", "help": "sequences in a replay buffer"},
    "--progressive-columns": {"type": count(1), "metavar": "N", "help": "frozen columns of earlier tasks"},
    "--federated-clients": {"type": count(1), "metavar": "N", "help": "clients in a round"},
    "--federated-exchange": {"choices": ("trained", "full"), "help": "what is sent (trained)"},
    "--server-optimizer": {"choices": tuple(SERVER_STATES), "help": "(fedavg)"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for the memory of a training step; each of them needs --training."""
    group = parser.add_argument_group("memory of training, in micro-batches of --batch-size x --sequence-length")
    group.add_argument("--training", action="store_true", help="size a training step too")
    for flag, settings in _OPTIONS.items():
        group.add_argument(flag, **settings)
    parser.set_defaults(usage_error=parser.error)


def plan_of(args: argparse.Namespace) -> TrainingPlan | None:
    """The plan that the arguments ask for; None without --training. A usage error ends the program with code 2.

    Raises:
        InputError: the options do not go together.
    """
    names = (flag[2:].replace("-", "_") for flag in _OPTIONS)
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    for name in given:
        if not args.training:
            args.usage_error(f"{_flag(name)} needs --training")
        if (needed := _NEEDS.get(name)) is not None and needed not in given:
            args.usage_error(f"{_flag(name)} needs {_flag(needed)}")
    if not args.training:
        return None
    _check_parallel(args)
    return TrainingPlan(
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        fused_attention=not args.unfused_attention,
        dropout=bool(args.dropout),
        sparse_masks=bool(args.sparse_masks),
        teacher_dtype=(args.teacher_dtype or "bf16") if args.teacher else None,
        lora=_lora_plan(given),
        parallel=ParallelPlan(
            data=args.data_parallel or 1,
            tensor=args.tensor_parallel or 1,
            pipeline=args.pipeline_parallel or 1,
            zero_stage=args.zero_stage or 0,
            sequence_parallel=bool(args.sequence_parallel),
        ),
        continual=ContinualPlan(
            ewc=bool(args.ewc), replay_samples=args.replay_samples or 0, columns=args.progressive_columns or 0
        ),
        federated=_federated_plan(given),
        **_named(
            given,
            optimizer="optimizer",
            precision="precision",
            checkpointing="checkpointing",
            gradient_accumulation_steps="accumulation_steps",
        ),
    )


def training_document(result: Estimate, args: argparse.Namespace) -> dict[str, Any]:
    """The JSON object `training`; nothing without --training.

    Raises:
        InputError: the plan does not fit the model, or the teacher cannot be read.
    """
    plan = plan_of(args)
    if plan is None:
        return {}
    memory, federated = _memory(result, plan, args)
    document = {
        "plan": asdict(plan) | {"teacher": args.teacher},
        "trained_params": memory.trained_params,
        "num_devices": plan.parallel.num_devices,
        "sequences_per_update": plan.sequences_per_update,
        "pipeline_stage": memory.stage,
        "memory": memory.by_kind,
        "total_bytes": memory.total_bytes,
        "fits": _fits(result, memory),
        "origins": {"trained_params": "counted", "memory": "modelled", "total_bytes": "modelled"},
        "federated": None,
    }
    if federated is not None:
        origins = {"round_bytes": "counted", "server_bytes": "modelled"}
        document["federated"] = asdict(federated) | {"server_bytes": federated.server_bytes, "origins": origins}
    if args.explain:
        from estimator.explaining.training import derive_training

        document["explain"] = [asdict(row) for row in derive_training(result.network, plan, memory)]
    return {"training": document}


def training_lines(result: Estimate, args: argparse.Namespace) -> list[str]:
    """Lines of the table; none without --training.

    Raises:
        InputError: the plan does not fit the model, or the teacher cannot be read.
    """
    plan = plan_of(args)
    if plan is None:
        return []
    memory, federated = _memory(result, plan, args)
    devices, capacity = plan.parallel.num_devices, None if result.device is None else result.device.memory_bytes
    where = "a device" if devices == 1 else f"the fullest of {devices:,} devices"
    lines = [
        "",
        f"training with {plan.optimizer}, {plan.precision}, checkpointing {plan.checkpointing}, on {where}",
        f"micro-batch {plan.batch_size:,} x {plan.sequence_length:,} tokens, {plan.sequences_per_update:,} per update",
        _row("trained parameters", memory.trained_params, "", "counted"),
        _row("memory", memory.total_bytes, "B", "modelled"),
        *(_row(f"  {_label(kind)}", size, "B", "modelled") for kind, size in memory.by_kind.items()),
    ]
    if capacity is not None:
        answer = "yes" if memory.total_bytes <= capacity else "no"
        lines.append(f"  fits               {answer}, {memory.total_bytes / capacity:.0%} of {shorten(capacity, 'B')}")
    return [*lines, *_federated_lines(federated)]


def explained_lines(result: Estimate, args: argparse.Namespace) -> list[str]:
    """How each figure of training is derived; nothing without --training."""
    from estimator.explaining.training import derive_training

    plan = plan_of(args)
    if plan is None:
        return []
    lines = []
    for row in derive_training(result.network, plan, _memory(result, plan, args)[0]):
        lines += ["", f"{row.figure} = {row.value:,}   ({row.origin})", f"  = {row.formula}", f"  = {row.numbers}"]
        lines.append(f"  source: {row.source}")
    return lines


def _memory(
    result: Estimate, plan: TrainingPlan, args: argparse.Namespace
) -> tuple[TrainingMemory, FederatedMemory | None]:
    from estimator.training.memory import estimate_federated_memory, estimate_training_memory

    teacher = read_source(args.teacher).network if args.teacher else None
    memory = estimate_training_memory(result.network, plan, teacher)
    return memory, None if plan.federated is None else estimate_federated_memory(result.network, plan)


def _fits(result: Estimate, memory: TrainingMemory) -> bool | None:
    if result.device is None or result.device.memory_bytes is None:
        return None
    return memory.total_bytes <= result.device.memory_bytes


def _lora_plan(given: dict[str, Any]) -> LoraPlan | None:
    if "lora_rank" not in given:
        return None
    return LoraPlan(**_named(given, rank="lora_rank", targets="lora_targets", base_dtype="base_dtype"))


def _federated_plan(given: dict[str, Any]) -> FederatedPlan | None:
    if "federated_clients" not in given:
        return None
    names = {"clients_per_round": "federated_clients", "exchange": "federated_exchange"}
    return FederatedPlan(**_named(given, **names, server_optimizer="server_optimizer"))


def _named(given: dict[str, Any], **options: str) -> dict[str, Any]:
    """Fields of a plan from the options that were given; the others keep the plan's defaults."""
    return {field: given[option] for field, option in options.items() if option in given}


def _check_parallel(args: argparse.Namespace) -> None:
    if args.zero_stage and (args.data_parallel or 1) == 1:
        raise InputError(f"--zero-stage {args.zero_stage} shards over devices; give --data-parallel 2 or more")
    if args.sequence_parallel and (args.tensor_parallel or 1) == 1:
        raise InputError("--sequence-parallel divides over devices; give --tensor-parallel 2 or more")


def _federated_lines(federated: FederatedMemory | None) -> list[str]:
    if federated is None:
        return []
    return [
        "federated round",
        _row("  down, per client", federated.down_bytes_per_client, "B", "counted"),
        _row("  up, per client", federated.up_bytes_per_client, "B", "counted"),
        _row("  sent in all", federated.round_bytes, "B", "counted"),
        _row("  server", federated.server_bytes, "B", "modelled"),
        _row("    weights", federated.server_weights_bytes, "B", "modelled"),
        _row("    updates", federated.server_updates_bytes, "B", "modelled"),
        _row("    optimizer", federated.server_optimizer_bytes, "B", "modelled"),
    ]


def _row(label: str, value: int, unit: str, origin: str) -> str:
    return f"{label:<20} {shorten(value, unit):>12} {value:>24,}   {origin}"


def _label(kind: str) -> str:
    return kind.removesuffix("_bytes").replace("_", " ").replace("ewc", "EWC")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
