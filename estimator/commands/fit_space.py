"""`estimator fit --space`: the largest architecture of a search space within limits."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Any

from estimator.config import TransformerConfig
from estimator.display import print_json, shorten
from estimator.errors import InputError
from estimator.fitting.limits import Limits, has_rates
from estimator.params import count_params
from estimator.space_fitting.candidates import SpaceAnswer
from estimator.space_fitting.find import find_space
from estimator.space_fitting.largest import largest_config
from estimator.weight_formats import weight_format
from estimator.workload import FLOAT_DTYPES, Workload

__all__ = ["run_space"]

_METHODS = {
    "exact": "exact: all {count:,} candidates that differ in size were counted",
    "sampled": "sampled: the best of {count:,} candidates (seed {seed}); a larger one may exist",
}


def run_space(args: argparse.Namespace, limits: Limits) -> int:
    """Prints the largest architecture; 0, also when none fits.

    Raises:
        InputError: the space or a number is not understood, or nothing is limited.
    """
    space, workload = find_space(args.space), _workload(args)
    if limits.has_time and limits.device is None:
        raise InputError("a budget of time or energy needs --device; `estimator devices` lists the names")
    if limits.has_time and limits.device is not None and not has_rates(workload, limits.device):
        dtype = workload.activation_dtype
        raise InputError(f"{args.device} has no published {dtype} rate or bandwidth, so no time is known on it")
    if limits.max_energy_j is not None and limits.device is not None and limits.device.tdp_w is None:
        raise InputError(f"{args.device} has no published power, so no energy is known on it")
    if limits.memory_bytes is None and not limits.has_time and args.max_params is None:
        raise InputError("nothing limits the space; give --device, --max-memory, --max-latency or --max-params")
    answer = largest_config(
        space, workload, limits, max_params=args.max_params, seed=args.seed or 0, say=_Progress(args.space)
    )
    if args.json:
        print_json(_document(space.name, workload, limits, args.max_params, answer))
        return 0
    print("\n".join(_lines(space.name, workload, limits, args.max_params, answer)))
    print(f"\nnext: {_next_step(args, answer)}", file=sys.stderr)
    return 0


class _Progress:
    """A line on a terminal's standard error from the second second on; nothing elsewhere."""

    def __init__(self, what: str) -> None:
        self._what, self._start = what, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if not sys.stderr.isatty() or time.monotonic() - self._start < 1:
            return
        end = "\r" if done < total else "\r\033[K"
        print(f"\r{self._what}: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)


def _workload(args: argparse.Namespace) -> Workload:
    weights = args.weight_dtype or "fp32"
    activations = weights if weights in FLOAT_DTYPES else "fp32"
    return Workload(
        batch_size=args.batch_size,
        prompt_length=args.sequence_length,
        generated_length=args.generate,
        num_images=args.images,
        weight_dtype=weights,
        activation_dtype=activations,
        kv_cache_dtype=args.kv_dtype or activations,
        weight_format=weight_format(weights, args.group_size, args.zero_points),
        kv_scales=args.kv_scales,
        attention=args.attention,
        logits=args.logits,
        runtime=args.runtime,
    )


def _document(
    name: str, workload: Workload, limits: Limits, max_params: float | None, answer: SpaceAnswer
) -> dict[str, Any]:
    config = answer.config
    return {
        "space": name,
        "device": None if limits.device is None else limits.device.name,
        "workload": {
            "batch_size": workload.batch_size,
            "prompt_length": workload.prompt_length,
            "generated_length": workload.generated_length,
            "weight_dtype": workload.weight_dtype,
        },
        "limits": {
            "memory_bytes": limits.memory_bytes,
            "reserve": limits.reserve,
            "max_latency_s": limits.max_latency_s,
            "max_first_token_s": limits.max_first_token_s,
            "max_energy_j": limits.max_energy_j,
            "max_params": max_params,
        },
        "params": None if config is None else count_params(config).total,
        "config": None if config is None else config.to_dict(),
        "choices": answer.choices,
        "at": None if answer.demand is None else answer.demand.to_dict(),
        "binds": answer.binds,
        "method": answer.method,
        "num_candidates": answer.num_candidates,
        "seed": answer.seed,
        "origin": "modelled",
    }


def _lines(name: str, workload: Workload, limits: Limits, max_params: float | None, answer: SpaceAnswer) -> list[str]:
    lines = [
        f"{name}: batch {workload.batch_size:,}, prompt {workload.prompt_length:,}, "
        f"generate {workload.generated_length:,}, weights {workload.weight_dtype}",
        f"within {', '.join(_limit_words(limits, max_params))}",
        "",
    ]
    how = _METHODS[answer.method].format(count=answer.num_candidates, seed=answer.seed)
    if answer.config is None or answer.demand is None:
        return [*lines, f"none of its architectures fits; for the smallest, what binds: {answer.binds}", how]
    memory = answer.demand.memory
    lines += [
        f"{'largest architecture':<22}{shorten(count_params(answer.config).total, ''):>12} parameters",
        *_shape_lines(answer.config),
        f"{'memory':<22}{shorten(memory.total_bytes, 'B'):>12}   of it weights {shorten(memory.weights_bytes, 'B')}",
        *_time_lines(answer),
        f"{'what binds':<22}{answer.binds:>12}   {_binding(answer.binds)}",
        how,
    ]
    return lines


def _limit_words(limits: Limits, max_params: float | None) -> list[str]:
    words = []
    if limits.memory_bytes is not None:
        where = "" if limits.device is None else f" on {limits.device.label}, {limits.reserve:.0%} of its own kept free"
        words.append(f"{shorten(limits.memory_bytes, 'B')} of memory{where}")
    elif limits.device is not None:
        words.append(f"what {limits.device.label} can do")
    if limits.max_latency_s is not None:
        words.append(f"{shorten(limits.max_latency_s, 's')} a token (or pass of an encoder)")
    if limits.max_first_token_s is not None:
        words.append(f"{shorten(limits.max_first_token_s, 's')} to the first token")
    if limits.max_energy_j is not None:
        words.append(f"{shorten(limits.max_energy_j, 'J')} a sequence")
    return words + ([] if max_params is None else [f"{shorten(max_params, '')} parameters"])


def _binding(binds: str) -> str:
    if binds == "space":
        return "no architecture of the space is larger"
    if binds in ("parameters", "positions") or binds.endswith("budget"):
        return f"the next larger one exceeds the {binds}"
    return f"the next larger one exceeds the memory, in which {binds} takes most".replace("s takes", "s take")


def _shape_lines(config: TransformerConfig) -> list[str]:
    rows: dict[str, list[Any]] = {
        "layers": [config.num_hidden_layers],
        "hidden size": [config.hidden_size],
        "heads": [layer.num_attention_heads for layer in config.layers],
        "key-value heads": [layer.num_key_value_heads for layer in config.layers],
        "feed-forward": [layer.intermediate_size for layer in config.layers],
        "windows": [layer.sliding_window or "none" for layer in config.layers],
    }
    lines = []
    for label, values in rows.items():
        shown = [str(v) for v in (values[:1] if len(set(values)) == 1 else values)]
        lines.append(f"{'  ' + label:<22}{shown[0] if len(shown) == 1 else ' '.join(shown):>12}")
    distinct = len({layer.weight_source for layer in config.layers})
    if distinct < config.num_hidden_layers:
        lines.append(f"{'  layers of their own':<22}{distinct:>12}   the others use the weights of these")
    return lines


def _time_lines(answer: SpaceAnswer) -> list[str]:
    latency = None if answer.demand is None else answer.demand.latency
    if latency is None:
        return []
    phases = {"first token": latency.prefill_s, "next token": latency.decode_s_per_token}
    lines = []
    for label, phase in phases.items():
        if phase is not None:
            time_s = phase.time_s
            span = f"{shorten(time_s.low or 0.0, 's')} to {shorten(time_s.high or 0.0, 's')}"
            lines.append(f"{label:<22}{shorten(time_s.value, 's'):>12}   {span}, {time_s.origin}")
    return lines


def _next_step(args: argparse.Namespace, answer: SpaceAnswer) -> str:
    if answer.config is None:
        return "a larger budget, a smaller --sequence-length, or --weight-dtype int8"
    limits = {"latency": (args.max_latency, "s"), "memory": (args.max_memory, "B"), "params": (args.max_params, "")}
    given = "".join(f" --max-{name} {limit:.12g}{unit}" for name, (limit, unit) in limits.items() if limit is not None)
    return f"nas search --space {shlex.quote(args.space)}{given}   (the best of those that fit)"
