"""What the command line measures: an ONNX file of ours, or one built for the purpose from a config."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from estimator.config import TransformerConfig
from estimator.errors import InputError, StorageFullError
from estimator.weight_types import stored_weight_bytes, weight_dtypes
from estimator.workload import Workload

if TYPE_CHECKING:
    from estimator.onnx_builder import OnnxArtifact

__all__ = ["Subject", "check", "prepare", "sizes_of", "talk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured: the file, and the config it was built from."""

    path: Path
    config: TransformerConfig
    weight_dtype: str
    weight_bytes: int


def check(source: str) -> None:
    """Nothing, if there is such a file or model.

    Raises:
        InputError: the source is not understood.
    """
    from estimator.onnx_builder import read_artifact
    from estimator.readers.source import read_source

    if source.endswith(".onnx"):
        read_artifact(Path(source))
    else:
        read_source(source)


def prepare(source: str, folder: Path, *, weight_dtype: str | None, provider: str, name: str = "model.onnx") -> Subject:
    """The file itself, or the source built into `folder` with random weights (None: fp32).

    Raises:
        InputError: the source is not understood, or the file has another weight type.
        StorageFullError: the folder has no room for the file.
    """
    from estimator.onnx_builder import build_onnx, read_artifact
    from estimator.readers.source import read_source

    if source.endswith(".onnx"):
        artifact = read_artifact(Path(source))
        if weight_dtype not in (None, artifact.weight_dtype):
            raise InputError(f"{source} has {artifact.weight_dtype} weights; leave --weight-dtype out")
        return _subject_of(artifact)
    config = read_source(source).config
    weight_dtype = weight_dtype or "fp32"
    _check_space(stored_weight_bytes(config, weight_dtypes(config, weight_dtype)), folder)
    talk(f"building {source} as ONNX with random weights ...")
    return _subject_of(build_onnx(config, path=folder / name, weight_dtype=weight_dtype, provider=provider))


def sizes_of(workload: Workload) -> str:
    """The workload's sizes as people read them."""
    return f"batch {workload.batch_size}, prompt {workload.prompt_length}, generated {workload.generated_length}"


def talk(text: str) -> None:
    """A line for people, on standard error."""
    sys.stderr.write(text + "\n")


def _subject_of(artifact: OnnxArtifact) -> Subject:
    from estimator.onnx_builder import read_config

    return Subject(
        path=artifact.path,
        config=read_config(artifact.path),
        weight_dtype=artifact.weight_dtype,
        weight_bytes=artifact.weight_bytes,
    )


def _check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFullError(
            f"the ONNX file takes {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB left; "
            "set TMPDIR to a larger disk, or choose a smaller model"
        )
