"""Estimates as one HTML page that needs no network: memory and parameters by part, the roofline, all figures.

The page has no script; its charts are SVG. A content security policy forbids everything but its own style.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from estimator.charts import Bar, Point, Roof, escape, layer_columns, legend, roofline, stacked_bars
from estimator.comparing import Row, compared_rows, fits_word, show_figure
from estimator.display import shorten
from estimator.errors import InputError, StorageFullError
from estimator.figures import Figure
from estimator.latency import PhaseTime, sustained_rate
from estimator.network import PARTS, Stack
from estimator.sizing import Estimate
from estimator.user_data import write_text_atomically

__all__ = ["render_page", "write_page"]

_MEMORY = {
    "weights": ("weights_bytes", 1),
    "KV cache": ("kv_cache_bytes", 2),
    "recurrent state": ("state_bytes", 3),
    "activations": ("activations_bytes", 4),
    "runtime": ("runtime_bytes", 5),
}
_PART_COLOURS = {
    "embedding": 1,
    "attention": 2,
    "feed_forward": 4,
    "experts": 6,
    "state_space": 3,
    "norm": 5,
    "head": 8,
    "projector": 7,
    "other": 7,
}
_NUM_COLOURS = 8


def write_page(results: Sequence[Estimate], path: str | Path, errors: Mapping[str, str] | None = None) -> Path:
    """Writes the page of these estimates, whole or not at all; the path.

    Raises:
        InputError: the path is no file, or cannot be written. StorageFullError: there is no space left.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder; name the file to write, such as size.html")
    try:
        write_text_atomically(target, render_page(results, errors))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"{target}: no space left to write the page") from error
        raise InputError(f"{target} cannot be written: {error.strerror or error}; name another file") from error
    return target


def render_page(results: Sequence[Estimate], errors: Mapping[str, str] | None = None) -> str:
    """The page as HTML. `errors` says of other sources why they are not there."""
    names = [_name(result) for result in results]
    heading = names[0] if len(names) == 1 else f"{len(names)} models side by side"
    sections = [_cards(results[0])] if len(results) == 1 else [_table(results)]
    sections += [_memory(results), _roofline(results), _parameters(results)]
    sections += [_table(results)] if len(results) == 1 else []
    sections.append(_warnings(results, errors or {}))
    template = resources.files("estimator").joinpath("plots.html").read_text(encoding="utf-8")
    parts = {
        "title": escape(f"{', '.join(names)[:120]}: Archfront"),
        "heading": escape(heading),
        "summary": escape(_summary(results)),
        "body": "\n".join(section for section in sections if section),
    }
    head, *pieces = template.split("<!--")
    filled = [head]
    for piece in pieces:  # one pass, so that nothing that is filled in is taken for a place to fill
        key, _, rest = piece.partition("-->")
        filled.append(parts[key] + rest)
    return "".join(filled)


def _name(result: Estimate) -> str:
    return result.name or result.network.model_type


def _summary(results: Sequence[Estimate]) -> str:
    workload, device = results[0].workload, results[0].device
    words = [f"batch {workload.batch_size:,}", f"prompt {workload.prompt_length:,}"]
    words.append(f"generate {workload.generated_length:,}")
    types = {result.workload.weight_dtype for result in results}
    if len(types) == 1:
        stored = len(results) == 1 and results[0].stored_bytes is not None
        words.append("weights as the file stores them" if stored else f"weights {types.pop()}")
    return ", ".join(words) + ("" if device is None else f", on {device.label}")


def _card(label: str, value: str, where: str) -> str:
    return (
        f'<div><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="where">{escape(where)}</div></div>'
    )


