"""Real latency and memory of an ONNX file, measured with ONNX Runtime in a child process."""

from __future__ import annotations

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
    "DeviceFingerprint",
    "MachineState",
    "Measurement",
    "MeasurementPlan",
    "PhaseLatency",
    "RequestLatency",
    "host_fingerprint",
    "measure",
]
