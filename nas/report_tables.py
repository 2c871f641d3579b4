"""The parts of the report that are plain HTML: cards, tables, facts, commands. Whatever users named is escaped here."""

from __future__ import annotations

import html
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from nas.next_commands import explain_no_front, next_commands
from nas.pareto import ParetoFront
from nas.records import StudyRecord, TrialRecord
from nas.spec import QualitySettings, StudySpec
from nas.standing import count_trials, describe_counts
from nas.table import (
    Cell,
    Column,
    Row,
    best_trials,
    column_of,
    describe_config,
    describe_weights,
    format_value,
    front_rows,
)

__all__ = ["best_cards", "command_list", "escape", "fact_list", "front_table", "summary_line", "trial_table"]


def escape(text: object) -> str:
    """The text as HTML shows it, safe inside an element and a quoted attribute."""
    return html.escape(str(text))


def summary_line(trials: Sequence[TrialRecord], front: ParetoFront) -> str:
    """How the trials ended, and what came of it."""
    line = describe_counts(count_trials(trials))
    if front.trials:
        points = "1 point" if len(front.trials) == 1 else f"{len(front.trials)} points"
        line += f"; front of {points}, hypervolume {front.hypervolume:.4g}"
    return escape(line)


def best_cards(trials: Sequence[TrialRecord], spec: StudySpec) -> str:
    """One card for the best value of each objective."""
    cards = [
        f'<div><div class="label">best {escape(column.label)}</div>'
        f'<div class="value">{escape(format_value(trial.figures[column.name].value, column.unit))}</div>'
        f'<div class="where">{_trial_link(trial.number)}: {escape(describe_config(trial.config))}</div></div>'
        for objective, trial in best_trials(trials, spec.objectives)
        for column in [column_of(objective.name, spec)]
    ]
    return f'<div class="best">{"".join(cards)}</div>' if cards else ""


def front_table(
    study: StudyRecord, trials: Sequence[TrialRecord], front: ParetoFront, columns: Sequence[Column]
) -> str:
    """The trials of the front, best first in the first objective, with every figure, its interval and its origin."""
    if not front.trials:
        return f'<p class="empty">{escape(explain_no_front(study, trials))}</p>'
    by_number = {trial.number: trial for trial in trials}
    note = "No other trial is better in every objective. Below each value: its interval and its origin."
    head = _head([("trial", True), ("architecture", False), *((column.label, True) for column in columns)])
    rows = "".join(
        f"<tr>{_cell(_trial_link(row.trial), row.trial)}{_wide_cell(row.architecture)}{_figure_cells(row)}</tr>"
        for row in front_rows([by_number[number] for number in front.trials], columns)
    )
    return f'<p class="note">{note}</p>{_table(head, rows)}'


def trial_table(trials: Sequence[TrialRecord], front: ParetoFront, columns: Sequence[Column]) -> str:
    """Every trial, with the reason of those that failed or were pruned."""
    if not trials:
        return '<p class="empty">Nothing was proposed yet.</p>'
    on_front = set(front.trials)
    head = _head(
        [("trial", True), ("state", False), ("architecture", False), *((column.label, True) for column in columns)]
    )
    rows = "".join(
        f'<tr id="trial-{trial.number}"{_front_class(trial, on_front)}>'
        f"{_cell(escape(trial.number), trial.number)}{_state_cell(trial, on_front)}"
        f"{_wide_cell(row.architecture)}{_figure_cells(row)}</tr>"
        for trial, row in zip(trials, front_rows(trials, columns), strict=True)
    )
    return _table(head, rows)


def fact_list(study: StudyRecord, trials: Sequence[TrialRecord]) -> str:
    """Everything that the numbers depend on."""
    facts = [*_spec_facts(study), *_run_facts(trials), ("written with", _versions())]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    return f'<dl class="facts">{items}</dl>'


def command_list(study: StudyRecord, front: ParetoFront, store: str) -> str:
    """What to type next; `store` is the store's URL without a password."""
    items = "".join(
        f"<dt>{escape(what)}</dt><dd><pre>{escape(command)}</pre></dd>"
        for command, what in next_commands(study, front, store)
    )
    return f'<dl class="commands">{items}</dl>'


