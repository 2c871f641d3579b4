"""SOURCE of the command line: a config.json, its folder, a file of weights, or the name of a bundled model."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from estimator.config import TransformerConfig, show
from estimator.errors import ConfigError, CorruptFileError, InputError, UnsupportedModelError
from estimator.network import Block, Network, Stack, Weight
from estimator.readers.files.gguf_config import config_of_gguf
from estimator.readers.files.weight_files import WeightFile, compare_with_config, find_weights, read_weight_file
from estimator.readers.huggingface import NATIVE_MODEL_TYPE, read_config, read_dtype
from estimator.readers.networks import read_network
from estimator.readers.quantization_config import Quantization, read_quantization
from estimator.weights import network_of

__all__ = ["ModelSource", "bundled_models", "read_bundled", "read_source", "source_of_values"]

_MAX_FILE_BYTES = 4_000_000  # a thousand times a usual config.json
_LONGEST_SHOWN = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that was read: its name, network, weight type and class as far as they were given.

    `buildable` is its config where it can be built and measured here; otherwise `why_not_buildable` says what stands
    against it. `path` is the file that was read, None for a bundled model. `weight_file` is the header of the weights
    themselves, where there are any. `quantization` is how the checkpoint stores its matrices, if config.json says that
    they are quantised; `dtype` is then the type of the rest.
    """

    name: str
    network: Network
    buildable: TransformerConfig | None
    why_not_buildable: str
    dtype: str | None
    hf_class: str | None
    path: Path | None
    warnings: tuple[str, ...]
    weight_file: WeightFile | None = None
    quantization: Quantization | None = None

    @property
    def weight_dtype(self) -> str | None:
        """The type of the checkpoint's matrices."""
        return self.dtype if self.quantization is None else self.quantization.format.dtype

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
    """Reads a config.json, a folder, a file of weights (safetensors, GGUF, ONNX), or a bundled model by name.

    Weights beside a config.json are compared with it, and every difference is a warning.

    Raises:
        InputError: there is no such file, folder or name; the message lists what is near.
        CorruptFileError: the file is not what it says it is.
        ConfigError, UnsupportedModelError: as `source_of_values`.
    """
    text = str(source)
    path = Path(text)
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {_shown(text)}: {getattr(error, 'strerror', error)}") from error
    names = bundled_models()
    if is_folder and text and _holds_model(path):
        return _read_folder(path)
    if is_file and _looks_like_json(path):
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
        return _read_config_file(path, name)
    if is_file:
        return _read_weights(read_weight_file(path), path)
    if text.lower() in names:
        return read_bundled(text)
    if is_folder and text:
        raise InputError(f"folder {text} holds neither a config.json nor weights that can be read")
    if exists and text:
        raise InputError(f"{text} is not a regular file")
    if text and path.is_symlink():
        raise InputError(f"{_shown(text)} is a link to nothing that is there")
    raise InputError(f"{_shown(text)} is neither a file, a folder nor a bundled model; {_near(text, names)}")


def read_bundled(name: str) -> ModelSource:
    """Reads a bundled model by its name, whatever its case.

    Raises:
        InputError: no such name; the message lists what is near.
    """
    known = name.lower()
    if known not in bundled_models():
        raise InputError(f"{_shown(name)} is not a bundled model; {_near(name, bundled_models())}")
    text = resources.files("estimator").joinpath("models", f"{known}.json").read_text(encoding="utf-8")
    return _parse(text, known, None)


def source_of_values(values: Mapping[str, Any], name: str, *, may_import_torch: bool = True) -> ModelSource:
    """The model that the content of a config.json describes.

    A model type that is not known here is counted through transformers, if that is installed and may be imported.

    Raises:
        UnsupportedModelError: names the model type or class, and what would be needed.
        ConfigError: names the field that is unknown or wrong.
    """
    if values.get("model_type") == NATIVE_MODEL_TYPE:
        config, hf_class, warnings = read_config(values)
        return _model_source(values, name, network_of(config), hf_class, warnings, buildable=config)
    try:
        network, hf_class, warnings = read_network(values)
    except UnsupportedModelError as error:
        if not may_import_torch:
            raise
        network, hf_class, warnings = _through_transformers(values, error)
    try:
        return _model_source(values, name, network, hf_class, warnings, buildable=read_config(values)[0])
    except InputError as error:
        return _model_source(values, name, network, hf_class, warnings, why_not_buildable=str(error))


