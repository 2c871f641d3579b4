"""The command `estimator fit`: what fits a device, and which device fits."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from typing import Any

from estimator.commands.arguments import SOURCE_HELP, add_workload, request_of_arguments
from estimator.devices import Device, load_devices
from estimator.display import print_json, shorten
from estimator.errors import InputError
from estimator.fitting.devices import find_devices, fit_num_devices
from estimator.fitting.limits import (
    DEFAULT_RESERVE,
    Answer,
    Demand,
    Limits,
    Request,
    best_weight_dtype,
    fit_batch_size,
    fit_context,
    fit_device,
    fit_weight_dtypes,
    why_unknown,
)
from estimator.fitting.sharding import REPLICATED
from estimator.quantities import quantity
from estimator.readers.source import ModelSource, read_source
from estimator.workload import WEIGHT_DTYPES

__all__ = ["add_parser", "run"]

_DESCRIPTION = f"""Sizing in reverse.

With --device: the largest batch at the given lengths, the longest prompt at the given batch size, the weight types
that fit, and how many such devices it takes. Without: the smallest and the cheapest device that hold the model. With
--space: the largest architecture of a search space within the limits. Each answer says what binds: the weights, the
KV cache, the activations, the positions of the model, or a budget.

{DEFAULT_RESERVE:.0%} of a device's memory are kept free for other processes and fragments, as vLLM does
(gpu_memory_utilization 0.9); --reserve changes that. Times are compared as expected; their interval is printed.
"""
_EXAMPLES = """examples:
  estimator fit llama-3.1-8b --device l4 --sequence-length 2048 --generate 256
  estimator fit llama-3.1-70b --device h100 --max-latency 40ms --generate 128
  estimator fit mistral-7b --sequence-length 8192                       which device is enough
  estimator fit --space decoder-small --device raspberry-pi-5 --max-latency 50ms"""
_NUM_SHOWN = 8
_AS_STORED = "as the file stores them"


def add_parser(commands: Any) -> None:
    """Adds `fit` to the subparsers of the command line."""
    parser = commands.add_parser(
        "fit",
        help="the largest batch, context or model for a device; the device for a model",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", nargs="?", help=SOURCE_HELP)
    parser.add_argument("--space", metavar="S", help="a search space by name, or its TOML file; in place of SOURCE")
    parser.add_argument("--device", metavar="D", help="a name from `estimator devices`")
    add_workload(parser)
    budgets = parser.add_argument_group("budgets")
    budgets.add_argument("--max-memory", type=quantity("bytes"), metavar="SIZE", help="such as 8GB or 6GiB")
    budgets.add_argument(
        "--max-latency",
        type=quantity("s"),
        metavar="TIME",
        help="between tokens, or of an encoder's pass; such as 50ms",
    )
    budgets.add_argument("--max-first-token", type=quantity("s"), metavar="TIME", help="of the prompt, such as 500ms")
    budgets.add_argument(
        "--max-energy", type=quantity("j"), metavar="ENERGY", help="of the device, for one sequence; such as 20J"
    )
    budgets.add_argument("--max-params", type=quantity(""), metavar="N", help="with --space: parameters, such as 5M")
    budgets.add_argument(
        "--reserve",
        type=_share,
        default=DEFAULT_RESERVE,
        metavar="SHARE",
        help=f"of the device's memory, kept free ({DEFAULT_RESERVE:.0%}%)",
    )
    parser.add_argument("--seed", type=int, help="with --space, where it has to be sampled (0)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the answers; 0, also when the answer is that nothing fits.

    Raises:
        InputError: the source, the space, the device or a number is not understood.
    """
    if args.space is not None:
        if args.source is not None:
            raise InputError("fit takes a SOURCE or --space, not both")
        from estimator.commands.fit_space import run_space

        return run_space(args, _limits(args))
    if args.source is None:
        raise InputError("fit needs a SOURCE, such as gpt2, or --space; `estimator fit --help` has examples")
    if args.max_params is not None:
        raise InputError("--max-params goes with --space: a given model has the parameters that it has")
    if args.seed is not None:
        raise InputError("--seed goes with --space: nothing is sampled for a given model")
    source = read_source(args.source)
    request, limits = _request(source, args), _limits(args)
    devices = _devices(request, limits) if args.device is None else None
    is_asked = devices is None or (limits.memory_bytes is not None and not limits.has_time)
    answers = _answers(source, request, limits, args) if is_asked else None
    if args.json:
        print_json(_document(source, request, limits, answers, devices))
        return 0
    print("\n".join(_lines(source, request, limits, answers, devices)))
    print(f"\nnext: {_next_step(args, answers, devices)}", file=sys.stderr)
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    """The limits that the arguments name.

    Raises:
        UnknownDeviceError: no device of that name.
    """
    from estimator.calibrating.profiles import find_device

    device, achievable = (None, None) if args.device is None else find_device(args.device)
    return Limits(
        device=device,
        achievable=achievable,
        reserve=args.reserve,
        max_memory_bytes=args.max_memory,
        max_latency_s=args.max_latency,
        max_first_token_s=args.max_first_token,
        max_energy_j=args.max_energy,
    )


