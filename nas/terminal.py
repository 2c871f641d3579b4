"""Tables for people, on standard output; where a terminal is too narrow for a table, a block of lines for each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nas.next_commands import explain_no_front
from nas.pareto import front_of
from nas.records import StudyRecord, TrialRecord
from nas.standing import count_trials, describe_counts, num_paid
from nas.store import Store
from nas.table import Cell, column_of, describe_weights, format_value, front_rows, table_columns

__all__ = ["print_front", "print_studies", "print_study", "print_trial"]

_FILE_WIDTH = 240  # where standard output is no terminal; a table that needs more gets more
_WRAPPED_WIDTH = 24  # columns that text may be wrapped to


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heading:
    """A column: numbers stand at the right, a text may be wrapped."""

    label: str
    number: bool = False
    wraps: bool = False


_ARCHITECTURE = _Heading(label="architecture", wraps=True)


def print_front(store: Store, study: StudyRecord) -> None:
    """The Pareto front, best first in the first objective, each figure with its interval and its origin."""
    trials = store.trials(study.id)
    front = front_of(study.spec, trials).trials
    if not front:
        _print(Text(explain_no_front(study, trials)))
        return
    columns = table_columns(study.spec)
    by_number = {trial.number: trial for trial in trials}
    rows = front_rows([by_number[number] for number in front], columns)
    goals = " and ".join(column_of(objective.name, study.spec).label for objective in study.spec.objectives)
    headings = [_Heading(label="trial", number=True), _ARCHITECTURE]
    headings += _figure_headings(column.label for column in columns)
    lines = [[str(row.trial), row.architecture, *map(_cell_text, row.cells)] for row in rows]
    _print_table(headings, lines, title=f"{study.name}: Pareto front of {goals}")


def print_studies(studies: Sequence[tuple[StudyRecord, Mapping[str, int]]]) -> None:
    """Studies as they stand with their counts, in the order given."""
    headings = [_Heading(label="study", wraps=True), *(_Heading(label=label) for label in ("id", "state"))]
    headings += [_Heading(label="space", wraps=True), *(_Heading(label=label) for label in ("trials", "created"))]
    lines = [
        [
            *(study.name, study.id, study.state, study.spec.space.name),
            f"{num_paid(counts)} of {study.spec.num_trials}",
            study.created_at.astimezone().strftime("%Y-%m-%d %H:%M"),
        ]
        for study, counts in studies
    ]
    _print_table(headings, lines)


def print_study(store: Store, study: StudyRecord) -> None:
    """What was asked for and where it stands, and every trial in a line."""
    spec = study.spec
    trials = store.trials(study.id)
    limits = [(column_of(limit.objective, spec), limit.limit) for limit in spec.constraints]
    _print(
        Text(
            f"{study.name} ({study.id}): {study.state}; {describe_counts(count_trials(trials))}\n"
            f"space {spec.space.name}, {spec.space.size():,} choices; sampler {spec.sampler}, seed {spec.seed}; "
            f"device {spec.device}; budget {spec.num_trials} trials; weights {describe_weights(spec.quality)}\n"
            f"objectives: {', '.join(f'{o.direction} {o.name}' for o in spec.objectives)}"
            + "".join(f"\nlimit: {column.label} at most {format_value(limit, column.unit)}" for column, limit in limits)
        )
    )
    front = set(front_of(spec, trials).trials)
    columns = [column_of(objective.name, spec) for objective in spec.objectives]
    headings = [_Heading(label="trial"), _Heading(label="state", wraps=True), _ARCHITECTURE]
    headings += _figure_headings(column.label for column in columns)
    lines = [
        [
            f"{trial.number} *" if trial.number in front else str(trial.number),
            *(_state(trial), row.architecture),
            *map(_cell_text, row.cells),
        ]
        for trial, row in zip(trials, front_rows(trials, columns), strict=True)
    ]
    _print_table(headings, lines)
    _print(Text("* on the Pareto front"))


def print_trial(study: StudyRecord, trial: TrialRecord) -> None:
    """Everything about one trial: the architecture, each figure with interval and origin, files, why it failed."""
    columns = [column_of(name, study.spec) for name in trial.figures]
    (row,) = front_rows([trial], columns)
    _print(Text(f"trial {trial.number}: {_state(trial)}\n{row.architecture}"))
    headings = [_Heading(label=label) for label in ("figure", "value", "interval", "origin")]
    cells = zip(columns, row.cells, strict=True)
    if columns:
        _print_table(headings, [[column.label, cell.text, cell.interval, cell.origin] for column, cell in cells])
    facts = {"architecture hash": trial.architecture_hash, "choices": _pairs(trial.params)}
    if trial.artifact is not None:
        facts |= {"ONNX file": trial.artifact.path, "weights file": trial.artifact.weights_path or "none"}
        facts["weights"] = describe_weights(study.spec.quality)
    if trial.measurement is not None:
        facts["measured on"] = _pairs(trial.measurement["device"])
        facts["warnings"] = "; ".join(trial.measurement["warnings"]) or "none"
    for name, value in facts.items():
        _print(Text.assemble((f"{name}: ", "bold"), value))


def _print(content: Text | Table | Padding, width: int = _FILE_WIDTH) -> None:
    """Plain and as wide as it takes when standard output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(width, _FILE_WIDTH))
    console.print(content)


def _print_table(headings: Sequence[_Heading], lines: Sequence[Sequence[str]], title: str = "") -> None:
    table = Table(title=Text(title) if title else None, title_justify="left", expand=False)
    for heading, cells in zip(headings, zip(*lines, strict=True), strict=True):
        least = max(map(cell_len, (*heading.label.split(), *"\n".join(cells).split("\n"))))
        if heading.wraps:
            least = min(least, _WRAPPED_WIDTH)
        justify = "right" if heading.number else "left"
        table.add_column(heading.label, justify=justify, min_width=least, overflow="fold")  # type: ignore[arg-type]
    for line in lines:
        table.add_row(*map(Text, line))
    console = Console()
    needed = console.measure(table, options=console.options.update_width(10_000)).minimum
    if console.is_terminal and needed > console.width:
        _print_blocks(headings, lines, title)
    else:
        _print(table, needed)


def _print_blocks(headings: Sequence[_Heading], lines: Iterable[Sequence[str]], title: str) -> None:
    """A row as lines: its first cell is the head, the others follow under it with their headings."""
    if title:
        _print(Text(title, style="italic"))
    for line in lines:
        _print(Text(f"{headings[0].label} {line[0]}", style="bold"))
        for heading, cell in zip(headings[1:], line[1:], strict=True):
            if cell:
                _print(Padding(Text(f"{heading.label}: {cell.replace(chr(10), ' ')}"), (0, 0, 0, 2)))


def _figure_headings(labels: Iterable[str]) -> list[_Heading]:
    return [_Heading(label=label, number=True) for label in labels]


def _cell_text(cell: Cell) -> str:
    return "\n".join(part for part in (cell.text, cell.interval, cell.origin) if part)


def _state(trial: TrialRecord) -> str:
    if trial.duplicate_of is not None:
        return f"same as {trial.duplicate_of}"
    return f"{trial.state}: {trial.error_text}" if trial.error_text else trial.state


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
