"""The header of a safetensors file, or of all files of a sharded checkpoint, without reading a weight.

Source: https://huggingface.co/docs/safetensors (format), safetensors/src/tensor.rs (number types, checks).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from estimator.errors import CorruptFileError, InputError
from estimator.readers.files.json_scanner import JsonScanner
from estimator.readers.files.packed_weights import unpack_weights
from estimator.readers.files.weight_records import (
    FileTensor,
    WeightFile,
    check_shape,
    check_totals,
    file_size,
    path_inside,
    show_name,
)

__all__ = ["DTYPE_BITS", "looks_like_safetensors", "read_safetensors", "read_safetensors_index"]

# The format's number types -> (our name, bits per element).
DTYPE_BITS = {
    "BOOL": ("bool", 8),
    "F4": ("fp4_e2m1", 4),
    "F6_E2M3": ("fp6_e2m3", 6),
    "F6_E3M2": ("fp6_e3m2", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("fp8_e5m2", 8),
    "F8_E4M3": ("fp8_e4m3", 8),
    "F8_E8M0": ("fp8_e8m0", 8),
    "F8_E4M3FNUZ": ("fp8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("fp8_e5m2fnuz", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("fp16", 16),
    "BF16": ("bf16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("fp32", 32),
    "C64": ("complex64", 64),
    "F64": ("fp64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_MOST_METADATA_BYTES, _MOST_ENTRY_BYTES = 1 << 21, 1 << 14
_MOST_SHARDS = 10_000
_MOST_CONFIG_BYTES = 1 << 21
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


def looks_like_safetensors(start: bytes) -> bool:
    """Whether a file that starts with these (at least 9) bytes can be a safetensors file."""
    return len(start) >= 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def read_safetensors(path: str | Path) -> WeightFile:
    """The tensors of one safetensors file.

    Raises:
        CorruptFileError: the header cannot be one; the message says why.
        InputError: there is no such file.
    """
    path = Path(path)
    tensors, metadata = _read_header(path)
    warnings: tuple[str, ...] = ()
    if (shard := _SHARD.search(path.name)) and int(shard[2]) > 1:
        warnings = (f"{path.name} is part {int(shard[1])} of {int(shard[2])}; give the folder or index for the model",)
    return _weight_file((path,), tensors, metadata, warnings)


def read_safetensors_index(path: str | Path) -> WeightFile:
    """The tensors of all files that a model.safetensors.index.json names.

    Raises:
        CorruptFileError: the index or a header cannot be one, they contradict each other, or a file lies outside the
            folder of the index.
        InputError: a file is missing.
    """
    path = Path(path)
    weight_map, metadata = _read_index(path)
    shards: dict[str, Path] = {}
    for name in weight_map.values():
        if name not in shards:
            shards[name] = path_inside(path.parent, name, path)
    tensors: list[FileTensor] = []
    unlisted: list[str] = []
    for name, shard in shards.items():
        for tensor in _read_header(shard)[0]:
            if weight_map.pop(tensor.name, None) != name:
                unlisted.append(tensor.name)
            tensors.append(tensor)
        check_totals(len(tensors), 0, path)
    _check_listed(path, weight_map, unlisted, tensors)
    return _weight_file(tuple(shards.values()), tensors, metadata, _size_warnings(metadata, tensors))


def _check_listed(path: Path, missing: Mapping[str, str], unlisted: list[str], tensors: list[FileTensor]) -> None:
    if missing:
        name, shard = next(iter(missing.items()))
        raise CorruptFileError(f"{path} says that {show_name(name)} is in {show_name(shard)}, but it is not")
    if unlisted:
        raise CorruptFileError(f"{path} does not list {show_name(unlisted[0])} for the file that holds it")
    assert len({tensor.name for tensor in tensors}) == len(tensors)


def _size_warnings(metadata: Mapping[str, Any], tensors: list[FileTensor]) -> tuple[str, ...]:
    total, stored = metadata.get("total_size"), sum(tensor.num_bytes for tensor in tensors)
    if total is None or total == stored:
        return ()
    return (f"the index says total_size {total!r:.40}, the files hold {stored:,} bytes of tensors",)


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The weight map and the metadata of an index."""
    size = file_size(path)
    if size > _MOST_HEADER_BYTES:
        raise CorruptFileError(f"{path} is larger than any index: {size:,} bytes")
    weight_map: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            scanner = JsonScanner(file, size)
            for key in scanner.entries():
                if key == "weight_map":
                    _read_weight_map(scanner, weight_map, path)
                elif isinstance(value := scanner.value(most_bytes=_MOST_METADATA_BYTES), dict) and key == "metadata":
                    metadata = value
            scanner.finish()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "index", error) from error
    if not weight_map:
        raise CorruptFileError(f"{path} is not an index: it has no weight_map")
    return weight_map, metadata


def _read_weight_map(scanner: JsonScanner, weight_map: dict[str, str], path: Path) -> None:
    shards: dict[str, str] = {}  # one string per file, however many tensors name it
    name_bytes = 0
    for name in scanner.entries():
        shard = scanner.value(most_bytes=_MOST_ENTRY_BYTES)
        if not isinstance(shard, str):
            raise ValueError(f"the file of {show_name(name)} is not a name")
        if name in weight_map:
            raise ValueError(f"{show_name(name)} stands twice")
        weight_map[name] = shards.setdefault(shard, shard)
        name_bytes += len(name)
        check_totals(len(weight_map), name_bytes, path)
        if len(shards) > _MOST_SHARDS:
            raise ValueError(f"it names more than {_MOST_SHARDS:,} files")


