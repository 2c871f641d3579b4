"""Several models side by side: the figures that a comparison shows, and their ratios to those of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from estimator.display import shorten
from estimator.figures import Figure
from estimator.sizing import Estimate

__all__ = ["FIGURES", "Row", "compared_rows", "figures_of", "fits_word", "show_figure"]

# Name in JSON -> label and unit, in the order in which they are shown.
FIGURES = {
    "params_total": ("parameters", ""),
    "params_active": ("  active per token", ""),
    "params_embedding": ("  embedding", ""),
    "total_bytes": ("memory", "B"),
    "weights_bytes": ("  weights", "B"),
    "kv_cache_bytes": ("  KV cache", "B"),
    "state_bytes": ("  recurrent state", "B"),
    "activations_bytes": ("  activations", "B"),
    "runtime_bytes": ("  runtime", "B"),
    "prefill_flops": ("prefill", "FLOP"),
    "decode_flops_per_token": ("decode, per token", "FLOP"),
    "prefill_s": ("time to first token", "s"),
    "decode_s_per_token": ("time per token", "s"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of all models, None where it is not known; ratios are to the first model that has it."""

    name: str
    label: str
    unit: str
    figures: tuple[Figure | None, ...]
    ratios: tuple[float | None, ...]


def figures_of(result: Estimate) -> dict[str, Figure | None]:
    """The figures of one model by their names in FIGURES; None where there is no such figure."""
    counts = result.params
    found: dict[str, Figure | None] = {
        "params_total": _counted(counts.total),
        "params_active": _counted(counts.active),
        "params_embedding": _counted(counts.embedding),
        "weights_bytes": _counted(result.memory.weights_bytes),
    }
    if result.network.has_only_weights:
        return dict.fromkeys(FIGURES) | {name: found[name] for name in ("params_total", "weights_bytes")}
    for name in ("kv_cache_bytes", "state_bytes", "activations_bytes", "runtime_bytes", "total_bytes"):
        value = getattr(result.memory, name)
        origin = "counted" if name in ("kv_cache_bytes", "state_bytes") else "modelled"
        found[name] = None if value is None else Figure(value=value, origin=origin)
    for name in ("prefill_flops", "decode_flops_per_token"):
        value = getattr(result.compute, name)
        found[name] = None if value is None else _counted(value)
    for name in ("prefill_s", "decode_s_per_token"):
        phase = None if result.latency is None else getattr(result.latency, name)
        found[name] = None if phase is None else phase.time_s
    return found


def compared_rows(results: Sequence[Estimate]) -> list[Row]:
    """Every figure that at least one of the models has, and that says something of its own."""
    columns = [figures_of(result) for result in results]
    rows = []
    for name, (label, unit) in FIGURES.items():
        figures = tuple(column[name] for column in columns)
        if all(figure is None for figure in figures):
            continue
        if name == "state_bytes" and not any(figure is not None and figure.value for figure in figures):
            continue
        if name == "params_active" and figures == tuple(column["params_total"] for column in columns):
            continue
        first = figures[0]
        base = None if first is None or not first.value else first.value
        ratios = tuple(None if figure is None or base is None else figure.value / base for figure in figures)
        rows.append(Row(name=name, label=label, unit=unit, figures=figures, ratios=ratios))
    return rows


def show_figure(figure: Figure | None, unit: str) -> str:
    """The value as people read it; a dash where there is none."""
    return "-" if figure is None else shorten(figure.value, unit)


def fits_word(result: Estimate) -> str:
    """yes, no or not known."""
    return {True: "yes", False: "no", None: "not known"}[result.fits]


def _counted(value: int) -> Figure:
    return Figure(value=value, origin="counted")
