"""Where each figure of an estimate comes from: formula, numbers put in, origin, source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from estimator.config import Layer, TransformerConfig
from estimator.flops import kept_tokens
from estimator.memory import (
    INT4_BLOCK,
    RUNTIME_BASE_BYTES,
    RUNTIME_WEIGHTS_PERCENT,
    count_kv_cache_bytes,
    count_read_bytes,
    layer_live_elements,
    output_elements,
)
from estimator.roofline import peak_rate
from estimator.sizing import Estimate
from estimator.weights import is_linear, part_of, weight_shapes
from estimator.workload import DTYPE_BYTES

__all__ = ["LEGEND", "Derivation", "derive"]

LEGEND = (
    "V vocab_size, D hidden_size, N attention heads, K key-value heads, H head_dim, F intermediate_size, "
    "P max_position_embeddings, T type_vocab_size, B batch, L prompt tokens, C context tokens, W window"
)
_CONFIG_SOURCE = "config; shapes of estimator/weights.py"
_FLOPS_SOURCE = "config; a multiply-add is 2 FLOPs; masks not discounted (docs/formulas.md)"
_RUNTIME_SOURCE = "ONNX Runtime 1.32 on a CPU, measured by benchmarks/runtime_memory.py"
_PART_FORMULAS = {
    "embedding": "V·D, + P·D when positions are learned, + T·D",
    "attention": "layers · (D·N·H + 2·D·K·H + N·H·D, + biases)",
    "feed_forward": "layers · (2·D·F, or 3·D·F when gated, + biases)",
    "norm": "gains (+ shifts of layer_norm): D each, H each for q and k",
    "head": "V·D untied, 0 tied; masked_lm D·D + D + V; pooler D·D + D",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """One figure: `formula` in the letters of LEGEND, and `numbers`, the same with numbers, which gives `value`."""

    figure: str
    formula: str
    numbers: str
    value: float
    origin: str
    source: str


def derive(result: Estimate) -> tuple[Derivation, ...]:
    """A derivation for every figure of the estimate that is not zero by nature, in the order of its JSON."""
    rows = [*_params(result), *_memory(result), *_compute(result), *_latency(result)]
    origins = result.origins
    return tuple(
        Derivation(figure=figure, formula=formula, numbers=numbers, value=value, origin=origins[figure], source=source)
        for figure, formula, numbers, value, source in rows
    )


_Row = tuple[str, str, str, float, str]


def _params(result: Estimate) -> Iterator[_Row]:
    shapes: dict[str, Counter[tuple[int, ...]]] = {part: Counter() for part in result.params.by_part}
    for name, shape in weight_shapes(result.config).items():
        shapes[part_of(name)][shape] += 1
    for part, count in result.params.by_part.items():
        terms = (_product(times, *shape) for shape, times in shapes[part].items())
        yield f"params.by_part.{part}", _PART_FORMULAS[part], _sum(terms), count, _CONFIG_SOURCE
    parts = _sum(str(count) for count in result.params.by_part.values())
    yield "params.total", "sum of the parts", parts, result.params.total, _CONFIG_SOURCE


def _memory(result: Estimate) -> Iterator[_Row]:
    memory, workload = result.memory, result.workload
    yield _weights(result)
    if result.config.is_causal:
        bytes_each = int(DTYPE_BYTES[workload.kv_cache_dtype])
        layers = Counter(
            (kept_tokens(layer, workload.context_length), layer.num_key_value_heads, layer.head_dim)
            for layer in result.config.layers
        )
        terms = _sum(_product(times, 2, *sizes) for sizes, times in layers.items())
        numbers = f"{workload.batch_size} × {bytes_each} × ({terms})"
        formula = "B · bytes per element · Σ layers 2·min(C, W)·K·H"
        yield "memory.kv_cache_bytes", formula, numbers, memory.kv_cache_bytes, "config, workload"
    yield _activations(result)
    total = [memory.weights_bytes, memory.kv_cache_bytes, memory.activations_bytes]
    if memory.runtime_bytes is not None:
        batch_bytes = workload.batch_size * int(DTYPE_BYTES[workload.activation_dtype])
        result_size = f"{batch_bytes} × {output_elements(result.config, workload.prompt_length)}"
        packed = f"{memory.weights_bytes} × {RUNTIME_WEIGHTS_PERCENT} // 100"
        numbers = f"{RUNTIME_BASE_BYTES} + {packed} + {result_size} + {memory.kv_cache_bytes}"
        formula = "11 MB + 0.45 · weights + B · bytes · L·V (L·D without logits) + KV cache"
        yield "memory.runtime_bytes", formula, numbers, memory.runtime_bytes, _RUNTIME_SOURCE
        total.append(memory.runtime_bytes)
    formula = "weights + KV cache + activations" + (" + runtime" if memory.runtime_bytes is not None else "")
    yield "memory.total_bytes", formula, _sum(map(str, total)), memory.total_bytes, "the figures above"


def _weights(result: Estimate) -> _Row:
    workload, shapes = result.workload, weight_shapes(result.config)
    linear = [shape for name, shape in shapes.items() if is_linear(name)]
    elements = sum(shape[0] * shape[1] for shape in linear)
    rest = f"{result.params.total - elements} × {int(DTYPE_BYTES[workload.activation_dtype])}"
    if workload.weight_dtype == "int8":
        numbers = f"{elements} × 1 + {sum(shape[0] for shape in linear)} × 4 + {rest}"
        formula = "linear elements · 1 + output channels · 4 (fp32 scales) + the rest · bytes of activations"
    elif workload.weight_dtype == "int4":
        blocks = sum(shape[0] * -(-shape[1] // INT4_BLOCK) for shape in linear)
        numbers = f"{blocks} × {INT4_BLOCK // 2 + 2} + {rest}"
        formula = "blocks of 32 · (16 + 2 for an fp16 scale) + the rest · bytes of activations"
    else:
        numbers = f"{result.params.total} × {int(DTYPE_BYTES[workload.weight_dtype])}"
        formula = f"parameters · bytes of {workload.weight_dtype}"
    return "memory.weights_bytes", formula, numbers, result.memory.weights_bytes, _CONFIG_SOURCE


def _activations(result: Estimate) -> _Row:
    config, length = result.config, result.workload.prompt_length
    on_cpu = result.device is None or result.device.kind == "cpu"

    def live(layer: Layer) -> tuple[int, int]:
        return layer_live_elements(config, layer, length, on_cpu)

    wide = max(config.layers, key=lambda layer: live(layer)[0])
    scores = f" + {_product(wide.num_attention_heads, length, length)}" if on_cpu else ""
    sizes = f"{config.hidden_size} + 2 × {wide.query_size} + 2 × {wide.key_value_size}"
    inner = max(layer.intermediate_size for layer in config.layers)
    moments = (
        f"{length} × ({sizes}){scores}",
        f"{length} × (2 × {config.hidden_size} + {2 if config.gated_mlp else 1} × {inner})",
        f"{length} × ({config.hidden_size} + {config.vocab_size if config.head in ('causal_lm', 'masked_lm') else 0})",
    )
    bytes_each = int(DTYPE_BYTES[result.workload.activation_dtype])
    together = f"({' + '.join(moments)})" if on_cpu else f"max({', '.join(moments)})"
    numbers = f"{result.workload.batch_size} × {bytes_each} × {together}"
    terms = "L·(D + 2·N·H + 2·K·H)", "L·(2·D + F, twice F when gated)", "L·(D + V)"
    formula = f"B · bytes · (N·L·L + {' + '.join(terms)})" if on_cpu else f"B · bytes · max({', '.join(terms)})"
    return "memory.activations_bytes", formula, numbers, result.memory.activations_bytes, "docs/formulas.md"


def _compute(result: Estimate) -> Iterator[_Row]:
    compute, workload = result.compute, result.workload
    length = workload.prompt_length
    keys = {layer.index: length for layer in result.config.layers}
    rows = _operators(result.config, workload.batch_size, length, keys)
    yield from _flop_rows("prefill", rows, compute.prefill_by_operator, "keys = L")
    yield (
        "compute.prefill_flops",
        "sum of the operators",
        _plus(compute.prefill_by_operator),
        compute.prefill_flops,
        (_FLOPS_SOURCE),
    )
    if compute.decode_by_operator is None or compute.decode_flops_per_token is None:
        return
    keys = {layer.index: kept_tokens(layer, workload.context_length + 1) for layer in result.config.layers}
    rows = _operators(result.config, 1, 1, keys)
    yield from _flop_rows("decode", rows, compute.decode_by_operator, "B = L = 1, keys = min(C + 1, W)")
    total = _plus(compute.decode_by_operator)
    yield "compute.decode_flops_per_token", "sum of the operators", total, compute.decode_flops_per_token, _FLOPS_SOURCE


def _operators(
    config: TransformerConfig, num_sequences: int, num_tokens: int, keys: dict[int, int]
) -> dict[str, tuple[str, str]]:
    """Formula and numbers by operator."""
    hidden, tokens = config.hidden_size, num_sequences * num_tokens
    layers = Counter(
        (
            layer.num_attention_heads,
            layer.num_key_value_heads,
            layer.head_dim,
            layer.intermediate_size,
            keys[layer.index],
        )
        for layer in config.layers
    )
    matrices = 3 if config.gated_mlp else 2
    qkv, scores, output, inner = [], [], [], []
    for (heads, kv_heads, size, width, num_keys), times in layers.items():
        qkv.append(f"{times} × 2 × {tokens} × {hidden} × ({heads} + 2 × {kv_heads}) × {size}")
        scores.append(_product(times, 2, tokens, num_keys, heads, size))
        output.append(_product(times, 2, tokens, heads, size, hidden))
        inner.append(_product(times, matrices, 2, tokens, hidden, width))
    return {
        "qkv_projection": ("Σ layers 2·B·L·D·(N + 2K)·H", _sum(qkv)),
        "attention_scores": ("Σ layers 2·B·L·keys·N·H", _sum(scores)),
        "attention_values": ("Σ layers 2·B·L·keys·N·H", _sum(scores)),
        "output_projection": ("Σ layers 2·B·L·N·H·D", _sum(output)),
        "feed_forward": (f"Σ layers {matrices} · 2·B·L·D·F", _sum(inner)),
        "head": _head(config, num_sequences, tokens),
    }


def _head(config: TransformerConfig, num_sequences: int, tokens: int) -> tuple[str, str]:
    hidden, vocab = config.hidden_size, config.vocab_size
    if config.head == "causal_lm":
        return "2·B·L·D·V", _product(2, tokens, hidden, vocab)
    if config.head == "masked_lm":
        return "2·B·L·D·(D + V)", f"2 × {tokens} × {hidden} × ({hidden} + {vocab})"
    if config.head == "pooler":
        return "2·B·D·D", _product(2, num_sequences, hidden, hidden)
    return "no head", "0"


def _flop_rows(phase: str, rows: dict[str, tuple[str, str]], flops: dict[str, int], where: str) -> Iterator[_Row]:
    for operator, (formula, numbers) in rows.items():
        with_keys = f"{formula}, {where}" if "keys" in formula else formula
        yield f"compute.{phase}_by_operator.{operator}", with_keys, numbers, flops[operator], _FLOPS_SOURCE


def _latency(result: Estimate) -> Iterator[_Row]:
    latency, device = result.latency, result.device
    if latency is None or device is None or latency.prefill_s is None:
        return
    workload = result.workload
    read = count_read_bytes(result.config, workload)
    rates = f"{peak_rate(workload, device)!r}", f"{device.memory_bandwidth_bytes_per_s!r}"
    source = device.sources["memory_bandwidth_bytes_per_s"]
    where = f"roofline (Williams et al. 2009); {source.title}, {source.date}; {device.note}".rstrip("; ")
    cache = count_kv_cache_bytes(result.config, workload, workload.prompt_length)
    numbers = f"max({result.compute.prefill_flops} / {rates[0]}, ({read} + {cache}) / {rates[1]})"
    formula = "max(prefill FLOPs / peak, (weights read + keys and values written) / bandwidth)"
    yield "latency.prefill_s", formula, numbers, latency.prefill_s.value, where
    if latency.decode_s_per_token is None:
        return
    step = f"{workload.batch_size} × {result.compute.decode_flops_per_token}"
    numbers = f"max({step} / {rates[0]}, ({read} + {result.memory.kv_cache_bytes}) / {rates[1]})"
    formula = "max(B · decode FLOPs / peak, (weights read + KV cache) / bandwidth)"
    yield "latency.decode_s_per_token", formula, numbers, latency.decode_s_per_token.value, where


def _product(*factors: int) -> str:
    return " × ".join(str(factor) for factor in factors)


def _sum(terms: Iterable[str]) -> str:
    return " + ".join(terms) or "0"


def _plus(flops: dict[str, int]) -> str:
    return _sum(str(value) for value in flops.values() if value)
