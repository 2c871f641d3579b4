"""What does each weight type save, and what does it cost? Latency, file size and quality of one model in every type.

    python benchmarks/weight_types.py [--threads 1] [--seconds 4] [--tokens 262144]

Latency: decoders of three sizes with random weights. The files of all types run in this process; blocks of calls of a
type alternate with blocks of calls of the fp32 file, and the ratio of the two is what counts (estimator.measuring),
with a bootstrap interval. Prefill reads 128 tokens, decode one token on a context of 128. What is called quiet is the
fastest tenth of the fp32 blocks of a model and phase.

Quality: one byte-level decoder, trained from scratch on the source of Python's standard library by nas.quality, written
in each type, and scored on held-out text: bits per byte, and what they are above fp32.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from estimator.config import TransformerConfig
from estimator.measuring import host_fingerprint
from estimator.measuring.protocol import Blocks, judge, measure_paired
from estimator.measuring.statistics import percentile
from estimator.onnx_builder import OnnxArtifact, build_onnx
from estimator.ort_session import load_runtime, make_inputs, open_session
from estimator.weight_types import BUILD_DTYPES
from nas.quality.corpus import load_corpus
from nas.quality.scoring import score_onnx
from nas.quality.training import train_weights
from nas.spec import QualitySettings

RESULTS = Path(__file__).parent / "results"
PRECISION = 0.03
PHASES = {"prefill": {"sequence_length": 128}, "decode": {"sequence_length": 1, "past_length": 128}}
OTHERS = tuple(dtype for dtype in BUILD_DTYPES if dtype != "fp32")


def main() -> int:
    """Measures and scores every type, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of inference (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="at most, for each type and phase (%(default)s)")
    parser.add_argument("--tokens", type=int, default=262_144, help="of training (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        latency = [
            row
            for name, config in configs().items()
            for row in latency_rows(name, config, Path(folder), args.threads, args.seconds)
        ]
        quality = quality_rows(Path(folder), args.tokens)
    document = {
        "arguments": vars(args),
        "device": host_fingerprint(num_threads=args.threads).to_dict(),
        "latency": latency,
        "quality": quality,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "weight_types.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    text = as_page(document)
    (RESULTS / "weight_types.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def configs() -> dict[str, TransformerConfig]:
    """Decoders of about 1, 7 and 50 million parameters."""
    return {f"{hidden} x {layers}": decoder(hidden, layers) for hidden, layers in ((128, 4), (256, 8), (640, 10))}


def decoder(hidden_size: int, num_hidden_layers: int, vocab_size: int = 1000) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=3 * hidden_size,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )


def latency_rows(
    name: str, config: TransformerConfig, folder: Path, num_threads: int, max_seconds: float
) -> list[dict[str, Any]]:
    """A row for each type: its file, and both phases as ratios to the fp32 file."""
    artifacts = {dtype: build_onnx(config, path=folder / f"{dtype}.onnx", weight_dtype=dtype) for dtype in BUILD_DTYPES}
    loaded = {dtype: load(artifact, config, num_threads) for dtype, artifact in artifacts.items()}
    rows = {
        dtype: {"model": name, "num_params": artifact.num_params, "weight_dtype": dtype}
        | {"file_bytes": artifact.file_bytes, "load_s": loaded[dtype][0]}
        for dtype, artifact in artifacts.items()
    }
    for phase in PHASES:
        calls = {dtype: phases[phase] for dtype, (_, phases) in loaded.items()}
        found = {dtype: pair(calls[dtype], calls["fp32"], num_threads, max_seconds) for dtype in OTHERS}
        quiet_s = min(percentile(blocks.values_s[1], 10) for blocks in found.values())
        rows["fp32"][phase] = {"ratio": 1.0, "low": 1.0, "high": 1.0, "quiet_s": quiet_s, "verdict": "quiet"}
        for dtype, blocks in found.items():
            rows[dtype][phase] = judged(blocks, quiet_s)
    return list(rows.values())


def load(
    artifact: OnnxArtifact, config: TransformerConfig, num_threads: int
) -> tuple[float, dict[str, Callable[[], None]]]:
    """Seconds to load the file, and a call of each phase on inputs that lie ready."""
    started = time.perf_counter()
    session = open_session(artifact.path, num_threads=num_threads, spin_between_runs=False)
    load_s = time.perf_counter() - started
    calls: dict[str, Callable[[], None]] = {}
    for phase, lengths in PHASES.items():
        binding = session.io_binding()
        for name, array in make_inputs(config, batch_size=1, **lengths).items():
            binding.bind_ortvalue_input(name, load_runtime().OrtValue.ortvalue_from_numpy(array, "cpu", 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, "cpu")
        calls[phase] = functools.partial(session.run_with_iobinding, binding)
    return load_s, calls


def pair(call: Callable[[], None], reference: Callable[[], None], num_threads: int, max_seconds: float) -> Blocks:
    return measure_paired(
        call, reference, is_parallel=num_threads > 1, precision=PRECISION, max_seconds=max_seconds, seed=0
    )


def judged(blocks: Blocks, quiet_s: float) -> dict[str, Any]:
    """The ratio to fp32 with its interval, and the verdict of the protocol."""
    found = judge(blocks, quiet_s=quiet_s, seed=0)
    ratios = {"ratio": found.normalised_s, "low": found.low_s, "high": found.high_s}
    return {name: value / quiet_s for name, value in ratios.items()} | {
        "normalised_s": found.normalised_s,
        "raw_median_s": found.raw_median_s,
        "contention": found.contention,
        "verdict": found.verdict,
    }


def quality_rows(folder: Path, num_tokens: int) -> list[dict[str, Any]]:
    """Bits per byte of one trained model in each type."""
    config, settings = decoder(128, 4, vocab_size=256), QualitySettings(tokens=num_tokens)
    corpus = load_corpus(
        (), heldout_tokens=settings.heldout_tokens, seed=settings.seed, sequence_length=settings.sequence_length
    )
    weights = train_weights(config, corpus, settings).weights
    rows, plain = [], np.nan
    for dtype in BUILD_DTYPES:
        artifact = build_onnx(config, weights, path=folder / "trained.onnx", weight_dtype=dtype)
        bits = score_onnx(artifact.path, corpus, settings).bits_per_byte
        plain = bits.value if dtype == "fp32" else plain
        rows.append(
            {"weight_dtype": dtype, "num_params": artifact.num_params, "file_bytes": artifact.file_bytes}
            | {"weight_bytes": artifact.weight_bytes, "bits_per_byte": bits.value, "loss_bits": bits.value - plain}
        )
    return rows


def as_page(document: dict[str, Any]) -> str:
    """The result as a Markdown page."""
    device, arguments = document["device"], document["arguments"]
    lines = [
        "# Weight types of the ONNX files",
        "",
        f"`python benchmarks/weight_types.py --threads {arguments['threads']}` on {device['cpu_model']}, "
        f"ONNX Runtime {device['onnxruntime_version']}, {device['system']}. Times are over those of fp32, paired, with "
        "95 % intervals; fp32 itself in milliseconds. `*`: noisy.",
        "",
        "| model | type | file MB | of fp32 | load s | prefill | decode |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(as_line(row, document["latency"]) for row in document["latency"]),
        "",
        f"Quality of a byte-level decoder, {document['quality'][0]['num_params']:,} parameters, trained on "
        f"{arguments['tokens']:,} tokens of Python's standard library:",
        "",
        "| type | file MB | bits per byte | above fp32 |",
        "|---|---:|---:|---:|",
        *(
            f"| {row['weight_dtype']} | {row['file_bytes'] / 1e6:.2f} | {row['bits_per_byte']:.4f} | "
            f"{row['loss_bits']:+.4f} |"
            for row in document["quality"]
        ),
    ]
    return "\n".join(lines) + "\n"


def as_line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    plain_bytes = next(r["file_bytes"] for r in rows if (r["model"], r["weight_dtype"]) == (row["model"], "fp32"))
    cells = [
        f"{row['model']}, {row['num_params'] / 1e6:.1f} M",
        row["weight_dtype"],
        f"{row['file_bytes'] / 1e6:.2f}",
        f"{row['file_bytes'] / plain_bytes:.2f}",
        f"{row['load_s']:.3f}",
        *(as_cell(row[phase]) for phase in PHASES),
    ]
    return "| " + " | ".join(cells) + " |"


def as_cell(found: dict[str, Any]) -> str:
    if "quiet_s" in found:
        return f"{found['quiet_s'] * 1e3:.3f} ms"
    mark = " *" if found["verdict"] == "noisy" else ""
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]{mark}"


if __name__ == "__main__":
    sys.exit(main())
