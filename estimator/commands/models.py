"""The command `estimator models`: the bundled models with what they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from estimator.display import print_json, shorten
from estimator.errors import InputError
from estimator.network import Network
from estimator.params import count_params
from estimator.readers.source import bundled_models, read_bundled

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Adds `models` to the subparsers of the command line."""
    parser = commands.add_parser(
        "models",
        help="the bundled models: names, parameters, classes",
        description="Models whose config.json comes along: their names are a SOURCE wherever one is asked for.",
    )
    parser.add_argument("text", nargs="?", metavar="TEXT", help="only names that hold this text, such as qwen3")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the models; 0.

    Raises:
        InputError: no name holds the text.
    """
    names = [name for name in bundled_models() if args.text is None or args.text.lower() in name]
    if not names:
        raise InputError(f"no bundled model has {args.text[:40]!r} in its name; `estimator models` lists all")
    rows = list(_rows(names))
    if args.json:
        print_json({"models": rows})
        return 0
    sys.stdout.write(_table(rows) + "\n")
    sys.stderr.write(f"\nnext: estimator size {names[0]}\n")
    return 0


def _rows(names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        source = read_bundled(name)
        params = count_params(source.network)
        yield {
            "name": name,
            "architecture": source.network.architecture,
            "model_type": source.network.model_type,
            "class": source.hf_class,
            "params": {"total": params.total, "active": params.active},
            "layers": _layers(source.network),
            "buildable": source.buildable is not None,
            "origin": "counted",
        }


def _layers(network: Network) -> dict[str, int]:
    return {stack.name: len(stack.layers) for stack in network.stacks}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'name':<28}{'parameters':>18}{'':>11}{'active':>11}  {'architecture':<16}class"]
    for row in rows:
        total, active = row["params"]["total"], row["params"]["active"]
        some = shorten(active, "") if active != total else ""
        lines.append(
            f"{row['name']:<28}{total:>18,}{shorten(total, ''):>11}{some:>11}  {row['architecture']:<16}{row['class']}"
        )
    return "\n".join(lines)
