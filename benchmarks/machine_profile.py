"""How far do times predicted from this machine's profile lie from those that `estimator measure` finds here?

Probes the machine as `estimator calibrate` does, and again until others leave it alone or the attempts are used up.
Then measures decoders from 0.2 to 60 million parameters, prefill of 128 tokens and a decode step after them, and
compares: predicted over measured, and whether the predicted interval holds what was measured. The measured times are
paired with the yardsticks' quiet times (docs/measuring.md); sums are over all rows, and over those not marked noisy.

The fractions in estimator/calibrating/machine.py are chosen so that the geometric mean of the ratios is near 1 by what
binds; `fractions` in the result says which ones this run would choose.

    python benchmarks/machine_profile.py [--attempts 5] [--max-seconds 10]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from estimator.calibrating.machine import Probe, is_busy, machine_achievable, machine_device, probe_machine
from estimator.config import TransformerConfig
from estimator.latency import estimate_latency
from estimator.measuring import MeasurementPlan, host_fingerprint, measure
from estimator.onnx_builder import build_onnx
from estimator.workload import Workload

RESULTS = Path(__file__).parent / "results"
WORKLOAD = Workload(prompt_length=128, generated_length=0)
# hidden size, layers, vocabulary: about 0.2, 1, 3, 10, 25 and 60 million parameters.
SIZES = ((64, 4, 256), (128, 6, 256), (256, 4, 1000), (320, 8, 4000), (512, 8, 8000), (640, 12, 10_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=5, help="probes of a busy machine (%(default)s)")
    parser.add_argument("--max-seconds", type=float, default=10.0, help="per phase of a model (%(default)s)")
    args = parser.parse_args()
    load_before = psutil.getloadavg()[0]
    probes = probe_machine(print, max_attempts=args.attempts)
    plan = MeasurementPlan(max_seconds=args.max_seconds)
    rows = [row for size in SIZES for row in rows_of(decoder(*size), probes, plan)]
    document = {
        "device": host_fingerprint().to_dict(),
        "load": {"before": load_before, "after": psutil.getloadavg()[0]},
        "is_busy": is_busy(probes),
        "probes": [asdict(probe) for probe in probes],
        "achievable": asdict(machine_achievable(probes)),
        "plan": asdict(plan),
        "rows": rows,
        "summary": {"all": summary(rows), "not noisy": summary([row for row in rows if not is_noisy(row)])},
        "fractions": fitting_fractions(rows, probes),
    }
    (RESULTS / "machine_profile.json").write_text(json.dumps(document, indent=2) + "\n")
    text = as_page(document)
    (RESULTS / "machine_profile.md").write_text(text)
    print(text)


def decoder(hidden_size: int, num_hidden_layers: int, vocab_size: int) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=3 * hidden_size,
        max_position_embeddings=512,
    )


def rows_of(config: TransformerConfig, probes: tuple[Probe, ...], plan: MeasurementPlan) -> list[dict[str, Any]]:
    """One row for either phase: predicted with its interval, measured with its own."""
    predicted = estimate_latency(config, WORKLOAD, machine_device(probes), machine_achievable(probes))
    assert predicted is not None
    with tempfile.TemporaryDirectory() as folder:
        artifact = build_onnx(config, path=Path(folder) / "model.onnx")
        print(f"measuring {artifact.num_params / 1e6:.2f} M parameters ...")
        measurement = measure(artifact.path, WORKLOAD, plan=plan)
    phases = (predicted.prefill_s, measurement.prefill), (predicted.decode_s_per_token, measurement.decode)
    rows = []
    for time, latency in phases:
        assert time is not None
        assert latency is not None
        figure = time.time_s
        assert figure.low is not None
        assert figure.high is not None
        rows.append(
            {
                "num_params": artifact.num_params,
                "phase": latency.phase,
                "fraction": time.fraction,
                "predicted": figure.to_dict(),
                "overhead_s": time.overhead_s,
                "measured": asdict(latency),
                "ratio": figure.value / latency.normalised_s,
                "is_inside": figure.low <= latency.normalised_s <= figure.high,
            }
        )
    return rows


def is_noisy(row: dict[str, Any]) -> bool:
    return bool(row["measured"]["verdict"] == "noisy")


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Number of rows, mean absolute error, geometric mean and extremes of the ratio, share inside the interval."""
    ratios = [row["ratio"] for row in rows]
    if not ratios:
        return {"rows": 0}
    return {
        "rows": len(ratios),
        "mean_absolute_error": statistics.fmean(abs(ratio - 1) for ratio in ratios),
        "geometric_mean_ratio": statistics.geometric_mean(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "inside": statistics.fmean(row["is_inside"] for row in rows),
    }


def fitting_fractions(rows: list[dict[str, Any]], probes: tuple[Probe, ...]) -> dict[str, float]:
    """The fraction of each kind at which predicted and measured times of the rows that it decides agree on average."""
    used, fitting = machine_achievable(probes), {}
    for name in ("fp32_fraction", "bandwidth_fraction"):
        logs = [
            math.log((row["predicted"]["value"] - row["overhead_s"]) / work_s)
            for row in rows
            if row["fraction"] == name
            and not is_noisy(row)
            and (work_s := row["measured"]["normalised_s"] - row["overhead_s"]) > 0
        ]
        if logs:
            fitting[name] = getattr(used, name) * math.exp(statistics.fmean(logs))
    return fitting


def as_page(document: dict[str, Any]) -> str:
    device = document["device"]
    lines = [
        f"`python benchmarks/machine_profile.py` on {device['cpu_model']}, {device['num_threads']} threads, "
        f"ONNX Runtime {device['onnxruntime_version']}, {device['system']}; load {document['load']['before']:.1f} "
        f"before, {document['load']['after']:.1f} after"
        f"{'; the machine was busy while it was probed' * document['is_busy']}.",
        "",
        "| threads | fp32 | int8 | bandwidth | one operator | others' share of the cores |",
        "|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {p['num_threads']} | {p['fp32_flops_per_s'] / 1e9:.1f} GFLOP/s | {p['int8_flops_per_s'] / 1e9:.1f} "
            f"GFLOP/s | {p['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s | {p['operator_s'] * 1e6:.2f} us | "
            f"{p['others_share']:.0%} |"
            for p in document["probes"]
        ),
        "",
        "| parameters | phase | predicted | interval | measured | verdict | predicted / measured | inside |",
        "|---:|---|---:|---|---:|---|---:|---|",
        *map(as_line, document["rows"]),
        "",
        *(
            f"{name}: " + ", ".join(f"{word.replace('_', ' ')} {value:.3g}" for word, value in total.items()) + "  "
            for name, total in document["summary"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def as_line(row: dict[str, Any]) -> str:
    predicted, measured = row["predicted"], row["measured"]
    cells = (
        f"{row['num_params'] / 1e6:.2f} M",
        row["phase"],
        f"{predicted['value'] * 1e3:.3f} ms",
        f"{predicted['low'] * 1e3:.3f} to {predicted['high'] * 1e3:.3f}",
        f"{measured['normalised_s'] * 1e3:.3f} ms",
        measured["verdict"],
        f"{row['ratio']:.2f}",
        "yes" if row["is_inside"] else "no",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
