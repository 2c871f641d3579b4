"""The command `estimator compare`: several models side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from estimator.calibrating.profiles import find_device
from estimator.commands.arguments import SOURCE_HELP, add_workload, size_of_arguments
from estimator.comparing import Row, compared_rows, figures_of, fits_word, show_figure
from estimator.display import print_json, shorten
from estimator.errors import EstimatorError, InputError
from estimator.readers.source import read_source
from estimator.sized_source import size_document
from estimator.sizing import Estimate

__all__ = ["add_parser", "run"]

_DESCRIPTION = """Models side by side: parameters, memory, FLOPs and, with a device, times and whether they fit.

Ratios are to the first model that can be read. One that cannot be read does not hide the others; the exit code is
then 3. Each model is in the weight type of its config unless --weight-dtype gives one for all.
"""
_EXAMPLES = """examples:
  estimator compare llama-3.1-8b mistral-7b qwen3-8b --device l4
  estimator compare gpt2 ./my-model --sequence-length 512 --generate 64 --html compare.html"""
_LABEL, _COLUMN, _LINE = 22, 24, 120


def add_parser(commands: Any) -> None:
    """Adds `compare` to the subparsers of the command line."""
    parser = commands.add_parser(
        "compare",
        help="models side by side",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=SOURCE_HELP)
    parser.add_argument("--device", metavar="D", help="a name from `estimator devices`")
    add_workload(parser)
    parser.add_argument("--html", metavar="FILE", help="also write one page with charts, for offline reading")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the comparison; 0, or 3 when a source was not understood.

    Raises:
        InputError: there is only one source, the device is unknown, or no source can be read.
    """
    if len(args.sources) < 2:
        raise InputError(f"compare needs at least two sources; for one: estimator size {args.sources[0]}")
    if args.device is not None:
        find_device(args.device)  # an unknown device is one error, not one of each source
    sized, errors = _size_all(args)
    for source, reason in errors.items():
        print(f"estimator: {source}: {reason}", file=sys.stderr)
    results = [result for _, result, _ in sized]
    if args.json:
        print_json(_document(args, sized, errors))
    elif results:
        blocks = ["\n".join(block) for block in (*_blocks(results), _warning_lines(results)) if block]
        print("\n\n".join(blocks))
    if args.html and results:
        from estimator.plots import write_page

        print(f"wrote {write_page(results, args.html, errors)}; open it in a browser", file=sys.stderr)
    if results and not args.json:
        print(f"\nnext: {_next_step(args, results)}", file=sys.stderr)
    return InputError.exit_code if errors else 0


Sized = list[tuple[str, Estimate, dict[str, Any]]]


def _size_all(args: argparse.Namespace) -> tuple[Sized, dict[str, str]]:
    """Each source with its estimate and its document, and why the others have none."""
    sized: Sized = []
    errors: dict[str, str] = {}
    for text in args.sources:
        try:
            source = read_source(text)
            result = size_of_arguments(source, args)
        except (EstimatorError, OSError) as error:
            errors[text] = " ".join(str(error).split())
        else:
            sized.append((text, result, size_document(result, source)))
    return sized, errors


def _document(args: argparse.Namespace, sized: Sized, errors: dict[str, str]) -> dict[str, Any]:
    """The estimates in the order of the arguments, each with its ratios to the first one."""
    rows = compared_rows([result for _, result, _ in sized])
    models: dict[str, dict[str, Any]] = {}
    for place, (text, result, document) in enumerate(sized):
        figures = figures_of(result).items()
        models[text] = {
            "source": text,
            "error": None,
            "figures": {name: None if figure is None else figure.to_dict() for name, figure in figures},
            "ratios": {row.name: row.ratios[place] for row in rows},
            "estimate": document,
        }
    for text, reason in errors.items():
        models[text] = {"source": text, "error": reason, "figures": None, "ratios": None, "estimate": None}
    return {"device": args.device, "models": [models[text] for text in args.sources]}


def _blocks(results: Sequence[Estimate]) -> list[list[str]]:
    """The table, in as many blocks of columns as lines of the usual width need; the first model stands in each."""
    rows, per_block = compared_rows(results), (_LINE - _LABEL) // _COLUMN - 1
    blocks = []
    for start in range(1, max(len(results), 2), per_block):
        places = [0, *range(start, min(start + per_block, len(results)))]
        blocks.append(_block(results, rows, places))
    return blocks


def _block(results: Sequence[Estimate], rows: Sequence[Row], places: Sequence[int]) -> list[str]:
    shown = [results[place] for place in places]
    lines = [_line("", [(result.name or result.network.model_type)[: _COLUMN - 2] for result in shown])]
    lines.append(_line("architecture", [result.network.architecture for result in shown]))
    lines.append(_line("weights", [_dtype(result) for result in shown]))
    for row in rows:
        cells = []
        for place in places:
            ratio = row.ratios[place] if place else None
            behind = "" if ratio is None else f"  {ratio:.3g}x"
            cells.append(f"{show_figure(row.figures[place], row.unit)}{behind:>9}" if place else _first(row))
        lines.append(_line(row.label, cells))
        if row.unit == "s":
            lines.append(_line("", [_span(row, place) for place in places]))
    device = shown[0].device
    if device is not None:
        lines.append(_line(f"fits {device.name}"[:_LABEL], [fits_word(result) for result in shown]))
    return lines


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<{_LABEL}}{''.join(f'{cell:>{_COLUMN}}' for cell in cells)}".rstrip()


def _first(row: Row) -> str:
    return show_figure(row.figures[0], row.unit)


def _dtype(result: Estimate) -> str:
    return result.workload.weight_dtype if result.stored_bytes is None else "as the file stores"


def _span(row: Row, place: int) -> str:
    figure = row.figures[place]
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return f"{shorten(figure.low, 's')} to {shorten(figure.high, 's')}"


def _warning_lines(results: Sequence[Estimate]) -> list[str]:
    """Each warning once, with the models that it is about."""
    about: dict[str, list[str]] = {}
    for result in results:
        for warning in result.warnings:
            about.setdefault(warning, []).append(str(result.name))
    shared = {warning: "all" if len(names) == len(results) else ", ".join(names) for warning, names in about.items()}
    return [f"warning: {names}: {warning}" for warning, names in shared.items()]


def _next_step(args: argparse.Namespace, results: Sequence[Estimate]) -> str:
    sources = " ".join(shlex.quote(source) for source in args.sources)
    if args.device is None:
        return f"estimator compare {sources} --device l4   (times, and what fits)"
    if not args.html:
        return f"estimator compare {sources} --device {shlex.quote(args.device)} --html compare.html   (charts)"
    return f"estimator fit {shlex.quote(args.sources[0])} --device {shlex.quote(args.device)}"
