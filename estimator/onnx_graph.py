"""Writes one ONNX graph, node by node."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["OPSET", "GraphWriter", "is_parameter", "parameter_sizes", "weight_bytes"]

OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization
_IR_VERSION = 11  # the one released with opset 23
_ELEMENT_TYPES = {"float": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}


def is_parameter(name: str) -> bool:
    """True for the initialisers that hold stored weights; constants, scales and zero points are none."""
    return name.endswith((".weight", ".bias"))


def weight_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of all stored weights with their scales and zero points, as the file holds them."""
    endings = ("", "_scale", "_zero_points")
    names = {tensor.name + ending for tensor in graph.initializer if is_parameter(tensor.name) for ending in endings}
    return sum(len(tensor.raw_data) for tensor in graph.initializer if tensor.name in names)


def parameter_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Elements of every stored weight by name; those that MatMulNBits packs are counted by its matrix, [N, K]."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer if is_parameter(tensor.name)}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            values = {attribute.name: attribute.i for attribute in node.attribute}
            sizes[node.input[1]] = values["N"] * values["K"]
    return sizes


class GraphWriter:
    """Collects nodes, initialisers, inputs and outputs; `model()` puts them together.

    A value is known by its name, a string. Methods that add something return the name of its (first) value.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._values: set[str] = set()
        self._domains = {"": OPSET}

    def node(self, op: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        """Adds a node, of the standard operators unless of `domain`; its output is named after it without `outputs`."""
        name = f"{op}_{len(self._nodes)}"
        outputs = outputs or (name,)
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain or None, **attributes))
        self._domains.setdefault(domain, 1)
        self._values.update(outputs)
        return outputs[0]

    def has_value(self, name: str) -> bool:
        """True when a node has an output of that name already."""
        return name in self._values

    def initializer(self, name: str, values: NDArray[Any]) -> str:
        """Stores a named tensor once; a second call with the same name changes nothing."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector constant."""
        return self.initializer("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: int) -> str:
        """An int64 scalar constant."""
        return self.initializer(f"scalar_{value}", np.array(value, np.int64))

    def input(self, name: str, element_type: str, shape: Sequence[int | str]) -> str:
        """Declares an input of the graph; a string in the shape is a dynamic axis."""
        self._inputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[element_type], shape))
        return name

    def output(self, name: str, element_type: str, shape: Sequence[int | str]) -> str:
        """Declares an output of the graph, a value that some node has as its output."""
        self._outputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[element_type], shape))
        return name

    def model(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished model with `metadata` as its properties; the same calls give the same bytes."""
        graph = helper.make_graph(
            self._nodes, "transformer", self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self._domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="archfront", ir_version=_IR_VERSION)
        helper.set_model_props(model, dict(metadata))
        return model
