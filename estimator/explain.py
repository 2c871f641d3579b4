"""Where each figure of an estimate comes from: formula, numbers put in, origin, source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from estimator.achievable import Achievable
from estimator.explain_flops import explain_compute
from estimator.explain_terms import Row, plus, product, shapes_sum, terms_sum
from estimator.latency import count_operators, sustained_rate
from estimator.memory import (
    INT4_BLOCK,
    INT4_SCALE_BYTES,
    INT8_SCALE_BYTES,
    RUNTIME_BASE_BYTES,
    RUNTIME_WEIGHTS_PERCENT,
    Moment,
    count_kv_cache_bytes,
    output_elements,
    widest_moments,
)
from estimator.network import Network, Weight, stored_weights
from estimator.phases import (
    BlockRun,
    cached_tokens,
    decode_runs,
    prefill_runs,
    running_stacks,
    source_tokens,
    stack_rows,
)
from estimator.sizing import Estimate
from estimator.workload import DTYPE_BYTES

__all__ = ["LEGEND", "Derivation", "derive"]

LEGEND = (
    "V vocab_size, D hidden_size, N attention heads, K key-value heads, H head_dim, h that of values, "
    "F intermediate_size, P max_position_embeddings, T type_vocab_size, E experts, k experts per token, "
    "X width of the shared expert, q and c ranks of latent queries and keys, r and u rotary and other part of a latent "
    "key, B batch, I images, L rows of a sequence (prompt tokens; 1 for a decoder behind an encoder), "
    "S rows of the encoder, C context tokens, W window"
)
_SHAPES_SOURCE = "config; shapes of estimator/blocks.py"
_RUNTIME_SOURCE = "ONNX Runtime 1.32 on a CPU, measured by benchmarks/runtime_memory.py"


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
    """A derivation for every figure of the estimate that is not zero by nature, in the order of its JSON.

    `params.by_layer` holds many figures under one name and is left out: the parts are sums over the same layers.
    """
    rows = [*_params(result), _weights(result)]
    if not result.network.has_only_weights:
        rows += [*_memory(result), *explain_compute(result), *_latency(result)]
    origins = result.origins
    return tuple(
        Derivation(figure=figure, formula=formula, numbers=numbers, value=value, origin=origins[figure], source=source)
        for figure, formula, numbers, value, source in rows
    )


def _params(result: Estimate) -> Iterator[Row]:
    network, params = result.network, result.params
    weights = [(part, weight) for _, part, weight in stored_weights(network)]
    for part, count in params.by_part.items():
        numbers = shapes_sum(weight for own, weight in weights if own == part)
        yield f"params.by_part.{part}", _part_formula(network, part), numbers, count, _SHAPES_SOURCE
    for stack in network.stacks:
        owned = (weight for _, block, owns in stack.named_blocks() if owns for weight in block.weights if weight.stored)
        formula = "Σ copies · shape over the weights of the stack"
        yield f"params.by_stack.{stack.name}", formula, shapes_sum(owned), params.by_stack[stack.name], _SHAPES_SOURCE
    yield "params.total", "sum of the parts", plus(params.by_part), params.total, _SHAPES_SOURCE
    tables = shapes_sum(weight for _, weight in weights if weight.role == "embedding")
    yield "params.embedding", "V·D + P·D + T·D, the tables that there are", tables, params.embedding, _SHAPES_SOURCE
    rest = f"{params.total} - {params.embedding}"
    yield "params.non_embedding", "total − embedding", rest, params.non_embedding, "the figures above"
    idle = terms_sum(
        (weight.copies - weight.active_copies, *weight.shape)
        for _, weight in weights
        if weight.copies > weight.active_copies
    )
    formula, numbers = "total", str(params.total)
    if idle != "0":
        formula, numbers = "total − Σ layers (E − k) · weights of an expert", f"{params.total} - ({idle})"
    yield "params.active", formula, numbers, params.active, _SHAPES_SOURCE
    rest = f"{params.active} - {params.embedding}"
    yield "params.active_non_embedding", "active − embedding", rest, params.active_non_embedding, "the figures above"


def _part_formula(network: Network, part: str) -> str:
    """The formula of a part, with the kinds that the network has."""
    blocks = [block for stack in network.stacks for block in stack.blocks if block.part == part]
    names = {weight.name for block in blocks for weight in block.weights}
    matrices = 3 if any("gate_proj" in name for name in names) else 2
    if part == "attention":
        kinds = ["D·N·H + D·K·H + D·K·h + N·h·D"] if "k_proj.weight" in names or "q_proj.weight" in names else []
        if any("kv_a_proj" in name for name in names):
            kinds = ["D·q + q·N·(u + r) + D·(c + r) + c·N·(u + h) + N·h·D, D·N·(u + r) without q"]
        return f"Σ layers ({' + '.join(kinds) or 'matrices in·out'}, + biases, gates, sinks)"
    return {
        "embedding": "V·D, + P·D when positions are learned, + T·D",
        "feed_forward": f"Σ layers ({matrices}·D·F, + biases)",
        "experts": f"Σ layers (D·E + E·{matrices}·D·F + {matrices}·D·X, + biases)",
        "state_space": "Σ layers (matrices in·out + convolutions + vectors of the state)",
        "norm": "gains (+ shifts of layer_norm): D each; of queries, keys and latents their own width",
        "head": "V·D untied, 0 tied, + D·D of a transform or pooler, + biases",
        "projector": "matrices in·out, + biases",
    }.get(part, "Σ copies · shape over the weights of the part")


def _memory(result: Estimate) -> Iterator[Row]:
    network, memory = result.network, result.memory
    has_state = any(block.recurrence is not None for block in network.main.blocks)
    if network.is_causal:
        yield _kv_cache(result)
        if has_state:
            yield _state(result)
    yield _activations(result)
    total = {"weights": memory.weights_bytes, "KV cache": memory.kv_cache_bytes}
    if network.is_causal and has_state:
        total["state"] = memory.state_bytes
    total["activations"] = memory.activations_bytes
    if memory.runtime_bytes is not None:
        total["runtime"] = memory.runtime_bytes
        yield _runtime(result)
    numbers = " + ".join(map(str, total.values()))
    yield "memory.total_bytes", " + ".join(total), numbers, memory.total_bytes, "the figures above"


def _weights(result: Estimate) -> Row:
    workload, value = result.workload, result.memory.weights_bytes
    if result.stored_bytes is not None:
        formula = "bytes of the tensors in the file"
        return "memory.weights_bytes", formula, f"{value}", value, "headers of the weight file"
    if workload.weight_dtype in ("int8", "int4"):
        formula, numbers = _quantized(result)
    else:
        formula = f"parameters · bytes of {workload.weight_dtype}"
        numbers = f"{result.params.total} × {int(DTYPE_BYTES[workload.weight_dtype])}"
    return "memory.weights_bytes", formula, numbers, value, _SHAPES_SOURCE


def _quantized(result: Estimate) -> tuple[str, str]:
    workload = result.workload
    matrices: list[Weight] = [
        weight for _, _, weight in stored_weights(result.network) if weight.role == "linear" and weight.quantized
    ]
    elements = sum(weight.num_elements for weight in matrices)
    rest = f"{result.params.total - elements} × {int(DTYPE_BYTES[workload.activation_dtype])}"
    if workload.weight_dtype == "int8":
        channels = sum(weight.copies * weight.shape[0] for weight in matrices)
        formula = f"quantised elements + output channels · {INT8_SCALE_BYTES} (fp32 scales)"
        numbers = f"{elements} + {channels} × {INT8_SCALE_BYTES} + {rest}"
    else:
        blocks = sum(weight.copies * weight.shape[0] * -(-weight.shape[1] // INT4_BLOCK) for weight in matrices)
        formula = f"blocks of {INT4_BLOCK} · ({INT4_BLOCK // 2} + {INT4_SCALE_BYTES} for an fp16 scale)"
        numbers = f"{blocks} × ({INT4_BLOCK // 2} + {INT4_SCALE_BYTES}) + {rest}"
    return f"{formula} + the rest · bytes of activations", numbers


def _kv_cache(result: Estimate) -> Row:
    network, workload = result.network, result.workload
    tokens, source = cached_tokens(network, workload), source_tokens(network, workload)
    attentions = [block.attention for block in network.main.blocks if block.attention is not None]
    elements = terms_sum(
        (source if attention.is_cross else attention.kept_tokens(tokens), attention.cached_elements)
        for attention in attentions
        if attention.cached_elements
    )
    numbers = f"{workload.batch_size} × {int(DTYPE_BYTES[workload.kv_cache_dtype])} × ({elements})"
    formula = f"B · bytes per element · Σ layers {_kept_formula(network)}"
    return "memory.kv_cache_bytes", formula, numbers, result.memory.kv_cache_bytes, "config, workload"


def _kept_formula(network: Network) -> str:
    """What a layer keeps, with the kinds that the generating stack has."""
    attentions = [block.attention for block in network.main.blocks if block.attention is not None]
    own = [attention for attention in attentions if not attention.is_cross]
    tokens = "min(C, W)" if any(attention.window is not None for attention in own) else "C"
    names = (weight.name for block in network.main.blocks for weight in block.weights)
    elements = "(c + r)" if any("kv_a_proj" in name for name in names) else "K·(H + h)"
    cross = " + S·N·(H + h)" if len(own) < len(attentions) else ""
    reused = ", 0 where it reads another's cache" if any(not attention.cached_elements for attention in own) else ""
    return f"{tokens}·{elements}{cross}{reused}"


def _state(result: Estimate) -> Row:
    workload = result.workload
    states = [block.recurrence for block in result.network.main.blocks if block.recurrence is not None]
    size, fp32_size = (int(DTYPE_BYTES[dtype]) for dtype in (workload.activation_dtype, "fp32"))
    kept = [(state.fp32_elements, fp32_size) for state in states if state.fp32_elements]
    kept += [(state.state_elements - state.fp32_elements, size) for state in states]
    numbers = f"{workload.batch_size} × ({terms_sum(kept)})"
    formula = "B · Σ layers elements of the recurrent and convolution state · bytes (of activations, or fp32)"
    return "memory.state_bytes", formula, numbers, result.memory.state_bytes, "config, workload"


def _activations(result: Estimate) -> Row:
    network, workload = result.network, result.workload
    on_cpu = result.device is None or result.device.kind == "cpu"
    formulas, terms = [], []
    for stack in running_stacks(network, workload):
        moments = widest_moments(network, stack, workload, scores_stored=on_cpu)
        numbers = " + ".join(map(_moment, moments)) if on_cpu else f"max({', '.join(map(_moment, moments))})"
        terms.append(f"{workload.num_images} × ({numbers})" if stack.optional else numbers)
        formulas.append(f"{'I · ' if stack.optional else ''}{stack.name}")
    scores = " + N·keys" if on_cpu else ""
    moments_formula = f"rows·(live width of mixing{scores}), rows·live width of the rest, L·(D + V)"
    formula = f"B · bytes · {'sum' if on_cpu else 'max'}({moments_formula}), each of the widest layer"
    if len(terms) > 1:
        formula += f"; the largest of {', '.join(formulas)}"
    together = terms[0] if len(terms) == 1 else f"max({', '.join(terms)})"
    numbers = f"{workload.batch_size} × {int(DTYPE_BYTES[workload.activation_dtype])} × ({together})"
    return "memory.activations_bytes", formula, numbers, result.memory.activations_bytes, "docs/formulas.md"


def _moment(moment: Moment) -> str:
    if not moment.num_heads:
        return product(moment.num_rows, moment.live_width)
    return f"{moment.num_rows} × ({moment.live_width} + {moment.num_heads} × {moment.num_keys})"


def _runtime(result: Estimate) -> Row:
    network, memory, workload = result.network, result.memory, result.workload
    assert memory.runtime_bytes is not None
    outputs = output_elements(network, stack_rows(network, network.main, workload))
    numbers = (
        f"{RUNTIME_BASE_BYTES} + {memory.weights_bytes} × {RUNTIME_WEIGHTS_PERCENT} // 100"
        f" + {product(workload.batch_size, int(DTYPE_BYTES[workload.activation_dtype]), outputs)}"
        f" + {memory.kv_cache_bytes}"
    )
    result_width = "V" if network.logits_width else "D"
    formula = f"{RUNTIME_BASE_BYTES / 1e6:g} MB + {RUNTIME_WEIGHTS_PERCENT / 100:g} · weights"
    formula += f" + B · bytes · L·{result_width} + KV cache"
    return "memory.runtime_bytes", formula, numbers, memory.runtime_bytes, _RUNTIME_SOURCE


def _latency(result: Estimate) -> Iterator[Row]:
    network, latency, device, workload = result.network, result.latency, result.device, result.workload
    if latency is None or device is None:
        return
    achievable = latency.achievable
    source = device.sources["memory_bandwidth_bytes_per_s"]
    where = f"roofline (Williams et al. 2009); peaks: {source.title}, {source.date}; fractions: {achievable.source}"
    sustained_bandwidth = f"({device.memory_bandwidth_bytes_per_s!r} × {achievable.bandwidth_fraction!r})"
    rates = f"{sustained_rate(workload, device, achievable)!r}", sustained_bandwidth
    has_experts = any(weight.copies > weight.active_copies for _, _, weight in stored_weights(network))
    weights = "weights read (of E experts E·(1 − (1 − k/E)^rows))" if has_experts else "weights read"
    written = count_kv_cache_bytes(network, workload, stack_rows(network, network.main, workload))
    read = latency.prefill_s.bytes_moved - written
    numbers = f"max({result.compute.prefill_flops} / {rates[0]}, ({read} + {written}) / {rates[1]})"
    formula = f"max(prefill FLOPs / sustained rate, ({weights} + keys and values written) / sustained bandwidth)"
    extra = _overhead(achievable, prefill_runs(network, workload))
    yield "latency.prefill_s", formula + extra[0], numbers + extra[1], latency.prefill_s.time_s.value, where
    prefill = repr(latency.prefill_s.time_s.value)
    if latency.decode_s_per_token is None or latency.tokens_per_s is None:
        yield "latency.request_s", "prefill", prefill, latency.request_s, "the figures above"
        return
    cache, state = result.memory.kv_cache_bytes, result.memory.state_bytes
    kept = f"{latency.decode_s_per_token.bytes_moved - cache - state} + {cache} + {state}"
    step = f"{workload.batch_size} × {result.compute.decode_flops_per_token}"
    formula = f"max(B · decode FLOPs / sustained rate, ({weights} + KV cache + state) / sustained bandwidth)"
    numbers = f"max({step} / {rates[0]}, ({kept}) / {rates[1]})"
    extra = _overhead(achievable, decode_runs(network, workload))
    yield (
        "latency.decode_s_per_token",
        formula + extra[0],
        numbers + extra[1],
        latency.decode_s_per_token.time_s.value,
        where,
    )
    token = repr(latency.decode_s_per_token.time_s.value)
    numbers = f"{prefill} + {workload.generated_length} × {token}"
    yield "latency.request_s", "prefill + generated tokens · decode", numbers, latency.request_s, "the figures above"
    numbers = f"{workload.batch_size} / {token}"
    yield "latency.tokens_per_s", "B / decode", numbers, latency.tokens_per_s, "the figures above"


def _overhead(achievable: Achievable, runs: Iterable[BlockRun]) -> tuple[str, str]:
    """What operators take beside their work, where that was measured."""
    if not achievable.operator_s:
        return "", ""
    return " + operators · time of one", f" + {count_operators(runs)} × {achievable.operator_s!r}"
