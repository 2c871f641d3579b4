"""Real latency and memory of an ONNX file, measured with ONNX Runtime in a child process."""

from __future__ import annotations

from estimator.measuring.comparison import Comparison, PhaseComparison, measure_pair
from estimator.measuring.fingerprint import host_fingerprint
from estimator.measuring.records import (
    DeviceFingerprint,
    MachineState,
    Measurement,
    MeasurementPlan,
    PhaseLatency,
    RequestLatency,
)
from estimator.measuring.runner import measure

__all__ = [
    "Comparison",
    "DeviceFingerprint",
    "MachineState",
    "Measurement",
    "MeasurementPlan",
    "PhaseComparison",
    "PhaseLatency",
    "RequestLatency",
    "host_fingerprint",
    "measure",
    "measure_pair",
]
