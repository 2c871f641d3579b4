"""Trials as rows for people: the architecture in one line, figures with units, intervals and origins.

The terminal's table, the report and the card of an exported model all show these rows. Numbers stay in base units
everywhere else; this is the edge where they become milliseconds and megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.objectives import OBJECTIVES, Objective
from nas.records import TrialRecord
from nas.spec import QualitySettings, StudySpec

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Scale",
    "best_trials",
    "column_of",
    "describe_config",
    "describe_weights",
    "format_figure",
    "format_value",
    "front_rows",
    "scale_of",
    "table_columns",
]

_STANDARD = ("params", "bits_per_byte", "prefill_latency_s", "decode_latency_s", "peak_memory_bytes", "file_bytes")
_NORMS = {"rms_norm": "rms", "layer_norm": "layer norm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A unit for display: `suffix`, which is worth `factor` base units."""

    factor: float
    suffix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure of the table: its name in `nas.objectives`, its heading, and its base unit."""

    name: str
    label: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure as shown: all parts are empty when it was not observed."""

    figure: Figure | None = None
    text: str = ""
    interval: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trial as shown; `cells` are in the order of the columns."""

    trial: int
    architecture: str
    cells: tuple[Cell, ...]


# Largest first; the last one also takes everything smaller.
_SCALES: dict[str, tuple[Scale, ...]] = {
    "": tuple(Scale(factor=f, suffix=s) for f, s in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1.0, ""))),
    "s": tuple(Scale(factor=f, suffix=s) for f, s in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))),
    "bytes": tuple(Scale(factor=f, suffix=s) for f, s in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))),
    "flops": tuple(
        Scale(factor=f, suffix=f"{s}FLOPs") for f, s in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"), (1.0, ""))
    ),
}
_PLAIN = Scale(factor=1.0, suffix="")


def scale_of(value: float, unit: str) -> Scale:
    """The unit in which a value given in base units (s, bytes, flops, bits or a count) reads best."""
    scales = _SCALES.get(unit, (_PLAIN,))
    rounded = abs(float(f"{value:.3g}"))  # as it will be shown, so that 999,999 is 1.00M and not 1,000K
    return next((scale for scale in scales if rounded >= scale.factor), scales[-1])


def format_value(value: float, unit: str) -> str:
    """A value in base units with its unit: 0.00123 and s give "1.23 ms"."""
    return _in_scale(value, scale_of(value, unit), unit)


def format_figure(figure: Figure, unit: str) -> str:
    """A figure with its interval: "1.23 ms [1.19, 1.30]"."""
    interval = _interval(figure, unit)
    return f"{format_value(figure.value, unit)} {interval}".rstrip()


def describe_config(config: TransformerConfig) -> str:
    """The architecture in one line: "4L x 128, 4/2 heads, ffn 256-512, rms, gated silu"."""
    layers = config.layers
    heads = _range(layer.num_attention_heads for layer in layers)
    key_value_heads = _range(layer.num_key_value_heads for layer in layers)
    parts = [
        f"{config.num_hidden_layers}L x {config.hidden_size}",
        f"{heads} heads" if heads == key_value_heads else f"{heads}/{key_value_heads} heads",
        f"ffn {_range(layer.intermediate_size for layer in layers)}",
        _NORMS[config.norm_type] + (" after" if config.norm_placement == "post" else ""),
        f"{'gated' if config.gated_mlp else 'plain'} {config.hidden_act}",
        *_extras(config),
    ]
    return ", ".join(parts)


def describe_weights(settings: QualitySettings) -> str:
    """Where a trial's weights come from: only `train` trains them."""
    return "trained" if settings.evaluator == "train" else f"random, from seed {settings.seed}; nothing was trained"


def table_columns(spec: StudySpec) -> tuple[Column, ...]:
    """The figures that every table shows, and those of a study's own objectives that are not among them."""
    names = dict.fromkeys((*_STANDARD, *(objective.name for objective in spec.objectives)))
    return tuple(column_of(name, spec) for name in names)


