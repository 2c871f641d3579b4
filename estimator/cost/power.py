"""What a device draws: for being awake, for every byte it moves and for every FLOP it computes, by class of device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from estimator.achievable import device_class
from estimator.devices import Device

__all__ = ["POWER_CLASSES", "PowerClass", "power_class_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerClass:
    """Shares of the power limit (TDP) of a device.

    `awake_share` is drawn as long as it runs, `bandwidth_share` would be added at the published peak of its bandwidth
    and `compute_share` at that of its arithmetic, both beyond what is reached; no more than 1 is drawn. The energy of a
    real run lies between the modelled energy over `below` and times `above`, in nine of ten cases as far as known:
    devices that wait for their host take longer, so the interval reaches further up than down. Power itself lies
    within a factor of `power_spread`. `training_share` is the average of a training run with a share of the host,
    within a factor of `training_spread`.
    """

    name: str
    awake_share: float
    bandwidth_share: float
    compute_share: float
    below: float
    above: float
    power_spread: float
    training_share: float
    training_spread: float
    source: str


_GPU_SOURCE = (
    "chosen on one H100 of the ML.ENERGY leaderboard v3.0 (2025-12): Llama-3.1-8B decoding draws 0.69, 0.87 and 0.99 "
    "of 700 W at batch 8, 64 and 256; the interval holds all 70 runs of Llama 3.1, Qwen3, Gemma 3 and gpt-oss there, "
    "and 91 of 98 on one B200"
)
_GPU_TRAINING = (
    "training at the limit, as LLaMA's authors take it (arXiv:2302.13971, table 15); V100 drew 1.1 of theirs with "
    "a share of the host (Patterson et al., arXiv:2104.10350, table 4)"
)
_NO_RUNS = "no measured energy at hand: as other GPUs, with the limit reached at what the class sustains"


def _gpu(name: str, compute_share: float, below: float, source: str) -> PowerClass:
    return PowerClass(
        name=name,
        awake_share=0.25,
        bandwidth_share=0.6,
        compute_share=compute_share,
        below=below,
        above=2.2,
        power_spread=1.6,
        training_share=1.0,
        training_spread=1.4,
        source=f"{source}; {_GPU_TRAINING}",
    )


# A GPU that sustains less of its peak for its power limit's sake draws the whole limit there: compute shares are about
# 0.75 over the sustained fraction of `achievable.py`, but for `gpu`, where they were chosen on measured runs.
POWER_CLASSES: Mapping[str, PowerClass] = {
    "gpu": _gpu("gpu", 1.6, 1.5, _GPU_SOURCE),
    "gpu-dense": _gpu("gpu-dense", 1.8, 1.7, _NO_RUNS),
    "gpu-low-power": _gpu("gpu-low-power", 2.1, 1.7, _NO_RUNS),
    "gpu-power-limited": _gpu("gpu-power-limited", 3.0, 1.7, _NO_RUNS),
    "gpu-cdna": _gpu("gpu-cdna", 1.7, 1.7, _NO_RUNS),
    "accelerator": PowerClass(
        name="accelerator",
        awake_share=0.25,
        bandwidth_share=0.4,
        compute_share=1.0,
        below=2.0,
        above=2.5,
        power_spread=1.8,
        training_share=0.62,
        training_spread=1.4,
        source="no measured energy of requests at hand; training on TPU v3 drew 0.54 to 0.69 of 450 W with a share of "
        "the host (Patterson et al., arXiv:2104.10350, table 4)",
    ),
    "cpu": PowerClass(
        name="cpu",
        awake_share=0.4,
        bandwidth_share=0.5,
        compute_share=0.8,
        below=3.0,
        above=3.5,
        power_spread=2.0,
        training_share=0.8,
        training_spread=1.6,
        source="no measured energy at hand: between half of the TDP, which CodeCarbon takes for a CPU whatever it "
        "does, and the whole of it; the interval is that of the time",
    ),
}


def power_class_of(device: Device) -> PowerClass:
    """What devices of this class draw."""
    return POWER_CLASSES.get(device_class(device), POWER_CLASSES[device.kind])
