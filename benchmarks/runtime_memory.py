"""How much memory does ONNX Runtime add on a CPU? The measurement behind the runtime model of estimator/runtimes.py.

    python benchmarks/runtime_memory.py

Protocol: each model is built in fp32 with random weights; a fresh process imports ONNX Runtime, notes its resident
memory, opens the file with one thread, notes it again, runs prefill twice, and reports the peak. All figures are over
the memory noted first. "packed" is what loading adds beyond the file and 11 MB, as a part of the file.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from estimator.config import TransformerConfig
from estimator.memory import estimate_memory
from estimator.onnx_builder import build_onnx
from estimator.readers.source import read_source
from estimator.runtimes import RUNTIME_BASE_BYTES
from estimator.workload import Workload

RESULTS = Path(__file__).parent / "results"
CHILD = """
import json, sys
from estimator.config import TransformerConfig
from estimator.ort_session import make_inputs, open_session
import onnxruntime

def memory_bytes(field):
    rows = dict(row.split(":", 1) for row in open("/proc/self/status") if ":" in row)
    return int(rows[field].split()[0]) * 1024

path, config, length = sys.argv[1], TransformerConfig.from_dict(json.loads(sys.argv[2])), int(sys.argv[3])
start = memory_bytes("VmRSS")
session = open_session(path, num_threads=1)
loaded = memory_bytes("VmRSS")
inputs = make_inputs(config, batch_size=1, sequence_length=length)
for _ in range(2):
    session.run(None, inputs)
print(json.dumps({"load_bytes": loaded - start, "peak_bytes": memory_bytes("VmHWM") - start}))
"""
GPT_FIELDS = {
    "norm_type": "layer_norm",
    "gated_mlp": False,
    "position_embedding": "learned",
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "hidden_act": "gelu_new",
}


def main() -> int:
    """Measures every model, prints and writes the table."""
    rows = [measure(name, config, length) for name, config in models().items() for length in (128, 1024)]
    result = {
        "rows": rows,
        "packed_mean": statistics.mean(row["packed"] for row in rows),
        "total_ratio_median": statistics.median(row["predicted_bytes"] / row["peak_bytes"] for row in rows),
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": importlib.metadata.version("onnxruntime"),
            "onnx": importlib.metadata.version("onnx"),
        },
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "libc": " ".join(platform.libc_ver())},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "runtime_memory.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "runtime_memory.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    return 0


def models() -> dict[str, TransformerConfig]:
    """GPT-2, BERT, and decoders of both styles from 0.7 M to 128 M parameters."""
    chosen = {"gpt2": read_source("gpt2").config, "bert": read_source("bert-base-uncased").config}
    for hidden, layers, vocab, tied in (
        (128, 4, 256, True),
        (256, 6, 4096, True),
        (512, 6, 8000, False),
        (512, 12, 32000, True),
        (768, 12, 1000, True),
    ):
        sizes = {
            "vocab_size": vocab,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": tied,
        }
        chosen[f"llama-style {hidden}x{layers} V{vocab}"] = TransformerConfig(
            **sizes, num_key_value_heads=hidden // 128 or 1, intermediate_size=hidden * 8 // 3
        )
        chosen[f"gpt-style {hidden}x{layers} V{vocab}"] = TransformerConfig(
            **sizes, intermediate_size=4 * hidden, **GPT_FIELDS
        )
    return chosen


def measure(name: str, config: TransformerConfig, length: int) -> dict:
    """Bytes of one model at one prompt length, beside the estimate."""
    length = min(length, config.max_position_embeddings)
    with tempfile.TemporaryDirectory() as folder:
        artifact = build_onnx(config, path=Path(folder) / "model.onnx")
        command = [sys.executable, "-c", CHILD, str(artifact.path), json.dumps(config.to_dict()), str(length)]
        measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "model": name,
        "num_params": artifact.num_params,
        "file_bytes": artifact.file_bytes,
        "sequence_length": length,
        **measured,
        "packed": (measured["load_bytes"] - artifact.file_bytes - RUNTIME_BASE_BYTES) / artifact.file_bytes,
        "predicted_bytes": estimate_memory(config, Workload(prompt_length=length)).total_bytes,
    }


def table(result: dict) -> str:
    """The result as a Markdown page."""
    lines = [
        "# Memory of ONNX Runtime on a CPU",
        "",
        "| model | parameters | file MB | tokens | loaded MB | packed | peak MB | estimate MB | estimate / peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        mega = {key: f"{row[f'{key}_bytes'] / 1e6:.1f}" for key in ("file", "load", "peak", "predicted")}
        lines.append(
            f"| {row['model']} | {row['num_params']:,} | {mega['file']} | {row['sequence_length']} | {mega['load']} | "
            f"{row['packed']:.2f} | {mega['peak']} | {mega['predicted']} | "
            f"{row['predicted_bytes'] / row['peak_bytes']:.2f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    hardware = ", ".join(str(value) for value in result["hardware"].values())
    lines += [
        "",
        f"Mean of packed {result['packed_mean']:.2f}; median of estimate / peak {result['total_ratio_median']:.2f}. "
        f"fp32, batch 1, one thread. {versions}; {hardware} (machine, cores, libc). "
        "Written by `benchmarks/runtime_memory.py`, which says how.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