def _cards(result: Estimate) -> str:
    params, memory, device = result.params, result.memory, result.device
    cards = [_card("Parameters", shorten(params.total, ""), f"{params.total:,}, counted")]
    if result.network.has_only_weights:
        cards.append(_card("Weights", shorten(memory.weights_bytes, "B"), "counted"))
        return f'<div class="best">{"".join(cards)}</div>'
    where = "modelled"
    if device is not None and device.memory_bytes is not None:
        share = memory.total_bytes / device.memory_bytes
        where = f"{share:.0%} of {shorten(device.memory_bytes, 'B')}: {'fits' if result.fits else 'does not fit'}"
    cards.append(_card("Memory", shorten(memory.total_bytes, "B"), where))
    if result.latency is None:
        cards.append(_card("Prefill", shorten(result.compute.prefill_flops, "FLOP"), "counted"))
        return f'<div class="best">{"".join(cards)}</div>'
    first = "Time to first token" if result.network.is_causal else "Time of a pass"
    for label, phase in _phases(result, (first, "Time per token")):
        cards.append(_card(label, shorten(phase.time_s.value, "s"), f"{_span(phase.time_s)}, {phase.limit} binds"))
    return f'<div class="best">{"".join(cards)}</div>'


def _phases(result: Estimate, labels: tuple[str, str]) -> list[tuple[str, PhaseTime]]:
    if result.latency is None:
        return []
    phases = zip(labels, (result.latency.prefill_s, result.latency.decode_s_per_token), strict=True)
    return [(label, phase) for label, phase in phases if phase is not None]


def _span(figure: Figure) -> str:
    return (
        ""
        if figure.low is None or figure.high is None
        else f"{shorten(figure.low, 's')} to {shorten(figure.high, 's')}"
    )


def _section(heading: str, note: str, body: str) -> str:
    return f'<section class="card"><h2>{escape(heading)}</h2><p class="note">{escape(note)}</p>{body}</section>'


def _memory(results: Sequence[Estimate]) -> str:
    bars = []
    for result in results:
        known = {label: getattr(result.memory, field) or 0 for label, (field, _) in _MEMORY.items()}
        if result.network.has_only_weights:
            known = {"weights": known["weights"]}
        fits = {True: ", fits", False: ", does not fit", None: ""}[result.fits]
        bars.append(Bar(label=_name(result), remark=fits, parts=known))
    used = {label: colour for label, (_, colour) in _MEMORY.items() if any(bar.parts.get(label) for bar in bars)}
    device = results[0].device
    limits = {} if device is None or device.memory_bytes is None else {"device memory": float(device.memory_bytes)}
    chart = stacked_bars(bars, used, "B", limits, "Memory by part")
    note = "At the end of the request, when the cache is full. Weights, cache and state are counted, the rest modelled."
    return _section("Memory", note, legend(used) + chart)


def _roofline(results: Sequence[Estimate]) -> str:
    device, first = results[0].device, next((result for result in results if result.latency), None)
    if device is None:
        note = "With --device NAME this page shows where prefill and decode stand under the device's roofs."
        return _section("Roofline", note, "")
    if first is None or first.latency is None or device.memory_bandwidth_bytes_per_s is None:
        return _section("Roofline", f"{device.label} has no published arithmetic rate or bandwidth.", "")
    achieved = first.latency.achievable
    sustained = sustained_rate(first.workload, device, achieved), _bandwidth(first) * achieved.bandwidth_fraction
    labels: dict[float, list[str]] = {}
    for dtype, peak in device.peak_flops_per_s.items():
        labels.setdefault(peak, []).append(dtype)
    peaks = {", ".join(dtypes): peak for peak, dtypes in labels.items()}
    roof = Roof(peaks=peaks, bandwidth=_bandwidth(first), sustained=sustained)
    points = [point for number, result in enumerate(results) for point in _points(result, number, len(results))]
    note = (
        f"{device.label}. Solid: what the maker publishes. Dashed: what real runs sustain with "
        f"{first.workload.weight_dtype} weights ({achieved.name}, {achieved.origin}). "
        "Circle: prefill; diamond: decode; bar: the interval. "
        "Left of a roof's corner memory bandwidth binds, right of it arithmetic."
    )
    return _section("Roofline", note, roofline(roof, points, f"Roofline of {device.label}"))


def _bandwidth(result: Estimate) -> float:
    assert result.device is not None
    return result.device.memory_bandwidth_bytes_per_s or 0.0


