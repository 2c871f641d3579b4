"""`nas`: the search from the command line. Data goes to standard output, talk to standard error."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
from collections.abc import Sequence

from estimator.errors import EstimatorError
from nas.commands import admin, look, search, ship
from nas.commands.options import say
from nas.errors import NasError

__all__ = ["build_parser", "main"]

_EPILOG = """\
a first search:
  nas search                      about 3 minutes on 2 cores
  nas pareto latest               its front
  nas export latest TRIAL model/  ship one of its points

exit codes: 0 answered, 1 ran but failed, 2 wrong usage, 3 input not understood, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    _print_what_can_be_printed()
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - closed by whoever started us
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (NasError, EstimatorError) as error:
        say(f"nas: {error}")
        return error.exit_code
    except ModuleNotFoundError as error:
        say(f"nas: {error.name} is not installed; {_extra_for(error.name)}")
        return 1
    except KeyboardInterrupt:
        say("nas: interrupted")
        return search.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(f"nas: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nas",
        description="Finds the transformer that fits your hardware, your data and your budgets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (search, look, ship, admin):
        group.add_parsers(commands)
    return parser


def _print_what_can_be_printed() -> None:
    """What standard output's encoding lacks is spelt (µs as us) or escaped, where it would be an error."""
    codecs.register_error("spell", _spell)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="spell")


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] == "µ":
        return "u", error.start + 1
    return codecs.backslashreplace_errors(error)


def _extra_for(module: str | None) -> str:
    extras = {"torch": "train", "transformers": "hf", "fastapi": "server", "uvicorn": "server", "psycopg": "postgres"}
    extra = extras.get((module or "").partition(".")[0])
    return f"pip install 'archfront[{extra}]'" if extra else "reinstall archfront"


if __name__ == "__main__":
    sys.exit(main())
