"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from estimator.readers.source import ModelSource
from estimator.sized_source import size_source
from estimator.sizing import Estimate
from estimator.workload import FLOAT_DTYPES, WEIGHT_DTYPES, Workload

__all__ = ["SOURCE_HELP", "add_workload", "count", "size_of_arguments"]

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
    parser.add_argument("--weight-dtype", choices=WEIGHT_DTYPES, help="default: the dtype of the config, else fp32")
    parser.add_argument("--kv-dtype", choices=(*FLOAT_DTYPES, "int8"), help="default: the type of the activations")


def count(least: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least`."""

    def parse(text: str) -> int:
        value = int(text) if text.strip().lstrip("+-").isdecimal() and len(text) < 12 else None
        if value is None or not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to 2147483647, not {text[:40]!r}")
        return value

    return parse


def size_of_arguments(source: ModelSource, args: argparse.Namespace, **others: Any) -> Estimate:
    """The source, sized for the workload that the arguments ask for; `others` go before them."""
    asked: dict[str, Any] = {
        "batch_size": args.batch_size,
        "prompt_length": args.sequence_length,
        "generated_length": args.generate,
        "num_images": args.images,
        "weight_dtype": args.weight_dtype,
        "kv_cache_dtype": args.kv_dtype,
        "device": args.device,
    }
    return size_source(source, **(asked | others))
