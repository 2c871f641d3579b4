"""One study as a self-contained HTML page: opens offline, asks nothing of any network.

The tables are plain HTML; Plotly's library, from its wheel, is in the file and draws the charts. A content security
policy allows the page's own two scripts by their hashes and nothing else, so a study may be called whatever its user
likes.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from estimator.errors import StorageFullError
from estimator.user_data import write_text_atomically
from nas.errors import UsageError
from nas.pareto import ParetoFront, front_of
from nas.records import StudyRecord, TrialRecord
from nas.report_tables import best_cards, command_list, escape, fact_list, front_table, summary_line, trial_table
from nas.spec import StudySpec
from nas.standing import as_it_stands
from nas.store import Store
from nas.table import Column, column_of, describe_config, format_figure, format_value, scale_of, table_columns

__all__ = ["check_report_path", "render_report", "write_report"]

_NOTHING = '<p class="empty">No trial is complete yet.</p>'


def write_report(store: Store, study: StudyRecord, path: str | Path) -> Path:
    """Writes the report of a study to `path`, whole or not at all, and returns the path.

    Raises:
        UsageError: the path is no file, or cannot be written.
        StorageFullError: there is no space left; an older report stays as it is.
    """
    target = Path(path)
    check_report_path(target)
    address = make_url(store.url).render_as_string(hide_password=True)
    now = as_it_stands(store, store.find_study(study.id))  # after the search, not as it was before
    page = render_report(now, store.trials(study.id), store=address)
    try:
        write_text_atomically(target, page)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"{target}: no space left to write the report") from error
        raise UsageError(f"{target} cannot be written: {error.strerror or error}; name another file") from error
    return target


def check_report_path(path: Path) -> None:
    """Raises UsageError if no report can be written to the path; a search asks before it starts."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file; name the file to write the report to, such as report.html")


def render_report(study: StudyRecord, trials: Sequence[TrialRecord], *, store: str) -> str:
    """The page as HTML; `store` is the store's URL as the page shows it, so without a password."""
    spec = study.spec
    front = front_of(spec, trials)
    shown = [trial for trial in trials if trial.state == "complete" and trial.duplicate_of is None]
    columns = table_columns(spec)
    data = _chart_data(spec, shown, front, columns)
    scripts = [_plotly_library(), _package_text("report.js")] if shown else []
    parts = {
        "title": escape(f"{study.name}: Archfront search report"),
        "name": escape(study.name),
        "summary": summary_line(trials, front),
        "best": best_cards(shown, spec),
        "scatter": _scatter_section(spec, data["axes"]) if shown else _NOTHING,
        "front": front_table(study, trials, front, columns),
        "progress": _progress_section(spec, front) if shown else _NOTHING,
        "trials": trial_table(trials, front, columns),
        "facts": fact_list(study, trials),
        "commands": command_list(study, front, store),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
        "script_hashes": " ".join(map(_hash_source, scripts)) or "'none'",
    }
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], _package_text("report.html"))


def _package_text(name: str) -> str:
    return resources.files("nas").joinpath(name).read_text(encoding="utf-8")


def _plotly_library() -> str:
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _hash_source(script: str) -> str:
    """The script as a content security policy names it."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _chart_data(
    spec: StudySpec, trials: Sequence[TrialRecord], front: ParetoFront, columns: Sequence[Column]
) -> dict[str, Any]:
    """What `report.js` draws: axes to choose from, one point a trial, and the hypervolume after each trial."""
    on_front = set(front.trials)
    axes = [_axis(column, trials, spec) for column in columns]
    return {
        "axes": [*(axis for axis in axes if axis is not None), _trial_axis()],
        "trials": [_point(trial, trial.number in on_front, columns) for trial in trials],
        "hypervolume": _hypervolume_steps(spec, trials, front),
    }


def _axis(column: Column, trials: Sequence[TrialRecord], spec: StudySpec) -> dict[str, Any] | None:
    """One figure as an axis, in the unit that suits its median; None when no trial has it."""
    values = sorted(trial.figures[column.name].value for trial in trials if column.name in trial.figures)
    if not values:
        return None
    scale = scale_of(values[len(values) // 2], column.unit)
    directions = {objective.name: objective.direction for objective in spec.objectives}
    return {
        "name": column.name,
        "label": column.label,
        "title": f"{column.label} ({scale.suffix})" if scale.suffix else column.label,
        "scale": scale.factor,
        "direction": directions.get(column.name),
        "limits": [limit.limit for limit in spec.constraints if limit.objective == column.name],
    }


def _trial_axis() -> dict[str, Any]:
    return {"name": "trial", "label": "trial", "title": "trial", "scale": 1, "direction": None, "limits": []}


def _point(trial: TrialRecord, front: bool, columns: Sequence[Column]) -> dict[str, Any]:
    figures = {column: trial.figures[column.name] for column in columns if column.name in trial.figures}
    return {
        "number": trial.number,
        "front": front,
        "architecture": describe_config(trial.config),
        "figures": {
            column.name: {**figure.to_dict(), "text": format_figure(figure, column.unit)}
            for column, figure in figures.items()
        },
    }


def _scatter_section(spec: StudySpec, axes: Sequence[dict[str, Any]]) -> str:
    names = [objective.name for objective in spec.objectives]
    across = names[1] if len(names) > 1 else "trial"
    note = "Each point is a trial that was built, scored and measured here; bars are 95 % intervals."
    if any(axis["limits"] for axis in axes):
        note += " Dashed lines are the limits that were asked for."
    return (
        f'<p class="note">{note} Press a point to find its trial in the table.</p>'
        f'<div class="axes">{_axis_control("x", across, axes)}{_axis_control("y", names[0], axes)}</div>'
        '<div id="scatter" class="plot" role="img" '
        'aria-label="Scatter of the trials; the tables below hold the same figures"></div>'
    )


def _axis_control(which: str, chosen: str, axes: Sequence[dict[str, Any]]) -> str:
    marks = {chosen: " selected"}
    options = "".join(
        f'<option value="{escape(axis["name"])}"{marks.get(axis["name"], "")}>{escape(axis["label"])}</option>'
        for axis in axes
    )
    word = {"x": "across", "y": "up"}[which]
    return (
        f'<label>{word} <select id="{which}-axis">{options}</select></label>'
        f'<label><input type="checkbox" id="{which}-log"> log</label>'
    )


def _hypervolume_steps(spec: StudySpec, trials: Sequence[TrialRecord], front: ParetoFront) -> list[tuple[int, float]]:
    """Pairs (trial, hypervolume of the front so far), all from the reference of the final front."""
    steps: list[tuple[int, float]] = []
    kept: list[TrialRecord] = []
    for trial in trials if front.trials else ():
        now = front_of(spec, [*kept, trial], front.reference)
        kept = [candidate for candidate in (*kept, trial) if candidate.number in now.trials]
        steps.append((trial.number, now.hypervolume))
    return steps


def _progress_section(spec: StudySpec, front: ParetoFront) -> str:
    if not front.trials:
        return '<p class="empty">No trial keeps every limit yet.</p>'
    columns = [column_of(name, spec) for name in front.reference]
    corner = ", ".join(
        f"{column.label} {format_value(front.reference[column.name], column.unit)}" for column in columns
    )
    note = f"What the front covers, measured from {escape(corner)}; the higher, the better."
    label = f"Hypervolume after each trial; at the end {front.hypervolume:.4g}"
    return f'<p class="note">{note}</p><div id="progress" class="plot low" role="img" aria-label="{label}"></div>'
