"""Where the memory of an estimate comes from: weights, cache, state, activations by phase, runtime."""

from __future__ import annotations

from collections.abc import Iterator

from estimator.explaining.terms import Row, product, terms_sum
from estimator.memory import (
    KV_HEAD_SCALE_BYTES,
    KV_TOKEN_SCALE_BYTES,
    Moment,
    cached_vectors,
    decode_moments,
    live_elements,
    output_elements,
    score_copies,
    widest_moments,
)
from estimator.network import Block, Network, stored_weights
from estimator.phases import cached_tokens, running_stacks, source_tokens
from estimator.runtimes import RUNTIMES, Runtime, base_bytes
from estimator.sizing import Estimate
from estimator.weight_formats import WeightFormat
from estimator.workload import DTYPE_BYTES

__all__ = ["explain_memory", "explain_weights"]

_SHAPES_SOURCE = "config; shapes of estimator/blocks/common.py"
_ABOVE = "the figures above"


def explain_weights(result: Estimate) -> Row:
    """The row for the bytes of the weights."""
    workload, value = result.workload, result.memory.weights_bytes
    figure, form = "memory.weights_bytes", workload.quantization
    if result.stored_bytes is not None:
        return figure, "bytes of the tensors in the file", f"{value}", value, "headers of the weight file"
    size = int(DTYPE_BYTES[workload.unquantized_dtype])
    if form is None:
        formula, numbers = f"parameters · bytes of {workload.weight_dtype}", f"{result.params.total} × {size}"
        return figure, formula, numbers, value, _SHAPES_SOURCE
    matrices = [w for _, _, w in stored_weights(result.network) if w.role == "linear" and w.quantized]
    elements = sum(weight.copies * form.element_bytes(*weight.shape) for weight in matrices)
    scales = sum(weight.copies * form.num_scales(*weight.shape) for weight in matrices)
    extra = sum(weight.copies * form.extra_bytes(*weight.shape) for weight in matrices)
    rest = result.params.total - sum(weight.num_elements for weight in matrices)
    formula = f"elements of {form.bits} bits + scales · {form.scale_bytes}, {_block_text(form)}"
    numbers = f"{elements} + {scales} × {form.scale_bytes} + {rest} × {size}"
    if extra:
        formula += f" + {_extra_text(form)}"
        numbers += f" + {extra}"
    formula += f" + the rest · bytes of {workload.unquantized_dtype}"
    return figure, formula, numbers, value, "config; estimator/blocks/common.py; estimator/weight_formats.py"


def explain_memory(result: Estimate) -> Iterator[Row]:
    """Rows for every other part of the memory, and the total with its interval."""
    network, memory = result.network, result.memory
    has_state = any(block.recurrence is not None for block in network.main.blocks)
    total = {"weights": memory.weights_bytes, "KV cache": memory.kv_cache_bytes}
    if network.is_causal:
        yield _kv_cache(result)
        if has_state:
            yield _state(result)
            total["state"] = memory.state_bytes
    yield from _activations(result)
    total["activations"] = memory.activations_bytes
    if memory.runtime is not None and memory.runtime_bytes is not None:
        yield _runtime(result, RUNTIMES[memory.runtime])
        total["runtime"] = memory.runtime_bytes
    numbers = " + ".join(map(str, total.values()))
    yield "memory.total_bytes", " + ".join(total), numbers, memory.total_bytes, _ABOVE
    yield from _interval(result)


def _block_text(form: WeightFormat) -> str:
    if form.is_flat:
        return f"one per {form.columns} elements"
    columns = f"{form.columns} inputs" if form.columns else "all inputs"
    rows = {0: "all outputs", 1: "an output"}.get(form.rows, f"{form.rows} outputs")
    padded = ", rows padded to whole blocks" if form.pads_rows and form.columns else ""
    return f"one per {columns} of {rows}{padded}"


def _extra_text(form: WeightFormat) -> str:
    parts = {
        "zero points": form.zero_points,
        f"an fp32 scale per {form.outer_block} scales and an offset": form.outer_block,
        f"{form.column_bytes} for each input": form.column_bytes,
        f"{form.matrix_bytes} for each matrix": form.matrix_bytes,
    }
    return " + ".join(text for text, is_there in parts.items() if is_there)


def _kv_cache(result: Estimate) -> Row:
    network, workload = result.network, result.workload
    tokens, source = cached_tokens(network, workload), source_tokens(network, workload)
    blocks = [block for block in network.main.blocks if block.attention is not None]
    kept = [(_kept(block, tokens, source), block) for block in blocks]
    elements = terms_sum((num, b.attention.cached_elements) for num, b in kept if b.attention and cached_vectors(b))
    size, formula = DTYPE_BYTES[workload.kv_cache_dtype], f"B · bytes per element · Σ layers {_kept_formula(network)}"
    numbers = f"{workload.batch_size} × {int(size)} × ({elements})"
    if size < 1:
        numbers = f"{workload.batch_size} × ((({elements}) × {int(8 * size)} + 7) // 8)"
    if workload.cache_scales == "token":
        vectors = terms_sum((num, cached_vectors(block)) for num, block in kept if cached_vectors(block))
        formula += f" + B · {KV_TOKEN_SCALE_BYTES} · Σ layers tokens · (keys and values of heads), fp16 scales"
        numbers += f" + {product(workload.batch_size, KV_TOKEN_SCALE_BYTES)} × ({vectors})"
    if workload.cache_scales == "head":
        formula += f" + {KV_HEAD_SCALE_BYTES} · Σ layers keys and values of heads, fp32 scales"
        numbers += f" + {KV_HEAD_SCALE_BYTES} × {sum(map(cached_vectors, blocks))}"
    return "memory.kv_cache_bytes", formula, numbers, result.memory.kv_cache_bytes, "config, workload"


