"""The card of an exported model: every figure with its origin, how it was found, and how to load the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nas.records import Artifact, StudyRecord, TrialRecord
from nas.table import column_of, describe_config, describe_weights, format_value

__all__ = ["model_card"]

_ORIGINS = """\
- **counted**: exact, from the config or the file.
- **modelled**: a formula.
- **measured**: ran on the device below, on this very ONNX file.
"""

_ONNX_DECODER = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
prompt = np.frombuffer(b"def main(", np.uint8).astype(np.int64)[None]  # a token is a byte
inputs = {"input_ids": prompt, "position_ids": np.arange(prompt.shape[1])[None]}
for past in session.get_inputs()[2:]:  # nothing yet: prefill is the call with a past of length 0
    inputs[past.name] = np.zeros((1, past.shape[1], 0, past.shape[3]), np.float32)
logits, *present = session.run(None, inputs)
print(bytes([logits[0, -1, :256].argmax()]))
"""

_ONNX_ENCODER = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
text = np.frombuffer(b"def main(self):", np.uint8).astype(np.int64)[None]  # a token is a byte
text[0, 5] = 256  # the mask
inputs = {value.name: np.zeros_like(text) for value in session.get_inputs()}
inputs |= {"input_ids": text, "attention_mask": np.ones_like(text)}
logits = session.run(["logits"], inputs)[0]
print(bytes([logits[0, 5, :256].argmax()]))
"""

_TRANSFORMERS = """\
import torch
from transformers import CLASS

model = CLASS.from_pretrained(".")
logits = model(input_ids=torch.tensor([list(b"def main(")])).logits
"""


def model_card(study: StudyRecord, trial: TrialRecord, artifact: Artifact, folder: Path) -> str:
    """The text of README.md for the files of `folder`, in Markdown with the front matter of a Hugging Face card."""
    return "\n".join(
        [
            *_head(study, trial),
            *_figures(study, trial),
            *_measurement(trial),
            *_training(study, trial),
            *_files(artifact, folder),
            *_usage(trial, folder),
        ]
    )


def _head(study: StudyRecord, trial: TrialRecord) -> Iterator[str]:
    task = "text-generation" if trial.config.is_causal else "fill-mask"
    yield f"---\npipeline_tag: {task}\ntags:\n- archfront\n- onnx\n---\n"
    yield f"# {study.name}, trial {trial.number}\n"
    yield f"{describe_config(trial.config)}. A {trial.config.architecture} over bytes, found by Archfront in the space"
    yield f"`{study.spec.space.name}`. Architecture `{trial.architecture_hash}`.\n"


def _figures(study: StudyRecord, trial: TrialRecord) -> Iterator[str]:
    yield "## Figures\n"
    yield "| figure | value | 95 % interval | exact | origin |\n|---|---|---|---|---|"
    for name, figure in trial.figures.items():
        column = column_of(name, study.spec)
        bounds = [format_value(bound, column.unit) for bound in (figure.low, figure.high) if bound is not None]
        exact = f"{figure.value:.10g} {column.unit}".strip()
        value = format_value(figure.value, column.unit)
        yield f"| {column.label} | {value} | {' to '.join(bounds) or '-'} | {exact} | {figure.origin} |"
    yield f"\n{_ORIGINS}"


def _measurement(trial: TrialRecord) -> Iterator[str]:
    if trial.measurement is None:
        return
    measurement = trial.measurement
    yield "## Device and protocol\n"
    yield from _bullets(measurement["device"])
    yield from _bullets(measurement["workload"])
    for phase in filter(None, (measurement["prefill"], measurement["decode"])):
        num_samples = sum(map(len, phase["raw_samples_s"]))
        yield (
            f"- {phase['phase']}: {num_samples} samples, verdict {phase['verdict']}, raw median "
            f"{format_value(phase['raw_median_s'], 's')}, {phase['sequence_length']} tokens after "
            f"{phase['past_length']}, batch {phase['batch_size']}"
        )
    yield from (f"- warning: {warning}" for warning in measurement["warnings"])
    yield ""


def _training(study: StudyRecord, trial: TrialRecord) -> Iterator[str]:
    settings, quality = study.spec.quality, trial.quality or {}
    yield "## Quality\n"
    yield from _bullets({name: quality.get(name) for name in ("metric", "tokens_scored", "data_fingerprint")})
    yield f"- evaluator: {settings.evaluator}"
    yield f"- weights: {describe_weights(settings)}"
    if settings.evaluator == "train":
        names = ", ".join(Path(path).name for path in settings.data)  # where they lay is the owner's business
        yield f"- data: {names or 'the source of the standard library of Python'}"
        budget = f"{settings.tokens} tokens" if settings.seconds is None else f"{settings.seconds:g} s"
        yield f"- training budget: {budget}, the same for every trial"
        training = quality.get("training", {})
        yield from _bullets(
            {
                "tokens trained on": training.get("tokens"),
                "training time in seconds": training.get("seconds"),
                "last training loss in nats per token": training.get("final_loss"),
            }
        )
        yield from _bullets(
            {name: getattr(settings, name) for name in ("sequence_length", "batch_size", "learning_rate", "seed")}
        )
    yield ""


def _files(artifact: Artifact, folder: Path) -> Iterator[str]:
    yield "## Files\n"
    yield f"`model.onnx` is the very file that was measured and scored: opset {artifact.opset}, weights in"
    yield f"{artifact.weight_dtype}. The checkpoint holds the same weights in fp32.\n"
    yield "| file | bytes | sha256 |\n|---|---|---|"
    for path in sorted(folder.iterdir()):
        yield f"| `{path.name}` | {path.stat().st_size} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
    yield ""


def _usage(trial: TrialRecord, folder: Path) -> Iterator[str]:
    yield "## Use\n\nWith ONNX Runtime:\n"
    yield f"```python\n{_ONNX_DECODER if trial.config.is_causal else _ONNX_ENCODER}```\n"
    yield "With transformers:\n"
    stock = "AutoModelForCausalLM" if trial.config.is_causal else "AutoModelForMaskedLM"
    code = _TRANSFORMERS.replace("CLASS", stock)
    if "auto_map" in json.loads((folder / "config.json").read_text()):
        yield "No stock class has this architecture: its modelling code lies in this folder; read it first.\n"
        code = code.replace('from_pretrained(".")', 'from_pretrained(".", trust_remote_code=True)')
    yield f"```python\n{code}```"


def _bullets(values: Mapping[str, Any]) -> Iterator[str]:
    """One line for each value that is known."""
    for name, value in values.items():
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            shown = f"{value:.6g}" if isinstance(value, float) else shown
            yield f"- {name.replace('_', ' ')}: {shown}"
