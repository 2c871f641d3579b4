"""`nas list`, `nas show`, `nas pareto`, `nas report` and `nas space`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nas.commands.options import add_store_option, add_study_argument, say
from nas.records import StudyRecord
from nas.standing import as_it_stands, stored_counts
from nas.store import Store

__all__ = ["add_parsers"]


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = commands.add_parser("list", help="all studies of a store")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    add_store_option(listing)
    listing.set_defaults(run=run_list)

    show = commands.add_parser("show", help="one study with its trials, or one trial with everything known of it")
    add_study_argument(show)
    show.add_argument("trial", metavar="TRIAL", type=int, nargs="?", help="a trial's number")
    show.add_argument("--json", action="store_true", help="one JSON document")
    add_store_option(show)
    show.set_defaults(run=run_show)

    pareto = commands.add_parser("pareto", help="the trials that no other beats in every objective")
    add_study_argument(pareto)
    pareto.add_argument("--json", action="store_true", help="one JSON document")
    add_store_option(pareto)
    pareto.set_defaults(run=run_pareto)

    report = commands.add_parser("report", help="an HTML page with scatter, front and all trials; opens offline")
    add_study_argument(report)
    report.add_argument("--output", "-o", type=Path, default=Path("report.html"), help="(default: %(default)s)")
    add_store_option(report)
    report.set_defaults(run=run_report)

    space = commands.add_parser("space", help="what a search space holds: presets by name, or your own TOML file")
    space.add_argument("space", metavar="SPACE", nargs="?", help="a preset or a TOML file (default: list the presets)")
    space.add_argument("--json", action="store_true", help="one JSON document")
    space.set_defaults(run=run_space)


def run_list(args: argparse.Namespace) -> int:
    from nas.terminal import print_studies

    with Store.open(args.store) as store:
        rows = [(as_it_stands(store, study), stored_counts(store, study.id)) for study in store.list_studies()]
    if args.json:
        _print_json([{**_study_head(study), **counts} for study, counts in rows])
    elif rows:
        print_studies(rows)
    else:
        say("no study yet; start one with: nas search")
    return 0


def run_show(args: argparse.Namespace) -> int:
    from nas.terminal import print_study, print_trial

    with Store.open(args.store) as store:
        study = as_it_stands(store, store.find_study(args.study))
        if args.trial is not None:
            trial = store.trial(study.id, args.trial)
            if args.json:
                _print_json(trial.to_dict())
            else:
                print_trial(study, trial)
        elif args.json:
            trials = [trial.to_dict() for trial in store.trials(study.id)]
            _print_json({**_study_head(study), "spec": study.spec.to_dict(), "trials": trials})
        else:
            print_study(store, study)
    return 0


def run_pareto(args: argparse.Namespace) -> int:
    from nas.pareto_json import pareto_document
    from nas.terminal import print_front

    with Store.open(args.store) as store:
        study = store.find_study(args.study)
        if args.json:
            _print_json(pareto_document(store, study))
        else:
            print_front(store, study)
    return 0


def run_report(args: argparse.Namespace) -> int:
    from nas.report import write_report

    with Store.open(args.store) as store:
        path = write_report(store, store.find_study(args.study), args.output)
    say(f"wrote {path}; open it in a browser")
    return 0


def run_space(args: argparse.Namespace) -> int:
    from nas.space import PRESETS, SearchSpace, load_space

    if args.space is None:
        spaces = [SearchSpace.preset(name) for name in PRESETS]
        if args.json:
            _print_json([space.to_dict() for space in spaces])
        for space in () if args.json else spaces:
            print(f"{space.name:<16} {space.architecture:<8} {space.size():,} choices")
        say("details: nas space NAME")
        return 0
    space = load_space(args.space)
    if args.json:
        _print_json(space.to_dict() | {"size": space.size()})
        return 0
    print(f"{space.name}: {space.size():,} choices")
    for name, value in space.base.items():
        print(f"  {name} = {value}")
    for name, values in space.choices.items():
        print(f"  {name} in {', '.join(map(str, values))}")
    return 0


def _study_head(study: StudyRecord) -> dict[str, object]:
    return {
        "id": study.id,
        "name": study.name,
        "state": study.state,
        "space": study.spec.space.name,
        "num_trials": study.spec.num_trials,
        "created_at": study.created_at.isoformat(),
    }


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2))
