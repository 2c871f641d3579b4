"""The header of a GGUF file, or of all parts of a split one, without reading a weight.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 1 to 3, either byte order).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from estimator.errors import CorruptFileError, InputError
from estimator.readers.files.gguf_types import GGML_TYPES
from estimator.readers.files.weight_records import (
    FileTensor,
    WeightFile,
    check_shape,
    check_totals,
    file_size,
    path_inside,
    show_name,
)

__all__ = ["GGUF_MAGIC", "ArrayLength", "read_gguf"]

GGUF_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_HEADER_BYTES = 1 << 28
_MOST_KEYS, _MOST_STRINGS, _MOST_LEVELS = 65_536, 4_000_000, 4
_MOST_NAME_BYTES = 1 << 16
_MOST_KEPT_BYTES, _MOST_KEPT_ELEMENTS = 1 << 16, 4096  # longer texts and arrays (vocabularies) are passed over
_MOST_KEPT_VALUES = 1 << 18  # over all arrays
_MOST_SPLITS = 10_000
_SPLIT = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
# Tensors that llama.cpp writes beside the weights: rotary frequencies that the model computes from its config.
_BUFFERS = frozenset(("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"))

_KEY_HALF, _VALUE_HALF = ".attn_k_b.weight", ".attn_v_b.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLength:
    """What is kept of an array that is too long to keep, such as a vocabulary: how many elements it has."""

    num_elements: int


@dataclass(slots=True)
class _Cursor:
    """Reads numbers and texts in order; never behind the end of the file or the limit of a header."""

    file: BinaryIO
    size: int
    path: Path
    order: str = "<"
    count_format: str = "Q"
    position: int = 0
    num_strings: int = 0
    num_kept: int = 0
    name_bytes: int = 0

    def bytes(self, count: int) -> bytes:
        self.need(count)
        data = self.file.read(count)
        if len(data) != count:
            raise CorruptFileError(f"{self.path} is cut off")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        self.need(count)
        self.file.seek(count, 1)
        self.position += count

    def need(self, count: int) -> None:
        if count > self.size - self.position:
            raise CorruptFileError(f"{self.path} is cut off: byte {self.position + count:,} is behind its end")
        if self.position + count > _MOST_HEADER_BYTES:
            raise CorruptFileError(f"{self.path} has a header of more than {_MOST_HEADER_BYTES:,} bytes; no model has")

    def number(self, code: str) -> Any:
        code = self.order + code
        return struct.unpack(code, self.bytes(struct.calcsize(code)))[0]

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things that take at least so many bytes each; more than the file can hold are refused."""
        count: int = self.number(self.count_format)
        if count * least_bytes > self.size - self.position:
            raise CorruptFileError(f"{self.path} asks for {count:,} {what}, which {self.size:,} bytes cannot hold")
        return count

    def text(self, most_bytes: int, what: str) -> str:
        length = self.count(1, f"bytes of {what}")
        if length > most_bytes:
            raise CorruptFileError(f"{self.path} has a {what} of {length:,} bytes; {most_bytes:,} is the most")
        self.name_bytes += length
        check_totals(0, self.name_bytes, self.path)
        return self.bytes(length).decode("utf-8", errors="replace")


def read_gguf(path: str | Path) -> WeightFile:
    """The tensors and key-values of a GGUF file; given any part of a split model, of the whole model.

    Raises:
        CorruptFileError: the header cannot be one, or asks for more than the file holds; the message says why.
        InputError: the file, or another part of a split model, is missing.
    """
    path = Path(path)
    metadata, tensors = _read_one(path)
    paths: tuple[Path, ...] = (path,)
    num_splits = metadata.get("split.count", 0)
    if type(num_splits) is int and num_splits > 1:
        paths, metadata, tensors = _read_splits(path, num_splits, metadata)
    names = {tensor.name for tensor in tensors}
    if len(names) < len(tensors):
        raise CorruptFileError(f"{path} holds two tensors of the same name")
    return WeightFile(
        paths=paths,
        format="gguf",
        tensors=tuple(tensors),
        parameters=tuple(_weights(tensors)),
        metadata=metadata,
    )