def _trial_link(number: int) -> str:
    return f'<a href="#trial-{number}">trial {number}</a>'


def _table(head: str, rows: str) -> str:
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _head(columns: Iterable[tuple[str, bool]]) -> str:
    """Column headings that sort when pressed; the flag says whether the column holds numbers."""
    return "".join(
        f'<th scope="col"{_NUMBER if number else ""}><button type="button">{escape(label)}</button></th>'
        for label, number in columns
    )


_NUMBER = ' class="number"'


def _cell(content: str, value: object) -> str:
    return f'<td{_NUMBER} data-value="{escape(value)}">{content}</td>'


def _wide_cell(text: str) -> str:
    return f'<td class="wide" data-value="{escape(text)}">{escape(text)}</td>'


def _figure_cells(row: Row) -> str:
    return "".join(_cell(_figure_content(cell), "" if cell.figure is None else cell.figure.value) for cell in row.cells)


def _figure_content(cell: Cell) -> str:
    if cell.figure is None:
        return ""
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    return f"{escape(cell.text)}{interval}<small>{escape(cell.origin)}</small>"


def _front_class(trial: TrialRecord, on_front: set[int]) -> str:
    return ' class="front"' if trial.number in on_front else ""


def _state_cell(trial: TrialRecord, on_front: set[int]) -> str:
    word, reason = trial.state, trial.error_text or ""
    if trial.state == "fail":
        word = "failed"
        reason = f"{trial.error_type}: {reason}" if trial.error_type else reason
    elif trial.duplicate_of is not None:
        reason = f"same architecture as trial {trial.duplicate_of}; nothing was paid"
    elif trial.measurement is not None:
        reason = "; ".join(trial.measurement["warnings"])
    if trial.number in on_front:
        word = "on the front"
    detail = f"<small>{escape(reason)}</small>" if reason else ""
    return f'<td class="state" data-value="{escape(word)}"><span class="{trial.state}">{word}</span>{detail}</td>'


def _spec_facts(study: StudyRecord) -> list[tuple[str, str]]:
    spec, workload = study.spec, study.spec.workload
    return [
        ("study", f"{study.name} ({study.id}), {study.state}, created {study.created_at:%Y-%m-%d %H:%M} UTC"),
        ("space", f"{spec.space.name}, {spec.space.size():,} choices of {spec.space.architecture}s"),
        ("objectives", "; ".join(f"{o.direction} {column_of(o.name, spec).label}" for o in spec.objectives)),
        ("limits", "; ".join(_limit(constraint.objective, constraint.limit) for constraint in spec.constraints)),
        ("sampler", f"{spec.sampler}, seed {spec.seed}"),
        ("budget", f"{spec.num_trials} trials, each at most {spec.trial_time_limit_s:g} s"),
        (
            "workload",
            f"batch {workload.batch_size}, prompt {workload.prompt_length} tokens, {workload.generated_length} "
            f"generated, weights {workload.weight_dtype}",
        ),
        ("quality", _quality(spec.quality)),
        ("weights", describe_weights(spec.quality)),
    ]


def _quality(settings: QualitySettings) -> str:
    if settings.evaluator == "train":
        return _pairs({"data": "Python's standard library", **_given(settings.to_dict())})
    return "not scored" if settings.evaluator == "none" else f"scored by {settings.evaluator}"


def _limit(objective: str, limit: float) -> str:
    column = column_of(objective)
    return f"{column.label} at most {format_value(limit, column.unit)}"


def _run_facts(trials: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """Where the trials ran, and on which text if they were trained; more than one line of a kind when they differ."""
    devices = [_pairs(trial.measurement["device"]) for trial in trials if trial.measurement is not None]
    fingerprints = [(trial.quality or {}).get("data_fingerprint") for trial in trials]
    texts = [f"fingerprint {fingerprint}" for fingerprint in fingerprints if fingerprint is not None]
    return [("device", device) for device in dict.fromkeys(devices)] + [("data", text) for text in dict.fromkeys(texts)]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(_fact(name, value) for name, value in _given(values).items())


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != []}


def _fact(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{name.removesuffix('_bytes')} {format_value(value, 'bytes')}"
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')} {value}"


def _versions() -> str:
    names = ("archfront", "onnxruntime", "optuna", "plotly")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in names)])


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
