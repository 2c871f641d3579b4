"""Which part of a device's published peaks real runs reach, by class of device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from estimator.devices import Device

__all__ = ["CLASSES", "FRACTIONS", "Achievable", "achievable_of", "device_class"]

FRACTIONS = ("fp32_fraction", "matrix_fraction", "bandwidth_fraction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Achievable:
    """Fractions of the peaks that forward passes sustain.

    `fp32_fraction` holds for fp32 outside of matrix units, `matrix_fraction` for every other type, `bandwidth_fraction`
    for reading weights and caches. `operator_s` is what one operator takes beside its work. A real run lies between the
    modelled time over and times `spread`, in nine of ten cases as far as known. `origin` is modelled for a class,
    predicted when at least one fraction was learnt from measurements of the device: those in `learnt`, for which
    `learnt_spread` takes the place of `spread`.
    """

    name: str
    fp32_fraction: float
    matrix_fraction: float
    bandwidth_fraction: float
    spread: float
    origin: str
    source: str
    operator_s: float = 0.0
    learnt: tuple[str, ...] = ()
    learnt_spread: float = 1.0

    def spread_of(self, fraction: str) -> float:
        """How far a time that this fraction decides may lie off, as a factor."""
        return self.learnt_spread if fraction in self.learnt else self.spread

    def origin_of(self, fraction: str) -> str:
        """Where a time that this fraction decides comes from: predicted if the fraction was learnt, else modelled."""
        return "predicted" if fraction in self.learnt else "modelled"


# What a kernel of a few rows takes on a GPU from one launch to the next within a captured graph. PyTorch without graphs
# takes 5 to 10 us; a model that is large enough to ask about hides that behind its work.
_GPU_OPERATOR_S = 2e-6
_CLASS_SOURCE = {
    "gpu": (
        "fp32: forward passes published with NeuSight (ASPLOS 2025) reach 0.58 to 0.69 of the vector peak on P100, "
        "V100 and A100; matrix units: 0.38 to 0.43 in training Llama 3 on H100 (arXiv:2407.21783, table 4), more in "
        "prefill; bandwidth: Llama-3.1-8B decoding on H100 (ML.ENERGY) reads its weights at 0.8 of it, with 2 us per "
        "operator"
    ),
    "gpu-dense": (
        "boards above 100 W that promise more than 0.2 TFLOP/s of fp32 per watt (A10, L40, RTX 6000 Ada): between "
        "those that reach their clock and L4, whose power limit leaves 0.2; no measured runs at hand"
    ),
    "gpu-low-power": (
        "boards of at most 100 W that promise up to 0.2 TFLOP/s of fp32 per watt (P4, T4, Jetson): a quarter to a half "
        "of the peak is sustained within the power limit"
    ),
    "gpu-power-limited": (
        "boards of at most 100 W that promise more than 0.2 TFLOP/s of fp32 per watt: 0.18 to 0.22 on L4, forward "
        "passes published with NeuSight (ASPLOS 2025)"
    ),
    "gpu-cdna": (
        "fp32 on the matrix cores of AMD CDNA: 0.43 to 0.48 of that peak on MI210, forward passes published with "
        "NeuSight (ASPLOS 2025)"
    ),
    "accelerator": "no measured runs at hand: as a GPU, with a wider interval",
    "cpu": (
        "clocks under vector load, cores shared with others and small matrices vary widely; `estimator calibrate` "
        "measures this machine"
    ),
}


def _class(
    name: str, fp32: float, matrix: float, bandwidth: float, spread: float, operator_s: float = _GPU_OPERATOR_S
) -> Achievable:
    return Achievable(
        name=name,
        fp32_fraction=fp32,
        matrix_fraction=matrix,
        bandwidth_fraction=bandwidth,
        spread=spread,
        origin="modelled",
        source=_CLASS_SOURCE[name],
        operator_s=operator_s,
    )


# A card's clock falls until the board stays within its power limit; the more FLOP/s are promised per watt, the further.
# The fractions are kept by class, never by row: `estimator validate` prints what they miss by.
CLASSES: Mapping[str, Achievable] = {
    row.name: row
    for row in (
        _class("gpu", 0.62, 0.5, 0.8, 1.7),
        _class("gpu-dense", 0.4, 0.4, 0.8, 2.0),
        _class("gpu-low-power", 0.42, 0.35, 0.8, 1.8),
        _class("gpu-power-limited", 0.2, 0.25, 0.8, 1.8),
        _class("gpu-cdna", 0.44, 0.4, 0.7, 1.7),
        _class("accelerator", 0.5, 0.45, 0.7, 2.0),
        _class("cpu", 0.6, 0.4, 0.6, 3.0, operator_s=0.0),
    )
}
_LOW_POWER_W = 100.0
_DENSE_FLOPS_PER_S_PER_W = 0.2e12
_TWO_DIES = "both dies"  # so the label of a board says that programs see as two devices


def achievable_of(device: Device) -> Achievable:
    """What a device of this class sustains; of a board with two dies, a program uses one and so half of the peaks."""
    found = CLASSES[device_class(device)]
    if _TWO_DIES not in device.label:
        return found
    halves = {name: getattr(found, name) / 2 for name in FRACTIONS}
    source = f"{found.source}; halved, because a program sees one of the board's two dies"
    return replace(found, name=f"{found.name}-one-die", source=source, **halves)


def device_class(device: Device) -> str:
    """The class of a device: its kind, and for a GPU its maker's generation, power limit and promise per watt."""
    if device.kind != "gpu":
        return device.kind
    if device.family.startswith("cdna"):
        return "gpu-cdna"
    if device.tdp_w is None:
        return "gpu"
    is_dense = device.peak_flops_per_s.get("fp32", 0.0) / device.tdp_w > _DENSE_FLOPS_PER_S_PER_W
    if device.tdp_w > _LOW_POWER_W:
        return "gpu-dense" if is_dense else "gpu"
    return "gpu-power-limited" if is_dense else "gpu-low-power"
