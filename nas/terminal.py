"""Tables for people, on standard output."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas.pareto import front_of
from nas.records import StudyRecord, TrialRecord
from nas.store import Store
from nas.table import Row, column_of, front_rows, table_columns

__all__ = ["print_front", "print_studies", "print_study", "print_trial"]


def print_front(store: Store, study: StudyRecord) -> None:
    """The Pareto front, one row a trial, each figure with its interval."""
    trials = store.trials(study.id)
    front = set(front_of(study.spec, trials).trials)
    columns = table_columns(study.spec.objectives)
    rows = front_rows([trial for trial in trials if trial.number in front], columns)
    if not rows:
        _print(Text(_no_front(study, trials)))
        return
    goals = " and ".join(column_of(objective.name).label for objective in study.spec.objectives)
    table = Table(title=f"{study.name}: Pareto front of {goals}", title_justify="left", expand=False)
    table.add_column("trial", justify="right")
    table.add_column("architecture", overflow="fold")
    for column in columns:
        table.add_column(column.label, justify="right", overflow="fold")
    for row in sorted(rows, key=lambda row: _first_value(row, study, [column.name for column in columns])):
        table.add_row(str(row.trial), row.architecture, *(_cell_text(cell.text, cell.interval) for cell in row.cells))
    _print(table)


def print_studies(studies: list[tuple[StudyRecord, int]]) -> None:
    """All studies with the number of their complete trials, newest last."""
    table = Table("study", "id", "state", "space", "trials", "created")
    for study, complete in studies:
        created = study.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        budget = f"{complete} of {study.spec.num_trials}"
        table.add_row(study.name, study.id, study.state, study.spec.space.name, budget, created)
    _print(table)


def print_study(store: Store, study: StudyRecord) -> None:
    """What was asked for, and every trial in a line."""
    spec = study.spec
    _print(
        Text(
            f"{study.name} ({study.id}): {study.state}\n"
            f"space {spec.space.name}, {spec.space.size():,} choices; sampler {spec.sampler}, seed {spec.seed}; "
            f"device {spec.device}; budget {spec.num_trials} trials\n"
            f"objectives: {', '.join(f'{o.direction} {o.name}' for o in spec.objectives)}"
            + "".join(f"\nlimit: {c.objective} <= {c.limit:g}" for c in spec.constraints)
        )
    )
    trials = store.trials(study.id)
    front = set(front_of(spec, trials).trials)
    columns = [column_of(objective.name) for objective in spec.objectives]
    table = Table("trial", "state", "architecture", *(column.label for column in columns))
    for trial, row in zip(trials, front_rows(trials, columns), strict=True):
        mark = " *" if trial.number in front else ""
        cells = [_cell_text(cell.text, cell.interval) for cell in row.cells]
        table.add_row(f"{trial.number}{mark}", _state(trial), row.architecture, *cells)
    _print(table)
    _print(Text("* on the Pareto front"))


def print_trial(trial: TrialRecord) -> None:
    """Everything about one trial: the architecture, each figure with interval and origin, files, why it failed."""
    columns = [column_of(name) for name in trial.figures]
    (row,) = front_rows([trial], columns)
    _print(Text(f"trial {trial.number}: {_state(trial)}\n{row.architecture}"))
    table = Table("figure", "value", "interval", "origin")
    for column, cell in zip(columns, row.cells, strict=True):
        table.add_row(column.label, cell.text, cell.interval, cell.origin)
    if columns:
        _print(table)
    facts = {"architecture hash": trial.architecture_hash, "choices": _pairs(trial.params)}
    if trial.artifact is not None:
        facts |= {"ONNX file": trial.artifact.path, "weights": trial.artifact.weights_path or "none"}
    if trial.measurement is not None:
        facts["measured on"] = _pairs(trial.measurement["device"])
        facts["warnings"] = "; ".join(trial.measurement["warnings"]) or "none"
    for name, value in facts.items():
        _print(Text.assemble((f"{name}: ", "bold"), value))


def _print(content: Text | Table) -> None:
    """Plain and as wide as it takes when standard output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(content)


def _no_front(study: StudyRecord, trials: tuple[TrialRecord, ...]) -> str:
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        return f"{study.name} has no complete trial yet"
    nearest = []
    for constraint in study.spec.constraints:
        values = [t.figures[constraint.objective].value for t in complete if constraint.objective in t.figures]
        if values and min(values) > constraint.limit:
            column = column_of(constraint.objective)
            nearest.append(f"{column.label}: limit {constraint.limit:g} {column.unit}, nearest {min(values):g}")
    return f"no trial of {study.name} keeps every limit ({'; '.join(nearest) or 'each breaks another one'})"


def _first_value(row: Row, study: StudyRecord, names: list[str]) -> float:
    figure = row.cells[names.index(study.spec.objectives[0].name)].figure
    return 0.0 if figure is None else figure.value


def _cell_text(text: str, interval: str) -> str:
    return f"{text}\n{interval}" if interval else text


def _state(trial: TrialRecord) -> str:
    if trial.duplicate_of is not None:
        return f"same as {trial.duplicate_of}"
    return f"{trial.state}: {trial.error_text}" if trial.error_text else trial.state


def _pairs(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
