"""The yardsticks: fixed graphs whose time says how fast the machine is at this moment.

One per regime, because each slows down differently: `compute` multiplies matrices of 128 rows with all threads, as
prefill does; `stream` multiplies one row by more matrices than a core's cache holds with all threads, as a decode step
of millions of parameters does; `step` multiplies one row through many layers so narrow that ONNX Runtime keeps them on
one thread, as it does with a small decode step. When every core is busy, work on one thread hardly slows down, and work
on several waits for the last of them. Sizes and session options never change; what is new gets a new name, because
quiet times are kept by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["YARDSTICKS", "choose_yardstick", "is_parallel", "yardstick_input", "yardstick_model"]

# Rows of the input, width, number of layers.
_SIZES = {"compute-3": (128, 256, 6), "stream-3": (1, 512, 16), "step-4": (1, 96, 40)}
YARDSTICKS = tuple(_SIZES)
# Graphs that work on all threads leave the helpers a third of the CPU time or more, however busy the machine is; those
# that share a product here and there less than a tenth on a quiet one.
_PARALLEL_SHARE = 0.2
_OPSET = 17


def is_parallel(helper_share: float) -> bool:
    """True when a candidate keeps several threads at work.

    `helper_share` is the part of its CPU time that threads other than the caller's spend. What else runs changes it far
    less than the time on the clock.
    """
    return helper_share >= _PARALLEL_SHARE


def choose_yardstick(phase: str, *, num_threads: int, parallel: bool) -> str:
    """The yardstick of a candidate's regime: prefill computes, decode streams weights, unless one thread does it all.

    With one thread allowed, all decoding is measured by the step.
    """
    if not parallel and (num_threads > 1 or phase != "prefill"):
        return "step-4"
    return "compute-3" if phase == "prefill" else "stream-3"


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