def _through_transformers(
    values: Mapping[str, Any], error: UnsupportedModelError
) -> tuple[Network, str, tuple[str, ...]]:
    from estimator.readers import meta_device

    if not isinstance(values.get("model_type"), str):
        raise error
    if not meta_device.is_available():
        raise UnsupportedModelError(
            f"{error}; with transformers it may be counted: pip install 'archfront[hf,train]'"
        ) from error
    try:
        return meta_device.network_through_transformers(values)
    except UnsupportedModelError as second:
        raise UnsupportedModelError(f"{error}, and {second}") from second


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
    quantization, unknown = read_quantization(values)
    return ModelSource(
        name=name,
        network=network,
        buildable=buildable,
        why_not_buildable=why_not_buildable,
        dtype=read_dtype(values) or (None if quantization is None else quantization.rest_dtype),
        hf_class=hf_class,
        path=None,
        warnings=(*warnings, *unknown),
        quantization=quantization,
    )


@functools.cache
def bundled_models() -> tuple[str, ...]:
    """Names of the models whose config.json comes with the package."""
    folder = resources.files("estimator").joinpath("models")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def _shown(text: str) -> str:
    """The text in one printable line; what no path or name is as long as is cut."""
    return repr(text) if len(text) <= _LONGEST_SHOWN else show(text)


def _near(text: str, names: tuple[str, ...]) -> str:
    import difflib

    close = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else "`estimator models` lists those"


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or find_weights(folder) is not None


def _read_folder(folder: Path) -> ModelSource:
    name, config, weights = folder.resolve().name, folder / "config.json", find_weights(folder)
    if not config.is_file():
        assert weights is not None
        return _read_weights(read_weight_file(weights), weights)
    source = _read_config_file(config, name)
    return source if weights is None else _with_weights(source, read_weight_file(weights))


def _read_weights(weight_file: WeightFile, path: Path) -> ModelSource:
    """A file of weights: with the config that it holds itself or that lies beside it, or as what it is."""
    beside = path.parent / "config.json"
    if weight_file.format == "safetensors" and beside.is_file():
        return _with_weights(_read_config_file(beside, path.stem), weight_file)
    if weight_file.format == "onnx" and "config" in weight_file.metadata:
        config = _embedded_config(weight_file, path)
        source = _model_source({}, path.stem, network_of(config), None, (), buildable=config)
        return replace(_with_weights(source, weight_file), path=path)
    if weight_file.format == "gguf":
        try:
            source = source_of_values(config_of_gguf(weight_file), path.stem)
            return replace(_with_weights(source, weight_file), path=path)
        except UnsupportedModelError as error:
            return _only_weights(weight_file, path, str(error))
    return _only_weights(weight_file, path, f"{path.name} comes without a config.json")


def _embedded_config(weight_file: WeightFile, path: Path) -> TransformerConfig:
    """The config that `build_onnx` writes into its files."""
    try:
        return TransformerConfig.from_dict(weight_file.metadata["config"])
    except ValueError as error:
        raise CorruptFileError(f"{path} holds a config that cannot be read: {error}") from error


def _with_weights(source: ModelSource, weight_file: WeightFile) -> ModelSource:
    differences: tuple[str, ...] = ()
    if weight_file.parameters is not None:
        differences = compare_with_config(weight_file, source.network).messages
    warnings = (*source.warnings, *weight_file.warnings, *differences)
    return replace(source, weight_file=weight_file, warnings=warnings)


def _only_weights(weight_file: WeightFile, path: Path, reason: str) -> ModelSource:
    """Parameters and bytes as the file has them; what else the model needs is not known.

    Raises:
        InputError: its weights are packed in a way that is not known.
    """
    if weight_file.parameters is None:
        raise InputError(f"{path}: {weight_file.warnings[-1]}")
    weights = tuple(Weight(name=t.name, shape=t.shape, role="other") for t in weight_file.parameters)
    stack = Stack(name="model", hidden_size=1, layers=(), before=(Block(name="", part="other", weights=weights),))
    network = Network(architecture="encoder", stacks=(stack,), model_type=weight_file.format, has_only_weights=True)
    said = f"{reason}: parameters and bytes are those of the file, and nothing else is known"
    source = _model_source({}, path.stem, network, None, (said,), why_not_buildable=reason)
    return replace(source, path=path, weight_file=weight_file, warnings=(said, *weight_file.warnings))


def _looks_like_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    is_index = path.name.endswith(".safetensors.index.json")
    return not is_index and (start[:1] in (b"{", b"[", b"") or path.suffix == ".json")


def _read_config_file(path: Path, name: str) -> ModelSource:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CorruptFileError(f"{path} is larger than any config.json: {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
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
        values = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise CorruptFileError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise CorruptFileError(f"{where} is not valid JSON: {_json_fault(text, error)}") from error
    if not isinstance(values, dict):
        raise CorruptFileError(f"{where} must hold a JSON object, not a {type(values).__name__}")
    return values


def _json_fault(text: str, error: ValueError) -> str:
    if text.startswith("version https://git-lfs"):
        return "it is a Git LFS pointer, and the file itself was not downloaded"
    return "a number has thousands of digits" if "int_max_str_digits" in str(error) else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"field {name!r} stands twice")
        values[name] = value
    return values
