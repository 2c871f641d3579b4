"""`nas delete`, `nas serve` and `nas db upgrade`."""

from __future__ import annotations

import argparse
import sys

from nas.commands.options import add_store_option, add_study_argument, say
from nas.errors import UsageError
from nas.store import Store

__all__ = ["add_parsers"]


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    delete = commands.add_parser("delete", help="remove a study with its trials; asks first")
    add_study_argument(delete)
    delete.add_argument("--yes", action="store_true", help="do not ask")
    add_store_option(delete)
    delete.set_defaults(run=run_delete)

    serve = commands.add_parser("serve", help="the REST API over a study store; needs the extra `server`")
    serve.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    add_store_option(serve)
    serve.set_defaults(run=run_serve)

    database = commands.add_parser("db", help="the store's tables")
    actions = database.add_subparsers(dest="action", required=True, metavar="ACTION")
    upgrade = actions.add_parser("upgrade", help="bring an older store to this version's tables")
    add_store_option(upgrade)
    upgrade.set_defaults(run=run_upgrade)


def run_delete(args: argparse.Namespace) -> int:
    with Store.open(args.store) as store:
        study = store.find_study(args.study)
        num_trials = sum(store.count_trials(study.id).values())
        if not args.yes and not _is_wanted(f"delete {study.name} with {num_trials} trials? [y/N] "):
            say("nothing was deleted")
            return 1
        store.delete_study(study.id)
    say(f"deleted {study.name}")
    return 0


def _is_wanted(question: str) -> bool:
    """Asks on standard error.

    Raises:
        UsageError: standard input has no answer.
    """
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if not answer:
        say()
        raise UsageError("nobody answered, so nothing was deleted; give --yes to delete without being asked")
    return answer.strip().lower() in ("y", "yes")


def run_serve(args: argparse.Namespace) -> int:
    # The service is the layer above this one; the command line only starts it, by name.
    import importlib

    serve = importlib.import_module("api.server").serve
    return int(serve(args.store, host=args.host, port=args.port) or 0)


def run_upgrade(args: argparse.Namespace) -> int:
    from nas.store import upgrade_store

    before, after = upgrade_store(args.store)
    say(f"the store is at version {after}" if before == after else f"upgraded the store from {before} to {after}")
    return 0