def front_rows(trials: Iterable[TrialRecord], columns: Sequence[Column]) -> tuple[Row, ...]:
    """One row for each trial, in the order given."""
    return tuple(
        Row(
            trial=trial.number,
            architecture=describe_config(trial.config),
            cells=tuple(_cell(trial.figures.get(column.name), column.unit) for column in columns),
        )
        for trial in trials
    )


def best_trials(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[tuple[Objective, TrialRecord]]:
    """The best complete trial of each objective that has been observed."""
    best = []
    for objective in objectives:
        observed = [trial for trial in trials if trial.state == "complete" and objective.name in trial.figures]
        if observed:
            sign = 1 if objective.minimized else -1
            best.append((objective, min(observed, key=lambda trial: sign * trial.figures[objective.name].value)))
    return best


def column_of(name: str, spec: StudySpec | None = None) -> Column:
    """The column of a figure; one that is told from outside shows its own name.

    In a study of encoders that are trained, bits per byte are of bytes behind a mask, and are called so.
    """
    info = OBJECTIVES.get(name)
    if info is None:
        return Column(name=name, label=name.replace("_", " "), unit="number")
    masked = name == "bits_per_byte" and spec is not None and _scores_masks(spec)
    return Column(name=name, label=f"masked {info.label}" if masked else info.label, unit=info.unit)


def _scores_masks(spec: StudySpec) -> bool:
    return spec.space.architecture == "encoder" and spec.quality.evaluator == "train"


def _cell(figure: Figure | None, unit: str) -> Cell:
    if figure is None:
        return Cell()
    return Cell(
        figure=figure, text=format_value(figure.value, unit), interval=_interval(figure, unit), origin=figure.origin
    )


def _interval(figure: Figure, unit: str) -> str:
    """Both ends in the unit of the value; empty without an interval."""
    if figure.low is None or figure.high is None:
        return ""
    scale = scale_of(figure.value, unit)
    low, high = (_digits(bound, scale, unit) for bound in (figure.low, figure.high))
    return f"[{low}, {high}]"


def _in_scale(value: float, scale: Scale, unit: str) -> str:
    # A count's letter follows its digits (1.24M), a unit of measurement is a word of its own (1.24 MB).
    gap = " " if scale.suffix and unit else ""
    return f"{_digits(value, scale, unit)}{gap}{scale.suffix}"


def _digits(value: float, scale: Scale, unit: str) -> str:
    """Three significant digits, four where there are no scales (bits per byte differ little); 17 bytes stay 17."""
    number = value / scale.factor
    if unit in ("", "bytes") and scale.factor == 1 and number == int(number):
        return f"{number:.0f}"
    significant = 3 if unit in _SCALES else 4
    text = f"{number:#.{significant}g}"
    if "e" in text:
        return f"{number:.{significant}g}" if abs(number) < 1 else f"{number:,.0f}"
    return text.removesuffix(".")


def _range(sizes: Iterable[int]) -> str:
    sizes = set(sizes)
    return str(min(sizes)) if len(sizes) == 1 else f"{min(sizes)}-{max(sizes)}"


def _extras(config: TransformerConfig) -> list[str]:
    """What only some networks have."""
    layers = config.layers
    owned = sum(layer.owns_weights for layer in layers)
    windows = {layer.sliding_window for layer in layers} - {None}
    extras = {
        f"{owned} stored {'layer' if owned == 1 else 'layers'}": owned < len(layers),
        f"window {_range(size for size in windows if size is not None)}" if windows else "": bool(windows),
        f"{config.position_embedding} positions": config.position_embedding != "rotary",
        "query-key norm": config.qk_norm,
        "biases": config.attention_bias or config.attention_output_bias or config.mlp_bias,
        "untied": not config.tie_word_embeddings,
    }
    return [text for text, present in extras.items() if present]
