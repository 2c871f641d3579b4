"""Charts as SVG text, drawn with numbers alone: stacked bars, columns by layer, the roofline.

Colours are classes of the page that holds them (`plots.html`), so that they follow its light or dark scheme. Every
mark has a `<title>`, which browsers show on hover and screen readers read out.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from estimator.display import shorten

__all__ = ["Bar", "Point", "Roof", "escape", "layer_columns", "legend", "roofline", "stacked_bars"]

_WIDTH = 1080
_LETTER = 7.0  # width of an average letter of the chart's text
_ROW = 58


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One stacked bar: what it is called, a remark behind it, and sizes by part."""

    label: str
    remark: str
    parts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What a device promises: FLOP/s by label of the types that share it, and bytes per second.

    `sustained` are the FLOP/s and bytes per second that real runs reach, for the types in use.
    """

    peaks: Mapping[str, float]
    bandwidth: float
    sustained: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A phase of a model on the roofline: FLOP per byte, FLOP/s with their interval, and its colour's number."""

    label: str
    shape: str
    colour: int
    intensity: float
    rate: float
    low: float
    high: float
    note: str


def escape(text: object) -> str:
    """Text as HTML and SVG show it, whatever it holds."""
    return html.escape(str(text), quote=True)


def legend(colours: Mapping[str, int]) -> str:
    """The names of parts with their colours."""
    items = (f'<span><i class="c{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    return f'<p class="legend">{"".join(items)}</p>'


def stacked_bars(
    bars: Sequence[Bar], colours: Mapping[str, int], unit: str, limits: Mapping[str, float], title: str
) -> str:
    """Horizontal bars on one scale; `limits` are lines across them, such as a device's memory."""
    totals = [sum(bar.parts.values()) for bar in bars]
    most = max([*totals, *limits.values(), 1]) * 1.02
    top, bottom = 30 if limits else 6, 34
    height = top + _ROW * len(bars) + bottom
    scale = (_WIDTH - 20) / most
    marks: list[str] = []
    for tick in _ticks(most):
        x = 10 + tick * scale
        marks.append(_line(x, top, x, height - bottom, "grid"))
        marks.append(_text(x, height - 12, shorten(tick, unit) if tick else "0", "tick", _anchor(x)))
    for row, (bar, total) in enumerate(zip(bars, totals, strict=True)):
        y = top + _ROW * row
        remark = f'<tspan dx="10" class="tick">{escape(shorten(total, unit) + bar.remark)}</tspan>'
        marks.append(f'<text x="10" y="{y + 15}"><tspan class="name">{escape(bar.label)}</tspan>{remark}</text>')
        marks += _segments(bar, colours, unit, y + 22, scale)
    for name, value in limits.items():
        x = 10 + value * scale
        marks.append(_line(x, top - 8, x, height - bottom, "limit", f"{name}: {shorten(value, unit)}"))
        marks.append(_text(x, 14, f"{name} {shorten(value, unit)}", "limit", "end" if x > 260 else "start"))
    return _svg(height, title, marks)


def _segments(bar: Bar, colours: Mapping[str, int], unit: str, y: float, scale: float) -> Iterable[str]:
    start, total = 10.0, max(sum(bar.parts.values()), 1)
    for part, size in bar.parts.items():
        if not size:
            continue
        width = size * scale
        note = f"{bar.label}, {part}: {shorten(size, unit)} ({size:,}), {size / total:.1%}"
        yield _rect(start, y, width, 26, f"c{colours[part]}", note)
        shown = f"{part} {shorten(size, unit)}"
        if width > (len(shown) + 2) * _LETTER:
            yield _text(start + 8, y + 18, shown, "inside")
        start += width


def layer_columns(layers: Sequence[Mapping[str, int]], colours: Mapping[str, int], title: str) -> str:
    """One column per layer, parameters by part; layer numbers below."""
    top, bottom, left, height = 12, 30, 64, 190
    most = max((sum(layer.values()) for layer in layers), default=0) or 1
    inner = height - top - bottom
    step = (_WIDTH - left - 10) / max(len(layers), 1)
    marks: list[str] = []
    for tick in _ticks(most, 3):
        y = height - bottom - tick / most * inner
        marks.append(_line(left, y, _WIDTH - 10, y, "grid"))
        marks.append(_text(left - 8, y + 4, shorten(tick, "") if tick else "0", "tick", "end"))
    for index, layer in enumerate(layers):
        y, x = float(height - bottom), left + index * step
        for part, count in layer.items():
            tall = count / most * inner
            y -= tall
            if count:
                note = f"layer {index}, {part}: {count:,} parameters"
                marks.append(_rect(x + step * 0.08, y, step * 0.84, tall, f"c{colours[part]}", note))
        if index % max(1, math.ceil(28 / step)) == 0:
            marks.append(_text(x + step / 2, height - 12, str(index), "tick", "middle"))
    return _svg(height, title, marks)


def roofline(roof: Roof, points: Sequence[Point], title: str) -> str:
    """FLOP/s over FLOP per byte, both logarithmic: the device's roofs, and the points under them with intervals."""
    plane = _plane(roof, points)
    marks = [*plane.grid(), *_roof_marks(roof, plane)]
    taken = [(plane.right - 150, plane.right, plane.y(peak) - 6) for peak in roof.peaks.values()]
    for point in sorted(points, key=lambda point: -point.rate):
        x, y = plane.x(point.intensity), plane.y(point.rate)
        marks.append(_line(x, plane.y(point.high), x, plane.y(point.low), f"whisker s{point.colour}"))
        marks.append(_marker(point, x, y))
        wide = len(point.label) * 1.15 * _LETTER
        start = x - 12 - wide if x + wide + 12 > plane.right else x + 12
        label_y = _free(taken, start, start + wide, y + 4)
        marks.append(_text(start, label_y, point.label, f"name halo t{point.colour}"))
    return _svg(plane.height, title, marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """Logarithmic axes in decades, and where a value stands between them."""

    decades: tuple[int, int, int, int]  # of x from and to, of y from and to
    left: float = 96
    right: float = _WIDTH - 16
    top: float = 14
    bottom: float = 466
    height: int = 520

    def x(self, value: float) -> float:
        low, high = self.decades[:2]
        return self.left + (math.log10(value) - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.decades[2:]
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return self.bottom - share * (self.bottom - self.top)

    def grid(self) -> Iterable[str]:
        for decade in range(self.decades[0], self.decades[1] + 1):
            x = self.x(10.0**decade)
            yield _line(x, self.top, x, self.bottom, "grid")
            label = f"{10.0**decade:,.0f}" if decade >= 0 else f"{10.0**decade:g}"
            yield _text(x, self.bottom + 18, label, "tick", _anchor(x))
        for decade in range(self.decades[2], self.decades[3] + 1):
            y = self.y(10.0**decade)
            yield _line(self.left, y, self.right, y, "grid")
            yield _text(self.left - 8, y + 4, shorten(10.0**decade, "FLOP/s"), "tick", "end")
        yield _text(
            (self.left + self.right) / 2, self.height - 8, "arithmetic intensity, FLOP per byte", "tick", "middle"
        )


def _plane(roof: Roof, points: Sequence[Point]) -> _Plane:
    ridges = [peak / roof.bandwidth for peak in roof.peaks.values()]
    intensities = [*(point.intensity for point in points), *ridges]
    lowest = min([*(point.low for point in points), *(min(roof.peaks.values()) / 10,)])
    return _Plane(
        decades=(
            math.floor(math.log10(min(intensities) / 2)),
            math.ceil(math.log10(max(intensities) * 3)),
            math.floor(math.log10(lowest)),
            math.ceil(math.log10(max(roof.peaks.values()) * 1.2)),
        )
    )


def _roof_marks(roof: Roof, plane: _Plane) -> Iterable[str]:
    least, most = 10.0 ** plane.decades[0], 10.0 ** plane.decades[1]
    highest = max(roof.peaks.values())
    start, end = max(least, 10.0 ** plane.decades[2] / roof.bandwidth), highest / roof.bandwidth
    x1, y1, x2, y2 = plane.x(start), plane.y(start * roof.bandwidth), plane.x(end), plane.y(highest)
    note = f"memory bandwidth {shorten(roof.bandwidth, 'B/s')}"
    yield _line(x1, y1, x2, y2, "roof", note)
    x, y = x1 + 0.3 * (x2 - x1), y1 + 0.3 * (y2 - y1)
    turn = f'transform="rotate({math.degrees(math.atan2(y2 - y1, x2 - x1)):.1f} {x:.1f} {y:.1f})"'
    yield f'<text x="{x:.1f}" y="{y - 8:.1f}" class="roof-label" text-anchor="middle" {turn}>{escape(note)}</text>'
    for label, peak in roof.peaks.items():
        y = plane.y(peak)
        text = f"{label} {shorten(peak, 'FLOP/s')}"
        yield _line(plane.x(peak / roof.bandwidth), y, plane.x(most), y, "roof", f"peak of {text}")
        yield _text(plane.right - 6, y - 6, text, "roof-label", "end")
    rate, bandwidth = roof.sustained
    start = max(least, 10.0 ** plane.decades[2] / bandwidth)
    note = f"what real runs sustain: {shorten(rate, 'FLOP/s')}, {shorten(bandwidth, 'B/s')}"
    ends = [(start, start * bandwidth), (rate / bandwidth, rate), (most, rate)]
    path = " ".join(f"{plane.x(a):.1f},{plane.y(b):.1f}" for a, b in ends)
    yield f'<polyline points="{path}" class="sustained"><title>{escape(note)}</title></polyline>'


def _marker(point: Point, x: float, y: float) -> str:
    note = f"<title>{escape(point.note)}</title>"
    if point.shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" class="mark c{point.colour}">{note}</circle>'
    corners = f"{x:.1f},{y - 9:.1f} {x + 9:.1f},{y:.1f} {x:.1f},{y + 9:.1f} {x - 9:.1f},{y:.1f}"
    return f'<polygon points="{corners}" class="mark c{point.colour}">{note}</polygon>'


def _free(taken: list[tuple[float, float, float]], start: float, end: float, y: float) -> float:
    """The nearest height at or below y at which a label covers none of those that are there."""
    while any(start < right and end > left and abs(other - y) < 15 for left, right, other in taken):
        y += 3
    taken.append((start, end, y))
    return y


def _ticks(most: float, number: int = 6) -> list[float]:
    """Round values from 0 to at most `most`, about `number` of them."""
    raw = most / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    return [index * step for index in range(int(most / step) + 1)]


def _anchor(x: float) -> str:
    return "start" if x < 40 else "end" if x > _WIDTH - 40 else "middle"


def _svg(height: float, title: str, marks: Iterable[str]) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return f'<div class="scroll">{head}{"".join(marks)}</svg></div>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, note: str = "") -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"'
    return f"<line {place}><title>{escape(note)}</title></line>" if note else f"<line {place}/>"


def _rect(x: float, y: float, width: float, height: float, kind: str, note: str) -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.6):.2f}" height="{max(height, 0.6):.2f}"'
    return f'<rect {place} class="part {kind}"><title>{escape(note)}</title></rect>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
