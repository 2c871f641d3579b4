"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from estimator.errors import InputError
from estimator.weight_types import BUILD_DTYPES
from estimator.workload import Workload
from nas.errors import UsageError
from nas.objectives import OBJECTIVES, Constraint, parse_constraint, parse_objective
from nas.space import PRESETS, SearchSpace, load_space
from nas.spec import DEVICES, SAMPLERS, QualitySettings, StudySpec

__all__ = ["add_search_options", "add_store_option", "add_study_argument", "say", "spec_from_options"]

# Option by objective of the limits that have one of their own; the help shows the unit by example.
_LIMITS = {
    "max_latency": ("latency", "20ms", "of the phase that dominates: decode for a decoder, prefill for an encoder"),
    "max_prefill_latency": ("prefill_latency_s", "50ms", "of reading the whole prompt"),
    "max_memory": ("peak_memory_bytes", "200MB", "resident memory at its peak, over the empty process's"),
    "max_file_size": ("file_bytes", "10MB", "of the ONNX file"),
    "max_params": ("params", "5M", "stored parameters"),
}


def say(text: str = "") -> None:
    """Talk goes to standard error; standard output carries data alone."""
    print(text, file=sys.stderr)


def add_store_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        metavar="URL",
        help="SQLAlchemy URL of the study store, such as sqlite:///studies.db "
        "(default: $ARCHFRONT_STORE, else a file in your data folder)",
    )


def add_study_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a study's name or id, or `latest`")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """What `nas search` can be told; every default is that of `StudySpec` and `QualitySettings`."""
    _add_goal_options(parser)
    _add_workload_options(parser)
    _add_quality_options(parser)


def _add_goal_options(parser: argparse.ArgumentParser) -> None:
    goal = parser.add_argument_group("what to search, and for what")
    goal.add_argument(
        "--space",
        default=PRESETS[0],
        help=f"{', '.join(PRESETS)}, or the path of a TOML file (default: %(default)s); see `nas space`",
    )
    goal.add_argument(
        "--objective",
        action="append",
        metavar="NAME",
        help=f"repeat for several: {', '.join(OBJECTIVES)} or NAME:minimize or "
        "NAME:maximize for what your own evaluator returns (default: bits_per_byte and the dominating latency)",
    )
    for option, (_, example, what) in _LIMITS.items():
        flag = "--" + option.replace("_", "-")
        goal.add_argument(flag, metavar="N", help=f"at most so much, as in {example}: {what}")
    goal.add_argument(
        "--trials", type=int, metavar="N", help=f"candidates to evaluate (default: {_default('num_trials')})"
    )
    goal.add_argument("--sampler", default="auto", help=f"{', '.join(SAMPLERS)} (default: auto)")
    goal.add_argument("--seed", type=int, default=0, help="a search with the same seed proposes the same (default: 0)")


def _add_workload_options(parser: argparse.ArgumentParser) -> None:
    work = parser.add_argument_group("where it runs, on what work")
    work.add_argument(
        "--device", default="cpu", help=f"{' or '.join(DEVICES)}: ONNX Runtime on this machine (default: cpu)"
    )
    work.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of training and inference (default: all cores; one to train a small model)",
    )
    work.add_argument("--batch-size", type=int, default=1, metavar="N", help="sequences at once (default: 1)")
    work.add_argument("--prompt-length", type=int, default=128, metavar="N", help="tokens of the prompt (default: 128)")
    work.add_argument("--generate", type=int, default=0, metavar="N", help="tokens already generated (default: 0)")
    work.add_argument(
        "--weight-dtype", default="fp32", choices=BUILD_DTYPES, help="number type of the weights (default: fp32)"
    )


def _add_quality_options(parser: argparse.ArgumentParser) -> None:
    settings = QualitySettings()
    quality = parser.add_argument_group("how quality is found")
    quality.add_argument(
        "--quality",
        default="train",
        metavar="Q",
        help="train: from scratch, on the same budget for every candidate (default); none; "
        "or module:function, called with the config and the path of the ONNX file",
    )
    quality.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="PATH",
        help="text file or folder, repeatable (default: the source of this Python's standard library)",
    )
    budget = quality.add_mutually_exclusive_group()
    budget.add_argument("--train-tokens", type=int, metavar="N", help=f"(default: {settings.tokens:,})")
    budget.add_argument("--train-seconds", type=float, metavar="S", help="instead of tokens; not repeatable to the bit")
    quality.add_argument(
        "--sequence-length",
        type=int,
        default=settings.sequence_length,
        metavar="N",
        help="of training windows, in tokens (default: %(default)s)",
    )


def _default(field: str) -> object:
    return StudySpec.__dataclass_fields__[field].default


def spec_from_options(args: argparse.Namespace) -> StudySpec:
    """The search that the options of `add_search_options` describe.

    Raises:
        UsageError: an option is unknown or contradicts another; says what would be right.
    """
    space = load_space(args.space)
    objectives = tuple(parse_objective(text, space.architecture) for text in args.objective or ())
    spec = StudySpec(
        space=space,
        objectives=objectives,
        constraints=_constraints(args, space),
        sampler=args.sampler,
        seed=args.seed,
        device=args.device,
        num_threads=args.threads,
        workload=_workload(args),
        quality=_quality_settings(args),
    )
    return spec if args.trials is None else replace(spec, num_trials=args.trials)


def _workload(args: argparse.Namespace) -> Workload:
    try:
        return Workload(
            batch_size=args.batch_size,
            prompt_length=args.prompt_length,
            generated_length=args.generate,
            weight_dtype=args.weight_dtype,
        )
    except InputError as error:
        raise UsageError(str(error)) from error


def _constraints(args: argparse.Namespace, space: SearchSpace) -> tuple[Constraint, ...]:
    return tuple(
        parse_constraint(objective, getattr(args, option), space.architecture)
        for option, (objective, _, _) in _LIMITS.items()
        if getattr(args, option) is not None
    )


def _quality_settings(args: argparse.Namespace) -> QualitySettings:
    settings = QualitySettings(
        evaluator=args.quality,
        data=tuple(str(Path(path).resolve()) for path in args.data),
        sequence_length=args.sequence_length,
        seed=args.seed,
    )
    if "" in args.data:
        raise UsageError("--data needs the path of a file or folder, not an empty text")
    if args.data and args.quality != "train":
        raise UsageError(f"--data has no use with --quality {args.quality}")
    if args.train_seconds is not None:
        return replace(settings, tokens=None, seconds=args.train_seconds)
    return settings if args.train_tokens is None else replace(settings, tokens=args.train_tokens)
