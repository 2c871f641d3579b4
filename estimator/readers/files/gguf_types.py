"""ggml's number types: elements per block and bytes per block.

Source: the block structs of ggml/src/ggml-common.h (ggml-org/llama.cpp); d and m are fp16 scales, a K block is 256.
"""

from __future__ import annotations

__all__ = ["GGML_TYPES"]

# Number in the file -> (name, elements per block, bytes per block).
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("fp32", 1, 4),
    1: ("fp16", 1, 2),
    2: ("Q4_0", 32, 2 + 16),  # d, 32 x 4 bits
    3: ("Q4_1", 32, 4 + 16),  # d m, 32 x 4 bits
    6: ("Q5_0", 32, 2 + 4 + 16),  # d, 32 fifth bits, 32 x 4 bits
    7: ("Q5_1", 32, 4 + 4 + 16),  # d m, 32 fifth bits, 32 x 4 bits
    8: ("Q8_0", 32, 2 + 32),  # d, 32 x 8 bits
    9: ("Q8_1", 32, 4 + 32),  # d and sum, 32 x 8 bits; for activations only, no file holds it
    10: ("Q2_K", 256, 16 + 64 + 4),  # 16 scales and minima of 4 bits each, 256 x 2 bits, d m
    11: ("Q3_K", 256, 32 + 64 + 12 + 2),  # 256 third bits, 256 x 2 bits, 16 scales of 6 bits, d
    12: ("Q4_K", 256, 4 + 12 + 128),  # d m, 8 scales and minima of 6 bits, 256 x 4 bits
    13: ("Q5_K", 256, 4 + 12 + 32 + 128),  # as Q4_K with 256 fifth bits
    14: ("Q6_K", 256, 128 + 64 + 16 + 2),  # 256 x 4 bits, 256 x 2 bits, 16 scales of 8 bits, d
    15: ("Q8_K", 256, 4 + 256 + 32),  # fp32 d, 256 x 8 bits, 16 sums of 16 bits
    16: ("IQ2_XXS", 256, 2 + 64),  # d, 32 x 16 bits
    17: ("IQ2_XS", 256, 2 + 64 + 8),  # d, 32 x 16 bits, 16 scales of 4 bits
    18: ("IQ3_XXS", 256, 2 + 96),  # d, 3 x 32 bytes
    19: ("IQ1_S", 256, 2 + 32 + 16),  # d, 32 bytes, 8 x 16 high bits
    20: ("IQ4_NL", 32, 2 + 16),  # d, 32 x 4 bits
    21: ("IQ3_S", 256, 2 + 64 + 8 + 32 + 4),  # d, 64 bytes, 64 high bits, 256 signs, 8 scales of 4 bits
    22: ("IQ2_S", 256, 2 + 64 + 8 + 8),  # d, 64 bytes (32 of signs), 64 high bits, 16 scales of 4 bits
    23: ("IQ4_XS", 256, 2 + 2 + 4 + 128),  # d, 16 high bits, 8 scales' low bits, 256 x 4 bits
    24: ("int8", 1, 1),
    25: ("int16", 1, 2),
    26: ("int32", 1, 4),
    27: ("int64", 1, 8),
    28: ("fp64", 1, 8),
    29: ("IQ1_M", 256, 32 + 16 + 8),  # 32 bytes, 16 bytes of high bits, 8 bytes of scales
    30: ("bf16", 1, 2),
    31: ("Q4_0_4_4", 32, 18),  # Q4_0 in another order; withdrawn, but in published files
    32: ("Q4_0_4_8", 32, 18),
    33: ("Q4_0_8_8", 32, 18),
    34: ("TQ1_0", 256, 48 + 4 + 2),  # 240 trits by 5 in a byte, 16 by 4, d
    35: ("TQ2_0", 256, 64 + 2),  # 256 x 2 bits, d
    36: ("IQ4_NL_4_4", 32, 18),  # IQ4_NL in another order; withdrawn
    37: ("IQ4_NL_4_8", 32, 18),
    38: ("IQ4_NL_8_8", 32, 18),
    39: ("MXFP4", 32, 1 + 16),  # exponent, 32 x 4 bits
    40: ("NVFP4", 64, 4 + 32),  # 4 fp8 scales, 64 x 4 bits
    41: ("Q1_0", 128, 2 + 16),  # d, 128 bits
}