def _kept(block: Block, tokens: int, source: int) -> int:
    assert block.attention is not None
    return source if block.attention.is_cross else block.attention.kept_tokens(tokens)


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


def _activations(result: Estimate) -> Iterator[Row]:
    network, workload, memory = result.network, result.workload, result.memory
    copies, reuses = _way(result)
    names, terms = [], []
    for stack in running_stacks(network, workload):
        moments = widest_moments(network, stack, workload, score_copies=copies)
        times = f"{workload.num_images} × " if stack.optional else ""
        terms.append(f"{times}{_together(moments, reuses)}")
        names.append(f"{'I · ' if stack.optional else ''}{stack.name}")
    scores = "" if not copies else " + N·keys" if copies == 1 else f" + {copies}·N·keys"
    moments_text = f"rows·(live width of mixing{scores}), rows·live width of the rest, L·D + logits"
    formula = f"B · bytes · {'max' if reuses else 'sum'}({moments_text}), each of the widest layer"
    if len(terms) > 1:
        formula += f"; the largest of {', '.join(names)}"
    size = f"{workload.batch_size} × {int(DTYPE_BYTES[workload.activation_dtype])}"
    numbers = f"{size} × {terms[0] if len(terms) == 1 else 'max(' + ', '.join(terms) + ')'}"
    where = f"docs/formulas.md; {memory.attention} attention"
    yield "memory.prefill_activations_bytes", formula, numbers, memory.prefill_activations_bytes, where
    formula, numbers = "0, as nothing is generated", "0"
    if network.is_causal:
        formula = f"as in prefill, with 1 row and min(C + 1, W) {'or S ' if network.stacks[1:] else ''}keys"
        numbers = f"{size} × {_together(decode_moments(network, workload, copies), reuses)}"
    yield "memory.decode_activations_bytes", formula, numbers, memory.decode_activations_bytes, where
    numbers = f"max({memory.prefill_activations_bytes}, {memory.decode_activations_bytes})"
    yield "memory.activations_bytes", "max(prefill, decode)", numbers, memory.activations_bytes, _ABOVE


def _way(result: Estimate) -> tuple[int, bool]:
    """Copies of scores, and whether one moment's memory serves the next."""
    runtime = None if result.memory.runtime is None else RUNTIMES[result.memory.runtime]
    return score_copies(result.workload, runtime), runtime is None or runtime.reuses_activations


def _together(moments: tuple[Moment, ...], reuses: bool) -> str:
    texts = [_moment(moment) for moment in moments]
    return f"max({', '.join(texts)})" if reuses else f"({' + '.join(texts)})"


def _moment(moment: Moment) -> str:
    text = product(moment.num_rows, moment.live_width)
    if moment.num_heads:
        copies = (moment.score_copies,) if moment.score_copies > 1 else ()
        text = f"{moment.num_rows} × ({moment.live_width} + {product(*copies, moment.num_heads, moment.num_keys)})"
    return f"{text} + {moment.num_logits}" if moment.num_logits else text


def _runtime(result: Estimate, runtime: Runtime) -> Row:
    memory, base = result.memory, base_bytes(runtime, result.device).value
    assert memory.runtime_bytes is not None
    formula, numbers = f"{base / 1e6:g} MB", f"{base}"
    if runtime.weights_percent.value:
        formula += f" + {runtime.weights_percent.value / 100:g} · weights"
        numbers += f" + {memory.weights_bytes} × {runtime.weights_percent.value} // 100"
    if runtime.spare_percent.value:
        formula += f" + {runtime.spare_percent.value / 100:g} · (sum of the widest moments − activations of prefill)"
        numbers += f" + {_spare(result)} × {runtime.spare_percent.value} // 100"
    if runtime.copies_outputs:
        workload, network = result.workload, result.network
        size = product(workload.batch_size, int(DTYPE_BYTES[workload.activation_dtype]))
        formula += f" + B · bytes · {'logits' if network.logits_width else 'L·D'} + KV cache"
        numbers += f" + {size} × {output_elements(network, workload)} + {memory.kv_cache_bytes}"
    return "memory.runtime_bytes", formula, numbers, memory.runtime_bytes, runtime.source


def _spare(result: Estimate) -> int:
    """Bytes by which the widest moments of the stack that takes most exceed the widest one."""
    network, workload = result.network, result.workload
    copies, reuses = _way(result)
    found = []
    for stack in running_stacks(network, workload):
        times = workload.num_images if stack.optional else 1
        elements = live_elements(widest_moments(network, stack, workload, score_copies=copies), reuses)
        found.append(tuple(times * number for number in elements))
    return workload.batch_size * int(DTYPE_BYTES[workload.activation_dtype]) * max(found)[1]


def _interval(result: Estimate) -> Iterator[Row]:
    """The ends of the total: the runtime's interval about its value."""
    memory = result.memory
    source = _ABOVE if memory.runtime is None else RUNTIMES[memory.runtime].source
    less, more = memory.total_bytes - memory.total_low_bytes, memory.total_high_bytes - memory.total_bytes
    numbers = f"{memory.total_bytes} - {less}"
    yield "memory.total_low_bytes", "total − runtime + its low end", numbers, memory.total_low_bytes, source
    numbers = f"{memory.total_bytes} + {more}"
    yield "memory.total_high_bytes", "total − runtime + its high end", numbers, memory.total_high_bytes, source
