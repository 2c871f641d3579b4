"""How much of its power limit a device draws, by class of device and by how busy it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from estimator.achievable import device_class
from estimator.devices import Device

__all__ = ["POWER_CLASSES", "PowerClass", "power_class_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerClass:
    """Shares of the power limit (TDP): idle, and what moving bytes and computing add when each runs as fast as it can.

    Shares add up, and no more than 1 is drawn. The energy of a real run lies between the modelled energy over `below`
    and times `above`, in nine of ten cases as far as known: runs that wait for the host take longer, so the interval
    reaches further up than down. Power itself lies within a factor of `power_spread`.
    """

    name: str
    idle_share: float
    bandwidth_share: float
    compute_share: float
    below: float
    above: float
    power_spread: float
    source: str

    def share(self, bandwidth_use: float, compute_use: float) -> float:
        """The share of the power limit at these uses, 0 to 1 of what the device sustains."""
        return min(1.0, self.idle_share + self.bandwidth_share * bandwidth_use + self.compute_share * compute_use)


_GPU_SOURCE = (
    "ML.ENERGY leaderboard v3.0 (2025-12): Llama-3.1-8B decoding on an H100 draws 0.69, 0.87 and 0.99 of 700 W at "
    "batch 8, 64 and 256; of requests to Llama 3.1, Qwen3, Gemma 3 and gpt-oss models on one device the interval holds "
    "all 70 runs on an H100 and 91 of 98 on a B200. Training: V100 drew 1.1 of 300 W with their share of the host "
    "(Patterson et al., arXiv:2104.10350, table 4)"
)
# The three shares of `gpu` are chosen by hand to two digits on the runs named there; the others follow from what binds.
POWER_CLASSES: Mapping[str, PowerClass] = {
    "gpu": PowerClass(
        name="gpu",
        idle_share=0.1,
        bandwidth_share=0.55,
        compute_share=0.65,
        below=1.5,
        above=2.2,
        power_spread=1.6,
        source=_GPU_SOURCE,
    ),
    "gpu-low-power": PowerClass(
        name="gpu-low-power",
        idle_share=0.15,
        bandwidth_share=0.6,
        compute_share=0.85,
        below=1.7,
        above=2.2,
        power_spread=1.6,
        source="boards of at most 100 W are held at their power limit when they compute; no measured energy at hand",
    ),
    "gpu-power-limited": PowerClass(
        name="gpu-power-limited",
        idle_share=0.2,
        bandwidth_share=0.65,
        compute_share=0.8,
        below=1.7,
        above=2.2,
        power_spread=1.6,
        source="boards of at most 100 W are held at their power limit when they compute; no measured energy at hand",
    ),
    "gpu-cdna": PowerClass(
        name="gpu-cdna",
        idle_share=0.15,
        bandwidth_share=0.5,
        compute_share=0.65,
        below=1.7,
        above=2.2,
        power_spread=1.6,
        source="no measured energy at hand: as other GPUs, with a wider interval",
    ),
    "accelerator": PowerClass(
        name="accelerator",
        idle_share=0.15,
        bandwidth_share=0.4,
        compute_share=0.5,
        below=2.0,
        above=2.2,
        power_spread=1.6,
        source="training on TPU v3 drew 0.54 to 0.69 of its 450 W with its share of the host (Patterson et al., "
        "arXiv:2104.10350, table 4)",
    ),
    "cpu": PowerClass(
        name="cpu",
        idle_share=0.4,
        bandwidth_share=0.3,
        compute_share=0.5,
        below=3.0,
        above=3.5,
        power_spread=2.0,
        source="no measured energy at hand: between half of the TDP, which CodeCarbon takes for a CPU whatever it "
        "does, and the whole of it; the interval is that of the time",
    ),
}


def power_class_of(device: Device) -> PowerClass:
    """What devices of this class draw."""
    return POWER_CLASSES[device_class(device)]