def _request(source: ModelSource, args: argparse.Namespace, **others: Any) -> Request:
    asked = request_of_arguments(source, args, **others)
    return Request(network=asked.network, workload=asked.workload, stored_bytes=asked.stored_bytes)


def _share(text: str) -> float:
    """An argparse type: a share such as 10% or 0.1."""
    stripped = text.strip()
    try:
        value = float(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0% to below 100%, such as 10%, not {text[:40]!r}")
    return value


Answers = dict[str, Any]
Found = list[tuple[Device, Demand]]


def _answers(source: ModelSource, request: Request, limits: Limits, args: argparse.Namespace) -> Answers:
    plain = {"group_size": None, "zero_points": False}  # each type as it is stored by default
    requests = {dtype: _request(source, args, weight_dtype=dtype, **plain) for dtype in WEIGHT_DTYPES}
    types = fit_weight_dtypes(requests, limits)
    answers: Answers = {
        "fits": fit_device(request, limits),
        "batch_size": fit_batch_size(request, limits),
        "context": fit_context(request, limits),
        "weight_dtypes": types,
        "weight_dtype": _best_dtype(request, types, source, limits),
    }
    if limits.device is not None:
        answers["devices"] = fit_num_devices(request, limits)
    return answers


def _best_dtype(request: Request, types: dict[str, Answer], source: ModelSource, limits: Limits) -> str | None:
    """The most precise type that fits; of a file of weights, as it stores them, or else one that makes it smaller."""
    stored = request.stored_bytes
    if stored is None:
        return best_weight_dtype(types, source.weight_dtype or "fp32")
    if fit_device(request, limits).value is not None:
        return _AS_STORED
    smaller = {
        dtype: answer
        for dtype, answer in types.items()
        if answer.demand is not None and answer.demand.memory.weights_bytes < stored
    }
    return best_weight_dtype(smaller, "fp32")


def _devices(request: Request, limits: Limits) -> Found:
    from estimator.calibrating.profiles import find_device

    return list(find_devices(request, limits, load_devices(), lambda name: find_device(name)[1]))


def _cheapest(found: Found) -> tuple[Device, Demand] | None:
    priced = [row for row in found if row[0].price_usd is not None]
    return min(priced, key=lambda row: row[0].price_usd or 0.0) if priced else None


def _document(
    source: ModelSource, request: Request, limits: Limits, answers: Answers | None, devices: Found | None
) -> dict[str, Any]:
    workload = request.workload
    document: dict[str, Any] = {
        "model": source.name,
        "workload": {
            name: getattr(workload, name)
            for name in ("batch_size", "prompt_length", "generated_length", "weight_dtype")
        },
        "limits": _limits_dict(limits),
        "warnings": list(source.warnings),
    }
    if answers is not None:
        types = {d: a.to_dict() | {"fits": _yes(a)} for d, a in answers["weight_dtypes"].items()}
        fits = answers["fits"].to_dict() | {"value": _yes(answers["fits"])}
        document |= {"fits": fits, "batch_size": answers["batch_size"].to_dict()}
        document |= {"context": answers["context"].to_dict(), "weight_dtypes": types}
        document["weight_dtype"] = {"value": answers["weight_dtype"], "origin": "modelled"}
        if "devices" in answers:
            document["num_devices"] = answers["devices"].to_dict() | {"replicated": REPLICATED}
    if devices is not None:
        cheapest = _cheapest(devices)
        document["devices"] = {
            "smallest": _device_dict(*devices[0]) if devices else None,
            "cheapest": _device_dict(*cheapest) if cheapest else None,
            "fitting": [_device_dict(device, demand) for device, demand in devices],
            "origin": "modelled",
        }
    return document


def _yes(answer: Answer) -> bool | None:
    return None if answer.value is None and answer.binds is None else answer.value is not None


def _limits_dict(limits: Limits) -> dict[str, Any]:
    return {
        "device": None if limits.device is None else limits.device.name,
        "device_memory_bytes": None if limits.device is None else limits.device.memory_bytes,
        "reserve": limits.reserve,
        "memory_bytes": limits.memory_bytes,
        "max_latency_s": limits.max_latency_s,
        "max_first_token_s": limits.max_first_token_s,
        "max_energy_j": limits.max_energy_j,
    }


def _device_dict(device: Device, demand: Demand) -> dict[str, Any]:
    row = {"name": device.name, "memory_bytes": device.memory_bytes, "price_usd": device.price_usd}
    return row | {"needs": demand.to_dict()}


def _lines(
    source: ModelSource, request: Request, limits: Limits, answers: Answers | None, devices: Found | None
) -> list[str]:
    workload = request.workload
    weights = workload.weight_dtype if request.stored_bytes is None else _AS_STORED
    lines = [
        f"{source.name}: batch {workload.batch_size:,}, prompt {workload.prompt_length:,}, "
        f"generate {workload.generated_length:,}, weights {weights}, KV cache {workload.kv_cache_dtype}"
    ]
    if answers is not None:
        lines += ["", _where(limits), *_answer_lines(answers, request, limits)]
    if devices is not None:
        lines += ["", *_device_lines(devices, request, limits)]
    return [*lines, *(f"warning: {warning}" for warning in source.warnings)]


def _where(limits: Limits) -> str:
    room = "no limit of memory" if limits.memory_bytes is None else f"{shorten(limits.memory_bytes, 'B')} of memory"
    if limits.device is None:
        return f"within {room}"
    whole = limits.device.memory_bytes
    kept = "" if whole is None else f" ({shorten(whole, 'B')}, {limits.reserve:.0%} kept free)"
    return f"on {limits.device.label}, within {room}{kept}{_budgets(limits)}"


def _budgets(limits: Limits) -> str:
    named = [("a token", limits.max_latency_s, "s"), ("the first token", limits.max_first_token_s, "s")]
    named.append(("a sequence", limits.max_energy_j, "J"))
    return "".join(f", {shorten(value, unit)} for {name}" for name, value, unit in named if value is not None)


def _answer_lines(answers: Answers, request: Request, limits: Limits) -> list[str]:
    unknown = why_unknown(request, limits)
    lines = [unknown] if unknown else _largest_lines(answers)
    column = "next token" if request.network.is_causal else "one pass"
    lines += ["", f"{'weight type':<22}{'needs':>12}{'fits':>7}   {column}"]
    for dtype, answer in answers["weight_dtypes"].items():
        best = "   <- the most precise that fits" if dtype == answers["weight_dtype"] else ""
        lines.append(
            f"  {dtype:<20}{_needs(answer):>12}{_word(answer):>7}   {_token(answer.demand):<34}{best}".rstrip()
        )
    return lines


def _largest_lines(answers: Answers) -> list[str]:
    lines = [
        _answer_line("fits as asked", answers["fits"], {1: "yes", None: "no"}),
        _answer_line("largest batch", answers["batch_size"]),
        _answer_line("longest prompt", answers["context"]),
    ]
    if "devices" in answers:
        lines.append(_answer_line("devices of the kind", answers["devices"]))
        if (answers["devices"].value or 0) > 1:
            lines += textwrap.wrap(REPLICATED, 110, initial_indent=" " * 37, subsequent_indent=" " * 37)
    return lines


def _answer_line(label: str, answer: Answer, words: dict[int | None, str] | None = None) -> str:
    value = words[answer.value] if words else "none" if answer.value is None else f"{answer.value:,}"
    if answer.binds is None:
        value = "-" if answer.value is None else value
        return f"{label:<22}{value:>12}   {'' if words and answer.value else answer.detail}".rstrip()
    return (
        f"{label:<22}{value:>12}   {answer.binds} {'bind' if answer.binds.endswith('s') else 'binds'}; {answer.detail}"
    )


def _needs(answer: Answer) -> str:
    return "-" if answer.demand is None else shorten(answer.demand.memory.total_bytes, "B")


def _word(answer: Answer) -> str:
    return {True: "yes", False: "no", None: "-"}[_yes(answer)]


def _token(demand: Demand | None) -> str:
    if demand is None or demand.latency is None:
        return ""
    phase = demand.latency.decode_s_per_token or demand.latency.prefill_s
    time = phase.time_s
    return f"{shorten(time.value, 's')} ({shorten(time.low or 0.0, 's')} to {shorten(time.high or 0.0, 's')})"


def _device_lines(found: Found, request: Request, limits: Limits) -> list[str]:
    if not found:
        return ["no device of the table holds it; try --weight-dtype int4, or --device D for several of a kind"]
    cheapest = _cheapest(found)
    lines = [f"smallest device       {_device_line(*found[0])}"]
    if cheapest is not None:
        num_priced = f"{sum(row[0].price_usd is not None for row in found)} priced"
        lines.append(f"cheapest of {num_priced:<11}{_device_line(*cheapest)}")
    kept = f"{limits.reserve:.0%} of the memory kept free{_budgets(limits)}"
    lines += ["", f"{len(found):,} of {len(load_devices()):,} devices hold it, {kept}; the smallest:"]
    return lines + [f"  {_device_line(device, demand)}" for device, demand in found[:_NUM_SHOWN]]


def _device_line(device: Device, demand: Demand) -> str:
    price = "-" if device.price_usd is None else f"${device.price_usd:,.0f}"
    assert device.memory_bytes is not None
    share = demand.memory.total_bytes / device.memory_bytes
    return (
        f"{device.name:<24}{shorten(device.memory_bytes, 'B'):>9}  {share:>4.0%} used  {price:>8}   {_token(demand)}"
    ).rstrip()


def _next_step(args: argparse.Namespace, answers: Answers | None, devices: Found | None) -> str:
    source = shlex.quote(args.source)
    if answers is None or args.device is None:
        chosen = devices[0][0].name if devices else "h100"
        return f"estimator fit {source} --device {chosen}"
    if answers["fits"].value is None and answers["weight_dtype"] is None:
        return f"estimator fit {source}   (the devices that are large enough)"
    dtype = "" if answers["fits"].value else f" --weight-dtype {answers['weight_dtype']}"
    return f"estimator size {source} --device {shlex.quote(args.device)}{dtype}"
