"""The command `estimator validate`: errors against the bundled reference data, by class."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from estimator.display import print_json, shorten
from estimator.validating.comparisons import CLASSES, Comparison, ErrorClass, compare_class, summarise

__all__ = ["add_parser", "run"]

_DESCRIPTION = """Runs the estimator over the reference data that comes with it, and prints how far off it is by class.

exact: equal to the last digit. refused: not answered, rather than guessed. in interval: the share of measured times
that lie in the interval that comes with every modelled time. docs/validation.md says where each truth comes from.
"""
_EXAMPLES = """examples:
  estimator validate
  estimator validate --class gpu-latency --rows
  estimator validate --json > errors.json"""


def add_parser(commands: Any) -> None:
    """Adds `validate` to the subparsers of the command line."""
    parser = commands.add_parser(
        "validate",
        help="errors against reference data, by class",
        description=_DESCRIPTION + "\nclasses:\n" + "\n".join(f"  {name}" for name in CLASSES),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        choices=tuple(CLASSES),
        metavar="NAME",
        help="only this class; may be given more than once",
    )
    parser.add_argument("--rows", action="store_true", help="every comparison, not only the worst of each class")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, with every comparison")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints classes, and comparisons if asked for; 0, however large the errors."""
    names = [name for name in CLASSES if args.classes is None or name in args.classes]
    found = {name: compare_class(name) for name in names}
    classes = [summarise(name, comparisons) for name, comparisons in found.items()]
    if args.json:
        print_json({"classes": [_class_dict(row, found[row.name]) for row in classes]})
        return 0
    print(f"{'class':<24}{'rows':>6}{'exact':>7}{'refused':>9}{'mean error':>12}{'worst':>9}{'in interval':>13}")
    print("\n".join(map(_class_line, classes)))
    print("\n".join(_every_row(found) if args.rows else _worst_rows(classes)))
    print("\nheld against")
    print("\n".join(f"  {name:<22}  {CLASSES[name].held_against}" for name in names))
    print(f"\nnext: {_next_step(args, classes)}", file=sys.stderr)
    return 0


def _class_line(row: ErrorClass) -> str:
    mean = "-" if row.mean_absolute_error is None else f"{row.mean_absolute_error:.1%}"
    worst = "-" if row.worst is None or row.worst.error is None else f"{row.worst.error:+.1%}"
    coverage = "-" if row.coverage is None else f"{row.coverage:.0%}"
    return f"{row.name:<24}{row.count:>6,}{row.exact:>7,}{row.refused:>9,}{mean:>12}{worst:>9}{coverage:>13}"


def _worst_rows(classes: list[ErrorClass]) -> Iterator[str]:
    """The farthest row of each class that has one off."""
    worst = [(row.name, row.worst) for row in classes if row.worst is not None and row.worst.error]
    if worst:
        yield "\nfarthest off"
        yield _HEADING
    for name, comparison in worst:
        yield _row_line(comparison, CLASSES[name].unit)


def _every_row(found: dict[str, tuple[Comparison, ...]]) -> Iterator[str]:
    """All comparisons, those that are farthest off first, then those that were refused."""
    for name, comparisons in found.items():
        yield f"\n{name}"
        yield _HEADING
        for comparison in sorted(comparisons, key=lambda c: -1.0 if c.error is None else abs(c.error), reverse=True):
            yield _row_line(comparison, CLASSES[name].unit)


_HEADING = f"  {'':<70}{'reference':>12}{'ours':>12}{'error':>9}"


def _row_line(row: Comparison, unit: str) -> str:
    if row.value is None or row.error is None:
        return f"  {row.name[:70]:<70}{shorten(row.reference, unit):>12}  refused: {row.refusal}"
    mark = "  outside of the interval" if row.is_covered is False else ""
    error = f"{row.error:+.1%}" if row.error else "exact"
    return f"  {row.name[:70]:<70}{shorten(row.reference, unit):>12}{shorten(row.value, unit):>12}{error:>9}{mark}"


def _next_step(args: argparse.Namespace, classes: list[ErrorClass]) -> str:
    timed = [row for row in classes if row.coverage is not None]
    if args.rows and timed:
        return "estimator calibrate --device D --from points.tsv   (measured points narrow the intervals of a device)"
    if args.rows:
        return "estimator size SOURCE --explain   (every figure with its formula and source)"
    off = max(classes, key=lambda row: (row.refused > 0, row.mean_absolute_error or 0.0))
    return f"estimator validate --class {off.name} --rows"


def _class_dict(row: ErrorClass, comparisons: tuple[Comparison, ...]) -> dict[str, Any]:
    rows = [asdict(c) | {"error": c.error, "is_covered": c.is_covered} for c in comparisons]
    summary = asdict(row) | {"worst": None if row.worst is None else row.worst.name}
    chosen = CLASSES[row.name]
    return summary | {"unit": chosen.unit, "held_against": chosen.held_against, "comparisons": rows}
