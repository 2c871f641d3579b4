"""The tensors of an ONNX file, inside it or in files beside it, without reading a weight and without onnx.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estimator.errors import CorruptFileError, InputError
from estimator.onnx_wire import fields, varint
from estimator.readers.files.file_window import FileWindow
from estimator.readers.files.onnx_roles import Node, parameters_of
from estimator.readers.files.onnx_types import DATA_TYPES
from estimator.readers.files.weight_records import (
    FileTensor,
    WeightFile,
    check_shape,
    check_totals,
    file_size,
    path_inside,
    show_name,
)

__all__ = ["looks_like_onnx", "read_onnx"]

_MOST_FIELDS, _MOST_LEVELS = 4_000_000, 32
_MOST_NODES, _MOST_TEXT_BYTES, _MOST_KEPT_BYTES = 500_000, 1 << 12, 1 << 22
_MOST_INPUTS = 100_000
_CONFIG_PROPERTY = "archfront.config"
Span = tuple[int, int]


@dataclass(slots=True)
class _Tensor:
    """A TensorProto as it stands in the file."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    raw_bytes: int | None = None
    typed_bytes: Counter[int] = field(default_factory=Counter)
    is_external: bool = False
    external: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Model:
    """What is gathered while the file is walked through."""

    path: Path
    data: FileWindow
    tensors: list[FileTensor] = field(default_factory=list)
    external: list[tuple[str, int, int, str]] = field(default_factory=list)  # file, begin, end, tensor
    nodes: list[Node] = field(default_factory=list)
    num_nodes: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    has_graph: bool = False
    num_fields: int = 0
    name_bytes: int = 0
    text_bytes: int = 0

    def fields(self, span: Span) -> Iterator[tuple[int, int, int]]:
        for entry in fields(self.data, *span):
            self.num_fields += 1
            if self.num_fields > _MOST_FIELDS:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} fields; no model has")
            yield entry

    def text(self, span: Span, most_bytes: int = _MOST_TEXT_BYTES) -> str:
        length = span[1] - span[0]
        if length > most_bytes:
            raise ValueError(f"a text in it is {length:,} bytes long; {most_bytes:,} is the most")
        self.text_bytes += length
        if self.text_bytes > 4 * _MOST_KEPT_BYTES + self.name_bytes:
            raise ValueError("it holds more text than any model")
        return self.data[span[0] : span[1]].decode("utf-8", errors="replace")

    def integer(self, span: Span) -> int:
        """An int64 or an enum."""
        value = varint(self.data, *span)[0] & (2**64 - 1)
        return value - 2**64 if value >= 2**63 else value


def looks_like_onnx(start: bytes) -> bool:
    """Whether a file that starts with these bytes can be an ONNX model: a small ir_version comes first, as a rule."""
    return len(start) >= 2 and start[0] == 0x08 and 1 <= start[1] < 64


def read_onnx(path: str | Path) -> WeightFile:
    """The initialisers and constants of an ONNX file, and what its graph says of inputs, outputs and nodes.

    metadata has `opset` (by domain), `inputs`, `outputs`, `num_nodes`, `properties`, and `config` for a file that
    Archfront wrote.

    Raises:
        CorruptFileError: it is no ONNX model, a tensor's size is not its data's, or its data lie outside its folder.
        InputError: the file, or one that it names, is missing.
    """
    path = Path(path)
    size = file_size(path)
    try:
        with path.open("rb") as file:
            model = _Model(path, FileWindow(file, size, most_reads=_MOST_FIELDS))
            _walk_model(model, (0, size))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except CorruptFileError:
        raise
    except ValueError as error:
        raise CorruptFileError(f"{path} is not an ONNX file that can be read: {error}") from error
    if not model.has_graph:
        raise CorruptFileError(f"{path} is not an ONNX file: it has no graph")
    return _weight_file(model)


def _weight_file(model: _Model) -> WeightFile:
    parameters, warnings = parameters_of(model.tensors, model.nodes)
    metadata = _metadata(model)
    if parameters is not None and "config" in metadata:  # our own files name their weights, and constants otherwise
        parameters = tuple(weight for weight in parameters if weight.name.endswith((".weight", ".bias")))
    return WeightFile(
        paths=(model.path, *_external_paths(model)),
        format="onnx",
        tensors=tuple(model.tensors),
        parameters=parameters,
        metadata=metadata,
        warnings=warnings,
    )


def _metadata(model: _Model) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "opset": model.opsets,
        "inputs": model.inputs,
        "outputs": model.outputs,
        "num_nodes": model.num_nodes,
        "properties": model.properties,
    }
    try:
        config = json.loads(model.properties.get(_CONFIG_PROPERTY, "null"))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{model.path} holds a config that cannot be read: {error}") from error
    return metadata | ({"config": config} if isinstance(config, dict) else {})


