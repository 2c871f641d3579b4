"""Ships one trial: the very ONNX file that was measured and scored, a Hugging Face checkpoint, and a model card."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from estimator.errors import StorageFullError
from nas.errors import StoreError, UsageError
from nas.model_card import model_card
from nas.records import Artifact, StudyRecord, TrialRecord

if TYPE_CHECKING:
    from nas.store import Store

__all__ = ["ONNX_NAME", "ExportedModel", "export_trial", "find_onnx"]

ONNX_NAME = "model.onnx"
CARD_NAME = "README.md"
# Two graphs of the same weights may add in another order.
_SAME_LOGITS = 1e-3

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A folder that was written: its ONNX file has the trial's sha256; `files` are the names of all that is new."""

    folder: Path
    onnx_path: Path
    sha256: str
    files: tuple[str, ...]


def export_trial(
    store: Store, study: StudyRecord, number: int, folder: str | Path, *, force: bool = False
) -> ExportedModel:
    """Writes `model.onnx`, `config.json`, `model.safetensors` and `README.md` of a complete trial into `folder`.

    The folder appears with all files or not at all. `force` writes into a folder that has files already: those of the
    same names are replaced, the others stay.

    Raises:
        UsageError: the trial is not complete or has no file, or the folder is not empty or cannot be written.
        StoreError: the trial's files are missing, or are not those that were measured and scored.
        StorageFullError: there is no space left.
    """
    folder = Path(folder)
    trial = store.trial(study.id, number)
    artifact = _artifact_of(study, trial)
    onnx_path = _checked_onnx(store, artifact)
    weights = _load_weights(store.artifact_dir, artifact)
    with _scratch_for(folder, force) as scratch:
        shutil.copyfile(onnx_path, scratch / ONNX_NAME)
        _check_sha256(scratch / ONNX_NAME, artifact.sha256)
        _check_same_model(trial, artifact, scratch / ONNX_NAME, weights)
        _write_checkpoint(trial, weights, scratch)
        (scratch / CARD_NAME).write_text(model_card(study, trial, artifact, scratch), encoding="utf-8")
        files = tuple(sorted(path.name for path in scratch.iterdir()))
        _move_into_place(scratch, folder)
    return ExportedModel(folder=folder, onnx_path=folder / ONNX_NAME, sha256=artifact.sha256, files=files)


def find_onnx(store: Store, study: StudyRecord, number: int) -> Path:
    """The ONNX file of a complete trial, which is the one that was measured and scored.

    Raises:
        UsageError: the trial is not complete or has no file.
        StoreError: the file is missing, or another one.
    """
    return _checked_onnx(store, _artifact_of(study, store.trial(study.id, number)))


def _checked_onnx(store: Store, artifact: Artifact) -> Path:
    path = store.artifact_dir / artifact.path
    _check_sha256(path, artifact.sha256)
    return path


def _artifact_of(study: StudyRecord, trial: TrialRecord) -> Artifact:
    if trial.state != "complete":
        raise UsageError(
            f"trial {trial.number} of {study.name} is {trial.state}; only a complete trial has a model to ship "
            f"(`nas pareto {study.name}` lists the best)"
        )
    if trial.artifact is None:
        raise UsageError(f"trial {trial.number} of {study.name} was told from outside and has no ONNX file")
    return trial.artifact


def _check_folder(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder that is empty or does not exist")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; name another folder, or give --force to write into it")


def _load_weights(artifact_dir: Path, artifact: Artifact) -> Weights:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if artifact.weights_path is None:
        raise StoreError("no weights are stored beside this ONNX file; a checkpoint cannot be written")
    path = artifact_dir / artifact.weights_path
    try:
        weights: Weights = load_file(path)
    except FileNotFoundError:
        raise StoreError(f"the weights {path} are missing; put them back or search again") from None
    except (OSError, SafetensorError) as error:
        raise StoreError(f"the weights {path} are damaged: {error}; put them back or search again") from error
    return weights


def _check_sha256(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise StoreError(f"the ONNX file {path} is missing; put it back or search again") from None
    except OSError as error:
        raise StoreError(f"the ONNX file {path} cannot be read: {error.strerror}") from error
    if found != sha256:
        raise StoreError(f"{path} is not the file that was measured: its sha256 is {found}, the trial's {sha256}")


def _check_same_model(trial: TrialRecord, artifact: Artifact, onnx_path: Path, weights: Weights) -> None:
    """The stored weights make the stored file: to the bit, or (built by another version) with the same outputs."""
    from estimator.errors import BuildError
    from estimator.onnx_builder import build_onnx

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / ONNX_NAME
        try:
            rebuilt = build_onnx(trial.config, weights, path=path, weight_dtype=artifact.weight_dtype)
        except BuildError as error:
            raise StoreError(f"the weights do not belong to trial {trial.number}: {error}") from error
        if rebuilt.sha256 != artifact.sha256 and not _give_same_outputs(trial, onnx_path, path):
            raise StoreError(f"the weights do not belong to trial {trial.number}: its ONNX file answers otherwise")


def _give_same_outputs(trial: TrialRecord, *paths: Path) -> bool:
    from estimator.ort_session import make_inputs, open_session

    length = min(32, trial.config.max_position_embeddings)
    inputs = make_inputs(trial.config, batch_size=2, sequence_length=length)
    first, second = (open_session(path, num_threads=1).run(None, inputs)[0] for path in paths)
    return bool(np.allclose(first, second, rtol=0, atol=_SAME_LOGITS))


def _write_checkpoint(trial: TrialRecord, weights: Weights, folder: Path) -> None:
    from estimator.checkpoint import write_checkpoint

    write_checkpoint(trial.config, weights, folder)


@contextlib.contextmanager
def _scratch_for(folder: Path, force: bool) -> Iterator[Path]:
    """A hidden folder on the same disk as `folder`, gone afterwards with all that was not moved out of it."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    scratch = None
    try:
        _check_folder(folder, force)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder if folder.is_dir() else folder.parent
        scratch = Path(tempfile.mkdtemp(dir=beside, prefix=".export-"))
        yield scratch
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"{folder}: no space left to write the model; nothing was written") from error
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}; name another folder") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # it holds the model now, or never came to be
                parent.rmdir()


def _move_into_place(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        scratch.chmod(0o755)
        scratch.rename(folder)
        return
    for path in sorted(scratch.iterdir()):
        path.replace(folder / path.name)
