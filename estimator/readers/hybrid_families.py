"""Hybrid and recurrent families, from model type to reader. Source: the classes of transformers 5.24."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from estimator.network import Network
from estimator.readers.fields import Fields
from estimator.readers.hybrids import (
    bamba,
    falcon_h1,
    falcon_mamba,
    granite_hybrid,
    jamba,
    mamba2_model,
    mamba_model,
)

__all__ = ["READERS"]

READERS: Mapping[str, Callable[[Fields], Network]] = {
    "bamba": bamba,
    "falcon_h1": falcon_h1,
    "falcon_mamba": falcon_mamba,
    "granitemoehybrid": granite_hybrid,
    "jamba": jamba,
    "mamba": mamba_model,
    "mamba2": mamba2_model,
}
