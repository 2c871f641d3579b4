"""Small files of weights, written byte by byte, so that they can also be written wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from estimator.readers.files.gguf_types import GGML_TYPES

__all__ = ["GgufTensor", "gguf_bytes", "gguf_config_keys", "onnx_bytes", "safetensors_bytes"]

GgufTensor = tuple[str, Sequence[int], int]  # name, shape in PyTorch's order, ggml type
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def safetensors_bytes(header: Mapping[str, Any] | bytes, num_data_bytes: int = 0) -> bytes:
    """A file with that header, as an object or as raw bytes, and so many zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(num_data_bytes)


def gguf_bytes(
    keys: Mapping[str, tuple[int, Any]],
    tensors: Sequence[GgufTensor] = (),
    *,
    version: int = 3,
    order: str = "<",
    alignment: int = 32,
    offsets: Sequence[int] | None = None,
    num_missing_bytes: int = 0,
) -> bytes:
    """A GGUF file; keys map to (value type, value), an array's value is (element type, elements)."""
    count = order + ("I" if version == 1 else "Q")
    data = (
        b"GGUF" + struct.pack(order + "I", version) + struct.pack(count, len(tensors)) + struct.pack(count, len(keys))
    )
    for name, (kind, value) in keys.items():
        data += _text(name, count) + struct.pack(order + "I", kind) + _value(kind, value, order, count)
    begins, end = [], 0
    for _, shape, kind in tensors:
        begins.append(end)
        end += -(-_num_bytes(shape, kind) // alignment) * alignment
    for (name, shape, kind), begin in zip(tensors, offsets or begins, strict=True):
        sizes = b"".join(struct.pack(count, size) for size in reversed(shape))
        data += (
            _text(name, count) + struct.pack(order + "I", len(shape)) + sizes + struct.pack(order + "IQ", kind, begin)
        )
    data += bytes(-len(data) % alignment)
    return data + bytes(end - num_missing_bytes)


def gguf_config_keys(arch: str, values: Mapping[str, Any]) -> dict[str, tuple[int, Any]]:
    """Keys of an architecture: integers as uint32, floats as float32, texts as strings."""
    kinds = {int: 4, float: 6, str: 8, bool: 7}
    keys: dict[str, tuple[int, Any]] = {"general.architecture": (8, arch)}
    return keys | {f"{arch}.{name}": (kinds[type(value)], value) for name, value in values.items()}


def onnx_bytes() -> bytes:
    """A model with initialisers of several types, a constant, a nested graph, and metadata."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 6), np.float32), "weight")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    half = helper.make_tensor("half", TensorProto.FLOAT16, [2], [1.0, 2.0])
    shape = numpy_helper.from_array(np.array([1, 2], np.int64), "shape")
    packed = helper.make_tensor("packed", TensorProto.INT4, [3, 3], bytes(5), raw=True)
    scale = numpy_helper.from_array(np.ones((), np.float32), "packed_scale")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["branch"], value=numpy_helper.from_array(np.ones((2, 5), np.float32)))],
        "inner",
        [],
        [helper.make_tensor_value_info("branch", TensorProto.FLOAT, [2, 5])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("DequantizeLinear", ["packed", "packed_scale"], ["unpacked"]),
        helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(
        nodes,
        "sample",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch_size", 4]),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch_size", 6])],
        initializer=[weight, typed, half, shape, packed, scale],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    helper.set_model_props(model, {"author": "a test"})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _num_bytes(shape: Sequence[int], kind: int) -> int:
    _, block, block_bytes = GGML_TYPES.get(kind, ("", 1, 4))
    elements = 1
    for size in shape:
        elements *= size
    return elements // block * block_bytes


def _text(text: str, count: str) -> bytes:
    data = text.encode()
    return struct.pack(count, len(data)) + data


def _value(kind: int, value: Any, order: str, count: str) -> bytes:
    if kind == 8:
        return _text(value, count)
    if kind == 9:
        inner, items = value
        head = struct.pack(order + "I", inner) + struct.pack(count, len(items))
        return head + b"".join(_value(inner, item, order, count) for item in items)
    return struct.pack(order + _SCALARS[kind], value)
