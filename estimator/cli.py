"""The command line `estimator`: size, devices, measure."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from estimator import devices_command
from estimator.display import print_json, shorten
from estimator.errors import EstimatorError
from estimator.figures import Figure
from estimator.readers.source import ModelSource, bundled_models, read_source
from estimator.sized_source import size_document, size_source
from estimator.sizing import Estimate
from estimator.workload import FLOAT_DTYPES, WEIGHT_DTYPES, Workload

__all__ = ["build_parser", "main"]

_EXAMPLES = """examples:
  estimator size gpt2                                     a bundled model
  estimator size ./my-model --device t4                   does it fit, how fast could it be
  estimator size llama-3.1-8b --weight-dtype int4 --sequence-length 4096 --generate 256
  estimator size qwen3-0.6b --explain                     every figure with its formula and source
  estimator devices raspberry-pi-5                        what is known of a device, and where it was published
  estimator measure gpt2                                  run it here with ONNX Runtime

exit codes: 0 answered, 1 ran but failed, 2 wrong usage, 3 input not understood"""
_SIZE_HELP = """What a model needs: parameters, memory, FLOPs. With a device: whether it fits, and its time at best.

SOURCE is a Hugging Face config.json, its folder, or a bundled model:
"""
_SIZE_EXAMPLES = """examples:
  estimator size gpt2
  estimator size ./config.json --batch-size 8 --sequence-length 2048 --json
  estimator size mistral-7b --weight-dtype int8 --kv-dtype bf16 --device l4"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 answered, 1 failed, 2 wrong usage, 3 input not understood."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - closed by whoever started us
    parser = build_parser(with_measure=arguments[:1] == ["measure"])
    args = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter gets its code instead
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except EstimatorError as error:
        print(f"estimator: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # the reader has what it wanted; without this Python complains when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"estimator: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def build_parser(*, with_measure: bool) -> argparse.ArgumentParser:
    """The parser of all commands. The arguments of `measure` are added only on request: they load ONNX Runtime."""
    parser = argparse.ArgumentParser(
        prog="estimator",
        description="Says what a transformer needs on a device, and measures what it takes here.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_size(commands)
    devices_command.add_parser(commands)
    if with_measure:
        from estimator.measuring.command import add_parser, run

        add_parser(commands)
        commands.choices["measure"].set_defaults(run=run)
    else:
        commands.add_parser("measure", help="latency and memory on this machine, with ONNX Runtime")
    return parser


def _add_size(commands: Any) -> None:
    parser = commands.add_parser(
        "size",
        help="parameters, memory, FLOPs, and the time bound on a device",
        description=_SIZE_HELP + "  " + ", ".join(bundled_models()),
        epilog=_SIZE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Workload()
    parser.add_argument("source", metavar="SOURCE", help="config.json, its folder, or a bundled model")
    parser.add_argument("--device", metavar="D", help="a name from `estimator devices`")
    parser.add_argument(
        "--batch-size", type=_count(1), default=default.batch_size, metavar="N", help="sequences (%(default)s)"
    )
    parser.add_argument(
        "--sequence-length",
        type=_count(1),
        default=default.prompt_length,
        metavar="N",
        help="prompt tokens (%(default)s)",
    )
    parser.add_argument(
        "--generate", type=_count(0), default=default.generated_length, metavar="N", help="new tokens (%(default)s)"
    )
    parser.add_argument("--weight-dtype", choices=WEIGHT_DTYPES, help="default: the dtype of the config, else fp32")
    parser.add_argument("--kv-dtype", choices=(*FLOAT_DTYPES, "int8"), help="default: the type of the activations")
    parser.add_argument("--explain", action="store_true", help="derive every figure")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=_run_size)


def _count(least: int) -> Any:
    """An argparse type: an integer of at least `least`."""

    def parse(text: str) -> int:
        value = int(text) if text.strip().lstrip("+-").isdecimal() and len(text) < 12 else None
        if value is None or not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to 2147483647, not {text[:40]!r}")
        return value

    return parse


def _run_size(args: argparse.Namespace) -> int:
    source = read_source(args.source)
    result = size_source(
        source,
        batch_size=args.batch_size,
        prompt_length=args.sequence_length,
        generated_length=args.generate,
        weight_dtype=args.weight_dtype,
        kv_cache_dtype=args.kv_dtype,
        device=args.device,
    )
    if args.json:
        print_json(size_document(result, source) | (_derivations(result) if args.explain else {}))
        return 0
    print(_size_table(result, source))
    if args.explain:
        print(_explanation(result))
    print(f"\nnext: {_next_step(args, result)}", file=sys.stderr)
    return 0


def _derivations(result: Estimate) -> dict[str, Any]:
    from estimator.explain import LEGEND, derive

    return {"explain": {"legend": LEGEND, "figures": [asdict(row) for row in derive(result)]}}


def _size_table(result: Estimate, source: ModelSource) -> str:
    workload, memory, compute = result.workload, result.memory, result.compute
    named = f" ({source.hf_class})" if source.hf_class else ""
    lines = [
        f"{source.name}: {_shape(result)}{named}",
        f"batch {workload.batch_size:,}, prompt {workload.prompt_length:,}, generate {workload.generated_length:,}",
        f"weights {workload.weight_dtype}, activations {workload.activation_dtype}, KV cache {workload.kv_cache_dtype}",
        "",
        _row("parameters", result.params.total, "", "counted"),
        *(_row(f"  {part.replace('_', ' ')}", count, "", "counted") for part, count in result.params.by_part.items()),
        _row("memory", memory.total_bytes, "B", "modelled"),
        _row("  weights", memory.weights_bytes, "B", "counted"),
        _row("  KV cache", memory.kv_cache_bytes, "B", "counted"),
        _row("  activations", memory.activations_bytes, "B", "modelled"),
        _row("  runtime", memory.runtime_bytes, "B", "modelled"),
        _row("prefill", compute.prefill_flops, "FLOP", "counted"),
        _row("decode, per token", compute.decode_flops_per_token, "FLOP", "counted"),
        *_latency_lines(result),
        *(f"warning: {warning}" for warning in result.warnings),
    ]
    return "\n".join(lines)


def _shape(result: Estimate) -> str:
    stacks = (f"{len(stack.layers)} {stack.name} layers of {stack.hidden_size:,}" for stack in result.network.stacks)
    return f"{result.network.architecture}, {', '.join(stacks)}"


def _latency_lines(result: Estimate) -> list[str]:
    if result.latency is None or result.device is None:
        return []
    answer = {True: "yes", False: "no", None: "not known"}[result.fits]
    capacity = result.device.memory_bytes
    of = "" if capacity is None else f", {result.memory.total_bytes / capacity:.0%} of {shorten(capacity, 'B')}"
    return [
        "",
        f"on {result.device.label}",
        f"  fits               {answer}{of}",
        _bound("  prefill", result.latency.prefill_s, result.latency.prefill_limit),
        _bound("  decode, per token", result.latency.decode_s_per_token, result.latency.decode_limit),
    ]


def _bound(label: str, figure: Figure | None, limit: str | None) -> str:
    if figure is None or figure.low is None or figure.high is None:
        return f"{label:<20} -"
    span = f"at least {shorten(figure.low, 's')}, measured runs took up to {shorten(figure.high, 's')}"
    return f"{label:<20} {span}   {figure.origin}, {limit} binds"


def _row(label: str, value: int | None, unit: str, origin: str) -> str:
    if value is None:
        return f"{label:<20} {'-':>12}"
    return f"{label:<20} {shorten(value, unit):>12} {value:>24,}   {origin}"


def _explanation(result: Estimate) -> str:
    from estimator.explain import LEGEND, derive

    lines = ["", "how each figure is derived", f"  {LEGEND}"]
    for row in derive(result):
        value = f"{row.value:,}" if isinstance(row.value, int) else f"{row.value:.4g}"
        lines += ["", f"{row.figure} = {value}   ({row.origin})", f"  = {row.formula}", f"  = {row.numbers}"]
        lines.append(f"  source: {row.source}")
    return "\n".join(lines)


def _next_step(args: argparse.Namespace, result: Estimate) -> str:
    source, device = shlex.quote(args.source), shlex.quote(args.device or "")
    if result.device is None:
        return f"estimator size {source} --device t4   (`estimator devices` lists the names)"
    if result.fits is False and result.workload.weight_dtype != "int4":
        return f"estimator size {source} --device {device} --weight-dtype int4"
    if not args.explain:
        return f"estimator size {source} --device {device} --explain"
    return f"estimator measure {source}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
