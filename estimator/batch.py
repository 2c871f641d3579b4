"""Estimates of thousands of configs in one call, over NumPy columns.

No formula stands here: rows that agree in every switch (norm type, biases, tying ...) form a group, and the functions
that count one config count the whole group, with an array of sizes where a config has one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from estimator.config import PER_LAYER_FIELDS, Layer, TransformerConfig
from estimator.errors import ConfigError, InputError
from estimator.flops import block_flops
from estimator.memory import block_moment, cache_bytes, cached_vectors, end_moment, score_copies, weight_bytes
from estimator.network import Block
from estimator.runtimes import Runtime, resolve_runtime, runtime_bytes
from estimator.sizing import estimate
from estimator.weights import embedding_blocks, layer_blocks, output_blocks
from estimator.workload import DTYPE_BYTES, Workload

__all__ = ["BatchEstimate", "columns_from_configs", "estimate_batch"]

Ints = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]

_SWITCHES = (
    "architecture",
    "head",
    "norm_type",
    "norm_placement",
    "position_embedding",
    "gated_mlp",
    "attention_bias",
    "attention_output_bias",
    "mlp_bias",
    "qk_norm",
    "tie_word_embeddings",
    "embedding_norm",
    "type_vocab_size",
)
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "head_dim", *PER_LAYER_FIELDS)
_OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window", "type_vocab_size")  # 0 stands for None
_LAYERED = tuple(f"{name}_per_layer" for name in (*PER_LAYER_FIELDS, "weight_source"))
_UNCOUNTED = ("hidden_act", "norm_eps", "rope_theta", "rope_scaling")  # change no number
_NO_WINDOW = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEstimate:
    """The figures of `estimate` for C configs, each an int64 array of shape [C].

    `decode_flops_per_token` is 0 for an encoder, which generates nothing.
    """

    params: Ints
    weights_bytes: Ints
    kv_cache_bytes: Ints
    total_bytes: Ints
    prefill_flops: Ints
    decode_flops_per_token: Ints


def estimate_batch(columns: Mapping[str, ArrayLike], workload: Workload | None = None) -> BatchEstimate:
    """The same numbers as `estimate(config, workload)`, row by row.

    Args:
        columns: arrays by field of `TransformerConfig`: [C] or a single value, and [C, L] for the `_per_layer` fields,
            whose entries beyond a row's num_hidden_layers are ignored. An omitted field has its default. 0 stands for
            None in num_key_value_heads, head_dim and sliding_window.
        workload: the same for all rows.

    Raises:
        ConfigError: a column is unknown or missing, has the wrong shape or type, or a row is impossible.
        InputError: a count could exceed 64 bits.
    """
    workload = workload or Workload()
    table = _complete(columns)
    _check_rows(table)
    _check_range(table, workload)
    result = {field.name: np.zeros(len(table["vocab_size"]), np.int64) for field in fields(BatchEstimate)}
    for rows in _groups(table):
        group = {name: column[rows] for name, column in table.items()}
        for name, values in _estimate_group(group, workload).items():
            result[name][rows] = values
    return BatchEstimate(**result)


def columns_from_configs(configs: Sequence[TransformerConfig]) -> Columns:
    """The columns of these configs for `estimate_batch`."""
    columns = {name: np.array([getattr(config, name) for config in configs]) for name in _SWITCHES}
    for name in _SIZES:
        columns[name] = np.array([getattr(config, name) or 0 for config in configs], np.int64)
    depth = max((config.num_hidden_layers for config in configs), default=0)
    for name in _LAYERED:
        if any(getattr(config, name) is not None for config in configs):
            columns[name] = np.array([_padded(config, name, depth) for config in configs], np.int64)
    return columns


def _padded(config: TransformerConfig, name: str, depth: int) -> list[int]:
    base = name.removesuffix("_per_layer")
    values = getattr(config, name)
    if values is None:
        values = range(depth) if base == "weight_source" else [getattr(config, base)] * depth
    return [value or 0 for value in values] + [0] * (depth - len(values))


def _complete(columns: Mapping[str, ArrayLike]) -> Columns:
    """Every column as an array of C rows, with defaults in the place of omitted ones."""
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    for name in arrays:
        if name not in (*_SWITCHES, *_SIZES, *_LAYERED, *_UNCOUNTED):
            raise ConfigError(f"unknown column {name!r}; columns are the fields of TransformerConfig", field=name)
    num_rows = max((len(array) for array in arrays.values() if array.ndim), default=1)
    defaults = {field.name: field.default for field in fields(TransformerConfig)}
    table: Columns = {}
    for name in (*_SWITCHES, *_SIZES):
        if name not in arrays and defaults[name] is MISSING:
            raise ConfigError(f"column {name!r} is missing", field=name)
        table[name] = _column(name, arrays.get(name, np.asarray(defaults[name] or 0)), (num_rows,))
        if name in _SWITCHES and name not in arrays:
            table[name] = np.full(num_rows, defaults[name])
    for name in _LAYERED:
        if name in arrays:
            depth = int(table["num_hidden_layers"].max(initial=1))
            runs = np.arange(depth) < table["num_hidden_layers"][:, None]
            table[name] = np.where(runs, _layered_column(name, arrays[name], num_rows, depth), 0)
    return _resolve(table)


def _column(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    wanted = array.dtype.kind in "iu" if name not in _SWITCHES or name == "type_vocab_size" else True
    if not wanted:
        raise ConfigError(f"column {name} must hold integers, not {array.dtype}", field=name)
    if array.ndim and array.shape != shape:
        raise ConfigError(f"column {name} has shape {list(array.shape)}; {list(shape)} is right", field=name)
    return np.broadcast_to(array.astype(np.int64) if array.dtype.kind in "iu" else array, shape)


def _layered_column(name: str, array: NDArray[Any], num_rows: int, depth: int) -> NDArray[Any]:
    if array.ndim != 2 or array.shape[1] < depth:
        raise ConfigError(f"column {name} must have shape [{num_rows}, {depth}], a row per config", field=name)
    return _column(name, array, (num_rows, array.shape[1]))[:, :depth]


def _resolve(table: Columns) -> Columns:
    """Fills in what a config derives: key-value heads, head_dim, the shapes of layers that share weights."""
    heads, key_value_heads = table["num_attention_heads"], table["num_key_value_heads"]
    implied = key_value_heads == 0
    if "num_attention_heads_per_layer" in table and "num_key_value_heads_per_layer" not in table:
        per_layer = np.where(implied[:, None], table["num_attention_heads_per_layer"], key_value_heads[:, None])
        table["num_key_value_heads_per_layer"] = per_layer
    table["num_key_value_heads"] = np.where(implied, heads, key_value_heads)
    derived = table["head_dim"] == 0
    bad = derived & (table["hidden_size"] % np.maximum(heads, 1) != 0)
    _refuse(bad, "num_attention_heads", "does not divide hidden_size, and there is no head_dim")
    table["head_dim"] = np.where(derived, table["hidden_size"] // np.maximum(heads, 1), table["head_dim"])
    if "weight_source_per_layer" in table:
        _share(table)
    return table


def _share(table: Columns) -> None:
    sources = table["weight_source_per_layer"]
    runs = np.arange(sources.shape[1]) < table["num_hidden_layers"][:, None]
    bad = runs & ((sources < 0) | (sources > np.arange(sources.shape[1])))
    _refuse(bad.any(axis=1), "weight_source_per_layer", "must be the index of this or an earlier layer")
    sources = np.where(runs, sources, np.arange(sources.shape[1]))
    for _ in range(sources.shape[1].bit_length()):  # each step doubles the length of the chains that are followed
        sources = np.take_along_axis(sources, sources, axis=1)
    table["weight_source_per_layer"] = sources
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if f"{name}_per_layer" in table:
            table[f"{name}_per_layer"] = np.take_along_axis(table[f"{name}_per_layer"], sources, axis=1)


def _check_rows(table: Columns) -> None:
    for name in (*_SIZES, "type_vocab_size"):
        least = 0 if name in _OPTIONAL else 1
        _refuse((table[name] < least) | (table[name] >= 2**31), name, f"must be from {least} to 2^31 - 1")
    layer, runs = _all_layers(table)
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        values = getattr(layer, name)
        _refuse((runs & ((values < 1) | (values >= 2**31))).any(axis=1), name, "must be positive in every layer")
    bad = layer.num_attention_heads % np.maximum(layer.num_key_value_heads, 1) != 0
    _refuse((runs & bad).any(axis=1), "num_key_value_heads", "does not divide num_attention_heads in every layer")


def _refuse(bad: Any, name: str, reason: str) -> None:
    if bad.any():
        raise ConfigError(f"row {int(np.argmax(bad))}: {name} {reason}", field=name)


def _check_range(table: Columns, workload: Workload) -> None:
    """Every count grows with every size, so one row with the largest of each bounds them all."""
    if not len(table["vocab_size"]):
        return
    largest: dict[str, Any] = {name: int(table[name].max()) for name in _SIZES}
    for name in PER_LAYER_FIELDS:
        largest[name] = max(largest[name], int(table.get(f"{name}_per_layer", np.zeros(1)).max()))
    largest |= {
        "num_key_value_heads": largest["num_attention_heads"],
        "type_vocab_size": int(table["type_vocab_size"].max()),
    }
    del largest["sliding_window"]
    widest = TransformerConfig(
        **largest,
        position_embedding="learned",
        norm_type="layer_norm",
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
        embedding_norm=True,
    )
    bound = estimate(widest, workload)
    # an encoder's head has one more matrix than a decoder's, hence the factor 2; shares are computed in percent
    if 2 * max(bound.compute.prefill_flops, 100 * bound.memory.total_bytes) >= 2**63:
        raise InputError("the sizes are too large to be counted in 64 bits; estimate such configs one by one")


def _groups(table: Columns) -> Iterator[Any]:
    """Index of the rows of each group that agrees in all switches."""
    code = np.zeros(len(table["vocab_size"]), np.int64)
    for name in _SWITCHES:
        values, inverse = np.unique(table[name], return_inverse=True)
        code = code * len(values) + inverse
    for value in np.unique(code):
        yield np.flatnonzero(code == value)


def _all_layers(table: Columns) -> tuple[Layer, NDArray[np.bool_]]:
    """All layers as one whose sizes are [C, L], and which of them run. Of uniform layers one stands for all: L is 1."""
    depth = next((table[name].shape[1] for name in _LAYERED if name in table), 1)
    sizes: dict[str, Any] = {name: table.get(f"{name}_per_layer", table[name][:, None]) for name in PER_LAYER_FIELDS}
    sizes["sliding_window"] = np.where(sizes["sliding_window"] == 0, _NO_WINDOW, sizes["sliding_window"])
    sizes["head_dim"] = table["head_dim"][:, None]
    runs = np.arange(depth) < table["num_hidden_layers"][:, None]
    return Layer(index=0, weight_source=0, **sizes), runs


def _estimate_group(table: Columns, workload: Workload) -> dict[str, Ints]:
    config = _group_config(table)
    wide = _group_config({name: column[:, None] for name, column in table.items() if column.ndim == 1})
    batch_size, length = workload.batch_size, workload.prompt_length
    layer, runs = _all_layers(table)
    is_uniform = not any(name in table for name in _LAYERED)
    times = table["num_hidden_layers"][:, None] if is_uniform else runs
    owned = times
    if "weight_source_per_layer" in table:
        owned = times & (table["weight_source_per_layer"] == np.arange(times.shape[1]))

    sums = _outside_layers(config, workload)
    blocks = list(layer_blocks(wide, layer))
    weights = [weight for block in blocks for weight in block.weights]
    sums["params"] += _over(owned, sum(math.prod(weight.shape) for weight in weights))
    sums["weights_bytes"] += _over(owned, sum(weight_bytes(weight, workload) for weight in weights))
    sums["prefill_flops"] += _over(times, _flops(blocks, batch_size * length, length))
    if config.is_causal:
        kept, keys = _kept(layer, workload.context_length), _kept(layer, workload.context_length + 1)
        sums["kv_cache_bytes"] += _cache(blocks, kept, times, workload)
        sums["decode_flops_per_token"] += _over(times, _flops(blocks, 1, keys))
    sums["total_bytes"] = _total_bytes(config, layer, blocks, runs, sums, workload)
    return sums


def _cache(blocks: list[Block], kept: Any, times: NDArray[Any], workload: Workload) -> Ints:
    """Bytes of the key-value cache: `cache_bytes` of what each layer keeps."""
    cached = sum(block.attention.cached_elements for block in blocks if block.attention is not None)
    elements, heads, vectors = _over(times, kept * cached), cast(Any, 0), cast(Any, 0)
    if workload.cache_scales is not None:
        per_token = sum(cached_vectors(block) for block in blocks)
        heads, vectors = _over(times, per_token), _over(times, kept * per_token)
    return cast(Ints, cache_bytes(workload, cast(Any, elements), vectors, heads))


def _total_bytes(
    config: TransformerConfig,
    layer: Layer,
    blocks: list[Block],
    runs: NDArray[np.bool_],
    sums: Mapping[str, Ints],
    workload: Workload,
) -> Ints:
    """Weights, cache, activations and runtime, as `estimate_memory` adds them up without a device."""
    runtime, length = resolve_runtime(workload.runtime, None), workload.prompt_length
    assert runtime is not None
    copies, has_logits = score_copies(workload, runtime), config.head in ("causal_lm", "masked_lm")
    width = cast(Any, config.vocab_size) if has_logits else 0
    num_logits = _logits_rows(config, workload) * width
    hidden = cast(Any, config.hidden_size)

    def moments(num_rows: int, num_keys: Any, logits: Any) -> tuple[Ints, Ints]:
        widths = [_widest(blocks, part, runs, num_rows, num_keys, copies) for part in ("attention", "feed_forward")]
        return _live([*widths, np.asarray(end_moment(hidden, num_rows, logits).count_elements())], runtime)

    live, spare = moments(length, length, num_logits)
    if config.is_causal and copies:  # without scores no step is wider than the prompt
        live = np.maximum(live, moments(1, _kept(layer, workload.context_length + 1), width)[0])
    size = workload.batch_size * int(DTYPE_BYTES[workload.activation_dtype])
    weights, kv_cache = cast(Any, sums["weights_bytes"]), cast(Any, sums["kv_cache_bytes"])
    outputs = size * (num_logits if has_logits else length * hidden) + kv_cache
    extra = runtime_bytes(
        runtime, None, weights_bytes=weights, outputs_bytes=outputs, spare_bytes=size * cast(Any, spare)
    )
    return cast(Ints, weights + kv_cache + size * live + extra.value)


def _widest(blocks: list[Block], part: str, runs: NDArray[np.bool_], num_rows: int, num_keys: Any, copies: int) -> Ints:
    found = (block_moment(block, num_rows, num_keys, score_copies=copies) for block in blocks if block.part == part)
    return cast(Ints, np.max(runs * sum(moment.count_elements() for moment in found), axis=1))


def _live(widths: list[Any], runtime: Runtime) -> tuple[Ints, Ints]:
    """`live_elements` for columns of widths."""
    total = widths[0] + widths[1] + widths[2]
    if not runtime.reuses_activations:
        return total, np.zeros_like(total)
    most = np.maximum(np.maximum(widths[0], widths[1]), widths[2])
    return most, total - most


def _flops(blocks: list[Block], num_rows: int, num_keys: int) -> Any:
    return sum(sum(block_flops(block, num_rows, num_keys).values()) for block in blocks)


def _over(times: NDArray[Any], per_layer: Any) -> Ints:
    """The sum over layers of a [C, L] quantity, each layer as often as it counts."""
    total: Ints = np.sum(times * per_layer, axis=1)
    return total


def _group_config(table: Columns) -> TransformerConfig:
    """The group as a config whose sizes are arrays: what the counting functions read of a config."""
    switches: dict[str, Any] = {name: table[name].flat[0].item() for name in _SWITCHES}
    checked = TransformerConfig(  # names a switch that is wrong
        vocab_size=1,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=1,
        max_position_embeddings=1,
        **switches,
    )
    if checked.position_embedding == "rotary":
        _refuse(table["head_dim"] % 2 == 1, "head_dim", "must be even for rotary positions")
    sizes = {name: table[name] for name in _SIZES}
    return cast(TransformerConfig, SimpleNamespace(**sizes, **switches, is_causal=checked.is_causal))


def _outside_layers(config: TransformerConfig, workload: Workload) -> dict[str, Ints]:
    """What embeddings and head add, as the start of the sums over layers."""
    zero = np.zeros(len(cast(Any, config.vocab_size)), np.int64)
    outputs = list(output_blocks(config))
    weights = [w for block in (*embedding_blocks(config), *outputs) for w in block.weights if w.stored]

    def head_flops(num_sequences: int, num_tokens: int) -> Any:
        return sum(
            _flops([block], num_sequences * (num_tokens if block.positions is None else 1), 0) for block in outputs
        )

    return {
        "params": zero + sum(math.prod(weight.shape) for weight in weights),
        "weights_bytes": zero + sum(weight_bytes(weight, workload) for weight in weights),
        "kv_cache_bytes": zero + 0,
        "prefill_flops": zero + head_flops(workload.batch_size, _logits_rows(config, workload)),
        "decode_flops_per_token": zero + (head_flops(1, 1) if config.is_causal else 0),
    }


def _logits_rows(config: TransformerConfig, workload: Workload) -> int:
    """`logits_rows` for a group of configs."""
    return 1 if workload.logits == "last" and config.is_causal else workload.prompt_length


def _kept(layer: Layer, num_tokens: int) -> int:
    """`Attention.kept_tokens` for a column of windows."""
    return cast(int, np.minimum(num_tokens, cast(int, layer.sliding_window)))
