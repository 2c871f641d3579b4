"""A Hugging Face config.json of a known family, or one of ours, into `TransformerConfig`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from estimator.config import TransformerConfig, show
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.readers.buildable_families import BOOKKEEPING, COMMON_REQUIRED, FAMILIES, Family

__all__ = ["NATIVE_MODEL_TYPE", "read_config", "read_dtype"]

NATIVE_MODEL_TYPE = "archfront"  # our own format: the other fields are those of TransformerConfig
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_ACTIVATION_NAMES = {"swish": "silu", "gelu_fast": "gelu_new"}  # other names of the same function


def read_config(values: Mapping[str, Any]) -> tuple[TransformerConfig, str | None, tuple[str, ...]]:
    """The config, the class that config.json names (or means), and warnings.

    Raises:
        UnsupportedModelError: names the model type or class, and those that are supported.
        ConfigError: names the field that is unknown, wrong, or asks for what cannot be represented exactly.
    """
    model_type = values.get("model_type")
    if model_type == NATIVE_MODEL_TYPE:
        return _read_native(values), _named_class(values), ()
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join((*FAMILIES, NATIVE_MODEL_TYPE))
        what = "names no model_type" if model_type is None else f"has model_type {show(model_type)}"
        raise UnsupportedModelError(f"config.json {what}; those that can be built are {supported}")
    family = FAMILIES[model_type]
    hf_class, warnings = _choose_class(family, values)
    _check_fields(model_type, family, values)
    fields = _renamed(family, values) | dict(family.facts)
    fields |= _biases(family, values) | _rope(family, values) | _windows(family, values, fields["num_hidden_layers"])
    fields["head"] = family.heads[hf_class]
    if fields["head"] == "none" or fields["head"] == "pooler":
        fields["tie_word_embeddings"] = True  # there is nothing to tie
    elif not fields["tie_word_embeddings"] and not family.may_untie:
        raise ConfigError(
            f"tie_word_embeddings false is not supported for {hf_class}: it would have a second bias",
            field="tie_word_embeddings",
        )
    return TransformerConfig(**fields), hf_class, warnings


def read_dtype(values: Mapping[str, Any]) -> str | None:
    """The number type that config.json, or else its text_config, names (fp32, fp16, bf16), or None.

    How quantised weights are stored beside it says `quantization_config.read_quantization`.

    Raises:
        ConfigError: the type is none of these, or dtype and torch_dtype name two.
    """
    named = [_dtype(name, values[name]) for name in ("dtype", "torch_dtype") if values.get(name) is not None]
    found = {dtype for dtype in named if dtype is not None}
    if len(found) > 1:
        raise ConfigError(
            f"dtype {show(values['dtype'])} contradicts torch_dtype {show(values['torch_dtype'])}", field="dtype"
        )
    inner = values.get("text_config")
    if not named and isinstance(inner, Mapping):
        return read_dtype({name: inner.get(name) for name in ("dtype", "torch_dtype")})
    return found.pop() if found else None


def _dtype(field: str, name: object) -> str | None:
    if name == "auto":
        return None
    short = name.removeprefix("torch.") if isinstance(name, str) else ""
    if short not in _DTYPES:
        raise ConfigError(f"{field} must be one of {', '.join(_DTYPES)}, not {show(name)}", field=field)
    return _DTYPES[short]


def _read_native(values: Mapping[str, Any]) -> TransformerConfig:
    own = {name: value for name, value in values.items() if name not in BOOKKEEPING and name != "auto_map"}
    for name in COMMON_REQUIRED:
        if name in own:
            _check_required(NATIVE_MODEL_TYPE, name, own.pop(name), COMMON_REQUIRED[name])
    return TransformerConfig.from_dict(own)


def _named_class(values: Mapping[str, Any]) -> str | None:
    names = values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > 1:
        raise ConfigError("architectures must be a list with one class name", field="architectures")
    return names[0] if names else None


def _choose_class(family: Family, values: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    name = _named_class(values)
    if name is None:
        first = next(iter(family.heads))
        return first, (f"config.json names no class in architectures; read as {first}",)
    if name not in family.heads:
        raise UnsupportedModelError(
            f"class {show(name)} is not supported for model_type {values['model_type']}; "
            f"supported are {', '.join(family.heads)}"
        )
    return name, ()


def _check_fields(model_type: str, family: Family, values: Mapping[str, Any]) -> None:
    """Every field must be one that is read, one with the only possible value, or one known to change no size."""
    required = COMMON_REQUIRED | dict(family.required)
    for name, value in values.items():
        if name in family.fields or name in family.irrelevant or name in BOOKKEEPING:
            continue
        if name == "attention_bias" and family.bias_fields:
            continue
        if name not in required:
            raise ConfigError(
                f"field {show(name)} is not known for model_type {model_type} and could change its size",
                field=name,
            )
        _check_required(model_type, name, value, required[name])


def _check_required(model_type: str, name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        shown = " or ".join(json.dumps(choice) for choice in allowed)
        raise ConfigError(
            f"{name} {show(value)} is not supported for model_type {model_type}; only {shown} is", field=name
        )


def _renamed(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from theirs; two names of one field may stand together only with the same value."""
    fields: dict[str, Any] = {}
    for name, ours in family.fields.items():
        if name not in values:
            continue
        if ours in fields and fields[ours] != values[name]:
            raise ConfigError(f"{name} contradicts the other name of {ours}", field=name)
        fields[ours] = values[name]
    for name, default in family.defaults.items():
        if name in family.fields:
            fields.setdefault(family.fields[name], default)
    act = fields["hidden_act"]
    fields["hidden_act"] = _ACTIVATION_NAMES.get(act, act) if isinstance(act, str) else act
    hidden = fields["hidden_size"]
    if fields["intermediate_size"] is None and "n_inner" in family.fields and isinstance(hidden, int):
        fields["intermediate_size"] = 4 * hidden  # GPT-2's default
    return fields


