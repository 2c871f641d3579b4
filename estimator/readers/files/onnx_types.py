"""The number types of ONNX tensors.

Source: TensorProto.DataType in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

__all__ = ["DATA_TYPES"]

# TensorProto.DataType -> (our name, bits per element). Strings have no fixed size.
DATA_TYPES: dict[int, tuple[str, int]] = {
    1: ("fp32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("fp16", 16),
    11: ("fp64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bf16", 16),
    17: ("fp8_e4m3", 8),
    18: ("fp8_e4m3fnuz", 8),
    19: ("fp8_e5m2", 8),
    20: ("fp8_e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("fp4_e2m1", 4),
    24: ("fp8_e8m0", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
    27: ("fp6_e2m3", 6),
    28: ("fp6_e3m2", 6),
}
