"""Weights in fewer bits than fp32, and the nodes that multiply by them.

In 16 bit: kept so in the file, and cast to fp32 once, when it is loaded. int8 per channel: activations are quantised as
they come, once for all products that they enter. In blocks: by MatMulNBits, which quantises activations by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from estimator.errors import BuildError
from estimator.onnx_graph import GraphWriter
from estimator.weight_formats import WeightFormat

__all__ = [
    "BlockedWeight",
    "quantize_blocks",
    "quantize_weight",
    "write_block_matmul",
    "write_half",
    "write_quantized_matmul",
]

_LARGEST = 127  # -128 is left out, so that a weight and its negative are equally exact
_HALVES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
# Activations as int8 in blocks. ONNX Runtime 1.32 on a CPU took four times as long for decode at level 0 (fp32) with 4
# bits, and fifty times with 8 bits, for which it has no other kernel. docs/decisions/onnx-graph.md
_ACCURACY_LEVEL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedWeight:
    """A matrix [out, in] as MatMulNBits takes it: element = (code - zero point) * scale.

    codes: uint8 [out, blocks, bytes of a block]; of two 4-bit codes in a byte the first is the lower half.
    scales: fp32 [out, blocks], values that the format's scale type holds exactly.
    zero_points: uint8 [out, bytes], packed like the codes; None: the middle code, 2^(bits - 1).
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None


def quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The matrix [out, in] as int8, and one fp32 scale for each output channel: weight = int8 * scale."""
    scales = np.abs(weight).max(axis=1) / np.float32(_LARGEST)
    scales[scales == 0] = 1.0
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def quantize_blocks(weight: NDArray[np.float32], form: WeightFormat) -> BlockedWeight:
    """The matrix [out, in] in blocks of a row, each rounded to the nearest code of its own scale.

    Without zero points the element of largest magnitude is the lowest code, so that all codes are used: what lies
    opposite to it beyond the highest code is cut off, by one step at most.

    Raises:
        BuildError: a scale is too large for fp16.
    """
    out, inner = weight.shape
    blocks, codes = -(-inner // form.columns), 1 << form.bits
    padded = np.zeros((out, blocks * form.columns), np.float32)
    padded[:, :inner] = weight
    elements = padded.reshape(out, blocks, form.columns)
    low, high = (np.minimum(elements.min(axis=-1), 0), np.maximum(elements.max(axis=-1), 0))
    if form.zero_points:
        scales = _storable((high - low) / np.float32(codes - 1), form)
        points = np.clip(np.rint(-low / scales), 0, codes - 1)
    else:
        scales = _storable(np.where(high > -low, high, low) / np.float32(-codes // 2), form)
        points = np.full(scales.shape, codes // 2, np.float32)
    quantized = np.clip(np.rint(elements / scales[..., None]) + points[..., None], 0, codes - 1)
    return BlockedWeight(
        codes=_pack(quantized.astype(np.uint8), form.bits),
        scales=scales,
        zero_points=_pack(points.astype(np.uint8), form.bits) if form.zero_points else None,
    )


def write_half(writer: GraphWriter, name: str, values: NDArray[np.float32], dtype: str) -> str:
    """Stores `name` as fp16 or bf16, and casts it to fp32; ONNX Runtime does that once, when it loads the file.

    Raises:
        BuildError: a value is too large for the type.
    """
    output = f"{name}_fp32"
    if not writer.has_value(output):
        with np.errstate(over="ignore"):
            stored = values.astype(_HALVES[dtype])
        if not np.isfinite(stored).all():
            raise BuildError(f"weight {name!r} holds values that are too large for {dtype}")
        writer.node("Cast", writer.initializer(name, stored), outputs=(output,), to=onnx.TensorProto.FLOAT)
    return output


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


def write_block_matmul(writer: GraphWriter, x: str, name: str, weight: NDArray[np.float32], form: WeightFormat) -> str:
    """A node for x @ weight.T; stores `name` in blocks, `name`_scale and, if the format has them, `name`_zero_points.

    The node takes scales in the type of x alone; those of fp16 are cast when the file is loaded.

    Raises:
        BuildError: a scale is too large for fp16.
    """
    out, inner = weight.shape
    try:
        blocked = quantize_blocks(weight, form)
    except BuildError as error:
        raise BuildError(f"weight {name!r} {error}") from error
    inputs = [x, writer.initializer(name, blocked.codes)]
    if form.scale_bytes == 2:
        inputs.append(write_half(writer, f"{name}_scale", blocked.scales, "fp16"))
    else:
        inputs.append(writer.initializer(f"{name}_scale", blocked.scales))
    if blocked.zero_points is not None:
        inputs.append(writer.initializer(f"{name}_zero_points", blocked.zero_points))
    sizes = {"K": inner, "N": out, "bits": form.bits, "block_size": form.columns}
    return writer.node("MatMulNBits", *inputs, domain="com.microsoft", accuracy_level=_ACCURACY_LEVEL, **sizes)


def _storable(scales: NDArray[np.float32], form: WeightFormat) -> NDArray[np.float32]:
    """The scales as the format keeps them; what is 0 there becomes 1, and all its elements 0."""
    if form.scale_bytes == 2:
        with np.errstate(over="ignore"):
            scales = scales.astype(np.float16).astype(np.float32)
        if not np.isfinite(scales).all():
            raise BuildError("holds values that are too large for blocks with fp16 scales")
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes in bytes along the last axis; an odd number of 4-bit codes is filled up with a 0."""
    if bits == 8:
        return codes
    even: NDArray[np.uint8] = np.zeros((*codes.shape[:-1], codes.shape[-1] + codes.shape[-1] % 2), np.uint8)
    even[..., : codes.shape[-1]] = codes
    return np.bitwise_or(even[..., ::2], np.left_shift(even[..., 1::2], np.uint8(4)))
