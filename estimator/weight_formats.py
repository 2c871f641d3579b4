"""How a quantised matrix is stored: bits per element, what shares a scale, and what stands beside it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from estimator.errors import InputError

__all__ = ["BLOCK_FORMATS", "FORMATS", "WeightFormat", "weight_format"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """The storage of a matrix [out, in]: `bits` per element, and a scale of `scale_bytes` for every block of it.

    A block is `rows` x `columns` elements; 0 stands for all rows or all columns. is_flat: blocks of `columns` elements
    run over the matrix row by row, whatever its rows. pads_rows: every row is filled up to whole blocks, and its zero
    points to whole bytes; else zero points of all rows stand side by side in words of 32 bits. outer_block: so many
    scales share an fp32 scale of their own, beside one fp32 offset. column_bytes: what is kept for each input, such as
    its group. matrix_bytes: what is kept once.
    """

    dtype: str
    bits: int
    rows: int = 1
    columns: int = 0
    scale_bytes: int = 2
    zero_points: bool = False
    is_flat: bool = False
    pads_rows: bool = False
    outer_block: int = 0
    column_bytes: int = 0
    matrix_bytes: int = 0

    def element_bytes(self, out: int, inner: int) -> int:
        """Bytes of the elements of a matrix, padding among them."""
        if self.is_flat:
            return _ceil(out * inner * self.bits, 8)
        width = self.columns * _ceil(inner, self.columns) if self.pads_rows and self.columns else inner
        return out * _ceil(width * self.bits, 8)

    def num_scales(self, out: int, inner: int) -> int:
        """Blocks of a matrix."""
        if self.is_flat:
            return _ceil(out * inner, self.columns)
        return self._bands(out) * self._groups(inner)

    def extra_bytes(self, out: int, inner: int) -> int:
        """Bytes beside elements and scales: zero points, scales of scales, and what is kept per input and matrix."""
        extra = self.column_bytes * inner + self.matrix_bytes
        if self.zero_points and self.pads_rows:
            extra = extra + out * _ceil(self._groups(inner) * self.bits, 8)
        elif self.zero_points:
            extra = extra + self._groups(inner) * 4 * _ceil(self._bands(out) * self.bits, 32)
        if self.outer_block:
            extra = extra + 4 * _ceil(self.num_scales(out, inner), self.outer_block) + 4
        return extra

    def count_bytes(self, out: int, inner: int) -> int:
        """Bytes of a matrix [out, in] with all that belongs to it."""
        scales = self.scale_bytes * self.num_scales(out, inner)
        return self.element_bytes(out, inner) + scales + self.extra_bytes(out, inner)

    def _groups(self, inner: int) -> int:
        return _ceil(inner, self.columns) if self.columns else 1

    def _bands(self, out: int) -> int:
        return _ceil(out, self.rows) if self.rows else 1


def _ceil(whole: int, part: int) -> int:
    return -(-whole // part)


# What a type means unless a block is asked for, or a checkpoint says otherwise.
# fp8: e4m3 with an fp32 scale per output channel (the FP8-dynamic scheme of compressed-tensors).
# int8, int4: as our ONNX files have them, an fp32 scale per output channel, and MatMulNBits with blocks of 32.
# nf4: bitsandbytes with double quantisation (QLoRA, arXiv:2305.14314, section 3): an 8-bit scale per 64 elements,
# an fp32 one per 256 of these; its table of levels is left out. mxfp4: OCP Microscaling Formats 1.0, section 6.3.
# nvfp4: an e4m3 scale per 16 elements and one fp32 scale (NVIDIA Transformer Engine). int3, int2: GPTQ in groups.
FORMATS = {
    "fp8": WeightFormat(dtype="fp8", bits=8, scale_bytes=4),
    "int8": WeightFormat(dtype="int8", bits=8, scale_bytes=4),
    "int4": WeightFormat(dtype="int4", bits=4, columns=32, pads_rows=True),
    "nf4": WeightFormat(dtype="nf4", bits=4, columns=64, scale_bytes=1, is_flat=True, outer_block=256),
    "mxfp4": WeightFormat(dtype="mxfp4", bits=4, columns=32, scale_bytes=1, pads_rows=True),
    "nvfp4": WeightFormat(dtype="nvfp4", bits=4, columns=16, scale_bytes=1, pads_rows=True, matrix_bytes=4),
    "int3": WeightFormat(dtype="int3", bits=3, columns=128, zero_points=True),
    "int2": WeightFormat(dtype="int2", bits=2, columns=128, zero_points=True),
}
_BLOCK_NAMES = {
    f"int{bits}{'' if (bits, size) == (4, 32) else f'-g{size}'}{'-zp' if zero_points else ''}": (
        bits,
        size,
        zero_points,
    )
    for bits in (8, 4)
    for size in (32, 128)
    for zero_points in (False, True)
}
# What our ONNX files hold in blocks (MatMulNBits), by name: int8-g32, int4, int4-zp, int4-g128-zp and so on.
BLOCK_FORMATS = {
    name: dataclasses.replace(FORMATS[f"int{bits}"], dtype=name, columns=size, zero_points=zero_points, pads_rows=True)
    for name, (bits, size, zero_points) in _BLOCK_NAMES.items()
}
FORMATS |= BLOCK_FORMATS
_FIXED = ("mxfp4", "nvfp4")  # the block is part of the type
_SYMMETRIC = ("fp8", "nf4", *_FIXED)


def weight_format(dtype: str, group_size: str | None = None, zero_points: bool = False) -> WeightFormat | None:
    """How matrices of a weight type are stored; None for fp32, fp16 and bf16.

    Args:
        dtype: a weight type.
        group_size: the elements that share a scale: a number of inputs, "channel" (a whole row), "tensor" (all), or
            "128x128" (rows x columns, fp8); that of the type when not given.
        zero_points: blocks have a zero point beside their scale.

    Raises:
        InputError: the type has no scales, a block of its own, or no zero points.
    """
    known = FORMATS.get(dtype)
    if known is None:
        if group_size is not None or zero_points:
            raise InputError(f"{dtype} weights have neither groups nor zero points; give a quantised weight type")
        return None
    if zero_points and dtype in _SYMMETRIC:
        raise InputError(f"{dtype} weights have no zero points; int8 and int4 may")
    block = (known.rows, known.columns) if group_size is None else _block(dtype, group_size)
    return dataclasses.replace(known, rows=block[0], columns=block[1], zero_points=zero_points or known.zero_points)


def _block(dtype: str, text: str) -> tuple[int, int]:
    if dtype in _FIXED:
        raise InputError(f"{dtype} has blocks of its own; leave the group size out")
    whole = {"channel": (1, 0), "tensor": (0, 0)}
    if text in whole and dtype != "nf4":
        return whole[text]
    match = re.fullmatch(r"(?:(\d{1,5})x)?(\d{1,5})", text)
    rows, columns = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    if columns < 8 or not rows or (rows > 1 and dtype != "fp8"):
        squares = " or rows x columns such as 128x128" if dtype == "fp8" else ""
        words = "" if dtype == "nf4" else ", channel, tensor"
        raise InputError(
            f"the group size of {dtype} must be a number from 8 to 99999{words}{squares}, not {text[:40]!r}"
        )
    return rows, columns
