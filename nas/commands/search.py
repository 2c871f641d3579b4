"""`nas search` and `nas resume`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nas.commands.options import add_search_options, add_store_option, add_study_argument, say, spec_from_options
from nas.errors import UsageError
from nas.records import StudyRecord
from nas.spec import StudySpec
from nas.standing import num_paid, stored_counts
from nas.store import Store

__all__ = ["add_parsers"]

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    search = commands.add_parser(
        "search",
        help="find the best transformers for this machine, your data and your budgets",
        description="Proposes transformers, trains and builds each as ONNX, measures it here with ONNX Runtime, scores "
        "the very file that was measured, and keeps the Pareto front.",
        epilog="examples:\n"
        "  nas search\n"
        "  nas search --space decoder-nano --max-latency 2ms --trials 40\n"
        "  nas search --space my-space.toml --data notes/ --objective bits_per_byte --objective params\n"
        "exit codes: 0 finished, 1 failed while running, 2 wrong usage, 3 data not understood, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_search_options(search)
    result = search.add_argument_group("result")
    result.add_argument("--name", help="name of the study (default: one is made up)")
    result.add_argument("--exist-ok", action="store_true", help="go on with the study of that name if there is one")
    _add_result_options(result)
    add_store_option(search)
    search.set_defaults(run=run_search)

    resume = commands.add_parser(
        "resume", help="go on with a study that was stopped, killed or should have more trials"
    )
    add_study_argument(resume)
    resume.add_argument("--trials", type=int, metavar="N", help="new budget in all, counting the trials already done")
    _add_result_options(resume.add_argument_group("result"))
    add_store_option(resume)
    resume.set_defaults(run=run_resume)


def _add_result_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--report", metavar="FILE", type=Path, help="write the HTML report there at the end")
    group.add_argument("--json", action="store_true", help="print the front as JSON")
    group.add_argument("--quiet", action="store_true", help="no progress")


def run_search(args: argparse.Namespace) -> int:
    spec = spec_from_options(args)
    with Store.open(args.store) as store:
        existing = next((study for study in store.list_studies() if study.name == args.name), None)
        if existing is None:
            return _search(store, spec, None, args)
        if not args.exist_ok:
            raise UsageError(
                f"a study named {args.name!r} exists; choose another --name, "
                f"or `nas resume {args.name}` to go on with it"
            )
        if existing.spec != spec:
            raise UsageError(
                f"the study {args.name!r} was asked for something else; choose another --name, "
                f"or `nas resume {args.name}` to go on with it as it is"
            )
        return _search(store, spec, existing, args)


def run_resume(args: argparse.Namespace) -> int:
    with Store.open(args.store) as store:
        record = store.find_study(args.study)
        if args.trials is not None:
            done = num_paid(stored_counts(store, record.id))
            if args.trials < done:
                raise UsageError(f"{record.name} has {done} trials already; --trials is the new total, {done} or more")
            record = store.extend_trials(record.id, args.trials)
        return _search(store, record.spec, record, args)


def _search(store: Store, spec: StudySpec, record: StudyRecord | None, args: argparse.Namespace) -> int:
    """Checks what can be checked before anything is written, then runs the study to its end and shows the front."""
    from rich.console import Console

    from nas.evaluate import Evaluator
    from nas.executor import ChildExecutor
    from nas.feasibility import check_feasible
    from nas.loop import run_study, terminated_as_interrupt
    from nas.next_commands import command_line
    from nas.progress import ProgressView
    from nas.quality.task import data_fingerprint
    from nas.report import check_report_path
    from nas.study import Study

    with ChildExecutor() as executor, terminated_as_interrupt():
        try:
            if args.report is not None:
                check_report_path(args.report)
            check_feasible(spec)
            fingerprint = executor.run(data_fingerprint, spec.quality)
            record = record or store.create_study(spec, args.name)
            study = Study.load(store, record.id)
            evaluator = Evaluator(
                store=store,
                study_id=record.id,
                spec=spec,
                folder=store.artifact_dir,
                executor=executor,
                data_fingerprint=fingerprint,
            )
            with ProgressView(study, console=Console(stderr=True), quiet=args.quiet) as view:
                run_study(study, evaluator, view)
        except KeyboardInterrupt:
            if record is None:
                say("nas: interrupted; nothing was started")
            else:
                again = command_line("resume", record.name, store=args.store)
                say(f"stopped; nothing that was paid for is lost. Go on with: {again}")
            return INTERRUPTED
    return _show_result(store, record, args)


def _show_result(store: Store, record: StudyRecord, args: argparse.Namespace) -> int:
    from nas.pareto_json import pareto_document
    from nas.report import write_report
    from nas.terminal import print_front

    if args.report is not None:
        write_report(store, record, args.report)
    if args.json:
        json.dump(pareto_document(store, record), sys.stdout, indent=2)
        print()
    elif not args.quiet:
        print_front(store, record)
    trials = store.trials(record.id)
    if not any(trial.state == "complete" for trial in trials):
        reason = next((t.error_text for t in reversed(trials) if t.state == "fail"), "no candidate was evaluated")
        say(f"nas: no trial of {record.name} is complete; the last one failed: {reason}")
        return 1
    if not args.quiet:
        _say_next(store, record, args)
    return 0


def _say_next(store: Store, record: StudyRecord, args: argparse.Namespace) -> None:
    from nas.next_commands import next_commands
    from nas.pareto import front_of

    if args.report is not None:
        say(f"report: {args.report}")
    say("next:")
    for command, what in next_commands(record, front_of(record.spec, store.trials(record.id)), args.store):
        say(f"  {command:<72} {what}")
