"""The bundled reference data: its tables, its models, and what the words of its rows stand for."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from estimator.errors import InputError
from estimator.network import Network
from estimator.readers.source import read_bundled, source_of_values
from estimator.training.memory import OPTIMIZERS, LoraPlan

__all__ = ["Mode", "model_rows", "named_network", "read_mode", "reference_network", "reference_rows"]

# Words of a mode -> the field of `Mode` that they set. Those of _FILLERS say nothing, and all others are refused.
_SAYS: Mapping[str, tuple[str, str | bool]] = {
    "inference": ("is_training", False),
    "training": ("is_training", True),
    "pure": ("scheme", "pure"),
    "amp": ("scheme", "amp"),
    "mixed": ("scheme", "mixed"),
    "bf16": ("dtype", "bf16"),
    "fp16": ("dtype", "fp16"),
    "fp32": ("dtype", "fp32"),
    "checkpointing": ("checkpointing", "full"),
    "eager": ("fused_attention", False),
    "sdpa": ("fused_attention", True),
    "flash": ("fused_attention", True),
    "lora": ("adapters", "lora"),
    "qlora": ("adapters", "qlora"),
    **{name: ("optimizer", name) for name in OPTIMIZERS},
}
_RANK = re.compile(r"\b(?:rank|r)\s*=?\s*(\d+)\b")
_FILLERS = frozenset(("full", "activation", "gradient", "attention", "precision", "optimizer", "with", "pytorch"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What a row of `training_memory.tsv` measured. `scheme`: pure, amp or mixed; `dtype` the type it computes in.

    `adapters` is lora or qlora where only adapters of rank `rank` are trained, else empty.
    """

    is_training: bool
    dtype: str
    scheme: str = "pure"
    optimizer: str = "adamw"
    checkpointing: str = "none"
    fused_attention: bool = True
    adapters: str = ""
    rank: int = 16

    @property
    def lora(self) -> LoraPlan | None:
        """The adapters of a TrainingPlan; QLoRA keeps the frozen weights in nf4."""
        if not self.adapters:
            return None
        return LoraPlan(rank=self.rank, base_dtype="nf4" if self.adapters == "qlora" else None)

    @property
    def precision(self) -> str:
        """The precision of a TrainingPlan."""
        return self.dtype if self.scheme == "pure" else f"{self.scheme}-{self.dtype}"


def read_mode(text: str) -> Mode:
    """The mode that words such as "full training, pure bf16, AdamW" name.

    Autocast without a type computes in bf16.

    Raises:
        InputError: a word is not understood, or inference or training, or the number type, is missing.
    """
    said: dict[str, str | bool | int] = {}
    rank = _RANK.search(text.lower())
    if rank is not None:
        said["rank"] = int(rank[1])
    for word in re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", _RANK.sub("", text.lower())):
        if word in _FILLERS:
            continue
        if word not in _SAYS:
            raise InputError(f"mode {text!r}: {word!r} is not understood")
        field, value = _SAYS[word]
        said[field] = value
    if said.get("scheme") in ("amp", "mixed"):
        said.setdefault("dtype", "bf16")
    if not {"is_training", "dtype"} <= set(said):
        raise InputError(f"mode {text!r} must say inference or training, and bf16, fp16 or fp32")
    return Mode(**said)  # type: ignore[arg-type]


def reference_rows(*names: str) -> list[dict[str, str]]:
    """The rows of a table of the reference data, by its folder (if it is in one) and name."""
    return list(csv.DictReader(_text(*names).splitlines(), delimiter="\t"))


def model_rows() -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Folder and row of every model with a published config, and of those with published hyperparameters."""
    for folder in ((), ("published",)):
        for row in reference_rows(*folder, "params_truth.tsv"):
            yield folder, row


@functools.cache
def reference_network(*names: str) -> Network:
    """The network of a config of the reference data, by its folder (if it is in one) and name.

    Raises:
        InputError: the reader refuses it.
    """
    *folder, config = names
    return source_of_values(json.loads(_text(*folder, "configs", f"{config}.json")), config).network


@functools.cache
def named_network(model: str) -> Network:
    """The network of a model that a measured row names: a bundled one, else a config of the reference data.

    Raises:
        InputError: no such model, or the reader refuses it.
    """
    for folder in ((), ("published",)):
        if resources.files("estimator").joinpath("reference", *folder, "configs", f"{model}.json").is_file():
            return reference_network(*folder, model)
    return read_bundled(model).network


def _text(*names: str) -> str:
    return resources.files("estimator").joinpath("reference", *names).read_text(encoding="utf-8")
