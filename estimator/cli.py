"""The command line `estimator`: one module per command, loaded when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from estimator.errors import EstimatorError

__all__ = ["COMMANDS", "build_parser", "main"]

# Name -> module with `add_parser` and `run`, and the line of `estimator --help`.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "size": ("estimator.commands.size", "parameters, memory, FLOPs, and the time on a device"),
    "fit": ("estimator.commands.fit", "the largest batch, context or model for a device; the device for a model"),
    "compare": ("estimator.commands.compare", "models side by side"),
    "models": ("estimator.commands.models", "the bundled models: names, parameters, classes"),
    "devices": ("estimator.commands.devices", "the table of devices, or one with its sources"),
    "calibrate": (
        "estimator.commands.calibrate",
        "learn what this machine, or a device with measured points, sustains",
    ),
    "validate": ("estimator.commands.validate", "errors against reference data, by class"),
    "measure": ("estimator.measuring.command", "latency and memory on this machine, with ONNX Runtime"),
}
_EXAMPLES = """examples:
  estimator size gpt2                                     a bundled model
  estimator size ./my-model --device t4                   does it fit, how fast could it be
  estimator size llama-3.1-8b --weight-dtype int4 --sequence-length 4096 --generate 256
  estimator size qwen3-0.6b --explain                     every figure with its formula and source
  estimator fit llama-3.1-8b --device l4                  largest batch and context, weight types, number of devices
  estimator compare llama-3.1-8b qwen3-8b --html models.html   side by side, with charts
  estimator devices raspberry-pi-5                        what is known of a device, and where it was published
  estimator measure gpt2                                  run it here with ONNX Runtime

exit codes: 0 answered, 1 ran but failed, 2 wrong usage, 3 input not understood"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 answered, 1 failed, 2 wrong usage, 3 input not understood."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - closed by whoever started us
    parser = build_parser(arguments[:1])
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


def build_parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of the chosen commands only: those of others would load what they need."""
    parser = argparse.ArgumentParser(
        prog="estimator",
        description="Says what a transformer needs on a device, and measures what it takes here.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"archfront {version('archfront')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        if name in chosen:
            command = importlib.import_module(module)
            command.add_parser(commands)
            commands.choices[name].set_defaults(run=command.run)
        else:
            commands.add_parser(name, help=text)
    return parser


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