def _walk_model(model: _Model, span: Span) -> None:
    for number, *rest in model.fields(span):
        part = (rest[0], rest[1])
        if number == 7:
            model.has_graph = True
            _walk_graph(model, part, 0)
        elif number == 8:
            _read_opset(model, part)
        elif number == 14 and len(model.properties) < _MOST_INPUTS:
            key, value = _read_pair(model, part, _MOST_KEPT_BYTES)
            model.properties[key] = value
        elif number == 25:
            for inner, first, last in model.fields(part):
                if inner == 7:
                    _walk_node(model, (first, last), 1)


def _read_opset(model: _Model, span: Span) -> None:
    domain, version = "", 0
    for number, *part in model.fields(span):
        if number == 1:
            domain = model.text((part[0], part[1]))
        elif number == 2:
            version = model.integer((part[0], part[1]))
    model.opsets[domain or "ai.onnx"] = version


def _read_pair(model: _Model, span: Span, most_bytes: int = _MOST_TEXT_BYTES) -> tuple[str, str]:
    """A StringStringEntryProto."""
    texts = {1: "", 2: ""}
    for number, first, last in model.fields(span):
        if number in texts:
            texts[number] = model.text((first, last), most_bytes)
    return texts[1], texts[2]


def _walk_graph(model: _Model, span: Span, level: int) -> None:
    if level > _MOST_LEVELS:
        raise ValueError("graphs are nested too deeply")
    for number, first, last in model.fields(span):
        part = (first, last)
        if number == 1:
            _walk_node(model, part, level)
        elif number == 5:
            _add_tensor(model, part, "")
        elif number == 15:
            raise CorruptFileError(f"{model.path} has sparse initialisers, which are not read")
        elif number in (11, 12) and level == 0:
            values = model.inputs if number == 11 else model.outputs
            name, kind = _read_value_info(model, part)
            values[name] = kind
            if len(values) > _MOST_INPUTS:
                raise ValueError(f"it has more than {_MOST_INPUTS:,} inputs or outputs")


def _walk_node(model: _Model, span: Span, level: int) -> None:
    """Notes the node, adds the tensors of its attributes, and walks into its graphs."""
    texts: dict[int, list[str]] = {1: [], 2: [], 4: [""]}
    attributes: list[Span] = []
    for number, first, last in model.fields(span):
        if number in texts:
            texts[number].append(model.text((first, last)))
        elif number == 5:
            attributes.append((first, last))
    model.num_nodes += 1
    if model.num_nodes > _MOST_NODES:
        raise ValueError(f"it has more than {_MOST_NODES:,} nodes; no model has")
    kind, output = texts[4][-1], next(iter(texts[2]), "")
    numbers = dict(_read_attribute(model, part, output, level) for part in attributes)
    if Node.matters(kind):
        model.nodes.append(Node(kind=kind, inputs=tuple(texts[1]), numbers=numbers))


def _read_attribute(model: _Model, span: Span, output: str, level: int) -> tuple[str, int]:
    """Name and integer of an attribute; its tensors are added under the name of the node's output."""
    name, value = "", 0
    for number, first, last in model.fields(span):
        part = (first, last)
        if number == 1:
            name = model.text(part)
        elif number == 3:
            value = model.integer(part)
        elif number in (5, 10):
            _add_tensor(model, part, output)
        elif number in (6, 11):
            _walk_graph(model, part, level + 1)
        elif number in (22, 23):
            raise CorruptFileError(f"{model.path} has sparse constants, which are not read")
    return name, value


def _read_value_info(model: _Model, span: Span) -> tuple[str, dict[str, Any]]:
    """Name, number type and shape of an input or output; a dimension is a number, a name, or None."""
    name, kind = "", {"dtype": None, "shape": None}
    for number, first, last in model.fields(span):
        if number == 1:
            name = model.text((first, last))
        elif number == 2:
            kind = _read_type(model, (first, last))
    return name, kind


def _read_type(model: _Model, span: Span) -> dict[str, Any]:
    dtype, shape = None, None
    for number, first, last in model.fields(span):
        if number != 1:  # sequences, maps and the like
            continue
        for inner, start, end in model.fields((first, last)):
            if inner == 1:
                dtype = DATA_TYPES.get(model.integer((start, end)), (None, 0))[0]
            elif inner == 2:
                dims = [(a, b) for what, a, b in model.fields((start, end)) if what == 1]
                shape = tuple(_read_dim(model, dim) for dim in dims)
    return {"dtype": dtype, "shape": shape}


def _read_dim(model: _Model, span: Span) -> int | str | None:
    for number, first, last in model.fields(span):
        if number == 1:
            return model.integer((first, last))
        if number == 2:
            return model.text((first, last))
    return None


