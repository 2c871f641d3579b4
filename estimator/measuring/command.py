"""`estimator measure`: real latency and memory here, beside the estimate."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.config import TransformerConfig
from estimator.errors import InputError, StorageFullError
from estimator.measuring.records import Measurement, MeasurementPlan, PhaseLatency
from estimator.measuring.runner import measure
from estimator.memory import estimate_memory
from estimator.ort_session import PROVIDERS, provider_name
from estimator.weight_types import BUILD_DTYPES, stored_weight_bytes, weight_dtypes
from estimator.workload import Workload

if TYPE_CHECKING:
    from estimator.onnx_builder import OnnxArtifact

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
examples:
  estimator measure gpt2 --sequence-length 256
  estimator measure path/to/config.json --weight-dtype int8 --threads 1
  estimator measure model.onnx --json

A config is built as ONNX with random weights, which take as long as trained ones. The latency is normalised: the
paired ratio to a fixed graph, times what that graph takes on this machine when it is quiet. docs/measuring.md says how.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is measured: the file, and the config it was built from."""

    path: Path
    config: TransformerConfig
    weight_dtype: str
    weight_bytes: int


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
    parser.add_argument("source", metavar="SOURCE", help="config.json, its folder, a bundled model, or our .onnx file")
    parser.add_argument("--batch-size", type=int, default=workload.batch_size, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--sequence-length", type=int, default=workload.prompt_length, metavar="N", help="prompt tokens (%(default)s)"
    )
    parser.add_argument(
        "--generate", type=int, default=0, metavar="N", help="tokens generated before the measured one (%(default)s)"
    )
    parser.add_argument("--weight-dtype", choices=BUILD_DTYPES, help="(fp32; an .onnx file has its own)")
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
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Builds the model if need be, measures it and prints the result."""
    plan = MeasurementPlan(
        num_threads=args.threads, precision=args.precision, max_seconds=args.max_seconds, time_limit_s=args.time_limit
    )
    # What is wrong is refused before a model is built for it.
    provider_name(args.provider)
    Workload(batch_size=args.batch_size, prompt_length=args.sequence_length, generated_length=args.generate)
    with _tidy_end(), tempfile.TemporaryDirectory(prefix="archfront-") as folder:
        subject = _subject(args, Path(folder))
        workload = Workload(
            batch_size=args.batch_size,
            prompt_length=args.sequence_length,
            generated_length=args.generate,
            weight_dtype=subject.weight_dtype.partition("-")[0],
        )
        _talk("measuring in a child process ...")
        measurement = measure(subject.path, workload, plan=plan, provider=args.provider)
    predicted = estimate_memory(subject.config, workload, stored_bytes=subject.weight_bytes).total_bytes
    if args.json:
        json.dump(_document(measurement, subject.weight_dtype, predicted), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(_table(measurement, predicted))
        if not args.source.endswith(".onnx"):
            _talk(f"next: estimator size {shlex.quote(args.source)} --explain")
    return 0


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


def _subject(args: argparse.Namespace, folder: Path) -> _Subject:
    from estimator.onnx_builder import build_onnx, read_artifact
    from estimator.readers.source import read_source

    if args.source.endswith(".onnx"):
        path = Path(args.source)
        artifact = read_artifact(path)
        if args.weight_dtype not in (None, artifact.weight_dtype):
            raise InputError(f"{path} has {artifact.weight_dtype} weights; leave --weight-dtype out")
        return _subject_of(artifact)
    config = read_source(args.source).config
    weight_dtype = args.weight_dtype or "fp32"
    _check_space(stored_weight_bytes(config, weight_dtypes(config, weight_dtype)), folder)
    _talk(f"building {args.source} as ONNX with random weights ...")
    return _subject_of(
        build_onnx(config, path=folder / "model.onnx", weight_dtype=weight_dtype, provider=args.provider)
    )


def _subject_of(artifact: OnnxArtifact) -> _Subject:
    from estimator.onnx_builder import read_config

    return _Subject(
        path=artifact.path,
        config=read_config(artifact.path),
        weight_dtype=artifact.weight_dtype,
        weight_bytes=artifact.weight_bytes,
    )


def _check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFullError(
            f"the ONNX file takes {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB left; "
            "set TMPDIR to a larger disk, or choose a smaller model"
        )


def _document(measurement: Measurement, weight_dtype: str, predicted_bytes: int) -> dict[str, Any]:
    """The JSON of `estimator measure --json`; its keys are a contract."""
    whole = measurement.to_dict()
    return {
        "prefill": whole["prefill"],
        "decode": whole["decode"],
        "memory": {"peak_bytes": measurement.peak_memory_bytes, "predicted_bytes": predicted_bytes},
        "load_s": measurement.load_s,
        "first_inference_s": measurement.first_inference_s,
        "workload": whole["workload"],
        "device": whole["device"] | {"hash": measurement.device.hash},
        "protocol": whole["plan"],
        "artifact": {
            "sha256": measurement.artifact_sha256,
            "file_bytes": measurement.file_bytes,
            "weight_dtype": weight_dtype,
        },
        "origins": {
            "prefill": "measured",
            "decode": "measured",
            "memory.peak_bytes": "measured",
            "memory.predicted_bytes": "modelled",
        },
        "warnings": whole["warnings"],
    }


def _table(measurement: Measurement, predicted_bytes: int) -> str:
    device = measurement.device
    lines = [
        f"{device.cpu_model or device.architecture}, {device.num_threads} threads, "
        f"ONNX Runtime {device.onnxruntime_version} on {device.provider}",
        f"{'':<10}{'normalised':>12}{'95 % interval':>24}{'raw median':>14}{'p90':>14}  verdict",
        _line(measurement.prefill),
    ]
    if measurement.decode is not None:
        lines.append(_line(measurement.decode))
    lines += [
        f"peak memory {measurement.peak_memory_bytes / 1e6:.1f} MB measured, {predicted_bytes / 1e6:.1f} MB modelled",
        f"file {measurement.file_bytes / 1e6:.2f} MB, loaded in {measurement.load_s:.3f} s, "
        f"first call {measurement.first_inference_s:.3f} s",
        *(f"warning: {text}" for text in measurement.warnings),
    ]
    return "\n".join(lines) + "\n"


def _line(phase: PhaseLatency) -> str:
    interval = f"[{phase.low_s * 1e3:.3f}, {phase.high_s * 1e3:.3f}] ms"
    return (
        f"{phase.phase:<10}{phase.normalised_s * 1e3:>9.3f} ms{interval:>24}"
        f"{phase.raw_median_s * 1e3:>11.3f} ms{phase.p90_s * 1e3:>11.3f} ms  {phase.verdict}"
    )


def _talk(text: str) -> None:
    sys.stderr.write(text + "\n")
