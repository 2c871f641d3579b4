"""Weights behind packed tensors: GPTQ, AWQ, bitsandbytes, fp8 with scales, MXFP4, NVFP4, compressed-tensors, MLX.

A packed matrix is stored as integers of another shape beside scales and zero points; what it stands for follows from
the shapes of the parts, or from the quantization_config of config.json where they leave it open.
Sources: the linear layers of AutoGPTQ and AutoAWQ, Params4bit of bitsandbytes, PackedQuantizationCompressor of
compressed-tensors, GptOssExperts of transformers (blocks and scales), the quantized layers of MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from estimator.readers.files.weight_records import FileTensor, show_name

__all__ = ["is_buffer", "unpack_weights"]

_INTEGERS = frozenset(("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"))
_PACKED_INTEGERS = frozenset(("uint8", "int8", "int16", "uint16", "int32", "uint32"))
_BUFFER_ENDINGS = (".inv_freq", ".masked_bias", "position_ids", ".num_batches_tracked", ".token_type_ids")
# Scales of activations and caches in quantised checkpoints, which belong to no single weight.
_SCALE_ENDINGS = (".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".input_scale", ".output_scale", ".prob_scale")
_MASK_ENDINGS = (".attn.bias", ".attention.bias", ".attn.attention.bias")  # causal masks of GPT-2, GPT-NeoX, GPT-Neo
Tensors = Mapping[str, FileTensor]
# What a packed tensor stands for: the weight without bytes, and the names of its other parts.
Found = tuple[FileTensor, Sequence[str]]


def is_buffer(tensor: FileTensor) -> bool:
    """Whether a tensor is a table that the model computes itself, by the names that published checkpoints use."""
    if tensor.name.endswith(_BUFFER_ENDINGS):
        return True
    return tensor.name.endswith(_MASK_ENDINGS) and len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1)


def unpack_weights(
    tensors: Sequence[FileTensor], quantization: Mapping[str, Any]
) -> tuple[tuple[FileTensor, ...] | None, tuple[str, ...]]:
    """The weights that the tensors stand for, None where a packing is not known; and notes on what was found.

    `quantization` is the quantization_config of the model's config.json, or empty.
    """
    if not any(tensor.dtype in _INTEGERS or tensor.dtype.startswith("fp8") for tensor in tensors):
        return _without_buffers(tensors)
    named = {tensor.name: tensor for tensor in tensors}
    found = {name: weight for name in named if (weight := _unpack(name, named, quantization)) is not None}
    parts = {part for _, others in found.values() for part in others}
    unknown = [t for t in tensors if t.name not in found and t.name not in parts and _is_unknown(t)]
    if unknown:
        first = unknown[0]
        note = f"{len(unknown)} tensors such as {show_name(first.name)} ({first.dtype}) are packed in an unknown way"
        return None, (f"{note}; parameters cannot be counted from the file",)
    return _collect(tensors, found, parts)


def _without_buffers(tensors: Sequence[FileTensor]) -> tuple[tuple[FileTensor, ...], tuple[str, ...]]:
    weights = tuple(tensor for tensor in tensors if not is_buffer(tensor))
    num_buffers = len(tensors) - len(weights)
    return weights, (f"{num_buffers} buffers are no parameters and not counted",) if num_buffers else ()


def _is_unknown(tensor: FileTensor) -> bool:
    """Integers of more than a single value that may hold weights; int64 and bool never do."""
    return tensor.dtype in _PACKED_INTEGERS and tensor.num_elements > 1 and not is_buffer(tensor)


def _collect(
    tensors: Sequence[FileTensor], found: Mapping[str, Found], parts: set[str]
) -> tuple[tuple[FileTensor, ...], tuple[str, ...]]:
    sizes = {tensor.name: tensor.num_bytes for tensor in tensors}
    weights: list[FileTensor] = []
    num_buffers = 0
    for tensor in tensors:
        if tensor.name in found:
            weight, others = found[tensor.name]
            num_bytes = tensor.num_bytes + sum(sizes[part] for part in others)
            weights.append(FileTensor(name=weight.name, shape=weight.shape, dtype=weight.dtype, num_bytes=num_bytes))
        elif tensor.name in parts or tensor.name.endswith(_SCALE_ENDINGS):
            continue
        elif is_buffer(tensor) or tensor.dtype in _INTEGERS:
            num_buffers += 1
        else:
            weights.append(tensor)
    kinds = sorted({weight.dtype for weight, _ in found.values()})
    notes: tuple[str, ...] = ()
    if found:
        notes = (f"{len(found)} weights are packed as {', '.join(kinds)}; counted as what they stand for",)
    if num_buffers:
        notes += (f"{num_buffers} buffers are no parameters and not counted",)
    return tuple(weights), notes


def _unpack(name: str, tensors: Tensors, quantization: Mapping[str, Any]) -> Found | None:
    """What the tensor stands for with the parts beside it, None for one that is no packed weight."""
    for ending, unpack in _RULES:
        if name.endswith(ending) and (found := unpack(name.removesuffix(ending), tensors[name], tensors, quantization)):
            weight, endings = found
            stem = name.removesuffix(ending)
            return weight, [stem + part for part in endings if stem + part in tensors]
    return None


def _weight(name: str, shape: tuple[int, ...], dtype: str) -> FileTensor:
    return FileTensor(name=name, shape=shape, dtype=dtype, num_bytes=0)


def _gptq_or_awq(stem: str, packed: FileTensor, tensors: Tensors, _: Mapping[str, Any]) -> Found | None:
    """GPTQ packs [in, out] along in: int32 [in * bits / 32, out]; AWQ along out: [in, out * bits / 32].

    Scales are [groups, out], zero points int32 [groups, out * bits / 32] in both.
    """
    scales, zeros, order = (tensors.get(f"{stem}.{part}") for part in ("scales", "qzeros", "g_idx"))
    if scales is None or len(scales.shape) != 2 or len(packed.shape) != 2 or 0 in (*packed.shape, *scales.shape):
        return None
    out_size, parts = scales.shape[1], (".scales", ".qzeros", ".g_idx")
    if packed.shape[1] == out_size:
        if order is not None:
            in_size = order.num_elements
        elif zeros is not None and len(zeros.shape) == 2 and zeros.shape[1]:
            in_size = packed.shape[0] * out_size // zeros.shape[1]  # bits = 32 * zeros / out
        else:
            return None
        bits, kind = 32 * packed.shape[0] / max(in_size, 1), "GPTQ"
    else:
        in_size, bits, kind = packed.shape[0], 32 * packed.shape[1] / out_size, "AWQ"
    if bits not in (2, 3, 4, 5, 6, 8):
        return None
    return _weight(f"{stem}.weight", (out_size, in_size), f"int{bits:.0f} ({kind})"), parts


def _blocks(stem: str, packed: FileTensor, tensors: Tensors, _: Mapping[str, Any]) -> Found | None:
    """MXFP4 as gpt-oss ships it: blocks uint8 [experts, out, in / 32, 16], one scale for each block of 32."""
    scales = tensors.get(f"{stem}_scales")
    if packed.dtype != "uint8" or len(packed.shape) < 2 or scales is None or packed.shape[:-1] != scales.shape:
        return None
    shape = (*packed.shape[:-2], packed.shape[-2] * packed.shape[-1] * 2)
    return _weight(stem, shape, "MXFP4"), ("_scales",)


def _compressed(stem: str, packed: FileTensor, _: Tensors, quantization: Mapping[str, Any]) -> Found | None:
    """compressed-tensors: weight_packed int32 [out, in * bits / 32], or uint8 [out, in / 2] for NVFP4 and MXFP4."""
    own = ("scale", "zero_point", "shape", "g_idx", "global_scale")
    parts = (*(f".weight_{what}" for what in own), ".input_scale", ".input_global_scale", ".output_scale")
    bits = 4 if packed.dtype == "uint8" else _config_bits(quantization)
    if packed.dtype not in ("uint8", "int32") or bits is None or not packed.shape:
        return None
    width = packed.shape[-1] * (2 if packed.dtype == "uint8" else 32 // bits)
    kind = f"{'fp' if packed.dtype == 'uint8' else 'int'}{bits} (compressed-tensors)"
    return _weight(f"{stem}.weight", (*packed.shape[:-1], width), kind), parts


def _plain(stem: str, stored: FileTensor, tensors: Tensors, quantization: Mapping[str, Any]) -> Found | None:
    """A tensor under a weight's own name: fp8 or int8 of its true shape, or 4 bits in a uint8 or uint32 of another."""
    scales = (".weight_scale_inv", ".weight_scale", ".input_scale", ".output_scale", ".k_scale", ".v_scale")
    if stored.dtype.startswith("fp8"):
        return _weight(stored.name, stored.shape, stored.dtype), scales
    if stored.dtype == "int8" and f"{stem}.SCB" in tensors:
        return _weight(stored.name, stored.shape, "int8 (bitsandbytes)"), (".SCB", ".weight_format")
    if stored.dtype == "int8" and f"{stem}.weight_scale" in tensors:
        return _weight(stored.name, stored.shape, "int8"), (*scales, ".weight_zero_point")
    if stored.dtype == "uint8" and stored.shape and f"{stem}.weight_scale_2" in tensors:
        shape = (*stored.shape[:-1], 2 * stored.shape[-1])
        return _weight(stored.name, shape, "NVFP4"), (*scales, ".weight_scale_2")
    if stored.dtype == "uint32" and {f"{stem}.scales", f"{stem}.biases"} <= tensors.keys():
        bits = _config_bits(quantization, stem)
        if bits and stored.shape and 32 * stored.shape[-1] % bits == 0:
            shape = (*stored.shape[:-1], 32 * stored.shape[-1] // bits)
            return _weight(stored.name, shape, f"int{bits} (MLX)"), (".scales", ".biases")
    return None


def _four_bit(_: str, stored: FileTensor, tensors: Tensors, __: Mapping[str, Any]) -> Found | None:
    """bitsandbytes 4-bit: uint8 [elements / 2, 1]; the true shape stands in a tensor, so the weight is read as flat."""
    name = stored.name
    if stored.dtype != "uint8" or f"{name}.absmax" not in tensors:
        return None
    kind = next((k for k in ("nf4", "fp4") if f"{name}.quant_state.bitsandbytes__{k}" in tensors), "4 bits")
    parts = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", f".quant_state.bitsandbytes__{kind}")
    return _weight(name, (2 * stored.num_elements,), f"{kind} (bitsandbytes)"), parts


def _lone_fp8(_: str, stored: FileTensor, tensors: Tensors, __: Mapping[str, Any]) -> Found | None:
    """fp8 under any other name, such as stacked experts, with its scales beside it."""
    if not stored.dtype.startswith("fp8") or stored.name.endswith(("_scale", "_scale_inv", "_scales")):
        return None
    parts = [ending for ending in ("_scale_inv", "_scale", "_scales") if stored.name + ending in tensors]
    return _weight(stored.name, stored.shape, stored.dtype), parts


def _config_bits(quantization: Mapping[str, Any], stem: str = "") -> int | None:
    """Bits per weight that config.json states: for the whole model, for this layer, or in its first group."""
    groups = quantization.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    own = quantization.get(stem)
    for table, name in ((own, "bits"), (weights, "num_bits"), (quantization, "bits"), (quantization, "w_bit")):
        bits = table.get(name) if isinstance(table, Mapping) else None
        if bits in (2, 3, 4, 5, 6, 8) and type(bits) is int:
            return bits
    return None


_RULES: tuple[tuple[str, Callable[[str, FileTensor, Tensors, Mapping[str, Any]], Found | None]], ...] = (
    (".qweight", _gptq_or_awq),
    ("_blocks", _blocks),
    (".weight_packed", _compressed),
    (".weight", _plain),
    ("", _four_bit),
    ("", _lone_fp8),
)
