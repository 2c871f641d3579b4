"""Which number types an ONNX file can keep its weights in, and which weight has which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.errors import BuildError
from estimator.weights import is_linear, weight_shapes

__all__ = ["BLOCK_FORMATS", "BUILD_DTYPES", "BlockFormat", "stored_weight_bytes", "weight_dtypes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """A matrix [out, in] in blocks of `block_size` inputs, the last one of a row padded; the form of MatMulNBits.

    A block has `bits` per element, a scale of `scale_bytes`, and with `zero_points` the code that stands for 0, in
    `bits` as well; the zero points of a row are padded to whole bytes.
    """

    bits: int
    block_size: int
    zero_points: bool
    scale_bytes: int

    def num_blocks(self, inner: int) -> int:
        """Blocks of a row of `inner` inputs."""
        return -(-inner // self.block_size)

    def count_bytes(self, out: int, inner: int) -> int:
        """Bytes of the matrix with its scales and zero points."""
        blocks = self.num_blocks(inner)
        points = -(-blocks * self.bits // 8) if self.zero_points else 0
        return out * (blocks * (self.block_size * self.bits // 8 + self.scale_bytes) + points)


def _block_formats() -> dict[str, BlockFormat]:
    """int4 is in blocks of 32; int8 alone is per channel, and none of these."""
    formats = {}
    for bits, scale_bytes, default_size in ((8, 4, None), (4, 2, 32)):
        for block_size in (32, 128):
            size = "" if block_size == default_size else f"-g{block_size}"
            for zero_points in (False, True):
                formats[f"int{bits}{size}{'-zp' if zero_points else ''}"] = BlockFormat(
                    bits=bits, block_size=block_size, zero_points=zero_points, scale_bytes=scale_bytes
                )
    return formats


BLOCK_FORMATS = _block_formats()
_FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_CHANNEL_SCALE_BYTES = 4
BUILD_DTYPES = (*_FLOAT_BYTES, "int8", *BLOCK_FORMATS)


def weight_dtypes(
    config: TransformerConfig, weight_dtype: str, weight_dtype_per_layer: Sequence[str] | None = None
) -> dict[str, str]:
    """The type of every stored weight by name.

    A layer's weights have the layer's own type if there is one, all others `weight_dtype`. Of an integer type are the
    matrices that `is_linear` names; what stands beside them is fp32.

    Raises:
        BuildError: a type is unknown, there is not one for each layer, or layers that share weights differ.
    """
    layers = _layer_dtypes(config, weight_dtype, weight_dtype_per_layer)
    names = {}
    for name in weight_shapes(config):
        dtype = layers[int(name.split(".")[1])] if name.startswith("layers.") else weight_dtype
        names[name] = dtype if dtype in _FLOAT_BYTES or is_linear(name) else "fp32"
    return names


def stored_weight_bytes(config: TransformerConfig, dtypes: Mapping[str, str]) -> int:
    """Bytes that a file keeps for all weights of the types that `weight_dtypes` gave, with their scales."""
    return sum(_weight_bytes(shape, dtypes[name]) for name, shape in weight_shapes(config).items())


def _layer_dtypes(config: TransformerConfig, weight_dtype: str, per_layer: Sequence[str] | None) -> tuple[str, ...]:
    chosen = (weight_dtype,) * config.num_hidden_layers if per_layer is None else tuple(per_layer)
    for dtype in (weight_dtype, *chosen):
        if dtype not in BUILD_DTYPES:
            raise BuildError(f"weight_dtype {dtype!r} cannot be built; these can: {', '.join(BUILD_DTYPES)}")
    if len(chosen) != config.num_hidden_layers:
        raise BuildError(
            f"weight_dtype_per_layer has {len(chosen)} types; this config has {config.num_hidden_layers} layers"
        )
    for layer in config.layers:
        own, owner = chosen[layer.index], chosen[layer.weight_source]
        if own != owner:
            raise BuildError(
                f"weight_dtype_per_layer: layer {layer.index} uses the weights of layer {layer.weight_source}, "
                f"which are {owner}, not {own}"
            )
    return chosen


def _weight_bytes(shape: tuple[int, ...], dtype: str) -> int:
    if dtype in BLOCK_FORMATS:
        return BLOCK_FORMATS[dtype].count_bytes(*shape)
    if dtype == "int8":
        return math.prod(shape) + _CHANNEL_SCALE_BYTES * shape[0]
    return math.prod(shape) * _FLOAT_BYTES[dtype]
