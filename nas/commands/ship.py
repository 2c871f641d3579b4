"""`nas export` and `nas generate`."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain
from pathlib import Path

from nas.commands.options import add_store_option, add_study_argument, say
from nas.store import Store

__all__ = ["add_parsers"]


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export", help="the very ONNX file that was measured and scored, a Hugging Face checkpoint and a card"
    )
    add_study_argument(export)
    export.add_argument("trial", metavar="TRIAL", type=int, help="a trial's number")
    export.add_argument("folder", metavar="DIR", type=Path, help="a folder that is empty or does not exist")
    export.add_argument("--force", action="store_true", help="replace files that are there")
    add_store_option(export)
    export.set_defaults(run=run_export)

    generate = commands.add_parser("generate", help="continue a text with a trial's ONNX file")
    add_study_argument(generate)
    generate.add_argument("trial", metavar="TRIAL", type=int, help="a trial's number")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    generate.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="(default: %(default)s)")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: the likeliest byte (default)")
    generate.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest bytes (default: all)")
    generate.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    add_store_option(generate)
    generate.set_defaults(run=run_generate)


def run_export(args: argparse.Namespace) -> int:
    from nas.export import export_trial

    with Store.open(args.store) as store:
        exported = export_trial(store, store.find_study(args.study), args.trial, args.folder, force=args.force)
    say(f"wrote {exported.folder}: " + ", ".join(sorted(path.name for path in exported.folder.iterdir())))
    say(f"read {exported.folder / 'README.md'} for how to load it")
    return 0


def run_generate(args: argparse.Namespace) -> int:
    from nas.export import find_onnx
    from nas.generate import generate

    with Store.open(args.store) as store:
        path = find_onnx(store, store.find_study(args.study), args.trial)
    stream = generate(
        path,
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
    )
    for piece in chain([os.fsencode(args.prompt)], stream, [b"\n"]):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return 0