def _weights(tensors: list[FileTensor]) -> Iterator[FileTensor]:
    """The tensors without buffers; the two halves that kv_b of latent attention is cut into are one matrix again.

    They are k_b [heads, latent, key size] and v_b [heads, value size, latent].
    """
    halves = {t.name: t for t in tensors if t.name.endswith(_VALUE_HALF) and len(t.shape) == 3}
    keys = (t.name for t in tensors if t.name.endswith(_KEY_HALF) and len(t.shape) == 3)
    pairs = {name: halves.get(name.removesuffix(_KEY_HALF) + _VALUE_HALF) for name in keys}
    merged = {half.name for half in pairs.values() if half is not None}
    for tensor in tensors:
        half = pairs.get(tensor.name)
        if half is not None:
            rows = tensor.shape[0] * (tensor.shape[2] + half.shape[1])
            yield FileTensor(
                name=tensor.name.replace(_KEY_HALF, ".attn_kv_b.weight"),
                shape=(rows, tensor.shape[1]),
                dtype=tensor.dtype,
                num_bytes=tensor.num_bytes + half.num_bytes,
            )
        elif tensor.name not in _BUFFERS and tensor.name not in merged:
            yield tensor


def _read_splits(
    path: Path, num_splits: int, metadata: Mapping[str, Any]
) -> tuple[tuple[Path, ...], dict[str, Any], list[FileTensor]]:
    """All parts: their paths, the metadata of the first one, and the tensors of all."""
    match = _SPLIT.match(path.name)
    if match is None or int(match[3]) != num_splits or num_splits > _MOST_SPLITS:
        raise CorruptFileError(
            f"{path} is one of {num_splits} parts, but is not named ...-00001-of-{num_splits:05}.gguf"
        )
    first: dict[str, Any] = {}
    paths: list[Path] = []
    tensors: list[FileTensor] = []
    for number in range(num_splits):
        part = path_inside(path.parent, f"{match[1]}-{number + 1:05}-of-{num_splits:05}.gguf", path)
        values, more = _read_one(part)
        if values.get("split.no") != number or values.get("split.count") != num_splits:
            raise CorruptFileError(
                f"{part} says it is part {values.get('split.no')!r} of {values.get('split.count')!r}"
            )
        first = first or values
        paths.append(part)
        tensors += more
        check_totals(len(tensors), 0, path)
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CorruptFileError(f"{path} says that all parts hold {expected!r} tensors; they hold {len(tensors)}")
    return tuple(paths), first, tensors


