"""Hugging Face checkpoints: a folder with config.json and model.safetensors, written and read.

A config that a stock class computes exactly is written as that class. Any other is written in our own format, with the
modules that trained it beside a small modelling file; transformers loads it with trust_remote_code=True.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.errors import CorruptFileError
from estimator.hf_config import hf_family, stock_values
from estimator.hf_names import from_hf_state_dict, to_hf_state_dict
from estimator.readers.huggingface import NATIVE_MODEL_TYPE
from estimator.readers.source import read_source
from estimator.weights import check_weights

__all__ = ["from_hf_state_dict", "hf_family", "read_checkpoint", "to_hf_state_dict", "write_checkpoint"]

Weights = dict[str, NDArray[np.float32]]
_WEIGHTS_NAME = "model.safetensors"
_MODELING = "modeling_archfront"
_SHIPPED_MODULES = ("config", "errors", "model", "rotary")  # what the modelling file imports, and what that imports
_NATIVE_PREFIX = "model."  # the modelling file's name for the whole module
_NATIVE_CLASSES = {
    "causal_lm": ("AutoModelForCausalLM", "ArchfrontForCausalLM"),
    "masked_lm": ("AutoModelForMaskedLM", "ArchfrontForMaskedLM"),
    "pooler": ("AutoModel", "ArchfrontModel"),
    "none": ("AutoModel", "ArchfrontModel"),
}


def write_checkpoint(config: TransformerConfig, weights: Mapping[str, NDArray[Any]], folder: str | Path) -> None:
    """Writes config.json and model.safetensors (fp32) into `folder`, and code for transformers where it needs some.

    Raises:
        BuildError: a weight is missing, unknown or of the wrong shape.
        OSError: the folder cannot be written, or its disk is full; files written so far stay.
    """
    from safetensors.numpy import save

    folder, values = Path(folder), stock_values(config)
    weights = check_weights(config, weights)
    if values is None:
        values, state_dict = _native_values(config), {f"{_NATIVE_PREFIX}{name}": w for name, w in weights.items()}
    else:
        state_dict = to_hf_state_dict(config, weights)
    folder.mkdir(parents=True, exist_ok=True)
    if values["model_type"] == NATIVE_MODEL_TYPE:
        _write_modules(folder)
    (folder / _WEIGHTS_NAME).write_bytes(save(state_dict, metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(folder: str | Path) -> tuple[TransformerConfig, Weights]:
    """The config and the weights, by our names and as fp32, of a checkpoint of a known family or of our own format.

    Raises:
        InputError: the folder holds no config.json that can be read; see `read_source`.
        CorruptFileError: model.safetensors is missing or damaged.
        BuildError: a weight is missing, unknown or of the wrong shape.
    """
    source = read_source(folder)
    state_dict = _load(Path(folder) / _WEIGHTS_NAME)
    if source.hf_class in {name for _, name in _NATIVE_CLASSES.values()}:
        own = {name.removeprefix(_NATIVE_PREFIX): values for name, values in state_dict.items()}
        return source.config, check_weights(source.config, own)
    return source.config, check_weights(source.config, from_hf_state_dict(source.config, state_dict))


def _native_values(config: TransformerConfig) -> dict[str, Any]:
    auto_class, own_class = _NATIVE_CLASSES[config.head]
    auto_map = {"AutoConfig": f"{_MODELING}.ArchfrontConfig", auto_class: f"{_MODELING}.{own_class}"}
    header = {"model_type": NATIVE_MODEL_TYPE, "architectures": [own_class], "auto_map": auto_map, "dtype": "float32"}
    return header | config.to_dict()


def _write_modules(folder: Path) -> None:
    """The modelling file, and our own modules that it imports, with their imports made relative."""
    package = resources.files("estimator")
    template = package.joinpath(f"{_MODELING}.py.txt").read_text(encoding="utf-8")
    (folder / f"{_MODELING}.py").write_text(template, encoding="utf-8")
    for name in _SHIPPED_MODULES:
        text = package.joinpath(f"{name}.py").read_text(encoding="utf-8")
        (folder / f"{name}.py").write_text(re.sub(r"\bfrom estimator\.", "from .", text), encoding="utf-8")


def _load(path: Path) -> Weights:
    """All tensors of a safetensors file as fp32; NumPy has no bf16, whose bits are the upper half of an fp32."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise CorruptFileError(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is not a safetensors file: {error}") from error
    state_dict = {}
    for name, entry in entries:
        if entry["dtype"] not in _READERS:
            raise CorruptFileError(f"{path}: {name} has type {entry['dtype']}; {', '.join(_READERS)} can be read")
        state_dict[name] = _READERS[entry["dtype"]](entry["data"]).reshape(entry["shape"])
    return state_dict


_READERS: dict[str, Callable[[bytes], NDArray[np.float32]]] = {
    "F32": lambda data: np.frombuffer(data, "<f4"),
    "F16": lambda data: np.frombuffer(data, "<f2").astype(np.float32),
    "BF16": lambda data: (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32),
}
