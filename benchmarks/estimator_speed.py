"""How fast is the estimator? As a process, against torch and transformers; and vectorised, in configs per second.

    python benchmarks/estimator_speed.py

Protocol: `estimator size gpt2 --json` and a process that imports torch and transformers and counts GPT-2 on the meta
device run alternately, each as a whole process from start to exit, after one unrecorded pair. Both must print the same
count. `estimate_batch` gets columns of random configs; building the columns is not part of the time. Medians are given.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from estimator.batch import columns_from_configs, estimate_batch
from estimator.config import TransformerConfig

RESULTS = Path(__file__).parent / "results"
OURS = [sys.executable, "-m", "estimator.cli", "size", "gpt2", "--json"]
REFERENCE = [
    sys.executable,
    "-c",
    "import torch, transformers\n"
    "with torch.device('meta'):\n"
    "    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())\n"
    "print(sum(parameter.numel() for parameter in model.parameters()))",
]
LIMITS = {"ours_s": 0.3, "ratio": 10.0, "configs_per_s": 20_000.0}


def main() -> int:
    """Measures, prints, writes both result files, and returns 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="recorded pairs of processes (%(default)s)")
    parser.add_argument("--configs", type=int, default=10_000, help="configs of the vectorised call (%(default)s)")
    args = parser.parse_args()
    ours_s, reference_s = time_processes(args.pairs)
    result = {
        "ours_s": statistics.median(ours_s),
        "reference_s": statistics.median(reference_s),
        "ratio": statistics.median(reference_s) / statistics.median(ours_s),
        "configs_per_s": {kind: time_batch(kind, args.configs) for kind in ("uniform", "per_layer")},
        "samples": {"ours_s": ours_s, "reference_s": reference_s},
        "plan": {"pairs": args.pairs, "configs": args.configs, "limits": LIMITS},
        "versions": versions(),
        "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0]},
    }
    kept = (
        result["ours_s"] <= LIMITS["ours_s"]
        and result["ratio"] >= LIMITS["ratio"]
        and min(result["configs_per_s"].values()) >= LIMITS["configs_per_s"]
    )
    result["limits_kept"] = kept
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "estimator_speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "estimator_speed.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    return 0 if kept else 1


def time_processes(pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of each recorded run of the two processes."""
    ours_s, reference_s = [], []
    for index in range(pairs + 1):
        seconds, text = timed(OURS)
        count = json.loads(text)["params"]["total"]
        other_s, other = timed(REFERENCE)
        if int(other) != count:
            raise SystemExit(f"the counts differ: {count} and {other}")
        if index:
            ours_s.append(seconds)
            reference_s.append(other_s)
    return ours_s, reference_s


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds and output of one whole process."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def time_batch(kind: str, num_configs: int) -> float:
    """Median configs per second of five calls."""
    rng = random.Random(0)
    columns = columns_from_configs([random_config(rng, per_layer=kind == "per_layer") for _ in range(num_configs)])
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        estimate_batch(columns)
        seconds.append(time.perf_counter() - start)
    return num_configs / statistics.median(seconds[1:])


def random_config(rng: random.Random, *, per_layer: bool) -> TransformerConfig:
    """A decoder as a search would propose it: 2 to 24 layers, mixed switches, one width for all layers or one each."""
    layers = rng.randint(2, 24)
    widths = tuple(64 * rng.randint(4, 64) for _ in range(layers))
    return TransformerConfig(
        vocab_size=rng.choice([256, 8192, 32000]),
        hidden_size=64 * rng.randint(2, 32),
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=rng.choice([1, 2, 4, 8]),
        head_dim=64,
        intermediate_size=widths[0],
        intermediate_size_per_layer=widths if per_layer else None,
        max_position_embeddings=1024,
        gated_mlp=rng.random() < 0.5,
        attention_bias=rng.random() < 0.5,
        tie_word_embeddings=rng.random() < 0.5,
        norm_type=rng.choice(["rms_norm", "layer_norm"]),
    )


def versions() -> dict[str, str]:
    """Versions of everything that was timed."""
    names = ("numpy", "torch", "transformers")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(result: dict) -> str:
    """The result as a Markdown page."""
    rows = [
        ("`estimator size gpt2`, whole process", f"{result['ours_s'] * 1e3:.0f} ms", "at most 300 ms"),
        ("torch + transformers count GPT-2 on meta, whole process", f"{result['reference_s'] * 1e3:.0f} ms", ""),
        ("ratio", f"{result['ratio']:.1f}", "at least 10"),
        ("`estimate_batch`, uniform layers", f"{result['configs_per_s']['uniform']:,.0f} configs/s", "at least 20,000"),
        (
            "`estimate_batch`, per-layer widths",
            f"{result['configs_per_s']['per_layer']:,.0f} configs/s",
            "at least 20,000",
        ),
    ]
    hardware, plan = result["hardware"], result["plan"]
    lines = ["# Estimator speed", "", "| what | median | limit |", "|---|---|---|"]
    lines += [f"| {what} | {value} | {limit} |" for what, value, limit in rows]
    lines += [
        "",
        f"{plan['pairs']} alternating pairs of processes; {plan['configs']:,} configs a call, five calls. "
        f"{hardware['cpu']}, {hardware['cores']} cores, load average {hardware['load_average']:.1f} at the end. "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ". Written by `benchmarks/estimator_speed.py`; samples in `estimator_speed.json`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
