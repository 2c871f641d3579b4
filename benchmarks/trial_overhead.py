"""What does a candidate cost before it can be measured, and is its graph any slower for being written directly?

    python benchmarks/trial_overhead.py

Protocol: one torch module of each shape is turned into an ONNX file and loaded into an ONNX Runtime session by
`build_onnx` and by `torch.onnx.export` (its default, dynamic batch and length), alternately, after one unrecorded pair.
Both files must give the same logits. Then their sessions run the same ids in alternating blocks; the ratio of each pair
of blocks is one sample, and the median is given. Ours also puts out every layer's keys and values; the exported graph
only the logits.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from estimator.config import TransformerConfig
from estimator.measuring import host_fingerprint
from estimator.model import TransformerModel
from estimator.onnx_builder import build_onnx
from estimator.ort_session import make_inputs, open_session

RESULTS = Path(__file__).parent / "results"
LIMITS = {"least_overhead_ratio": 15.0, "most_latency_ratio": 1.05}
TOLERANCE = 1e-4
BLOCK_S = 0.1
WORKLOADS = ((1, 128), (8, 128))  # batch size, sequence length
SHAPES = {
    "6 layers, 256 wide": TransformerConfig(
        vocab_size=256,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=704,
        max_position_embeddings=1024,
    ),
    "4 layers, 128 wide": TransformerConfig(
        vocab_size=256,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        max_position_embeddings=512,
    ),
}
Session = onnxruntime.InferenceSession


def main() -> int:
    """Measures, prints, writes both result files, and returns 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="recorded builds of each kind (%(default)s)")
    parser.add_argument("--blocks", type=int, default=31, help="pairs of blocks for each workload (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime (%(default)s)")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    shapes = {name: compare(config, args) for name, config in SHAPES.items()}
    latencies = [workload["ratio"] for shape in shapes.values() for workload in shape["latency"].values()]
    names = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")
    result = {
        "shapes": shapes,
        "limits_kept": min(shape["overhead_ratio"] for shape in shapes.values()) >= LIMITS["least_overhead_ratio"]
        and max(latencies) <= LIMITS["most_latency_ratio"],
        "plan": vars(args) | {"limits": LIMITS, "block_s": BLOCK_S},
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
        "hardware": asdict(host_fingerprint(num_threads=args.threads)) | {"load_average": os.getloadavg()[0]},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "trial_overhead.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "trial_overhead.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    return 0 if result["limits_kept"] else 1


def compare(config: TransformerConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Overhead and latency of one shape, as samples, medians and ratios."""
    torch.manual_seed(0)
    model = TransformerModel(config).eval()
    ours_s: list[float] = []
    export_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repetitions + 1):
            seconds, ours = timed(lambda: build(model, Path(folder, "ours.onnx"), args.threads))
            ours_s.append(seconds)
            seconds, exported = timed(lambda: export(model, Path(folder, "exported.onnx"), args.threads))
            export_s.append(seconds)
        file_bytes = {name: Path(folder, f"{name}.onnx").stat().st_size for name in ("ours", "exported")}
    ours_s, export_s = ours_s[1:], export_s[1:]
    return {
        "config": config.to_dict(),
        "overhead_ratio": statistics.median(export_s) / statistics.median(ours_s),
        "ours_s": ours_s,
        "export_s": export_s,
        "file_bytes": file_bytes,
        "latency": {f"{b} x {n}": time_pairs(config, ours, exported, b, n, args.blocks) for b, n in WORKLOADS},
    }


def build(model: TransformerModel, path: Path, num_threads: int) -> Session:
    """Our file, loaded."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    build_onnx(model.config, weights, path=path)
    return open_session(path, num_threads=num_threads)


def export(model: TransformerModel, path: Path, num_threads: int) -> Session:
    """The exporter's file, loaded with the same options."""
    longest = model.config.max_position_embeddings
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", max=longest)}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(2, 16, dtype=torch.int64),),
            path,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )
    return open_session(path, num_threads=num_threads)


def time_pairs(
    config: TransformerConfig, ours: Session, exported: Session, batch_size: int, sequence_length: int, blocks: int
) -> dict[str, Any]:
    """Latency of both sessions in alternating blocks, and the median of the blocks' ratios."""
    inputs = make_inputs(config, batch_size=batch_size, sequence_length=sequence_length)
    ids = {"input_ids": inputs["input_ids"]}
    difference = float(np.abs(ours.run(["logits"], inputs)[0] - exported.run(None, ids)[0]).max())
    if difference > TOLERANCE:
        raise SystemExit(f"the two graphs differ by {difference}")
    runs = {"ours_s": lambda: ours.run(None, inputs), "exported_s": lambda: exported.run(None, ids)}
    once_s, _ = timed(runs["exported_s"])
    count = max(1, round(BLOCK_S / once_s))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(blocks):
        for name in sorted(runs, reverse=bool(index % 2)):
            samples[name].append(time_block(runs[name], count))
    ratios = [ours_s / other_s for ours_s, other_s in zip(samples["ours_s"], samples["exported_s"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2],
        "ours_s": statistics.median(samples["ours_s"]),
        "exported_s": statistics.median(samples["exported_s"]),
        "largest_difference": difference,
        "samples": samples,
    }


def time_block(run: Callable[[], object], count: int) -> float:
    """Seconds of one of `count` runs."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown page."""
    limits, plan, hardware = LIMITS, result["plan"], result["hardware"]
    lines = [
        "# Overhead of a trial",
        "",
        "| what | ours | torch.onnx.export | ratio | limit |",
        "|---|---|---|---|---|",
    ]
    for name, shape in result["shapes"].items():
        times = statistics.median(shape["ours_s"]), statistics.median(shape["export_s"])
        lines.append(
            f"| {name}: build and load | {times[0]:.3f} s | {times[1]:.3f} s "
            f"| {shape['overhead_ratio']:.0f} times faster | at least {limits['least_overhead_ratio']:.0f} |"
        )
        for workload, found in shape["latency"].items():
            low, high = found["quartiles"]
            lines.append(
                f"| {name}: prefill {workload} | {found['ours_s'] * 1e3:.2f} ms | {found['exported_s'] * 1e3:.2f} ms "
                f"| {found['ratio']:.3f} (quartiles {low:.3f} to {high:.3f}) | at most {limits['most_latency_ratio']} |"
            )
        lines.append(
            f"| {name}: file | {shape['file_bytes']['ours']:,} B | {shape['file_bytes']['exported']:,} B | | |"
        )
    lines += [
        "",
        f"{plan['repetitions']} alternating builds, {plan['blocks']} pairs of blocks, {plan['threads']} threads. "
        f"{hardware['cpu_model']}, {hardware['logical_cores']} cores, "
        f"load average {hardware['load_average']:.1f} at the end. "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ". Written by `benchmarks/trial_overhead.py`; samples in `trial_overhead.json`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
