"""How far does the latency of one file move between measurements, alone and beside other work?

Measures decoders of three sizes several times as the machine is, beside processes that work in bursts, and beside
processes that work without pause: two for every two cores, each on one thread, a matrix multiplication and a memory
copy in a loop. For each size, phase and load: the median over the quiet median, raw and normalised, and the normalised
value that lies farthest off. A measurement that is marked noisy is counted, and stays in the figures.

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
WORK = (
    "import numpy as np, time\nx = np.ones((256, 256), np.float32)\nwork = lambda: x @ x",
    "import numpy as np, time\nx = np.ones(2_000_000)\nwork = lambda: x.copy()",
)
BURSTS = "\nwhile True:\n start = time.monotonic()\n while time.monotonic() - start < 0.02: work()\n time.sleep(0.08)"
# What the others do after setting up their work, by load.
LOADS = {"quiet": None, "bursts": BURSTS, "busy": "\nwhile True: work()"}
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
            for load in LOADS:
                with other_work(LOADS[load]):
                    found[name, load] = [measure(artifact.path, plan=PLAN) for _ in range(repeats)]
    rows = [
        row(name, artifact.num_params, phase, {load: found[name, load] for load in LOADS})
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
def other_work(loop: str | None) -> Iterator[None]:
    pairs = 0 if loop is None else max(1, (psutil.cpu_count() or 2) // 2)
    environment = {**os.environ, **ONE_THREAD}
    others = [subprocess.Popen([sys.executable, "-c", work + str(loop)], env=environment) for work in WORK * pairs]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def row(name: str, num_params: int, phase: str, found: dict[str, list[Measurement]]) -> dict[str, Any]:
    """The latencies of every measurement by load, and how they compare with the quiet median."""
    latencies = {load: [getattr(measurement, phase) for measurement in found[load]] for load in found}
    result: dict[str, Any] = {"model": name, "num_params": num_params, "phase": phase}
    for field in ("raw_median_s", "normalised_s"):
        values = {load: [getattr(latency, field) for latency in latencies[load]] for load in latencies}
        middle_s = statistics.median(values["quiet"])
        ratios = {load: [value / middle_s for value in values[load]] for load in values}
        result[field] = {
            "values": values,
            "over_quiet": {load: statistics.median(ratios[load]) for load in ratios},
            "worst_over_quiet": {load: max(ratios[load], key=lambda ratio: abs(ratio - 1)) for load in ratios},
        }
    for field in ("verdict", "contention", "yardstick"):
        result[field] = {load: [getattr(latency, field) for latency in latencies[load]] for load in latencies}
    return result


def as_page(rows: list[dict[str, Any]], repeats: int) -> str:
    device = host_fingerprint()
    lines = [
        f"`python benchmarks/measurement_repeat.py --repeats {repeats}` on {device.cpu_model}, "
        f"{device.num_threads} threads, ONNX Runtime {device.onnxruntime_version}, {device.system}.",
        "",
        "| model | phase | quiet, normalised | load | raw over quiet | normalised over quiet | farthest off | noisy |",
        "|---|---|---:|---|---:|---:|---:|---:|",
        *(as_line(row, load) for row in rows for load in LOADS),
    ]
    return "\n".join(lines) + "\n"


def as_line(row: dict[str, Any], load: str) -> str:
    raw, normalised, verdicts = row["raw_median_s"], row["normalised_s"], row["verdict"][load]
    cells = (
        f"{row['model']}, {row['num_params'] / 1e6:.2f} M",
        row["phase"],
        f"{statistics.median(normalised['values']['quiet']) * 1e3:.3f} ms",
        load,
        f"{raw['over_quiet'][load]:.2f}",
        f"{normalised['over_quiet'][load]:.2f}",
        f"{normalised['worst_over_quiet'][load]:.2f}",
        f"{verdicts.count('noisy')} of {len(verdicts)}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
