"""How a checkpoint's weights are stored, from the quantization_config of its config.json.

Sources: the configuration classes of transformers (utils/quantization_config.py), and the tensors that AutoGPTQ,
AutoAWQ, bitsandbytes, compressed-tensors, NVIDIA ModelOpt, DeepSeek-V3 and gpt-oss write.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from estimator.config import show
from estimator.network import Block, Network, Stack
from estimator.weight_formats import FORMATS, WeightFormat

__all__ = ["Quantization", "apply_quantization", "read_quantization"]

_MOST_PATTERNS, _MOST_WILD, _LONGEST_PATTERN = 20_000, 200, 400
_WRAPPERS = {"model", "language_model", "text_model", "transformer", "decoder", "module", "backbone", "re"}
_ALIASES = {
    "shared_experts": "shared_expert",
    "block_sparse_moe": "mlp",
    "feed_forward": "mlp",
    "self_attention": "self_attn",
    "router": "gate",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "visual": "vision",
    "vision_tower": "vision",
    "vision_model": "vision",
    "audio_tower": "audio",
    "multi_modal_projector": "projector",
    "mm_projector": "projector",
    "merger": "projector",
    "output": "lm_head",
}
# What no format quantises, so that it does not matter whether a pattern for it is understood.
_NEVER_QUANTIZED = re.compile(r"norm|ln_|embed|wte|wpe|gate$|router|rotary|conv|bias|scale|sink|A_log|dt_|lm_head")
_OTHER_STACKS = ("vision", "audio", "projector")
Words = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """The format of a checkpoint's matrices.

    `kept` are the modules that stay as they are, `only` a part of the names of the only ones that do not. `keeps_head`:
    the head stays as it is, whether or not it is named. `rest_dtype` is the type of what stays where config.json names
    none.
    """

    method: str
    format: WeightFormat
    kept: tuple[str, ...] = ()
    only: str = ""
    keeps_head: bool = True
    rest_dtype: str = "bf16"


class _UnknownError(Exception):
    """Says what is not known."""


def read_quantization(values: Mapping[str, Any]) -> tuple[Quantization | None, tuple[str, ...]]:
    """The quantisation that a config.json declares, or None; an unknown one is a warning, and counts as none."""
    inner = values.get("text_config")
    table = values.get("quantization_config")
    if table is None and isinstance(inner, Mapping):
        table = inner.get("quantization_config")
    if table is None:
        return None, ()
    method = table.get("quant_method") if isinstance(table, Mapping) else None
    if method is None and isinstance(table, Mapping) and (table.get("load_in_4bit") or table.get("load_in_8bit")):
        method = "bitsandbytes"
    read = _METHODS.get(method) if isinstance(method, str) else None
    try:
        if read is None:
            raise _UnknownError(f"quantization method {show(method)} is not known")
        return read(table), ()
    except _UnknownError as unknown:
        return None, (f"{unknown}: sized in the dtype of the config, as if it were not quantised",)


def apply_quantization(network: Network, quantization: Quantization) -> tuple[Network, tuple[str, ...]]:
    """The network with the weights marked that the checkpoint leaves as they are; warnings for modules not found."""
    patterns = _Patterns(quantization.kept)
    stacks = tuple(_marked_stack(stack, quantization, patterns) for stack in network.stacks)
    missing = [name for name in patterns.unmatched if name not in _OTHER_STACKS and not _NEVER_QUANTIZED.search(name)]
    warnings: tuple[str, ...] = ()
    if missing:
        shown = ", ".join(show(pattern) for pattern in missing[:3]) + (" ..." if len(missing) > 3 else "")
        warnings = (f"quantization_config leaves modules as they are that are not found in the model: {shown}",)
    return dataclasses.replace(network, stacks=stacks), warnings


def _marked_stack(stack: Stack, quantization: Quantization, patterns: _Patterns) -> Stack:
    def marked(block: Block, prefix: str) -> Block:
        weights = []
        for weight in block.weights:
            if weight.role == "linear" and weight.quantized:
                words = tuple(f"{prefix}.{weight.name}".removesuffix(".weight").split("."))
                kinds = (stack.name, block.part)
                is_kept = patterns.match((*kinds, *filter(None, words)))
                is_kept |= quantization.only not in weight.name
                is_kept |= quantization.keeps_head and block.part == "head"
                weight = dataclasses.replace(weight, quantized=not is_kept)
            weights.append(weight)
        return dataclasses.replace(block, weights=tuple(weights))

    layers = tuple(
        dataclasses.replace(
            layer, blocks=tuple(marked(block, f"{stack.prefix}layers.{index}.{block.name}") for block in layer.blocks)
        )
        for index, layer in enumerate(stack.layers)
    )
    before = tuple(marked(block, f"{stack.prefix}{block.name}") for block in stack.before)
    after = tuple(marked(block, f"{stack.prefix}{block.name}") for block in stack.after)
    return dataclasses.replace(stack, layers=layers, before=before, after=after)


class _Patterns:
    """Names of modules, or ends of names; * stands for any words between dots. They never run as expressions."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._plain: dict[Words, str] = {}
        self._wild: dict[tuple[Words, ...], str] = {}
        self._found: set[str] = set()
        for pattern in patterns:
            runs = _runs(pattern)
            if len(runs) == 1:
                self._plain[runs[0]] = pattern
            elif runs and len(self._wild) < _MOST_WILD:
                self._wild[runs] = pattern

    def match(self, words: Words) -> bool:
        """Whether a pattern names the module of these words, or one that it is in."""
        words = tuple(_ALIASES.get(word, word) for word in words)
        spans = (words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1))
        found = {self._plain[span] for span in spans if span in self._plain}
        found |= {pattern for runs, pattern in self._wild.items() if _in_order(runs, words)}
        self._found |= found
        return bool(found)

    @property
    def unmatched(self) -> list[str]:
        """Patterns that named nothing so far."""
        return [pattern for pattern in (*self._plain.values(), *self._wild.values()) if pattern not in self._found]


