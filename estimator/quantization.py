"""Dynamic int8: weights are stored as int8, activations are quantised as they come."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from estimator.onnx_graph import GraphWriter

__all__ = ["quantize_weight", "write_quantized_matmul"]

_LARGEST = 127  # -128 is left out, so that a weight and its negative are equally exact


def quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The matrix [out, in] as int8, and one fp32 scale for each output channel: weight = int8 * scale."""
    scales = np.abs(weight).max(axis=1) / np.float32(_LARGEST)
    scales[scales == 0] = 1.0
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def write_quantized_matmul(writer: GraphWriter, x: str, name: str, weight: NDArray[np.float32]) -> str:
    """Nodes for x @ weight.T; stores `name` as int8 and `name`_scale. x is quantised once for all its uses.

    ONNX Runtime fuses these standard nodes into its own; writing the fused ones gave the same latency.
    """
    quantized, scale, zero_point = f"{x}_int8", f"{x}_scale", f"{x}_zero_point"
    if not writer.has_value(quantized):
        writer.node("DynamicQuantizeLinear", x, outputs=(quantized, scale, zero_point))
    values, scales = quantize_weight(weight)
    writer.initializer(name, values.T)
    product = writer.node("MatMulInteger", quantized, name, zero_point)
    both = writer.node("Mul", scale, writer.initializer(f"{name}_scale", scales))
    return writer.node("Mul", writer.node("Cast", product, to=onnx.TensorProto.FLOAT), both)
