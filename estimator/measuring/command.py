"""`estimator measure`: real latency and memory here, beside the estimate."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.errors import InputError
from estimator.measuring.compare_command import compare
from estimator.measuring.records import MachineState, Measurement, MeasurementPlan, PhaseLatency, RequestLatency
from estimator.measuring.runner import measure
from estimator.measuring.subject import Subject, prepare, sizes_of, talk
from estimator.memory import estimate_memory
from estimator.ort_session import PROVIDERS, provider_name
from estimator.quantities import quantity
from estimator.weight_types import BUILD_DTYPES
from estimator.workload import Workload

if TYPE_CHECKING:
    pass

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
examples:
  estimator measure gpt2 --sequence-length 256
  estimator measure path/to/config.json --weight-dtype int8 --threads 1
  estimator measure model.onnx --json
  estimator measure gpt2 --sequence-length 32,128,512 --batch-size 1,8
  estimator measure gpt2 --generate 64 --whole-request
  estimator measure --compare before.onnx after.onnx
  estimator measure --compare gpt2 gpt2 --weight-dtype fp32,int8

A config is built as ONNX with random weights, which take as long as trained ones. The latency is normalised: the
paired ratio to a fixed graph, times what that graph takes on this machine when it is quiet. docs/measuring.md says how.
Several sizes, with commas, are measured one after another in every combination, each in a process of its own.
"""