def _add_tensor(model: _Model, span: Span, output: str) -> None:
    found = _read_tensor(model, span)
    name = found.name or output
    model.name_bytes += len(name)
    shape = check_shape(tuple(found.dims), name, model.path)
    if found.data_type not in DATA_TYPES:
        raise CorruptFileError(f"{model.path}: tensor {show_name(name)} has the unknown data type {found.data_type}")
    dtype, bits = DATA_TYPES[found.data_type]
    num_bytes = -(-math.prod(shape) * bits // 8)
    if found.is_external or found.external:
        _add_external(model, found, name, num_bytes)
    else:
        num_bytes = _check_inside(model, found, name, num_bytes, math.prod(shape))
    model.tensors.append(FileTensor(name=name, shape=shape, dtype=dtype, num_bytes=num_bytes))
    check_totals(len(model.tensors), model.name_bytes, model.path)


def _read_tensor(model: _Model, span: Span) -> _Tensor:
    found = _Tensor()
    for number, first, last in model.fields(span):
        part = (first, last)
        if number == 1:
            found.dims += _read_dims(model, part)
        elif number == 2:
            found.data_type = model.integer(part)
        elif number in (4, 5, 6, 7, 10, 11):
            found.typed_bytes[number] += last - first
        elif number == 8:
            found.name = model.text(part)
        elif number == 9:
            found.raw_bytes = last - first
        elif number == 13:
            key, value = _read_pair(model, part)
            found.external[key] = value
        elif number == 14:
            found.is_external = model.integer(part) == 1
    return found


def _read_dims(model: _Model, span: Span) -> list[int]:
    """One dimension, or several that are packed into one field."""
    dims: list[int] = []
    position, end = span
    while position < end:
        if len(dims) > 64:
            raise ValueError("a tensor has more than 64 dimensions")
        dims.append(model.integer((position, end)))
        _, position = varint(model.data, position, end)
    return dims


def _check_inside(model: _Model, found: _Tensor, name: str, num_bytes: int, num_elements: int) -> int:
    """Bytes of a tensor whose data are in the file; refuses those that cannot be its data."""
    typed = sum(found.typed_bytes.values())
    if found.data_type == 8:
        return typed
    if found.raw_bytes is not None and not typed:
        fits = found.raw_bytes == num_bytes
    else:  # numbers of fixed width fill their field; others are varints of 1 to 10 bytes, two int4 in each
        fixed = {1: (4, 4), 11: (10, 8)}.get(found.data_type)
        least = num_bytes if DATA_TYPES[found.data_type][1] < 8 else num_elements
        exact = fixed is not None and typed == found.typed_bytes[fixed[0]] == fixed[1] * num_elements
        fits = exact if fixed else found.raw_bytes is None and least <= typed <= 16 * num_elements
    if not fits:
        there = typed + (found.raw_bytes or 0)
        raise CorruptFileError(
            f"{model.path}: tensor {show_name(name)} of shape {found.dims} takes {num_bytes:,} bytes, not {there:,}"
        )
    return num_bytes


def _add_external(model: _Model, found: _Tensor, name: str, num_bytes: int) -> None:
    """Notes where the bytes of a tensor lie in another file."""
    if "location" not in found.external or found.data_type == 8:
        raise CorruptFileError(f"{model.path}: tensor {show_name(name)} does not say which file holds it")
    numbers = {}
    for key in ("offset", "length"):
        text = found.external.get(key, "0" if key == "offset" else str(num_bytes))
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise CorruptFileError(f"{model.path}: {key} of tensor {show_name(name)} is {text!r:.40}")
        numbers[key] = int(text)
    if numbers["length"] != num_bytes:
        raise CorruptFileError(
            f"{model.path}: tensor {show_name(name)} of shape {found.dims} takes {num_bytes:,} bytes, "
            f"not {numbers['length']:,}"
        )
    begin = numbers["offset"]
    model.external.append((found.external["location"], begin, begin + num_bytes, name))


def _external_paths(model: _Model) -> tuple[Path, ...]:
    """The files that hold tensors, each checked: inside the folder, long enough, and no bytes used for two."""
    paths: dict[str, Path] = {}
    ends: dict[str, Span] = {}
    sizes: dict[str, int] = {}
    for location, begin, end, name in sorted(model.external):
        if location not in paths:
            paths[location] = path_inside(model.path.parent, location, model.path, subfolders=True)
            sizes[location] = file_size(paths[location])
        if end > sizes[location]:
            raise CorruptFileError(f"{paths[location]} is cut off: tensor {show_name(name)} ends at byte {end:,}")
        last = ends.get(location, (0, 0))
        if begin < last[1] and (begin, end) != last and end > begin:
            raise CorruptFileError(f"{paths[location]}: tensor {show_name(name)} overlaps another")
        ends[location] = max(last, (begin, end), key=lambda span: span[1])
    return tuple(paths.values())
