"""Which tensors of an ONNX graph are weights: by the nodes that read them.

Sources: the operators of onnx (QuantizeLinear family), and of ONNX Runtime's ContribOperators.md (MatMulNBits ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from estimator.readers.files.packed_weights import is_buffer
from estimator.readers.files.weight_records import FileTensor

__all__ = ["Node", "parameters_of"]

# Operator -> input position -> what a tensor there is. weight: a matrix of its own shape, whatever its type.
# part: belongs to another input's weight. table: computed from the config, no parameter. Others are as elsewhere.
_ROLES: Mapping[str, Mapping[int, str]] = {
    "DequantizeLinear": {0: "weight", 1: "part", 2: "part"},
    "QuantizeLinear": {1: "part", 2: "part"},
    "MatMulInteger": {1: "weight", 2: "part", 3: "part"},
    "ConvInteger": {1: "weight", 2: "part", 3: "part"},
    "MatMulIntegerToFloat": {1: "weight", 2: "part", 3: "part", 4: "part", 5: "part"},
    "DynamicQuantizeMatMul": {1: "weight", 2: "part", 3: "part"},
    "QLinearMatMul": {1: "part", 2: "part", 3: "weight", 4: "part", 5: "part", 6: "part", 7: "part"},
    "QLinearConv": {1: "part", 2: "part", 3: "weight", 4: "part", 5: "part", 6: "part", 7: "part"},
    "QGemm": {1: "part", 2: "part", 3: "weight", 4: "part", 5: "part", 7: "part", 8: "part"},
    "QAttention": {1: "weight", 3: "part", 4: "part", 6: "part", 7: "part"},
    "MatMulNBits": {1: "packed", 2: "part", 3: "part", 4: "part"},
    "GatherBlockQuantized": {0: "weight", 2: "part", 3: "part"},
    "RotaryEmbedding": {1: "table", 2: "table", 3: "table"},
    "GroupQueryAttention": {7: "table", 8: "table"},
}
_OPAQUE = ("MatMulBnb4", "QMoE", "MatMulFpQ4")  # quantised operators whose layout is not known here
_FLOATS = ("fp", "bf", "complex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the graph as far as it tells what its inputs are; `numbers` are its integer attributes."""

    kind: str
    inputs: tuple[str, ...]
    numbers: Mapping[str, int]

    @staticmethod
    def matters(kind: str) -> bool:
        """Whether nodes of that operator have to be kept."""
        return kind in _ROLES or kind in _OPAQUE


def parameters_of(
    tensors: Sequence[FileTensor], nodes: Sequence[Node]
) -> tuple[tuple[FileTensor, ...] | None, tuple[str, ...]]:
    """The weights among the tensors, None where an operator's layout is not known; and notes.

    Single numbers, and integers that no quantised operator reads, are constants of the graph.
    """
    named = {tensor.name: tensor for tensor in tensors}
    opaque = sorted({node.kind for node in nodes if node.kind in _OPAQUE})
    if opaque:
        return None, (f"weights of {', '.join(opaque)} are packed in an unknown way; parameters cannot be counted",)
    weights, others = _quantized(named, nodes)
    parameters: list[FileTensor] = []
    for tensor in tensors:
        if tensor.name in weights:
            parameters.append(weights[tensor.name])
        elif tensor.name not in others and _may_be_weight(tensor):
            parameters.append(tensor)
    kinds = sorted({weight.dtype for weight in weights.values() if not weight.dtype.startswith(_FLOATS)})
    notes = (f"{len(weights)} weights are stored as {', '.join(kinds)}",) if kinds else ()
    return tuple(parameters), notes


def _may_be_weight(tensor: FileTensor) -> bool:
    return tensor.num_elements > 1 and tensor.dtype.startswith(_FLOATS) and not is_buffer(tensor)


def _quantized(named: Mapping[str, FileTensor], nodes: Sequence[Node]) -> tuple[dict[str, FileTensor], set[str]]:
    """Weights that quantised operators read, by the name of their tensor; and the tensors that are no weights."""
    weights: dict[str, FileTensor] = {}
    others: set[str] = set()
    for node in nodes:
        roles = {name: _ROLES[node.kind].get(index) for index, name in enumerate(node.inputs) if name in named}
        parts = {name for name, role in roles.items() if role == "part"}
        others |= parts | {name for name, role in roles.items() if role == "table"}
        for name, role in roles.items():
            if role in ("weight", "packed"):
                # Our own int8 matrices are followed by a Mul with the scale, which carries the weight's name.
                beside = parts | ({f"{name}_scale"} & named.keys() if node.kind == "MatMulInteger" else set())
                others |= beside
                weights[name] = _as_weight(named[name], node, sum(named[part].num_bytes for part in beside))
    return weights, others


def _as_weight(tensor: FileTensor, node: Node, part_bytes: int) -> FileTensor:
    shape, dtype = tensor.shape, tensor.dtype
    rows, columns = node.numbers.get("N", 0), node.numbers.get("K", 0)
    if node.kind == "MatMulNBits" and rows > 0 and columns > 0:
        bits = node.numbers.get("bits", 4)
        shape, dtype = (rows, columns), f"int{bits} (MatMulNBits)"
    return FileTensor(name=tensor.name, shape=shape, dtype=dtype, num_bytes=tensor.num_bytes + part_bytes)