def _read_header(path: Path) -> tuple[list[FileTensor], dict[str, Any]]:
    size = file_size(path)
    try:
        with path.open("rb") as file:
            header_bytes = _header_bytes(file, size, path)
            tensors, spans, metadata = _read_entries(JsonScanner(file, header_bytes), path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "safetensors header", error) from error
    _check_spans(spans, tensors, size - 8 - header_bytes, path)
    return tensors, metadata


def _corrupt(path: Path, what: str, error: Exception) -> CorruptFileError:
    if isinstance(error, CorruptFileError):
        return error
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
    return CorruptFileError(f"{path} has no valid {what}: {reason}")


def _header_bytes(file: BinaryIO, size: int, path: Path) -> int:
    start = file.read(8)
    if len(start) < 8:
        raise CorruptFileError(
            f"{path} is {'empty' if not size else 'too short'}: a safetensors file has 8 bytes at least"
        )
    header_bytes = int.from_bytes(start, "little")
    if header_bytes > _MOST_HEADER_BYTES:
        raise CorruptFileError(
            f"{path} asks for a header of {header_bytes:,} bytes; {_MOST_HEADER_BYTES:,} is the most"
        )
    if header_bytes > size - 8:
        raise CorruptFileError(f"{path} is cut off: its header has {header_bytes:,} bytes, the file only {size:,}")
    return header_bytes


def _read_entries(
    scanner: JsonScanner, path: Path
) -> tuple[list[FileTensor], list[tuple[int, int, int]], dict[str, Any]]:
    """Tensors, (begin, end, index) of each, and the metadata."""
    tensors: list[FileTensor] = []
    spans: list[tuple[int, int, int]] = []
    names: set[str] = set()
    metadata: dict[str, Any] = {}
    name_bytes = 0
    for name in scanner.entries():
        if name in names:
            raise ValueError(f"tensor {show_name(name)} stands twice")
        names.add(name)
        if name == "__metadata__":
            metadata = _check_metadata(scanner.value(most_bytes=_MOST_METADATA_BYTES))
            continue
        tensor, begin = _read_entry(name, scanner.value(most_bytes=_MOST_ENTRY_BYTES), path)
        spans.append((begin, begin + tensor.num_bytes, len(tensors)))
        tensors.append(tensor)
        name_bytes += len(name)
        check_totals(len(tensors), name_bytes, path)
    scanner.finish()
    return tensors, spans, metadata


def _check_metadata(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ must map names to strings")
    return value


def _read_entry(name: str, value: Any, path: Path) -> tuple[FileTensor, int]:
    """The tensor, and where its bytes begin."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {show_name(name)} must have dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"tensor {show_name(name)} has an unknown dtype {dtype!r:.40}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"shape or data_offsets of tensor {show_name(name)} is not a list of numbers")
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end < 2**62:
        raise ValueError(f"tensor {show_name(name)} has impossible offsets {offsets!r:.60}")
    dims = check_shape(tuple(shape), name, path)
    ours, bits = DTYPE_BITS[dtype]
    if math.prod(dims) * bits != 8 * (end - begin):
        raise ValueError(
            f"tensor {show_name(name)} of {dtype} {shape!r:.80} takes {math.prod(dims) * bits / 8:,.10g} bytes, "
            f"not the {end - begin:,} of its offsets"
        )
    return FileTensor(name=name, shape=dims, dtype=ours, num_bytes=end - begin), begin


def _check_spans(spans: list[tuple[int, int, int]], tensors: list[FileTensor], data_bytes: int, path: Path) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    position = 0
    for begin, end, index in sorted(spans):
        if begin != position:
            what = "overlaps another" if begin < position else "leaves a hole before it"
            raise CorruptFileError(f"{path}: tensor {show_name(tensors[index].name)} {what}")
        position = end
    if position > data_bytes:
        raise CorruptFileError(f"{path} is cut off: its tensors take {position:,} bytes, {data_bytes:,} are there")
    if position < data_bytes:
        raise CorruptFileError(f"{path} has {data_bytes - position:,} bytes behind its last tensor")


def _weight_file(
    paths: tuple[Path, ...], tensors: list[FileTensor], metadata: dict[str, Any], warnings: tuple[str, ...]
) -> WeightFile:
    parameters, notes = unpack_weights(tensors, _quantization_beside(paths[0]))
    return WeightFile(
        paths=paths,
        format="safetensors",
        tensors=tuple(tensors),
        parameters=parameters,
        metadata=metadata,
        warnings=warnings + notes,
    )


def _quantization_beside(path: Path) -> Mapping[str, Any]:
    """What the config.json in the same folder says of the packing; empty if there is none that can be read."""
    config = path.parent / "config.json"
    try:
        if not config.is_file() or config.stat().st_size > _MOST_CONFIG_BYTES:
            return {}
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    found = values.get("quantization_config") or values.get("quantization") if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}
