"""Builds the ONNX file of a config, and reads back what a built file holds."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.errors import BuildError, CorruptFileError, StorageFullError
from estimator.onnx_blocks import write_graph
from estimator.onnx_graph import parameter_sizes, weight_bytes
from estimator.onnx_wire import check_self_contained, read_properties
from estimator.ort_session import PROVIDERS
from estimator.user_data import write_bytes_atomically
from estimator.weight_types import BUILD_DTYPES, stored_weight_bytes, weight_dtypes
from estimator.weights import check_weights, random_weights

__all__ = ["OnnxArtifact", "build_onnx", "check_target", "read_artifact", "read_config"]

_MAX_WEIGHT_BYTES = 2**31 - 2**26  # a protobuf message ends at 2 GiB; the rest is for nodes, scales and names
_CONFIG, _WEIGHT_DTYPE, _PROVIDER = "archfront.config", "archfront.weight_dtype", "archfront.provider"
_PER_LAYER = "archfront.weight_dtype_per_layer"  # types with commas between; absent where all layers have the first


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxArtifact:
    """One ONNX file, identified by its sha256.

    `num_params` and `weight_bytes` are counted in the file: tied and shared weights once, bytes with scales and zero
    points. `weight_dtype_per_layer` is None where all layers have `weight_dtype`.
    """

    path: Path
    sha256: str
    file_bytes: int
    weight_bytes: int
    opset: int
    num_params: int
    weight_dtype: str
    provider: str
    architecture_hash: str
    weight_dtype_per_layer: tuple[str, ...] | None = None


def build_onnx(
    config: TransformerConfig,
    weights: Mapping[str, NDArray[np.floating]] | None = None,
    *,
    path: str | Path,
    weight_dtype: str = "fp32",
    weight_dtype_per_layer: Sequence[str] | None = None,
    provider: str = "cpu",
    seed: int = 0,
) -> OnnxArtifact:
    """Writes the ONNX file of `config` to `path`, whole or not at all; a decoder's file serves prefill and decode.

    `weights` are arrays by the names of `weight_shapes`; None means `random_weights(config, seed)`. The same config and
    weights give the same bytes. Their types are among `BUILD_DTYPES`: `weight_dtype`, and in each layer that of
    `weight_dtype_per_layer` if given. Whatever the types, inputs, outputs and the key-value cache are fp32.

    Raises:
        BuildError: a weight is missing, unknown, not finite, of the wrong shape or too large for its type, a type, the
            provider or a part of the config cannot be built, or the file would be too large for ONNX.
        StorageFullError: there is no space left; nothing is left behind.
    """
    dtypes = weight_dtypes(config, weight_dtype, weight_dtype_per_layer)
    for dtype in sorted({weight_dtype, *(weight_dtype_per_layer or ())}):
        check_target(dtype, provider)
    _check_size(stored_weight_bytes(config, dtypes))
    weights = random_weights(config, seed) if weights is None else check_weights(config, weights)
    properties = {
        _CONFIG: json.dumps(config.to_dict(), sort_keys=True),
        _WEIGHT_DTYPE: weight_dtype,
        _PROVIDER: provider,
    }
    if weight_dtype_per_layer is not None and {*weight_dtype_per_layer} != {weight_dtype}:
        properties[_PER_LAYER] = ",".join(weight_dtype_per_layer)
    model = write_graph(config, weights, dtypes).model(properties)
    _write(Path(path), model.SerializeToString())
    return read_artifact(path)


def read_artifact(path: str | Path) -> OnnxArtifact:
    """What the file at `path` is, counted and read from the file itself.

    Raises:
        CorruptFileError: the file is missing, no ONNX model, or not written by `build_onnx`.
    """
    path = Path(path)
    config, properties = _read_header(path)
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise CorruptFileError(f"{path} is not an ONNX file") from error
    return OnnxArtifact(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        file_bytes=len(data),
        weight_bytes=weight_bytes(model.graph),
        opset=next(entry.version for entry in model.opset_import if entry.domain == ""),
        num_params=sum(parameter_sizes(model.graph).values()),
        weight_dtype=properties[_WEIGHT_DTYPE],
        provider=properties[_PROVIDER],
        architecture_hash=config.architecture_hash(),
        weight_dtype_per_layer=tuple(properties[_PER_LAYER].split(",")) if _PER_LAYER in properties else None,
    )


def read_config(path: str | Path) -> TransformerConfig:
    """The config that the file at `path` was built from; its weights are not read.

    Raises:
        CorruptFileError: the file is missing, no ONNX model, or not written by `build_onnx`.
    """
    return _read_header(Path(path))[0]


def _read_header(path: Path) -> tuple[TransformerConfig, dict[str, str]]:
    check_self_contained(path)
    properties = read_properties(path)
    if not {_CONFIG, _WEIGHT_DTYPE, _PROVIDER} <= properties.keys():
        raise CorruptFileError(f"{path} was not written by Archfront: it holds no config")
    try:
        return TransformerConfig.from_dict(json.loads(properties[_CONFIG])), properties
    except ValueError as error:
        raise CorruptFileError(f"{path} holds a config that cannot be read: {error}") from error


def check_target(weight_dtype: str, provider: str) -> None:
    """Raises BuildError if files with such weights cannot be built for the provider; says which can."""
    if weight_dtype not in BUILD_DTYPES:
        raise BuildError(f"weight_dtype {weight_dtype!r} cannot be built; these can: {', '.join(BUILD_DTYPES)}")
    if provider not in PROVIDERS:
        raise BuildError(f"provider must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    if provider != "cpu" and weight_dtype != "fp32":
        raise BuildError(f"{weight_dtype} is written for the CPU only; build fp32 for provider {provider}")


def _check_size(num_bytes: int) -> None:
    if num_bytes > _MAX_WEIGHT_BYTES:
        raise BuildError(f"{num_bytes:,} bytes of weights do not fit one ONNX file, which ends at 2 GiB")


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes_atomically(path, data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"{path}: no space left for {len(data):,} bytes") from error
        raise BuildError(f"{path} cannot be written: {error.strerror or error}") from error