def add_parser(commands: Any) -> None:
    """Adds `measure` to the parser's commands."""
    plan, workload = MeasurementPlan(), Workload()
    parser = commands.add_parser(
        "measure",
        help="latency and memory on this machine, with ONNX Runtime",
        description=__doc__.replace("`", "").split(": ")[1],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", nargs="?", metavar="SOURCE", help="config.json, its folder, a bundled model, or our .onnx file"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two SOURCEs in alternation: how long B takes for each second of A",
    )
    for option, default, what in (
        ("--batch-size", workload.batch_size, "sequences at once"),
        ("--sequence-length", workload.prompt_length, "prompt tokens"),
        ("--generate", 0, "tokens generated before the measured one"),
    ):
        parser.add_argument(
            option, type=_sizes, default=(default,), metavar="N,...", help=f"{what}, one or several ({default})"
        )
    parser.add_argument(
        "--whole-request", action="store_true", help="also the prompt and all --generate tokens run in a row"
    )
    parser.add_argument(
        "--weight-dtype",
        type=_weight_dtypes,
        metavar="TYPE",
        help=f"{', '.join(BUILD_DTYPES)} (fp32; an .onnx file has its own); two with a comma for A and B",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (all physical cores)")
    parser.add_argument("--provider", default="cpu", help=f"{', '.join(PROVIDERS)} (%(default)s)")
    parser.add_argument(
        "--precision", type=float, default=plan.precision, help="stop when the interval is this narrow (%(default)s)"
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="per phase, ten pairs of blocks at least (%(default)s)",
    )
    parser.add_argument(
        "--time-limit", type=float, default=plan.time_limit_s, metavar="S", help="give up after (%(default)s s)"
    )
    parser.add_argument(
        "--memory-limit",
        type=quantity("bytes"),
        metavar="SIZE",
        help="memory the model may take, such as 2GB (four fifths of the machine)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Builds the model if need be, measures it and prints the result."""
    plan = MeasurementPlan(
        num_threads=args.threads,
        precision=args.precision,
        max_seconds=args.max_seconds,
        time_limit_s=args.time_limit,
        memory_limit_bytes=None if args.memory_limit is None else int(args.memory_limit),
    )
    # What is wrong is refused before a model is built for it.
    provider_name(args.provider)
    workloads = _workloads(args)
    if args.compare is not None:
        _check_comparison(args)
        with _tidy_end():
            return compare(args.compare, args.weight_dtype, workloads, plan, args.provider, as_json=args.json)
    if args.source is None:
        raise InputError("give a SOURCE to measure, or --compare A B")
    if len(args.weight_dtype or ()) > 1:
        raise InputError("two weight types are for --compare A B; give one")
    with _tidy_end(), tempfile.TemporaryDirectory(prefix="archfront-") as folder:
        weight_dtype = args.weight_dtype[0] if args.weight_dtype else None
        subject = prepare(args.source, Path(folder), weight_dtype=weight_dtype, provider=args.provider)
        found = [_measure(subject, workload, plan, args) for workload in workloads]
    if args.json:
        documents = [_document(measurement, subject.weight_dtype, predicted) for measurement, predicted in found]
        json.dump(documents[0] if len(documents) == 1 else {"workloads": documents}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write("\n".join(_table(measurement, predicted) for measurement, predicted in found))
        if not args.source.endswith(".onnx"):
            talk(f"next: estimator size {shlex.quote(args.source)} --explain")
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, each once."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, or several with commas between") from None


def _weight_dtypes(text: str) -> tuple[str, ...]:
    """One weight type, or two with a comma between."""
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in BUILD_DTYPES]
    if unknown or len(names) > 2:
        what = f"unknown weight type {unknown[0]!r}" if unknown else "at most two weight types"
        raise argparse.ArgumentTypeError(f"{what}; choose from {', '.join(BUILD_DTYPES)}")
    return names


def _check_comparison(args: argparse.Namespace) -> None:
    if args.source is not None:
        raise InputError(f"--compare A B measures those two; leave {args.source!r} out")
    if args.whole_request:
        raise InputError("--compare has both phases and no whole request; leave --whole-request out")


def _workloads(args: argparse.Namespace) -> list[Workload]:
    """Every combination of batch size, prompt and generated tokens that was asked for."""
    if args.whole_request and 0 in args.generate:
        raise InputError("--whole-request runs the generated tokens in a row; give --generate a number of at least 1")
    return [
        Workload(batch_size=batch, prompt_length=prompt, generated_length=generated)
        for batch, prompt, generated in itertools.product(args.batch_size, args.sequence_length, args.generate)
    ]


def _measure(
    subject: Subject, workload: Workload, plan: MeasurementPlan, args: argparse.Namespace
) -> tuple[Measurement, int]:
    """The measurement of one workload, and the memory in bytes that the model of it predicts."""
    workload = replace(workload, weight_dtype=subject.weight_dtype)
    talk(f"measuring {sizes_of(workload)} in a child process ...")
    found = measure(subject.path, workload, plan=plan, provider=args.provider, whole_request=args.whole_request)
    return found, estimate_memory(subject.config, workload, stored_bytes=subject.weight_bytes).total_bytes


@contextlib.contextmanager
def _tidy_end() -> Iterator[None]:
    """Inside, SIGTERM ends the command as an exit does: no file and no process stays behind."""
    if threading.current_thread() is not threading.main_thread():  # only there can Python set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _document(measurement: Measurement, weight_dtype: str, predicted_bytes: int) -> dict[str, Any]:
    """The JSON of `estimator measure --json`; its keys are a contract."""
    whole = measurement.to_dict()
    return {
        "prefill": whole["prefill"],
        "decode": whole["decode"],
        "request": whole["request"],
        "memory": {"peak_bytes": measurement.peak_memory_bytes, "predicted_bytes": predicted_bytes},
        "load_s": measurement.load_s,
        "first_inference_s": measurement.first_inference_s,
        "workload": whole["workload"],
        "device": whole["device"] | {"hash": measurement.device.hash},
        "machine": {"before": whole["machine_before"], "after": whole["machine_after"]},
        "protocol": whole["plan"],
        "artifact": {
            "sha256": measurement.artifact_sha256,
            "file_bytes": measurement.file_bytes,
            "weight_dtype": weight_dtype,
        },
        "origins": {
            "prefill": "measured",
            "decode": "measured",
            "request": "measured",
            "memory.peak_bytes": "measured",
            "memory.predicted_bytes": "modelled",
        },
        "warnings": whole["warnings"],
    }


def _table(measurement: Measurement, predicted_bytes: int) -> str:
    device, request = measurement.device, measurement.request
    phases = (measurement.prefill, measurement.decode, None if request is None else request.measured)
    lines = [
        f"{device.cpu_model or device.architecture}, {device.num_threads} threads, "
        f"ONNX Runtime {device.onnxruntime_version} on {device.provider}; {sizes_of(measurement.workload)}",
        f"{'':<8}{'normalised':>13}{'95 % interval':>24}{'raw median':>14}{'p90':>14}{'p99':>14}  verdict",
        *(_line(phase) for phase in phases if phase is not None),
        *([] if request is None else [_request_line(request)]),
        f"peak memory {measurement.peak_memory_bytes / 1e6:.1f} MB measured, {predicted_bytes / 1e6:.1f} MB modelled",
        f"file {measurement.file_bytes / 1e6:.2f} MB, loaded in {measurement.load_s:.3f} s, "
        f"first call {measurement.first_inference_s:.3f} s",
        *_state_line(measurement.machine_before, measurement.machine_after),
        *(f"warning: {text}" for text in measurement.warnings),
    ]
    return "\n".join(lines) + "\n"


def _line(phase: PhaseLatency) -> str:
    interval = f"[{phase.low_s * 1e3:.3f}, {phase.high_s * 1e3:.3f}] ms"
    raw = "".join(f"{value * 1e3:>11.3f} ms" for value in (phase.raw_median_s, phase.p90_s, phase.p99_s))
    return f"{phase.phase:<8}{phase.normalised_s * 1e3:>10.3f} ms{interval:>24}{raw}  {phase.verdict}"


def _request_line(request: RequestLatency) -> str:
    return (
        f"request from its parts {request.composed_s * 1e3:.3f} ms (prefill and {request.num_steps} times a step of "
        f"{request.step.normalised_s * 1e3:.3f} ms); measured whole {request.difference:+.1%}"
    )


def _state_line(before: MachineState | None, after: MachineState | None) -> list[str]:
    """Clock and heat before and after the timing, as far as they are known."""
    if before is None or after is None:
        return []
    pairs = [
        (f"{before.frequency_hz / 1e9:.2f} to {after.frequency_hz / 1e9:.2f} GHz")
        if before.frequency_hz and after.frequency_hz
        else "",
        f"{before.temperature_celsius:.0f} to {after.temperature_celsius:.0f} °C"
        if before.temperature_celsius is not None and after.temperature_celsius is not None
        else "",
        f"governor {after.governor}" if after.governor else "",
        f"slowed by heat {after.num_throttles - before.num_throttles} times"
        if before.num_throttles is not None and after.num_throttles is not None
        else "",
    ]
    return [f"cores: {', '.join(text for text in pairs if text)}"] if any(pairs) else []
