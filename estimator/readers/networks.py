"""A Hugging Face config.json as a network, without importing torch or transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from estimator.config import show
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Network
from estimator.readers.decoder_families import DECODERS
from estimator.readers.decoders import decoder_network
from estimator.readers.encoder_families import READERS as ENCODER_READERS
from estimator.readers.family_data import FamilyData, family_data
from estimator.readers.fields import Fields
from estimator.readers.hybrid_families import READERS as HYBRID_READERS

__all__ = ["network_families", "read_network"]

Reader = Callable[[Fields], Network]


@functools.cache
def network_families() -> Mapping[str, Reader]:
    """The function that lays out each model type that can be read."""
    decoders = {name: functools.partial(decoder_network, facts=facts) for name, facts in DECODERS.items()}
    return {**decoders, **ENCODER_READERS, **HYBRID_READERS}


def read_network(values: Mapping[str, Any]) -> tuple[Network, str, tuple[str, ...]]:
    """The network, the class that config.json names (or means), and warnings.

    Raises:
        UnsupportedModelError: names the model type or class, and what is supported.
        ConfigError: names the field that is unknown, wrong, or could change a size in a way that is not known here.
    """
    model_type = values.get("model_type")
    data = family_data(model_type) if isinstance(model_type, str) else None
    reader = network_families().get(model_type) if isinstance(model_type, str) else None
    if data is None or reader is None:
        if model_type is None:
            raise UnsupportedModelError("config.json names no model_type; add one, such as llama")
        raise UnsupportedModelError(f"model_type {show(model_type)} is not supported")
    hf_class, warnings = _choose_class(data, values)
    fields = Fields(values, data, task=data.classes[hf_class])
    network = reader(fields)
    fields.check_all_read()
    return network, hf_class, (*warnings, *fields.warnings)


def _choose_class(data: FamilyData, values: Mapping[str, Any]) -> tuple[str, list[str]]:
    names = values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > 1:
        raise ConfigError("architectures must be a list with one class name", field="architectures")
    if not names:
        if data.default_class is None:
            raise UnsupportedModelError(f"model_type {data.model_type} has no class of its own")
        return data.default_class, [f"config.json names no class in architectures; read as {data.default_class}"]
    if names[0] not in data.classes:
        raise UnsupportedModelError(
            f"class {show(names[0])} is not supported for model_type {data.model_type}; "
            f"supported are {', '.join(data.classes)}"
        )
    return names[0], []