def _biases(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    bias = values.get("attention_bias", family.defaults.get("attention_bias"))
    return dict.fromkeys(family.bias_fields, bias)


def _rope(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, from either spelling: rope_scaling, or rope_parameters (transformers 5)."""
    if family.facts.get("position_embedding") != "rotary":
        return {}
    fields: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        table = values.get(name)
        if table is None:
            continue
        if not isinstance(table, dict):
            raise ConfigError(f"{name} must be an object or null, not {show(table)}", field=name)
        scaling = {("rope_type" if key == "type" else key): value for key, value in table.items()}
        if "rope_theta" in scaling:
            fields["rope_theta"] = scaling.pop("rope_theta")
        if scaling.get("rope_type", "default") != "default":
            fields["rope_scaling"] = json.dumps(scaling, sort_keys=True, separators=(",", ":"))
        elif set(scaling) - {"rope_type"}:
            raise ConfigError(f"{name} has {sorted(set(scaling) - {'rope_type'})} but no rope_type", field=name)
    return fields


def _windows(family: Family, values: Mapping[str, Any], num_layers: object) -> dict[str, Any]:
    """Sliding windows: for all layers (mistral), or for those that layer_types or max_window_layers choose (qwen)."""
    if family.windows == "none":
        return {}
    given = dict(family.defaults) | dict(values)
    if family.windows == "all":
        return {"sliding_window": given["sliding_window"]}
    if not isinstance(given["use_sliding_window"], bool):
        raise ConfigError("use_sliding_window must be true or false", field="use_sliding_window")
    window = given["sliding_window"] if given["use_sliding_window"] else None
    if not isinstance(num_layers, int) or not 1 <= num_layers <= 4096:
        return {}  # TransformerConfig names what is wrong with it
    slides = _sliding_layers(given, num_layers, window is not None)
    return {"sliding_window_per_layer": tuple(window if slide else None for slide in slides)}


def _sliding_layers(given: Mapping[str, Any], num_layers: int, has_window: bool) -> list[bool]:
    kinds = given.get("layer_types")
    if kinds is None:
        first = given["max_window_layers"]
        if not isinstance(first, int) or isinstance(first, bool):
            raise ConfigError("max_window_layers must be an integer", field="max_window_layers")
        return [has_window and index >= first for index in range(num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise ConfigError(f"layer_types must be a list of {num_layers} entries, one per layer", field="layer_types")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(
                f"layer_types must hold full_attention or sliding_attention, not {show(kind)}",
                field="layer_types",
            )
    if "sliding_attention" in kinds and not has_window:
        raise ConfigError(
            "layer_types asks for sliding_attention, but no sliding_window is in use", field="layer_types"
        )
    return [kind == "sliding_attention" for kind in kinds]
