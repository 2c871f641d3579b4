"""Looks through an ONNX file, and reads its properties, without reading its weights, whatever the file's size.

Only lengths and tags of the protobuf encoding are read (mapped pages of the weights stay untouched), so a process that
measures its own peak memory can afford it.
Source: https://protobuf.dev/programming-guides/encoding, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, overload

from estimator.errors import CorruptFileError

__all__ = ["ByteSource", "check_self_contained", "fields", "read_properties", "varint"]


class ByteSource(Protocol):
    """Bytes by position: a mapped file, or a window over one."""

    @overload
    def __getitem__(self, key: int) -> int: ...

    @overload
    def __getitem__(self, key: slice) -> bytes: ...


# Which fields of a message hold which messages, as far as tensors can be found in them.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_EXTERNAL_DATA = 13
_GRAPH, _PROPERTIES, _KEY, _VALUE = 7, 14, 1, 2
_MOST_LEVELS = 64


def check_self_contained(path: str | Path) -> None:
    """Refuses what is no ONNX file, and an ONNX file that keeps weights in other files.

    Raises:
        CorruptFileError: the file is missing, no ONNX model, or keeps weights in other files.
    """
    with _opened(path) as data:
        external = _has_external(data, "model", 0, len(data), 0)
    if external:
        raise CorruptFileError(f"{path} keeps weights in other files; all of them must be inside")


def read_properties(path: str | Path) -> dict[str, str]:
    """The metadata properties of an ONNX file, by key.

    Raises:
        CorruptFileError: the file is missing or no ONNX model.
    """
    with _opened(path) as data:
        entries = [span for number, *span in fields(data, 0, len(data)) if number == _PROPERTIES]
        texts = [{n: data[a:b].decode() for n, a, b in fields(data, *span)} for span in entries]
    return {text.get(_KEY, ""): text.get(_VALUE, "") for text in texts}


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[mmap.mmap]:
    """The bytes of what has the outer form of an ONNX model; what goes wrong with them becomes a CorruptFileError."""
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if _GRAPH not in {number for number, _, _ in fields(data, 0, len(data))}:
                raise ValueError("it has no graph")
            yield data
    except OSError as error:
        raise CorruptFileError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is not an ONNX file: {error}") from error


def _has_external(data: mmap.mmap, message: str, start: int, end: int, level: int) -> bool:
    if level > _MOST_LEVELS:
        raise ValueError("graphs are nested too deeply")
    for number, first, last in fields(data, start, end):
        if message == "tensor" and number == _TENSOR_EXTERNAL_DATA:
            return True
        child = _CHILDREN[message].get(number)
        if child is not None and _has_external(data, child, first, last, level + 1):
            return True
    return False


def fields(data: ByteSource, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of each field of the message in data[start:end].

    Raises:
        ValueError: it is no message.
    """
    position = start
    while position < end:
        tag, position = varint(data, position, end)
        first = position
        match tag & 7:
            case 0:
                _, position = varint(data, position, end)
            case 1:
                position += 8
            case 2:
                length, first = varint(data, position, end)
                position = first + length
            case 5:
                position += 4
            case _:
                raise ValueError("its fields cannot be told apart")
        if position > end or tag >> 3 == 0:
            raise ValueError("it ends too early")
        yield tag >> 3, first, position


def varint(data: ByteSource, position: int, end: int) -> tuple[int, int]:
    """The number at `position`, and the position behind it.

    Raises:
        ValueError: there is none before `end`.
    """
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("it ends too early")
