"""The yardsticks: fixed graphs whose time says how fast the machine is at this moment.

One per regime, because work that waits for memory or for dispatch slows down differently from arithmetic: `compute`
multiplies matrices of 128 rows, as prefill does; `step` multiplies one row through many layers, as decode does, so
narrow that ONNX Runtime keeps it on one thread, as it does with a small decode step: when both cores are busy, work on
one thread hardly slows down and work on two does. Their sizes never change; a new size is a new name, because quiet
times are kept by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["YARDSTICK_BY_PHASE", "yardstick_input", "yardstick_model"]

YARDSTICK_BY_PHASE = {"prefill": "compute-2", "decode": "step-3"}
# Rows of the input, width, number of layers.
_SIZES = {"compute-2": (128, 256, 6), "step-3": (1, 96, 40)}
_OPSET = 17


def yardstick_model(name: str) -> bytes:
    """A serialised ONNX model: `layers` times MatMul with a square matrix and Relu, fp32."""
    import onnx
    from onnx import helper

    rows, width, num_layers = _SIZES[name]
    generator = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    for layer in range(num_layers):
        matrix = generator.standard_normal((width, width), dtype=np.float32) * np.float32(np.sqrt(2 / width))
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [current, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))
        current = f"r{layer}"
    shape = [rows, width]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(current, onnx.TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return bytes(model.SerializeToString())


def yardstick_input(name: str) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rows, width, _ = _SIZES[name]
    return {"x": np.random.default_rng(1).standard_normal((rows, width), dtype=np.float32)}
