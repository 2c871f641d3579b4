"""How far does the same file's latency move from one measurement to the next, quiet and with both cores busy?

Measures one model of the space decoder-nano several times on the machine as it is and several times beside busy
processes (a matrix multiplication and a memory copy in a loop, one pair for every two cores), alternating, and prints
the spread (largest over smallest, minus 1) of the raw and of the normalised median, and how far the busy normalised
median lies from the quiet one.

    python benchmarks/measurement_repeat.py
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from estimator.measuring import Measurement, MeasurementPlan, host_fingerprint, measure
from estimator.onnx_builder import build_onnx
from nas.space import SearchSpace

REPEATS = 6
RESULTS = Path(__file__).parent / "results"
HOGS = (
    "import numpy as np\nx = np.ones((256, 256), np.float32)\nwhile True: x @ x",
    "import numpy as np\nx = np.ones(8_000_000)\nwhile True: x.copy()",
)


def main() -> None:
    space = SearchSpace.preset("decoder-nano")
    config = space.to_config(next(iter(space.sample(1, seed=0))))
    found: dict[str, list[Measurement]] = {"quiet": [], "busy": []}
    with tempfile.TemporaryDirectory() as folder:
        path = build_onnx(config, path=Path(folder) / "model.onnx").path
        measure(path)  # the first one on a machine also finds the yardsticks' quiet times
        for _ in range(REPEATS):
            found["quiet"].append(measure(path, plan=MeasurementPlan()))
            with busy_machine():
                found["busy"].append(measure(path, plan=MeasurementPlan()))
    rows = [row(phase, found) for phase in ("prefill", "decode")]
    document = {"device": host_fingerprint().to_dict(), "config": config.to_dict(), "repeats": REPEATS, "rows": rows}
    (RESULTS / "measurement_repeat.json").write_text(json.dumps(document, indent=2) + "\n")
    table = as_table(rows)
    (RESULTS / "measurement_repeat.md").write_text(table)
    print(table)


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    pairs = max(1, (psutil.cpu_count() or 2) // 2)
    hogs = [subprocess.Popen([sys.executable, "-c", code]) for code in HOGS * pairs]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def row(phase: str, found: dict[str, list[Measurement]]) -> dict[str, Any]:
    raw = {load: [getattr(m, phase).raw_median_s for m in measurements] for load, measurements in found.items()}
    normal = {load: [getattr(m, phase).normalised_s for m in measurements] for load, measurements in found.items()}
    verdicts = {load: [getattr(m, phase).verdict for m in measurements] for load, measurements in found.items()}
    return {
        "phase": phase,
        "raw_median_s": {load: statistics.median(values) for load, values in raw.items()},
        "normalised_s": {load: statistics.median(values) for load, values in normal.items()},
        "raw_spread": {load: max(values) / min(values) - 1 for load, values in raw.items()},
        "normalised_spread": {load: max(values) / min(values) - 1 for load, values in normal.items()},
        "raw_busy_over_quiet": statistics.median(raw["busy"]) / statistics.median(raw["quiet"]),
        "normalised_busy_over_quiet": statistics.median(normal["busy"]) / statistics.median(normal["quiet"]),
        "verdicts": verdicts,
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| phase | raw, busy over quiet | normalised, busy over quiet | raw spread quiet / busy "
        "| normalised spread quiet / busy |",
        "|---|---:|---:|---:|---:|",
    ]
    for r in rows:
        raw, normal = r["raw_spread"], r["normalised_spread"]
        lines.append(
            f"| {r['phase']} | {r['raw_busy_over_quiet']:.2f} | {r['normalised_busy_over_quiet']:.2f} "
            f"| {raw['quiet']:.0%} / {raw['busy']:.0%} | {normal['quiet']:.0%} / {normal['busy']:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
