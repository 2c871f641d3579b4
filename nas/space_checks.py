"""Reading and checking a search space, so that whatever passes cannot fail later in a search."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from estimator.config import MAX_LAYERS, TransformerConfig
from nas.errors import SpaceError

__all__ = ["CHOOSABLE", "PER_LAYER", "WEIGHT_SHARING", "check_space", "read_toml"]

WEIGHT_SHARING = ("none", "pairs", "all")
# Fields that may be chosen, in the order of the dimensions; the first two decide which per-layer dimensions exist.
CHOOSABLE = (
    "num_hidden_layers",
    "weight_sharing",
    "hidden_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "hidden_act",
    "gated_mlp",
    "norm_type",
    "norm_placement",
    "position_embedding",
    "qk_norm",
    "attention_bias",
    "attention_output_bias",
    "mlp_bias",
    "sliding_window",
    "embedding_norm",
    "tie_word_embeddings",
)
PER_LAYER = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "sliding_window")

_MAX_CHOICES = 1000  # per field; a finite choice, not a range in disguise
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "sliding_window",
)
_WORDS = ("weight_sharing", "hidden_act", "norm_type", "norm_placement", "position_embedding")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a space's TOML file, "none" read as None where a field is optional.

    Raises:
        SpaceError: the file cannot be read or is no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpaceError(f"{path} is not a TOML file: it is not UTF-8 text") from error
    except OSError as error:
        raise SpaceError(f"cannot read the space {path}: {error.strerror or error}") from error
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpaceError(f"{path} is not valid TOML: {error}") from error
    for table in ("base", "choices"):
        if isinstance(values.get(table), dict):
            values[table] = {name: _without_none(name, value) for name, value in values[table].items()}
    return {"name": path.stem.lower(), "base": {}, **values}


def _without_none(name: str, value: Any) -> Any:
    if name.removesuffix("_per_layer") != "sliding_window":
        return value
    if isinstance(value, list):
        return [None if entry == "none" else entry for entry in value]
    return None if value == "none" else value


def check_space(name: object, choices: object, base: object) -> None:
    """Raises SpaceError for what is wrong with the tables as such; single values are tried by `SearchSpace`."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise SpaceError(f"a space's name has lower case letters, digits, dots, - and _, not {name!r}")
    if not isinstance(base, Mapping) or not isinstance(choices, Mapping):
        raise SpaceError("base and choices must each be a table of fields")
    if not choices:
        raise SpaceError("choices is empty; give at least one field a list of choices")
    for field, values in choices.items():
        _check_choice(field, values)
    _check_base(base, choices)
    _check_together(base, choices)


def _check_choice(field: object, values: object) -> None:
    plain = str(field).removesuffix("_per_layer")
    if plain not in CHOOSABLE or (plain != field and plain not in PER_LAYER):
        known = ", ".join((*CHOOSABLE, *(f"{name}_per_layer" for name in PER_LAYER)))
        raise SpaceError(f"unknown field {field!r} in choices; fields that can be chosen: {known}")
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= _MAX_CHOICES:
        raise SpaceError(f"choices of {field} must be a list of 1 to {_MAX_CHOICES} values, not {values!r}")
    for value in values:
        _check_type(str(field), plain, value)
    if len(set(values)) != len(values):
        raise SpaceError(f"choices of {field} name a value twice: {list(values)!r}")


def _check_type(field: str, plain: str, value: object) -> None:
    if plain in _SIZES:
        right = (isinstance(value, int) and not isinstance(value, bool) and value >= 1) or (
            value is None and plain == "sliding_window"
        )
        wanted = "positive integers" + (' or "none"' if plain == "sliding_window" else "")
        if plain == "num_hidden_layers":  # before a tuple of so many is built
            right, wanted = right and isinstance(value, int) and value <= MAX_LAYERS, f"from 1 to {MAX_LAYERS}"
    elif plain in _WORDS:
        right, wanted = isinstance(value, str), "words"
        if plain == "weight_sharing":
            right, wanted = value in WEIGHT_SHARING, f"among {', '.join(WEIGHT_SHARING)}"
    else:
        right, wanted = isinstance(value, bool), "true or false"
    if not right:
        raise SpaceError(f"choices of {field} must be {wanted}, not {value!r}")


def _check_base(base: Mapping[Any, Any], choices: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(TransformerConfig) if not field.name.endswith("_per_layer")}
    for field in base:
        if field not in known:
            raise SpaceError(f"unknown field {field!r} in base; known fields: {', '.join(sorted(known))}")
        if field in choices or f"{field}_per_layer" in choices:
            raise SpaceError(f"{field} stands in base and in choices; keep one")
    for field in PER_LAYER:
        if field in choices and f"{field}_per_layer" in choices:
            raise SpaceError(f"choices has both {field} and {field}_per_layer; keep one")


def _check_together(base: Mapping[str, Any], choices: Mapping[str, Any]) -> None:
    """Refuses the combinations that repairing head counts cannot make valid."""
    has_head_dim = base.get("head_dim") is not None or "head_dim" in choices
    if "num_attention_heads_per_layer" in choices and not has_head_dim:
        raise SpaceError("num_attention_heads_per_layer needs head_dim, in base or in choices")
    positions = choices.get("position_embedding", (base.get("position_embedding", "rotary"),))
    if "rotary" in positions:
        field = "head_dim" if has_head_dim else "hidden_size"
        for value in choices.get(field, (base.get(field),)):
            if isinstance(value, int) and value % 2:
                raise SpaceError(f"rotary positions need even values of {field}, not {value}")
