"""What a model is asked to do: how many sequences, how long, in which number types."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.errors import InputError

__all__ = ["DTYPE_BYTES", "FLOAT_DTYPES", "WEIGHT_DTYPES", "Workload"]

FLOAT_DTYPES = ("fp32", "fp16", "bf16")
WEIGHT_DTYPES = (*FLOAT_DTYPES, "int8", "int4")
# Bytes per stored element, without scales (those are counted with the weights).
DTYPE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Batch size, lengths in tokens, and number types.

    Prefill reads `prompt_length` tokens at once, those of `num_images` images per sequence among them. Decode adds one
    token to a context of `context_length` tokens.

    Raises:
        InputError: names the field and what would be right.
    """

    batch_size: int = 1
    prompt_length: int = 128
    generated_length: int = 0
    num_images: int = 0
    weight_dtype: str = "fp32"
    activation_dtype: str = "fp32"
    kv_cache_dtype: str = "fp32"

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("prompt_length", 1), ("generated_length", 0), ("num_images", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                raise InputError(f"{name} must be an integer from {least} to 2^31 - 1, not {value!r}")
        for name, allowed in (
            ("weight_dtype", WEIGHT_DTYPES),
            ("activation_dtype", FLOAT_DTYPES),
            ("kv_cache_dtype", (*FLOAT_DTYPES, "int8")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    @property
    def context_length(self) -> int:
        """Tokens held in the KV cache at the end of the request."""
        return self.prompt_length + self.generated_length
