"""What do a thousand measurements in a row leave behind? No process, no open file, no temporary file, no memory.

    python benchmarks/measurement_leaks.py

Protocol: one tiny decoder is measured over and over from this process, every tenth time as a candidate that fails: in
turn one that needs more than its memory limit and one that is out of time. Open files, threads, children, files in the
folder for temporary files, and the resident memory of this process are counted after ten measurements to warm up, a
hundred times in between, and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import psutil

from estimator.config import TransformerConfig
from estimator.errors import EstimatorError
from estimator.measuring import MeasurementPlan, host_fingerprint, measure
from estimator.onnx_builder import build_onnx
from estimator.workload import Workload

RESULTS = Path(__file__).parent / "results"
LIMITS = {"open_files": 0, "threads": 0, "children": 0, "temporary_files": 0, "resident_bytes": 20_000_000}
NUM_WARM_UP = 10
CONFIG = TransformerConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)
PLAN = MeasurementPlan(num_threads=1, max_seconds=0.01, precision=0.5)
FAILURES = {
    "out of memory": (
        Workload(prompt_length=4, generated_length=1_000_000),
        MeasurementPlan(num_threads=1, memory_limit_bytes=2**27),
    ),
    "out of time": (Workload(), MeasurementPlan(num_threads=1, time_limit_s=0.5)),
}


def main() -> int:
    """Measures, prints, writes both result files, and returns 1 if anything was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="measurements (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archfront-leaks-") as folder:
        model = build_onnx(CONFIG, path=Path(folder) / "model.onnx").path
        temporary = Path(folder) / "temporary"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        for index in range(NUM_WARM_UP):
            attempt(model, index)
        counts, outcomes = repeat(model, temporary, args.count)
    grown = {name: counts[-1][name] - counts[0][name] for name in LIMITS}
    page = as_page(counts, grown, outcomes, args.count)
    print(page, end="")
    document = {
        "device": host_fingerprint(num_threads=1).to_dict(),
        "count": args.count,
        "outcomes": outcomes,
        "grown": grown,
        "limits": LIMITS,
        "counts": counts,
    }
    (RESULTS / "measurement_leaks.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "measurement_leaks.md").write_text(page, encoding="utf-8")
    return int(any(grown[name] > most for name, most in LIMITS.items()))


def repeat(model: Path, temporary: Path, count: int) -> tuple[list[dict[str, int]], dict[str, int]]:
    """What is counted along the way, and how the measurements ended."""
    counts, outcomes = [state(temporary)], dict.fromkeys(("measured", *FAILURES), 0)
    for index in range(count):
        outcomes[attempt(model, index)] += 1
        if (index + 1) % max(1, count // 100) == 0 or index == count - 1:
            counts.append(state(temporary))
    return counts, outcomes


def attempt(model: Path, index: int) -> str:
    """One measurement, every tenth of which is to fail; how it ended."""
    if index % 10 != 9:
        measure(model, Workload(prompt_length=4), plan=PLAN)
        return "measured"
    name = list(FAILURES)[index // 10 % len(FAILURES)]
    workload, plan = FAILURES[name]
    try:
        measure(model, workload, plan=plan)
    except EstimatorError:
        return name
    raise AssertionError(f"the candidate that is to end {name} was measured")


def state(temporary: Path) -> dict[str, int]:
    this = psutil.Process()
    return {
        "open_files": this.num_fds(),
        "threads": this.num_threads(),
        "children": len(this.children(recursive=True)),
        "temporary_files": len(list(temporary.rglob("*"))),
        "resident_bytes": this.memory_info().rss,
    }


def as_page(counts: list[dict[str, int]], grown: dict[str, int], outcomes: dict[str, int], count: int) -> str:
    device = host_fingerprint()
    ended = [f"{number} {name}" for name, number in outcomes.items()]
    lines = [
        f"`python benchmarks/measurement_leaks.py --count {count}` on {device.cpu_model}, "
        f"ONNX Runtime {device.onnxruntime_version}, {device.system}: {', '.join(ended)}.",
        "",
        "| what | after warm-up | most | at the end | grown by | limit |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {counts[0][name]:,} | {max(found[name] for found in counts):,} | {counts[-1][name]:,} "
            f"| {grown[name]:,} | {most:,} |"
            for name, most in LIMITS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
