"""The work of one candidate's quality, as pure functions that run in a child process: train, build, score."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from estimator.config import TransformerConfig
from estimator.errors import StorageFullError
from nas.quality.corpus import Corpus, load_corpus
from nas.quality.plugin import evaluate_with_plugin, load_evaluator
from nas.records import Artifact
from nas.spec import QualitySettings

__all__ = ["QualityTask", "ScoredArtifact", "data_fingerprint", "quality_key", "train_build_score"]

# Told on the way: the step's name, and the fraction of it that is done (None: not known).
Report = Callable[[tuple[str, float | None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityTask:
    """What to train and on what; `folder` is where the artefact and the trained weights go."""

    config: TransformerConfig
    settings: QualitySettings
    weight_dtype: str
    num_threads: int | None
    provider: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredArtifact:
    """The file that was built and the figures it scored, by objective.

    `quality` is the JSON form of what is known about the score (for trained models, `nas.quality.scoring.Quality` with
    the training's tokens, seconds and learning curve).
    """

    artifact: Artifact
    quality: dict[str, Any]


def data_fingerprint(settings: QualitySettings) -> str:
    """Fingerprint of the text that candidates are trained and scored on, or the name of the evaluator that does it.

    Loads the one or the other, so that what is wrong with it is found before the first candidate.

    Raises:
        DataError: the text is missing, binary or too short.
        UsageError: there is no such evaluator.
    """
    if settings.evaluator == "train":
        return _corpus(settings).fingerprint
    if settings.evaluator != "none":
        load_evaluator(settings.evaluator)
    return settings.evaluator


def quality_key(task: QualityTask, fingerprint: str) -> str:
    """Sixteen hexadecimal digits that change with anything that may change the trained file or its score."""
    facts = [
        task.config.to_dict(),
        asdict(task.settings),
        task.weight_dtype,
        task.num_threads,
        task.provider,
        fingerprint,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def train_build_score(task: QualityTask, key: str, *, progress: Report) -> ScoredArtifact:
    """Weights (trained, or random for an evaluator of the user's own), the ONNX file made of them, and its score.

    Files appear under their final names only when they are complete.

    Raises:
        EvaluationError: the candidate failed; its `reason` says how.
    """
    from estimator.onnx_builder import build_onnx
    from estimator.weights import random_weights

    task.folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    if task.settings.evaluator == "train":
        weights, facts = _train(task, progress)
    else:
        weights = random_weights(task.config, task.settings.seed)
    progress(("building", None))
    weights_path = _save_weights(weights, task.folder / f"{task.config.architecture_hash()}-{key}.safetensors")
    with tempfile.TemporaryDirectory(dir=task.folder, prefix=".build-") as scratch:
        built = build_onnx(
            task.config,
            weights,
            path=Path(scratch) / "model.onnx",
            weight_dtype=task.weight_dtype,
            provider=task.provider,
        )
        path = task.folder / f"{built.sha256}.onnx"
        built.path.replace(path)
    progress(("scoring", None))
    artifact = Artifact(
        sha256=built.sha256,
        path=path.name,
        file_bytes=built.file_bytes,
        opset=built.opset,
        num_params=built.num_params,
        weight_dtype=built.weight_dtype,
        weights_path=weights_path.name,
        architecture_hash=built.architecture_hash,
    )
    return ScoredArtifact(artifact=artifact, quality=_score(task, path) | facts)


def _train(task: QualityTask, progress: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    from nas.quality.training import train_weights

    trained = train_weights(
        task.config,
        _corpus(task.settings),
        task.settings,
        num_threads=task.num_threads,
        progress=lambda fraction: progress(("training", fraction)),
    )
    training = {
        "tokens": trained.tokens,
        "seconds": trained.seconds,
        "final_loss": trained.final_loss,
        "learning_curve": [list(point) for point in trained.learning_curve],
    }
    return trained.weights, {"training": training}


def _score(task: QualityTask, path: Path) -> dict[str, Any]:
    """The score as JSON with `figures` by objective."""
    if task.settings.evaluator == "train":
        from nas.quality.scoring import score_onnx

        quality = score_onnx(
            path, _corpus(task.settings), task.settings, provider=task.provider, num_threads=task.num_threads
        )
        return quality.to_dict() | {"figures": {"bits_per_byte": quality.bits_per_byte.to_dict()}}
    if task.settings.evaluator == "none":
        return {"figures": {}}
    figures = evaluate_with_plugin(task.settings.evaluator, task.config, path)
    return {"figures": {name: figure.to_dict() for name, figure in figures.items()}}


def _save_weights(weights: dict[str, Any], path: Path) -> Path:
    from safetensors.numpy import save

    from estimator.user_data import write_bytes_atomically

    try:
        write_bytes_atomically(path, save(weights))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StorageFullError(f"{path}: no space left for the trained weights") from error
    return path


@lru_cache(maxsize=2)
def _corpus(settings: QualitySettings) -> Corpus:
    return load_corpus(
        settings.data,
        heldout_tokens=settings.heldout_tokens,
        seed=settings.seed,
        sequence_length=settings.sequence_length,
    )