def _points(result: Estimate, number: int, count: int) -> list[Point]:
    points = []
    prefix = "" if count == 1 else f"{_name(result)[:24]} "
    for (label, phase), shape in zip(_phases(result, ("prefill", "decode")), ("circle", "diamond"), strict=False):
        time_s = phase.time_s
        note = (
            f"{_name(result)}, {label}: {shorten(phase.intensity, 'FLOP/B')}, {shorten(time_s.value, 's')} "
            f"({_span(time_s)}), {phase.limit} binds"
        )
        points.append(
            Point(
                label=f"{prefix}{label}",
                shape=shape,
                colour=number % _NUM_COLOURS + 1,
                intensity=phase.intensity,
                rate=phase.flops / time_s.value,
                low=phase.flops / (time_s.high or time_s.value),
                high=phase.flops / (time_s.low or time_s.value),
                note=note,
            )
        )
    return points


def _parameters(results: Sequence[Estimate]) -> str:
    bars = [
        Bar(label=_name(r), remark="", parts={_words(part): n for part, n in r.params.by_part.items() if n})
        for r in results
    ]
    used = {_words(p): _PART_COLOURS[p] for p in PARTS if any(_words(p) in bar.parts for bar in bars)}
    body = legend(used) + stacked_bars(bars, used, "", {}, "Parameters by part")
    for result in results:
        for stack in result.network.stacks:
            if stack.layers:
                named = _name(result) if len(results) > 1 else "By layer"
                body += f"<h3>{escape(f'{named}: {len(stack.layers)} {stack.name} layers')}</h3>"
                body += layer_columns(_layers(stack), {**used}, f"Parameters by layer of {_name(result)}")
    return _section("Parameters", "Counted; tied and shared weights once. Below, what each layer owns.", body)


def _layers(stack: Stack) -> list[dict[str, int]]:
    layers = []
    for layer in stack.layers:
        parts: dict[str, int] = {}
        for block in layer.blocks if layer.owns_weights else ():
            for weight in block.weights:
                part = _words("norm" if weight.role == "norm" else block.part)
                parts[part] = parts.get(part, 0) + weight.num_elements
        layers.append({part: count for part, count in parts.items() if count})
    return layers


def _words(part: str) -> str:
    return part.replace("_", " ")


def _table(results: Sequence[Estimate]) -> str:
    head = "".join(f"<th>{escape(_name(result))}</th>" for result in results)
    rows = [_table_row(row) for row in compared_rows(results)]
    if results[0].device is not None:
        cells = "".join(f"<td>{fits_word(result)}</td>" for result in results)
        rows.append(f"<tr><td>fits {escape(results[0].device.label)}</td>{cells}</tr>")
    note = "Ratios are to the first model." if len(results) > 1 else "Every figure with its origin."
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _section("Figures", note, f'<div class="scroll">{table}</div>')


def _table_row(row: Row) -> str:
    cells = []
    for number, (figure, ratio) in enumerate(zip(row.figures, row.ratios, strict=True)):
        notes = [] if figure is None else [_span(figure), "" if len(row.figures) > 1 else figure.origin]
        notes += [f"{ratio:.3g} times" if number and ratio is not None else ""]
        small = "".join(f"<small>{escape(note)}</small>" for note in notes if note)
        cells.append(f"<td>{escape(show_figure(figure, row.unit))}{small}</td>")
    indent = "&emsp;" if row.label.startswith(" ") else ""
    return f"<tr><td>{indent}{escape(row.label.strip())}</td>{''.join(cells)}</tr>"


def _warnings(results: Sequence[Estimate], errors: Mapping[str, str]) -> str:
    said = [f"<li>{escape(f'{_name(r)}: {warning}')}</li>" for r in results for warning in r.warnings]
    said += [f'<li class="bad">{escape(f"{source}: {reason}")}</li>' for source, reason in errors.items()]
    return _section("Warnings", "", f"<ul>{''.join(said)}</ul>") if said else ""