def _runs(pattern: str) -> tuple[Words, ...]:
    """A pattern as runs of words with anything between them."""
    words = re.findall(r"\.?\*|[A-Za-z_][A-Za-z0-9_]*|\d+", pattern[:_LONGEST_PATTERN])
    runs: list[list[str]] = [[]]
    for word in words:
        if word.endswith("*"):
            runs.append([])
        elif word not in _WRAPPERS or runs[-1]:
            runs[-1].append(_ALIASES.get(word, word))
    return tuple(tuple(run) for run in runs if run)


def _in_order(runs: tuple[Words, ...], words: Words) -> bool:
    start = 0
    for run in runs:
        places = (i for i in range(start, len(words) - len(run) + 1) if words[i : i + len(run)] == run)
        place = next(places, None)
        if place is None:
            return False
        start = place + len(run)
    return True


def _gptq(table: Mapping[str, Any]) -> Quantization:
    """int32 words of elements, fp16 scales and packed zero points per group, and the group of every input.

    The layers that generate text alone are quantised.
    """
    bits, columns = _bits(table, "bits", (2, 3, 4, 8)), _group(table.get("group_size", 128))
    form = _integers(bits, columns, zero_points=True)
    kept = _OTHER_STACKS + _names(table, "modules_to_not_convert")
    dynamic = table.get("dynamic")
    if isinstance(dynamic, Mapping):
        if any(not str(name).startswith("-") for name in dynamic):
            raise _UnknownError("a gptq config with other settings for some modules is not known")
        kept += tuple(str(name).lstrip("-").lstrip(":") for name in dynamic)
    return Quantization(
        method="gptq",
        format=dataclasses.replace(form, column_bytes=4),
        kept=kept,
        keeps_head=table.get("lm_head") is not True,
        rest_dtype="fp16",
    )


def _awq(table: Mapping[str, Any]) -> Quantization:
    """As GPTQ, packed along the outputs and without an order of inputs; both kinds of AWQ have zero points."""
    name = "w_bit" if "w_bit" in table else "bits"
    group = table.get("q_group_size", table.get("group_size", 128))
    return Quantization(
        method="awq",
        format=_integers(_bits(table, name, (4, 8)), _group(group), zero_points=table.get("zero_point") is not False),
        kept=_names(table, "modules_to_not_convert"),
        rest_dtype="fp16",
    )


def _bitsandbytes(table: Mapping[str, Any]) -> Quantization:
    """NF4 or FP4 in blocks of 64 with fp32 or doubly quantised scales; int8 with an fp32 scale per output channel."""
    kept = _names(table, "llm_int8_skip_modules")
    if table.get("load_in_8bit") or table.get("_load_in_8bit"):
        return Quantization(method="bitsandbytes", format=FORMATS["int8"], kept=kept, rest_dtype="fp16")
    if not (table.get("load_in_4bit") or table.get("_load_in_4bit")):
        raise _UnknownError("a bitsandbytes config with neither load_in_4bit nor load_in_8bit is not known")
    form = FORMATS["nf4"]
    if table.get("bnb_4bit_use_double_quant") is not True:
        form = dataclasses.replace(form, scale_bytes=4, outer_block=0)
    return Quantization(method="bitsandbytes", format=form, kept=kept)


def _fp8(table: Mapping[str, Any]) -> Quantization:
    """e4m3 with an fp32 scale per block of weight_block_size (DeepSeek-V3), else per matrix."""
    if table.get("expert_dtype", "fp8") != "fp8":
        raise _UnknownError(f"fp8 with experts in {show(table['expert_dtype'])} is not known")
    block = table.get("weight_block_size")
    rows, columns = 0, 0
    if block is not None:
        sizes = block if isinstance(block, list | tuple) else ()
        if len(sizes) != 2 or any(type(size) is not int or not 1 <= size < 2**31 for size in sizes):
            raise _UnknownError(f"weight_block_size {show(block)} is not known")
        rows, columns = sizes
    form = dataclasses.replace(FORMATS["fp8"], rows=rows, columns=columns)
    kept = _names(table, "modules_to_not_convert") + _names(table, "ignored_layers")
    return Quantization(method="fp8", format=form, kept=kept)


