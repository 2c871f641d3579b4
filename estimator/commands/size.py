"""The command `estimator size`: what a model needs, and what it takes on a device."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from estimator.commands.arguments import SOURCE_HELP, add_workload, size_of_arguments
from estimator.commands.cost_options import add_arguments, cost_document, cost_explanation, cost_lines
from estimator.commands.training_options import add_arguments as add_training
from estimator.commands.training_options import explained_lines, plan_of, training_document, training_lines
from estimator.display import print_json, shorten
from estimator.latency import PhaseTime
from estimator.readers.source import ModelSource, read_source
from estimator.sized_source import size_document
from estimator.sizing import Estimate
from estimator.weight_formats import FORMATS
from estimator.workload import Workload

__all__ = ["add_parser", "run"]

_DESCRIPTION = """What a model needs: parameters, memory, FLOPs. With a device: whether it fits, and its time.

SOURCE is a Hugging Face config.json, its folder, a .safetensors, .gguf or .onnx file, or a bundled model such as
gpt2, llama-3.1-8b, qwen3-0.6b, bert-base-uncased or t5-small; `estimator models` lists them all.
"""
_EXAMPLES = """examples:
  estimator size gpt2
  estimator size ./config.json --batch-size 8 --sequence-length 2048 --json
  estimator size mistral-7b --weight-dtype int8 --kv-dtype bf16 --device l4
  estimator size mistral-7b --training --lora-rank 16 --base-dtype nf4 --precision bf16 --device l4"""


def add_parser(commands: Any) -> None:
    """Adds `size` to the subparsers of the command line."""
    parser = commands.add_parser(
        "size",
        help="parameters, memory, FLOPs, and the time on a device",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--device", metavar="D", help="a name from `estimator devices`")
    add_workload(parser)
    add_training(parser)
    add_arguments(parser)
    parser.add_argument("--explain", action="store_true", help="derive every figure")
    parser.add_argument("--html", metavar="FILE", help="also write one page with charts, for offline reading")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the estimate; 0.

    Raises:
        InputError: the source, the device or a number is not understood.
    """
    plan_of(args)  # options that do not go together are refused before anything is read
    source = read_source(args.source)
    result = size_of_arguments(source, args)
    if args.html:
        from estimator.plots import write_page

        print(f"wrote {write_page([result], args.html)}; open it in a browser", file=sys.stderr)
    if args.json:
        costs = cost_document(result, args) | training_document(result, args)
        print_json(size_document(result, source) | costs | (_derivations(result, args) if args.explain else {}))
        return 0
    print(_table(result, source, args))
    if args.explain:
        print("\n".join([_explanation(result, args), *explained_lines(result, args)]))
    print(f"\nnext: {_next_step(args, result)}", file=sys.stderr)
    return 0


def _derivations(result: Estimate, args: argparse.Namespace) -> dict[str, Any]:
    from estimator.explaining.figures import LEGEND, derive

    rows = (*derive(result), *cost_explanation(result, args))
    return {"explain": {"legend": LEGEND, "figures": [asdict(row) for row in rows]}}


def _table(result: Estimate, source: ModelSource, args: argparse.Namespace) -> str:
    workload = result.workload
    named = f" ({source.hf_class})" if source.hf_class else ""
    weights = _weights_text(workload) if result.stored_bytes is None else "as the file stores them"
    images = f", {workload.num_images:,} images" if workload.num_images else ""
    lines = [
        f"{source.name}: {_shape(result)}{named}",
        f"batch {workload.batch_size:,}, prompt {workload.prompt_length:,}, generate {workload.generated_length:,}"
        + images,
        f"weights {weights}, activations {workload.activation_dtype}, KV cache {workload.kv_cache_dtype}",
        "",
        *_params_lines(result),
        *_memory_lines(result),
        *_compute_lines(result),
        *_latency_lines(result),
        *cost_lines(result, args),
        *training_lines(result, args),
        *(f"warning: {warning}" for warning in result.warnings),
    ]
    return "\n".join(lines)


def _weights_text(workload: Workload) -> str:
    form = workload.quantization
    if form is None or form == FORMATS[form.dtype]:
        return workload.weight_dtype
    columns = {0: "a whole row"}.get(form.columns, f"{form.columns} inputs")
    block = "a matrix" if not form.rows and not form.columns else f"{form.rows} x {form.columns}"
    block = columns if form.rows == 1 else block
    return f"{workload.weight_dtype} (a scale for {block}{', zero points' if form.zero_points else ''})"


