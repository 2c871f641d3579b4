"""What a model is asked to do: how many sequences, how long, in which number types, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.errors import InputError
from estimator.weight_formats import FORMATS, WeightFormat

__all__ = [
    "ATTENTIONS",
    "DTYPE_BYTES",
    "FLOAT_DTYPES",
    "KV_DTYPES",
    "KV_SCALES",
    "LOGITS",
    "RUNTIME_NAMES",
    "WEIGHT_DTYPES",
    "Workload",
]

FLOAT_DTYPES = ("fp32", "fp16", "bf16")
WEIGHT_DTYPES = (*FLOAT_DTYPES, "fp8", "int8", "int4", "nf4", "mxfp4")
KV_DTYPES = (*FLOAT_DTYPES, "fp8", "int8", "int4")
# head: a scale for each head's keys and one for its values, the same for all tokens. token: one of each per token.
KV_SCALES = ("head", "token")
ATTENTIONS = ("fused", "eager")
LOGITS = ("all", "last")
RUNTIME_NAMES = ("onnxruntime-cpu", "onnxruntime-cuda", "pytorch-cpu", "pytorch-cuda")
# Bytes per stored element, without scales (those are counted with the weights and the cache).
DTYPE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0} | {name: known.bits / 8 for name, known in FORMATS.items()}
_DEFAULT_KV_SCALES = {"fp8": "head", "int8": "token", "int4": "token"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Batch size, lengths in tokens, number types, and how the model is run.

    Prefill reads `prompt_length` tokens at once, those of `num_images` images per sequence among them. Decode adds one
    token to a context of `context_length` tokens.

    weight_format: how matrices of a quantised `weight_dtype` are stored; that of `weight_formats.FORMATS` when None.
    kv_scales: what shares a scale of a quantised cache; "head" for fp8, "token" for int8 and int4 when None.
    attention: "fused" stores no scores, "eager" does; what the runtime does when None.
    logits: of "all" positions of a prompt, or of the "last" alone, which saves memory and the head's work.
    runtime: one of RUNTIME_NAMES; that of the device when None (`runtimes.resolve_runtime`).

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
    weight_format: WeightFormat | None = None
    kv_scales: str | None = None
    attention: str | None = None
    logits: str = "all"
    runtime: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("prompt_length", 1), ("generated_length", 0), ("num_images", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                raise InputError(f"{name} must be an integer from {least} to 2^31 - 1, not {value!r}")
        for name, allowed in (
            ("weight_dtype", (*FLOAT_DTYPES, *FORMATS)),
            ("activation_dtype", FLOAT_DTYPES),
            ("kv_cache_dtype", KV_DTYPES),
            ("kv_scales", (None, *KV_SCALES)),
            ("attention", (None, *ATTENTIONS)),
            ("logits", LOGITS),
            ("runtime", (None, *RUNTIME_NAMES)),
        ):
            if getattr(self, name) not in allowed:
                words = ", ".join(str(word) for word in allowed if word is not None)
                raise InputError(f"{name} must be one of {words}, not {getattr(self, name)!r}")
        self._check_formats()

    def _check_formats(self) -> None:
        own = self.weight_format
        if own is not None and (not isinstance(own, WeightFormat) or own.dtype != self.weight_dtype):
            raise InputError(f"weight_format must be a WeightFormat of {self.weight_dtype} or None, not {own!r}")
        if self.kv_scales is not None and self.kv_cache_dtype in FLOAT_DTYPES:
            raise InputError(f"kv_scales is for a quantised cache; {self.kv_cache_dtype} has no scales")

    @property
    def context_length(self) -> int:
        """Tokens held in the KV cache at the end of the request."""
        return self.prompt_length + self.generated_length

    @property
    def quantization(self) -> WeightFormat | None:
        """How quantised matrices are stored; None for a float weight type."""
        return self.weight_format or FORMATS.get(self.weight_dtype)

    @property
    def unquantized_dtype(self) -> str:
        """The type of what stays unquantised: the weight type if it is a float, else that of the activations."""
        return self.activation_dtype if self.weight_dtype in FORMATS else self.weight_dtype

    @property
    def cache_scales(self) -> str | None:
        """What shares a scale of the cache; None for a cache of floats."""
        return self.kv_scales or _DEFAULT_KV_SCALES.get(self.kv_cache_dtype)
