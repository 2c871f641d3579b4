"""Everything that can be said about a config without building it, in one record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from estimator.config import TransformerConfig
from estimator.devices import Device
from estimator.flops import FlopCount, count_flops
from estimator.memory import MemoryEstimate, estimate_memory
from estimator.params import ParamCount, count_params
from estimator.roofline import LatencyBound, bound_latency, peak_rate
from estimator.workload import Workload

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a model needs for a workload, and on a device if one is given.

    `fits` is None when there is no device or its memory is not known. `name` is how the model was called, if at all.
    """

    config: TransformerConfig
    workload: Workload
    params: ParamCount
    memory: MemoryEstimate
    compute: FlopCount
    device: Device | None = None
    latency: LatencyBound | None = None
    fits: bool | None = None
    warnings: tuple[str, ...] = ()
    name: str | None = None

    @property
    def origins(self) -> dict[str, str]:
        """The origin word of every figure of `to_dict()`, by its path."""
        counted = ["params.total", "params.active", "params.embedding", "params.non_embedding"]
        counted += [f"params.by_part.{part}" for part in self.params.by_part]
        counted += ["memory.weights_bytes", "memory.kv_cache_bytes", "memory.state_bytes", "compute.prefill_flops"]
        counted += [f"compute.prefill_by_operator.{name}" for name in self.compute.prefill_by_operator]
        if self.compute.decode_by_operator is not None:
            counted += ["compute.decode_flops_per_token"]
            counted += [f"compute.decode_by_operator.{name}" for name in self.compute.decode_by_operator]
        modelled = ["memory.activations_bytes", "memory.total_bytes"]
        if self.memory.runtime_bytes is not None:
            modelled.append("memory.runtime_bytes")
        if self.latency is not None:
            figures = {"prefill_s": self.latency.prefill_s, "decode_s_per_token": self.latency.decode_s_per_token}
            modelled += [f"latency.{name}" for name, figure in figures.items() if figure is not None]
        if self.fits is not None:
            modelled.append("fits")
        return dict.fromkeys(counted, "counted") | dict.fromkeys(modelled, "modelled")

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `estimator size --json`; its keys are a contract."""
        document: dict[str, Any] = {
            "model": {
                "name": self.name,
                "architecture": self.config.architecture,
                "architecture_hash": self.config.architecture_hash(),
                "config": self.config.to_dict(),
            },
            "workload": asdict(self.workload),
            "params": asdict(self.params),
            "memory": asdict(self.memory),
            "compute": asdict(self.compute),
            "fits": self.fits,
            "warnings": list(self.warnings),
            "origins": self.origins,
        }
        if self.device is not None:
            document["device"] = self.device.to_dict()
        if self.latency is not None:
            document["latency"] = _latency_dict(self.latency)
        return document


def estimate(config: TransformerConfig, workload: Workload | None = None, device: Device | None = None) -> Estimate:
    """Counts parameters, bytes and FLOPs of a config, and bounds its time on a device.

    Args:
        config: the model.
        workload: batch, lengths and number types; `Workload()` when not given.
        device: one of `load_devices()`; without it there is no latency and `fits` is None.
    """
    workload = workload or Workload()
    memory = estimate_memory(config, workload, device)
    capacity = None if device is None else device.memory_bytes
    return Estimate(
        config=config,
        workload=workload,
        device=device,
        params=count_params(config),
        memory=memory,
        compute=count_flops(config, workload),
        latency=None if device is None else bound_latency(config, workload, device),
        fits=None if capacity is None else memory.total_bytes <= capacity,
        warnings=(*_workload_warnings(config, workload), *_device_warnings(workload, memory, device)),
    )


def _latency_dict(latency: LatencyBound) -> dict[str, Any]:
    return {
        "prefill_s": None if latency.prefill_s is None else latency.prefill_s.to_dict(),
        "decode_s_per_token": None if latency.decode_s_per_token is None else latency.decode_s_per_token.to_dict(),
        "prefill_limit": latency.prefill_limit,
        "decode_limit": latency.decode_limit,
    }


def _workload_warnings(config: TransformerConfig, workload: Workload) -> list[str]:
    warnings = []
    longest = config.max_position_embeddings
    if workload.context_length > longest:
        what = "has no learned positions" if config.position_embedding == "learned" else "was not trained"
        warnings.append(f"{workload.context_length:,} tokens are more than the {longest:,} beyond which it {what}")
    if workload.generated_length and not config.is_causal:
        warnings.append("an encoder generates nothing; the generated tokens count as nothing but context")
    return warnings


def _device_warnings(workload: Workload, memory: MemoryEstimate, device: Device | None) -> list[str]:
    if device is None:
        return []
    warnings = []
    if memory.runtime_bytes is None:
        warnings.append("the total leaves out what the GPU's driver and runtime take: there is no model for it yet")
    if device.memory_bytes is None:
        warnings.append(f"{device.name} is sold without memory, so whether it fits is not known")
    elif memory.total_bytes > device.memory_bytes:
        warnings.append(f"does not fit: {memory.total_bytes:,} bytes of {device.memory_bytes:,}")
    rates = device.peak_flops_per_s
    if not rates or device.memory_bandwidth_bytes_per_s is None:
        warnings.append(f"no latency: {device.name} has no published arithmetic rate or bandwidth")
    elif workload.activation_dtype not in rates and peak_rate(workload, device) == rates.get("fp32"):
        warnings.append(f"{device.name} has no published {workload.activation_dtype} rate; the bound uses fp32's")
    return warnings
