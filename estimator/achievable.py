"""Which part of a device's published peaks real runs reach, by class of device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from estimator.devices import Device

__all__ = ["CLASSES", "Achievable", "achievable_of", "device_class"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Achievable:
    """Fractions of the peaks that forward passes sustain.

    `fp32_fraction` holds for fp32 outside of matrix units, `matrix_fraction` for every other type, `bandwidth_fraction`
    for reading weights and caches. A real run lies between the modelled time over and times `spread`, in nine of ten
    cases as far as known. `origin` is modelled for a class, predicted when it was learnt from points of the device.
    `operator_s` is what one operator takes beside its work, where that was measured.
    """

    name: str
    fp32_fraction: float
    matrix_fraction: float
    bandwidth_fraction: float
    spread: float
    origin: str
    source: str
    operator_s: float = 0.0


_GPU_SOURCE = (
    "fp32: forward passes published with NeuSight (ASPLOS 2025) reach 0.58 to 0.69 of the vector peak on P100, V100 "
    "and A100; matrix units: 0.38 to 0.43 in training Llama 3 on H100 (arXiv:2407.21783, table 4), more in prefill; "
    "bandwidth: Llama-3.1-8B decoding on H100 (ML.ENERGY) reads its weights at 0.61 of it"
)
# A low-power card's clock falls until the board stays within its limit; the more FLOP/s are promised per watt, the
# further. The fractions are kept by class, never by row: `estimator validate` prints what they miss by.
CLASSES: Mapping[str, Achievable] = {
    "gpu": Achievable(
        name="gpu",
        fp32_fraction=0.62,
        matrix_fraction=0.5,
        bandwidth_fraction=0.65,
        spread=1.6,
        origin="modelled",
        source=_GPU_SOURCE,
    ),
    "gpu-low-power": Achievable(
        name="gpu-low-power",
        fp32_fraction=0.42,
        matrix_fraction=0.35,
        bandwidth_fraction=0.65,
        spread=1.8,
        origin="modelled",
        source="boards of at most 100 W that promise up to 0.2 TFLOP/s of fp32 per watt (P4, T4, Jetson): a quarter to "
        "a half of the peak is sustained within the power limit",
    ),
    "gpu-power-limited": Achievable(
        name="gpu-power-limited",
        fp32_fraction=0.22,
        matrix_fraction=0.25,
        bandwidth_fraction=0.65,
        spread=1.8,
        origin="modelled",
        source="boards of at most 100 W that promise more than 0.2 TFLOP/s of fp32 per watt: 0.18 to 0.22 on L4, "
        "forward passes published with NeuSight (ASPLOS 2025)",
    ),
    "gpu-cdna": Achievable(
        name="gpu-cdna",
        fp32_fraction=0.45,
        matrix_fraction=0.4,
        bandwidth_fraction=0.6,
        spread=1.6,
        origin="modelled",
        source="fp32 on the matrix cores of AMD CDNA: 0.43 to 0.48 of that peak on MI210, forward passes published "
        "with NeuSight (ASPLOS 2025)",
    ),
    "accelerator": Achievable(
        name="accelerator",
        fp32_fraction=0.5,
        matrix_fraction=0.45,
        bandwidth_fraction=0.65,
        spread=2.0,
        origin="modelled",
        source="no measured runs at hand: as a GPU, with a wider interval",
    ),
    "cpu": Achievable(
        name="cpu",
        fp32_fraction=0.6,
        matrix_fraction=0.4,
        bandwidth_fraction=0.6,
        spread=3.0,
        origin="modelled",
        source="clocks under vector load, cores shared with others and small matrices vary widely; `estimator "
        "calibrate` measures this machine",
    ),
}
_LOW_POWER_W = 100.0
_DENSE_FLOPS_PER_S_PER_W = 0.2e12


def achievable_of(device: Device) -> Achievable:
    """What a device of this class sustains."""
    return CLASSES[device_class(device)]


def device_class(device: Device) -> str:
    """The class of a device: its kind, and for a GPU its maker's generation and its power limit."""
    if device.kind != "gpu":
        return device.kind
    if device.family.startswith("cdna"):
        return "gpu-cdna"
    if device.tdp_w is None or device.tdp_w > _LOW_POWER_W:
        return "gpu"
    peak = device.peak_flops_per_s.get("fp32", 0.0)
    return "gpu-power-limited" if peak / device.tdp_w > _DENSE_FLOPS_PER_S_PER_W else "gpu-low-power"
