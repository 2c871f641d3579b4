"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from estimator.readers.source import ModelSource
from estimator.sized_source import SizedRequest, request_of, size_source
from estimator.sizing import Estimate
from estimator.workload import ATTENTIONS, KV_DTYPES, KV_SCALES, LOGITS, RUNTIME_NAMES, WEIGHT_DTYPES, Workload

__all__ = ["SOURCE_HELP", "add_workload", "count", "request_of_arguments", "size_of_arguments"]

SOURCE_HELP = "a config.json, its folder, a weight file, or a bundled model"


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Batch, lengths and number types, with the defaults of `Workload`."""
    default = Workload()
    parser.add_argument(
        "--batch-size", type=count(1), default=default.batch_size, metavar="N", help="sequences (%(default)s)"
    )
    parser.add_argument(
        "--sequence-length",
        type=count(1),
        default=default.prompt_length,
        metavar="N",
        help="prompt tokens (%(default)s)",
    )
    parser.add_argument(
        "--generate", type=count(0), default=default.generated_length, metavar="N", help="new tokens (%(default)s)"
    )
    parser.add_argument(
        "--images", type=count(0), default=default.num_images, metavar="N", help="images per sequence (%(default)s)"
    )
    _add_types(parser.add_argument_group("number types"))
    _add_ways(parser.add_argument_group("how it is run"))


def _add_types(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weight-dtype", choices=WEIGHT_DTYPES, help="default: as the checkpoint stores them, by its config; else fp32"
    )
    group.add_argument(
        "--group-size",
        metavar="G",
        help="weights that share a scale: a number of inputs, channel, tensor, or 128x128 "
        "(int4: 32, int8 and fp8: channel, nf4: 64)",
    )
    group.add_argument("--zero-points", action="store_true", help="int8 and int4 weights have them (symmetric)")
    group.add_argument("--kv-dtype", choices=KV_DTYPES, help="default: the type of the activations")
    group.add_argument(
        "--kv-scales", choices=KV_SCALES, help="a scale for each head, or for each token of it (fp8: head, else token)"
    )


def _add_ways(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--runtime", choices=RUNTIME_NAMES, help="default: onnxruntime-cpu, and pytorch-cuda on an NVIDIA GPU"
    )
    group.add_argument(
        "--attention", choices=ATTENTIONS, help="fused stores no scores (default: eager in onnxruntime-cpu, else fused)"
    )
    group.add_argument(
        "--logits", choices=LOGITS, default="all", help="of all positions of a prompt, or the last (%(default)s)"
    )


def count(least: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least`."""

    def parse(text: str) -> int:
        value = int(text) if text.strip().lstrip("+-").isdecimal() and len(text) < 12 else None
        if value is None or not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to 2147483647, not {text[:40]!r}")
        return value

    return parse


def size_of_arguments(source: ModelSource, args: argparse.Namespace) -> Estimate:
    """The source, sized for the workload and the device that the arguments ask for."""
    return size_source(source, device=args.device, **_asked(args))


def request_of_arguments(source: ModelSource, args: argparse.Namespace, **others: Any) -> SizedRequest:
    """The workload that the arguments ask for; `others` go before them."""
    return request_of(source, **(_asked(args) | others))


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "batch_size": args.batch_size,
        "prompt_length": args.sequence_length,
        "generated_length": args.generate,
        "num_images": args.images,
        "weight_dtype": args.weight_dtype,
        "group_size": args.group_size,
        "zero_points": args.zero_points,
        "kv_cache_dtype": args.kv_dtype,
        "kv_scales": args.kv_scales,
        "runtime": args.runtime,
        "attention": args.attention,
        "logits": args.logits,
    }
