"""How much memory does PyTorch take on a CPU beyond its tensors? The measurement behind estimator/runtimes.py.

    python benchmarks/pytorch_memory.py

Protocol: for each model and prompt length a fresh process notes its resident memory at the start, after importing
torch, after importing transformers and the model's class, after building the model (fp32, random weights), and the peak
after two prefills with a cache, in one thread. "beyond" is the peak less the base of estimator/runtimes.py and less the
tensors that the estimate counts (weights, cache, activations), as a part of the spare moments: the memory by which the
widest moments of the pass together exceed the widest one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from estimator.memory import estimate_memory, live_elements, score_copies, widest_moments
from estimator.readers.source import source_of_values
from estimator.runtimes import RUNTIMES
from estimator.workload import Workload

RESULTS = Path(__file__).parent / "results"
CHILD = """
import json, sys

def memory_bytes(field):
    rows = dict(row.split(":", 1) for row in open("/proc/self/status") if ":" in row)
    return int(rows[field].split()[0]) * 1024

start = memory_bytes("VmRSS")
import torch
torch.set_num_threads(1)
with_torch = memory_bytes("VmRSS")
import transformers
values, length = json.loads(sys.argv[1]), int(sys.argv[2])
config = transformers.AutoConfig.for_model(**values)
model_class = getattr(transformers, values["architectures"][0])
with_transformers = memory_bytes("VmRSS")
model = model_class._from_config(config, dtype=torch.float32).eval()
built = memory_bytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again: building held values twice
inputs = torch.zeros(1, length, dtype=torch.long)
with torch.no_grad():
    for _ in range(2):
        result = model(inputs, use_cache=True)
        del result
print(json.dumps({
    "start_bytes": start, "torch_bytes": with_torch, "transformers_bytes": with_transformers,
    "built_bytes": built, "peak_bytes": memory_bytes("VmHWM"),
}))
"""


def main() -> int:
    """Measures every model, prints and writes the table."""
    rows = [measure(name, values, length) for name, values in models().items() for length in (128, 1024)]
    result = {
        "rows": rows,
        "torch_bytes_median": statistics.median(row["torch_bytes"] for row in rows),
        "transformers_bytes_median": statistics.median(row["transformers_bytes"] for row in rows),
        "beyond_median": statistics.median(row["beyond"] for row in rows),
        "total_ratio_median": statistics.median(row["predicted_bytes"] / row["peak_bytes"] for row in rows),
        "versions": {
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "transformers": importlib.metadata.version("transformers"),
        },
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "libc": " ".join(platform.libc_ver())},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pytorch_memory.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "pytorch_memory.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    return 0


def models() -> dict[str, dict[str, Any]]:
    """Decoders of both styles from 2 M to 124 M parameters, as their config.json."""
    chosen: dict[str, dict[str, Any]] = {
        "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024}
        | {"n_embd": 768, "n_layer": 12, "n_head": 12}
    }
    for hidden, layers, vocab in ((128, 4, 8000), (512, 8, 32000), (1024, 6, 1000)):
        chosen[f"llama-style {hidden}x{layers} V{vocab}"] = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": hidden * 8 // 3,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": hidden // 128,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        }
    return chosen


def measure(name: str, values: dict[str, Any], length: int) -> dict[str, Any]:
    """Bytes of one model at one prompt length, beside the estimate."""
    command = [sys.executable, "-c", CHILD, json.dumps(values), str(length)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    network, runtime = source_of_values(values, name).network, RUNTIMES["pytorch-cpu"]
    workload = Workload(prompt_length=length, runtime=runtime.name)
    memory = estimate_memory(network, workload)
    moments = widest_moments(network, network.main, workload, score_copies=score_copies(workload, runtime))
    spare = 4 * live_elements(moments, reuses=True)[1]
    start = found["start_bytes"]
    peak, before = found["peak_bytes"] - start, found["transformers_bytes"] - start
    return {
        "model": name,
        "sequence_length": length,
        "torch_bytes": found["torch_bytes"] - start,
        "transformers_bytes": before,
        "built_bytes": found["built_bytes"] - found["transformers_bytes"],
        "peak_bytes": peak,
        "weights_bytes": memory.weights_bytes,
        "tensors_bytes": memory.tensors_bytes,
        "spare_bytes": spare,
        "beyond": (peak - runtime.base_bytes.value - memory.tensors_bytes) / spare,
        "predicted_bytes": memory.total_bytes,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown page."""
    lines = [
        "# Memory of PyTorch on a CPU",
        "",
        "| model | tokens | torch MB | with transformers MB | built MB | weights MB | tensors MB | beyond | peak MB |"
        " estimate MB | estimate / peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    columns = ("torch", "transformers", "built", "weights", "tensors", "peak", "predicted")
    for row in result["rows"]:
        mega = {key: f"{row[f'{key}_bytes'] / 1e6:.1f}" for key in columns}
        lines.append(
            f"| {row['model']} | {row['sequence_length']} | {mega['torch']} | {mega['transformers']} | "
            f"{mega['built']} | {mega['weights']} | {mega['tensors']} | {row['beyond']:.2f} | {mega['peak']} | "
            f"{mega['predicted']} | {row['predicted_bytes'] / row['peak_bytes']:.2f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    hardware = ", ".join(str(value) for value in result["hardware"].values())
    lines += [
        "",
        f"Medians: torch {result['torch_bytes_median'] / 1e6:.0f} MB, with transformers "
        f"{result['transformers_bytes_median'] / 1e6:.0f} MB, beyond {result['beyond_median']:.2f}, estimate / peak "
        f"{result['total_ratio_median']:.2f}. fp32, batch 1, one thread. {versions}; {hardware} (machine, cores, "
        "libc). Written by `benchmarks/pytorch_memory.py`, which says how.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
