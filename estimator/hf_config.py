"""Which Hugging Face class computes a config exactly, and the config.json that it has there."""

from __future__ import annotations

import json
from typing import Any

from estimator.config import TransformerConfig
from estimator.errors import InputError
from estimator.readers.buildable_families import FAMILIES, Family
from estimator.readers.huggingface import read_config

__all__ = ["hf_family", "stock_values"]


def hf_family(config: TransformerConfig) -> str | None:
    """The model type whose stock class computes exactly this config, or None.

    A family fits when the config.json that it would have is read back as this very config.
    """
    values = stock_values(config)
    return None if values is None else values["model_type"]


def stock_values(config: TransformerConfig) -> dict[str, Any] | None:
    """Content of the config.json of the stock class that computes exactly this config, or None."""
    for model_type, family in FAMILIES.items():
        try:
            values = _values(config, model_type, family)
            if values is not None and read_config(values)[0] == config:
                return values
        except InputError:
            continue
    return None


def _values(config: TransformerConfig, model_type: str, family: Family) -> dict[str, Any] | None:
    classes = [name for name, head in family.heads.items() if head == config.head]
    if not classes or (model_type == "bert" and not config.type_vocab_size):  # BERT looks token types up in any case
        return None
    values: dict[str, Any] = {"model_type": model_type, "architectures": [classes[0]], "dtype": "float32"}
    # the defaults of some families are not in a small vocabulary
    values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    values |= {name: getattr(config, family.fields[name]) for name in family.defaults if name in family.fields}
    values |= {name: getattr(config, name) for name in ("attention_bias",) if family.bias_fields}
    return values | _rope(config, family) | _windows(config, family)


def _rope(config: TransformerConfig, family: Family) -> dict[str, Any]:
    if config.rope_scaling is None or "rope_theta" not in family.fields:
        return {}
    return {"rope_scaling": json.loads(config.rope_scaling)}


def _windows(config: TransformerConfig, family: Family) -> dict[str, Any]:
    windows = [layer.sliding_window for layer in config.layers]
    if family.windows == "all":
        return {"sliding_window": windows[0]}
    if family.windows == "none" or not any(windows):
        return {}
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    window = next(window for window in windows if window is not None)
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds}