def _fbgemm_fp8(table: Mapping[str, Any]) -> Quantization:
    """e4m3 with an fp32 scale per output channel."""
    return Quantization(method="fbgemm_fp8", format=FORMATS["fp8"], kept=_names(table, "modules_to_not_convert"))


def _mxfp4(table: Mapping[str, Any]) -> Quantization:
    """gpt-oss: the experts alone, in blocks of 32 with a scale of one byte."""
    return Quantization(
        method="mxfp4",
        format=FORMATS["mxfp4"],
        kept=_names(table, "modules_to_not_convert"),
        only="experts.",
    )


def _compressed(table: Mapping[str, Any]) -> Quantization:
    """compressed-tensors with one group of settings for all linear layers."""
    groups = table.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, Mapping) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or group.get("targets") != ["Linear"] or not isinstance(weights, Mapping):
        raise _UnknownError("compressed-tensors with anything but one group of settings for Linear is not known")
    if table.get("sparsity_config") not in (None, {}) and _sparsity(table["sparsity_config"]) != "dense":
        raise _UnknownError("compressed-tensors with sparse weights is not known")
    return Quantization(
        method="compressed-tensors", format=_scheme(weights), kept=_names(table, "ignore"), keeps_head=False
    )


def _sparsity(table: object) -> object:
    return table.get("format") if isinstance(table, Mapping) else table


def _scheme(weights: Mapping[str, Any]) -> WeightFormat:
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    if kind == "float" and bits == 4 and weights.get("group_size") == 16:
        return FORMATS["nvfp4"]
    if kind == "float" and bits == 4 and weights.get("group_size") == 32:
        return FORMATS["mxfp4"]
    blocks = {"channel": (1, 0), "tensor": (0, 0), None: (0, 0)}
    rows, columns = blocks.get(strategy, (1, 0)) if isinstance(strategy, str | None) else (1, 0)
    if strategy == "group":
        columns = _group(weights.get("group_size"))
    elif strategy == "block":
        rows, columns = _pair(weights.get("block_structure"))
    elif strategy not in blocks:
        raise _UnknownError(f"compressed-tensors with the strategy {show(strategy)} is not known")
    if kind == "float" and bits == 8:
        return dataclasses.replace(FORMATS["fp8"], rows=rows, columns=columns, scale_bytes=2)
    if kind != "int" or bits not in (4, 8):
        raise _UnknownError(f"compressed-tensors with {show(bits)} bits of type {show(kind)} is not known")
    symmetric = weights.get("symmetric") is not False
    packed = _integers(bits, columns, zero_points=not symmetric)
    # Scales are bf16; a packed matrix has its shape beside it, two int64.
    return dataclasses.replace(packed, rows=rows, matrix_bytes=16 if bits == 4 else 0)


def _modelopt(table: Mapping[str, Any]) -> Quantization:
    """NVIDIA ModelOpt: e4m3 with one scale per matrix, or NVFP4."""
    algorithm = str(table.get("quant_algo"))
    forms = {"FP8": dataclasses.replace(FORMATS["fp8"], rows=0), "NVFP4": FORMATS["nvfp4"]}
    if algorithm not in forms:
        raise _UnknownError(f"modelopt with quant_algo {show(table.get('quant_algo'))} is not known")
    kept = _names(table, "ignore") + _names(table, "exclude_modules")
    return Quantization(method="modelopt", format=forms[algorithm], kept=kept)


_METHODS = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
}


def _integers(bits: int, columns: int, *, zero_points: bool) -> WeightFormat:
    return WeightFormat(dtype=f"int{bits}", bits=bits, columns=columns, zero_points=zero_points)


def _bits(table: Mapping[str, Any], name: str, known: tuple[int, ...]) -> int:
    bits = table.get(name)
    if type(bits) is not int or bits not in known:
        raise _UnknownError(f"quantization in {show(bits)} bits is not known")
    return bits


def _group(size: object) -> int:
    """Inputs that share a scale; 0 for all of them, which is written -1."""
    if size == -1:
        return 0
    if type(size) is not int or not 1 <= size < 2**31:
        raise _UnknownError(f"quantization in groups of {show(size)} is not known")
    return size


def _pair(structure: object) -> tuple[int, int]:
    numbers = structure if isinstance(structure, list) else str(structure).split("x")
    if len(numbers) != 2 or not all(str(number).isdecimal() and 0 < int(number) < 2**31 for number in numbers):
        raise _UnknownError(f"blocks of {show(structure)} are not known")
    return int(numbers[0]), int(numbers[1])


def _names(table: Mapping[str, Any], field: str) -> tuple[str, ...]:
    names = table.get(field)
    if names is None:
        return ()
    if not isinstance(names, list) or len(names) > _MOST_PATTERNS or not all(isinstance(name, str) for name in names):
        raise _UnknownError(f"{field} {show(names)} is not a list of at most {_MOST_PATTERNS:,} names")
    return tuple(names)
