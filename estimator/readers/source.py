"""SOURCE of the command line: a config.json, its folder, or the name of a bundled model."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from estimator.config import TransformerConfig
from estimator.errors import ConfigError, CorruptFileError, InputError, UnsupportedModelError
from estimator.network import Network
from estimator.readers.huggingface import NATIVE_MODEL_TYPE, read_config, read_dtype
from estimator.readers.networks import read_network
from estimator.weights import network_of

__all__ = ["ModelSource", "bundled_models", "read_bundled", "read_source", "source_of_values"]

_MAX_FILE_BYTES = 4_000_000  # a thousand times a usual config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that was read: its name, network, weight type and class as far as they were given.

    `buildable` is its config where it can be built and measured here; otherwise `why_not_buildable` says what stands
    against it. `path` is the file that was read, None for a bundled model.
    """

    name: str
    network: Network
    buildable: TransformerConfig | None
    why_not_buildable: str
    dtype: str | None
    hf_class: str | None
    path: Path | None
    warnings: tuple[str, ...]

    @property
    def config(self) -> TransformerConfig:
        """The config to build from.

        Raises:
            UnsupportedModelError: it can be sized, but not built here; the message says why.
        """
        if self.buildable is None:
            raise UnsupportedModelError(f"{self.name} can be sized but not built here: {self.why_not_buildable}")
        return self.buildable


def read_source(source: str | Path) -> ModelSource:
    """Reads a config.json, a folder that holds one, or a bundled model by name, whatever its case.

    Raises:
        InputError: there is no such file, folder or name; the message lists what is near.
        CorruptFileError: the file is not a JSON object.
        ConfigError, UnsupportedModelError: as `read_config`.
    """
    text = str(source)
    path = Path(text)
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except OSError as error:
        raise InputError(f"cannot read {text[:60]!r}: {error.strerror}") from error
    names = bundled_models()
    if is_folder and text and (path / "config.json").is_file():
        return _read_file(path / "config.json", path.resolve().name)
    if is_file:
        return _read_file(path, path.resolve().parent.name if path.name == "config.json" else path.stem)
    if text.lower() in names:
        return read_bundled(text)
    if is_folder and text:
        raise InputError(f"folder {text} holds no config.json")
    if exists and text:
        raise InputError(f"{text} is not a regular file")
    raise InputError(f"{text[:60]!r} is neither a file, a folder nor a bundled model; {_near(text, names)}")


def read_bundled(name: str) -> ModelSource:
    """Reads a bundled model by its name, whatever its case.

    Raises:
        InputError: no such name; the message lists what is near.
    """
    known = name.lower()
    if known not in bundled_models():
        raise InputError(f"{name[:60]!r} is not a bundled model; {_near(name, bundled_models())}")
    text = resources.files("estimator").joinpath("models", f"{known}.json").read_text(encoding="utf-8")
    return _parse(text, known, None)


def source_of_values(values: Mapping[str, Any], name: str) -> ModelSource:
    """The model that the content of a config.json describes.

    Raises:
        ConfigError, UnsupportedModelError: as `read_config`.
    """
    if values.get("model_type") == NATIVE_MODEL_TYPE:
        config, hf_class, warnings = read_config(values)
        network = network_of(config)
        return _model_source(values, name, network, hf_class, warnings, buildable=config)
    network, hf_class, warnings = read_network(values)
    try:
        return _model_source(values, name, network, hf_class, warnings, buildable=read_config(values)[0])
    except InputError as error:
        return _model_source(values, name, network, hf_class, warnings, why_not_buildable=str(error))


def _model_source(
    values: Mapping[str, Any],
    name: str,
    network: Network,
    hf_class: str | None,
    warnings: tuple[str, ...],
    *,
    buildable: TransformerConfig | None = None,
    why_not_buildable: str = "",
) -> ModelSource:
    return ModelSource(
        name=name,
        network=network,
        buildable=buildable,
        why_not_buildable=why_not_buildable,
        dtype=read_dtype(values),
        hf_class=hf_class,
        path=None,
        warnings=warnings,
    )


@functools.cache
def bundled_models() -> tuple[str, ...]:
    """Names of the models whose config.json comes with the package."""
    folder = resources.files("estimator").joinpath("models")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def _near(text: str, names: tuple[str, ...]) -> str:
    import difflib

    close = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"bundled are {', '.join(names)}"


def _read_file(path: Path, name: str) -> ModelSource:
    if path.suffix in (".onnx", ".gguf", ".safetensors"):
        raise InputError(f"{path}: {path.suffix} files are not read; give the model's config.json or its folder")
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CorruptFileError(f"{path} is larger than any config.json: {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not a text file: byte {error.start} is not UTF-8") from error
    return _parse(text, name, path)


def _parse(text: str, name: str, path: Path | None) -> ModelSource:
    where = str(path or name)
    values = _parse_object(text, where)
    try:
        return replace(source_of_values(values, name), path=path)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", field=error.field) from error
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise CorruptFileError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise CorruptFileError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptFileError(f"{where} must hold a JSON object, not a {type(values).__name__}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"field {name!r} stands twice")
        values[name] = value
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