def _read_one(path: Path) -> tuple[dict[str, Any], list[FileTensor]]:
    size = file_size(path)
    try:
        with path.open("rb") as file:
            cursor = _Cursor(file, size, path)
            num_tensors, num_keys = _read_counts(cursor)
            metadata = _read_metadata(cursor, num_keys)
            tensors, offsets = _read_tensors(cursor, num_tensors)
            _check_offsets(cursor, metadata, tensors, offsets)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return metadata, tensors


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and keys; sets the byte order and the width of counts, which version 1 has smaller."""
    if cursor.bytes(4) != GGUF_MAGIC:
        raise CorruptFileError(f"{cursor.path} is not a GGUF file: it does not start with GGUF")
    version = cursor.number("I")
    if version and version & 0xFFFF == 0:
        cursor.order = ">"
        version = version >> 24 | (version >> 8 & 0xFF00)
    if version not in (1, 2, 3):
        raise CorruptFileError(f"{cursor.path} is GGUF version {version}; 1, 2 and 3 are known")
    cursor.count_format = "I" if version == 1 else "Q"
    width = struct.calcsize(cursor.count_format)
    num_tensors = cursor.count(2 * width + 12, "tensors")
    check_totals(num_tensors, 0, cursor.path)
    num_keys = cursor.count(width + 5, "keys")
    if num_keys > _MOST_KEYS:
        raise CorruptFileError(f"{cursor.path} has {num_keys:,} keys; {_MOST_KEYS:,} is the most")
    return num_tensors, num_keys


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text(_MOST_NAME_BYTES, "key")
        if key in metadata:
            raise CorruptFileError(f"{cursor.path}: key {show_name(key)} stands twice")
        metadata[key] = _read_value(cursor, cursor.number("I"), 0)
    return metadata


def _read_value(cursor: _Cursor, kind: int, level: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return _read_text_value(cursor)
    if kind == _ARRAY and level < _MOST_LEVELS:
        return _read_array(cursor, level)
    what = "arrays nested too deeply" if kind == _ARRAY else f"a value of unknown type {kind}"
    raise CorruptFileError(f"{cursor.path} has {what}")


def _read_text_value(cursor: _Cursor) -> str | ArrayLength:
    length = cursor.count(1, "bytes of text")
    cursor.num_kept += 1 + length // 64
    if length > _MOST_KEPT_BYTES or cursor.num_kept > _MOST_KEPT_VALUES:
        cursor.skip(length)
        return ArrayLength(num_elements=length)
    return cursor.bytes(length).decode("utf-8", errors="replace")


def _read_array(cursor: _Cursor, level: int) -> tuple[Any, ...] | ArrayLength:
    """The elements, or only their number where there are many: texts are then passed over one by one."""
    kind = cursor.number("I")
    width = struct.calcsize(cursor.count_format)
    element_bytes = struct.calcsize("<" + _SCALARS[kind]) if kind in _SCALARS else width + (4 if kind == _ARRAY else 0)
    count = cursor.count(element_bytes, "array elements")
    if count <= _MOST_KEPT_ELEMENTS and cursor.num_kept + count <= _MOST_KEPT_VALUES:
        cursor.num_kept += count
        return tuple(_read_value(cursor, kind, level + 1) for _ in range(count))
    if kind in _SCALARS:
        cursor.skip(count * element_bytes)
    elif kind == _STRING:
        _skip_texts(cursor, count)
    else:
        raise CorruptFileError(f"{cursor.path} has an array of {count:,} elements of type {kind}; that is too long")
    return ArrayLength(num_elements=count)


def _skip_texts(cursor: _Cursor, count: int) -> None:
    cursor.num_strings += count
    if cursor.num_strings > _MOST_STRINGS:
        raise CorruptFileError(f"{cursor.path} has more than {_MOST_STRINGS:,} texts; no vocabulary has")
    for _ in range(count):
        cursor.skip(cursor.count(1, "bytes of text"))


def _read_tensors(cursor: _Cursor, num_tensors: int) -> tuple[list[FileTensor], list[int]]:
    """The tensors, and where the bytes of each begin behind the header."""
    tensors: list[FileTensor] = []
    offsets: list[int] = []
    for _ in range(num_tensors):
        name = cursor.text(_MOST_NAME_BYTES, "tensor name")
        num_dims = cursor.number("I")
        if num_dims > 4:  # GGML_MAX_DIMS
            raise CorruptFileError(f"{cursor.path}: tensor {show_name(name)} has {num_dims} dimensions; 4 is the most")
        sizes = tuple(cursor.number(cursor.count_format) for _ in range(num_dims))
        kind = cursor.number("I")
        offsets.append(cursor.number("Q"))
        tensors.append(_tensor(name, sizes, kind, cursor.path))
    return tensors, offsets


def _tensor(name: str, sizes: tuple[int, ...], kind: int, path: Path) -> FileTensor:
    """`sizes` is in ggml's order, the fastest first, along which blocks lie."""
    if kind not in GGML_TYPES:
        raise CorruptFileError(f"{path}: tensor {show_name(name)} has the unknown ggml type {kind}")
    dtype, block, block_bytes = GGML_TYPES[kind]
    shape = check_shape(sizes[::-1], name, path)
    row = sizes[0] if sizes else 1
    if row % block:
        raise CorruptFileError(f"{path}: rows of {show_name(name)}, {row:,} long, are no multiple of {dtype}'s {block}")
    return FileTensor(name=name, shape=shape, dtype=dtype, num_bytes=math.prod(shape) // block * block_bytes)


def _check_offsets(cursor: _Cursor, metadata: Mapping[str, Any], tensors: list[FileTensor], offsets: list[int]) -> None:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CorruptFileError(f"{cursor.path}: general.alignment must be a power of 2, not {alignment!r:.40}")
    data_bytes = cursor.size - -(-cursor.position // alignment) * alignment
    end = 0
    for index in sorted(range(len(tensors)), key=lambda index: (offsets[index], tensors[index].num_bytes)):
        tensor, offset = tensors[index], offsets[index]
        if offset % alignment:
            raise CorruptFileError(
                f"{cursor.path}: tensor {show_name(tensor.name)} is not aligned to {alignment} bytes"
            )
        if offset < end:
            raise CorruptFileError(f"{cursor.path}: tensor {show_name(tensor.name)} overlaps another")
        end = offset + tensor.num_bytes
        if tensor.num_bytes and end > data_bytes:
            raise CorruptFileError(f"{cursor.path} is cut off: tensor {show_name(tensor.name)} ends behind its end")
