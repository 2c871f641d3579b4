"""Where each figure of an estimate comes from: formula, numbers put in, origin, source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from estimator.achievable import Achievable
from estimator.explaining.flops import explain_compute
from estimator.explaining.memory import explain_memory, explain_weights
from estimator.explaining.terms import Row, plus, shapes_sum, terms_sum
from estimator.latency import count_operators, sustained_rate
from estimator.memory import count_kv_cache_bytes
from estimator.network import Network, stored_weights
from estimator.phases import BlockRun, decode_runs, prefill_runs, stack_rows
from estimator.sizing import Estimate

__all__ = ["LEGEND", "Derivation", "derive"]

LEGEND = (
    "V vocab_size, D hidden_size, N attention heads, K key-value heads, H head_dim, h that of values, "
    "F intermediate_size, P max_position_embeddings, T type_vocab_size, E experts, k experts per token, "
    "X width of the shared expert, q and c ranks of latent queries and keys, r and u rotary and other part of a latent "
    "key, B batch, I images, L rows of a sequence (prompt tokens; 1 for a decoder behind an encoder), "
    "S rows of the encoder, C context tokens, W window"
)
_SHAPES_SOURCE = "config; shapes of estimator/blocks/common.py"


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
    rows = [*_params(result), explain_weights(result)]
    if not result.network.has_only_weights:
        rows += [*explain_memory(result), *explain_compute(result), *_latency(result)]
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