def _params_lines(result: Estimate) -> Iterator[str]:
    params = result.params
    yield _row("parameters", params.total, "", "counted")
    if params.active != params.total:
        yield _row("  active per token", params.active, "", "counted")
    for part, count in params.by_part.items():
        yield _row(f"  {part.replace('_', ' ')}", count, "", "counted")
    if len(params.by_stack) > 1:
        for stack, count in params.by_stack.items():
            yield _row(f"  of it {stack}", count, "", "counted")


def _memory_lines(result: Estimate) -> Iterator[str]:
    memory = result.memory
    if result.network.has_only_weights:
        yield _row("weights", memory.weights_bytes, "B", "counted")
        return
    span = f", {shorten(memory.total_low_bytes, 'B')} to {shorten(memory.total_high_bytes, 'B')}"
    yield _row("memory", memory.total_bytes, "B", "modelled" + span)
    yield _row("  weights", memory.weights_bytes, "B", "counted")
    yield _row("  KV cache", memory.kv_cache_bytes, "B", "counted")
    if memory.state_bytes:
        yield _row("  recurrent state", memory.state_bytes, "B", "counted")
    phases = f", {memory.attention} attention; decode {shorten(memory.decode_activations_bytes, 'B')}"
    yield _row("  activations", memory.activations_bytes, "B", "modelled" + phases)
    label = "  runtime" if memory.runtime is None else f"  {memory.runtime}"
    yield _row(label, memory.runtime_bytes, "B", "modelled")


def _compute_lines(result: Estimate) -> Iterator[str]:
    compute = result.compute
    if result.network.has_only_weights:
        return
    yield _row("prefill", compute.prefill_flops, "FLOP", "counted, masks not discounted")
    if compute.prefill_causal_flops != compute.prefill_flops:
        yield _row("  causal", compute.prefill_causal_flops, "FLOP", "counted, without what masks hide")
    yield _row("decode, per token", compute.decode_flops_per_token, "FLOP", "counted")


def _shape(result: Estimate) -> str:
    if result.network.has_only_weights:
        return "weights only"
    stacks = (f"{len(stack.layers)} {stack.name} layers of {stack.hidden_size:,}" for stack in result.network.stacks)
    return f"{result.network.architecture}, {', '.join(stacks)}"


def _latency_lines(result: Estimate) -> list[str]:
    if result.device is None:
        return []
    answer = {True: "yes", False: "no", None: "not known"}[result.fits]
    capacity = result.device.memory_bytes
    of = "" if capacity is None else f", {result.memory.total_bytes / capacity:.0%} of {shorten(capacity, 'B')}"
    lines = ["", f"on {result.device.label}", f"  fits               {answer}{of}"]
    if result.latency is None:
        return lines
    prefill, decode = result.latency.prefill_s, result.latency.decode_s_per_token
    return [*lines, _time("  prefill", prefill), _time("  decode, per token", decode), *_throughput(result)]


def _time(label: str, phase: PhaseTime | None) -> str:
    if phase is None or phase.time_s.low is None or phase.time_s.high is None:
        return f"{label:<20} {'-':>12}"
    span = f"{shorten(phase.time_s.low, 's')} to {shorten(phase.time_s.high, 's')}"
    return f"{label:<20} {shorten(phase.time_s.value, 's'):>12} {span:>24}   {phase.time_s.origin}, {phase.limit} binds"


def _throughput(result: Estimate) -> list[str]:
    assert result.latency is not None
    if result.latency.tokens_per_s is None:
        return []
    rate = f"{result.latency.tokens_per_s:,.4g} tokens/s"
    return [f"{'  throughput':<20} {rate:>12}"]


def _row(label: str, value: int | None, unit: str, origin: str) -> str:
    if value is None:
        return f"{label:<20} {'-':>12}"
    return f"{label:<20} {shorten(value, unit):>12} {value:>24,}   {origin}"


def _explanation(result: Estimate, args: argparse.Namespace) -> str:
    from estimator.explaining.figures import LEGEND, derive

    lines = ["", "how each figure is derived", f"  {LEGEND}"]
    for row in (*derive(result), *cost_explanation(result, args)):
        value = f"{row.value:,}" if isinstance(row.value, int) else f"{row.value:.4g}"
        lines += ["", f"{row.figure} = {value}   ({row.origin})", f"  = {row.formula}", f"  = {row.numbers}"]
        lines.append(f"  source: {row.source}")
    return "\n".join(lines)


def _next_step(args: argparse.Namespace, result: Estimate) -> str:
    source, device = shlex.quote(args.source), shlex.quote(args.device or "")
    if result.device is None:
        return f"estimator size {source} --device t4   (`estimator devices` lists the names)"
    if result.fits is False and result.workload.weight_dtype != "int4":
        return f"estimator size {source} --device {device} --weight-dtype int4"
    if not args.explain:
        return f"estimator size {source} --device {device} --explain"
    return f"estimator measure {source}"
