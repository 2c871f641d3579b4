"""How far does the latency of one file move between measurements, as the machine is and beside busy processes?

Measures decoders of three sizes several times as the machine is and several times beside two processes for every two
cores, each busy on one thread: a matrix multiplication and a memory copy in a loop. For each size and phase: the busy
median over the quiet one, and the spread (largest over smallest, minus 1), raw and normalised. A measurement that is
marked noisy is counted, and stays in the figures.

    python benchmarks/measurement_repeat.py [--repeats 6]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from estimator.config import TransformerConfig
from estimator.measuring import Measurement, MeasurementPlan, host_fingerprint, measure
from estimator.onnx_builder import build_onnx
from nas.space import SearchSpace

PLAN = MeasurementPlan()
RESULTS = Path(__file__).parent / "results"
HOGS = (
    "import numpy as np\nx = np.ones((256, 256), np.float32)\nwhile True: x @ x",
    "import numpy as np\nx = np.ones(8_000_000)\nwhile True: x.copy()",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6, help="measurements of each size and load (%(default)s)")
    repeats = parser.parse_args().repeats
    found: dict[tuple[str, str], list[Measurement]] = {}
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {name: build_onnx(config, path=Path(folder) / f"{name}.onnx") for name, config in configs().items()}
        measure(artifacts["nano"].path)  # the first one on a machine also finds the yardsticks' quiet times
        for name, artifact in artifacts.items():
            for load, context in (("quiet", contextlib.nullcontext()), ("busy", busy_machine())):
                with context:
                    found[name, load] = [measure(artifact.path, plan=PLAN) for _ in range(repeats)]
    rows = [
        row(name, artifact.num_params, phase, found[name, "quiet"], found[name, "busy"])
        for name, artifact in artifacts.items()
        for phase in ("prefill", "decode")
    ]
    document = {"device": host_fingerprint().to_dict(), "plan": asdict(PLAN), "repeats": repeats, "rows": rows}
    (RESULTS / "measurement_repeat.json").write_text(json.dumps(document, indent=2) + "\n")
    text = as_page(rows, repeats)
    (RESULTS / "measurement_repeat.md").write_text(text)
    print(text)


def configs() -> dict[str, TransformerConfig]:
    """One candidate of decoder-nano, and decoders of about 5 and 40 million parameters."""
    space = SearchSpace.preset("decoder-nano")
    return {
        "nano": space.to_config(next(iter(space.sample(1, seed=0)))),
        "small": decoder(256, 6),
        "large": decoder(512, 12),
    }


def decoder(hidden_size: int, num_hidden_layers: int) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=1000,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=3 * hidden_size,
        max_position_embeddings=512,
    )


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    pairs = max(1, (psutil.cpu_count() or 2) // 2)
    environment = {**os.environ, **ONE_THREAD}
    hogs = [subprocess.Popen([sys.executable, "-c", code], env=environment) for code in HOGS * pairs]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def row(name: str, num_params: int, phase: str, quiet: list[Measurement], busy: list[Measurement]) -> dict[str, Any]:
    """The latencies of every measurement by load, and how they compare."""
    latencies = {
        "quiet": [getattr(measurement, phase) for measurement in quiet],
        "busy": [getattr(measurement, phase) for measurement in busy],
    }
    result: dict[str, Any] = {"model": name, "num_params": num_params, "phase": phase}
    for field in ("raw_median_s", "normalised_s"):
        values = {load: [getattr(latency, field) for latency in found] for load, found in latencies.items()}
        middle_s = statistics.median(values["quiet"])
        ratios = [value / middle_s for value in values["busy"]]
        result[field] = values | {
            "busy_over_quiet": statistics.median(ratios),
            "worst_busy_over_quiet": max(ratios, key=lambda ratio: abs(ratio - 1)),
            "spread": {load: max(found) / min(found) - 1 for load, found in values.items()},
        }
    for field in ("verdict", "contention", "yardstick"):
        result[field] = {load: [getattr(latency, field) for latency in found] for load, found in latencies.items()}
    return result


def as_page(rows: list[dict[str, Any]], repeats: int) -> str:
    device = host_fingerprint()
    lines = [
        f"`python benchmarks/measurement_repeat.py --repeats {repeats}` on {device.cpu_model}, "
        f"{device.num_threads} threads, ONNX Runtime {device.onnxruntime_version}, {device.system}.",
        "",
        "| model | phase | quiet | spread, quiet: raw / normalised | busy over quiet: raw / normalised "
        "| worst normalised | noisy when busy |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(as_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def as_line(row: dict[str, Any]) -> str:
    raw, normal, verdicts = row["raw_median_s"], row["normalised_s"], row["verdict"]["busy"]
    cells = (
        f"{row['model']}, {row['num_params'] / 1e6:.2f} M",
        row["phase"],
        f"{statistics.median(normal['quiet']) * 1e3:.3f} ms",
        f"{raw['spread']['quiet']:.0%} / {normal['spread']['quiet']:.0%}",
        f"{raw['busy_over_quiet']:.2f} / {normal['busy_over_quiet']:.2f}",
        f"{normal['worst_busy_over_quiet']:.2f}",
        f"{verdicts.count('noisy')} of {len(verdicts)}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
