"""Sizes, builds and measures one transformer.

The names below load their modules on first use, so that `estimator size` answers without numpy, onnx or onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from estimator.config import TransformerConfig
from estimator.workload import Workload

if TYPE_CHECKING:
    from estimator.measuring import Measurement, measure
    from estimator.onnx_builder import OnnxArtifact, build_onnx
    from estimator.sizing import Estimate, estimate

__all__ = [
    "Estimate",
    "Measurement",
    "OnnxArtifact",
    "TransformerConfig",
    "Workload",
    "build_onnx",
    "estimate",
    "measure",
]

_HOMES = {
    "Estimate": "estimator.sizing",
    "estimate": "estimator.sizing",
    "Measurement": "estimator.measuring",
    "measure": "estimator.measuring",
    "OnnxArtifact": "estimator.onnx_builder",
    "build_onnx": "estimator.onnx_builder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'estimator' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
