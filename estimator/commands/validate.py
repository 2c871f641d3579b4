"""The command `estimator validate`: errors against the bundled reference data, by class."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from estimator.display import print_json, shorten
from estimator.validation import CLASSES, Comparison, ErrorClass, summarise, validate

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Adds `validate` to the subparsers of the command line."""
    parser = commands.add_parser(
        "validate",
        help="errors against reference data, by class",
        description="Runs the estimator over the reference data that comes with it, and prints how far off it is.",
    )
    parser.add_argument("--rows", action="store_true", help="every comparison, not only the classes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, with every comparison")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints classes, and comparisons if asked for; 0."""
    found = validate()
    classes = [summarise(name, comparisons) for name, comparisons in found.items()]
    if args.json:
        print_json({"classes": [_class_dict(row, found[row.name]) for row in classes]})
        return 0
    print(f"{'class':<26}{'rows':>6}{'exact':>7}{'refused':>9}{'mean error':>12}{'worst':>9}{'in interval':>13}")
    for row in classes:
        print(_class_line(row))
        if args.rows:
            print("\n".join(map(_row_line, found[row.name])))
    print("\nheld against:")
    print("\n".join(f"  {name:<24}  {source}" for name, (_, source) in CLASSES.items()))
    if not args.rows:
        print("\nnext: estimator validate --rows   (every comparison)", file=sys.stderr)
    return 0


def _class_line(row: ErrorClass) -> str:
    mean = "-" if row.mean_absolute_error is None else f"{row.mean_absolute_error:.1%}"
    worst = "-" if row.worst is None or row.worst.error is None else f"{row.worst.error:+.1%}"
    coverage = "-" if row.coverage is None else f"{row.coverage:.0%}"
    return f"{row.name:<26}{row.count:>6,}{row.exact:>7,}{row.refused:>9,}{mean:>12}{worst:>9}{coverage:>13}"


def _row_line(row: Comparison) -> str:
    if row.value is None or row.error is None:
        return f"    {row.name:<58} refused: {row.refusal}"
    mark = "" if row.is_covered is not False else "   outside of the interval"
    return f"    {row.name:<58} {shorten(row.reference, ''):>9} {shorten(row.value, ''):>9} {row.error:>+8.2%}{mark}"


def _class_dict(row: ErrorClass, comparisons: tuple[Comparison, ...]) -> dict[str, Any]:
    rows = [asdict(c) | {"error": c.error} for c in comparisons]
    summary = asdict(row) | {"worst": None if row.worst is None else row.worst.name}
    return summary | {"held_against": CLASSES[row.name][1], "comparisons": rows}
