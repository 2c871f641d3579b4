"""Everything that can be said about a config without building it, in one record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from estimator.achievable import Achievable
from estimator.config import TransformerConfig
from estimator.devices import Device, get_device
from estimator.flops import FlopCount, count_flops
from estimator.latency import LatencyEstimate, estimate_latency
from estimator.memory import MemoryEstimate, count_kv_cache_bytes, estimate_memory
from estimator.network import Network, Stack
from estimator.params import ParamCount, count_params
from estimator.phases import longest_sequence
from estimator.roofline import peak_rate
from estimator.weights import network_of
from estimator.workload import Workload

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a model needs for a workload, and on a device if one is given.

    `fits` is None when there is no device or its memory is not known. `name` is how the model was called, if at all.
    `config` is None for a network that can be sized but not built here. `stored_bytes` are those of the weights as a
    file holds them, if they were counted from one. Of a network known by its weights only, nothing else is said.
    """

    network: Network
    config: TransformerConfig | None
    workload: Workload
    params: ParamCount
    memory: MemoryEstimate
    compute: FlopCount
    device: Device | None = None
    latency: LatencyEstimate | None = None
    fits: bool | None = None
    warnings: tuple[str, ...] = ()
    name: str | None = None
    stored_bytes: int | None = None

    @property
    def origins(self) -> dict[str, str]:
        """The origin word of every figure of `to_dict()`, by its path."""
        counted = [
            f"params.{name}" for name in ("total", "active", "active_non_embedding", "embedding", "non_embedding")
        ]
        for name in ("by_part", "by_stack", "by_layer"):
            counted += [f"params.{name}.{key}" for key in getattr(self.params, name)]
        counted += ["memory.weights_bytes", "memory.kv_cache_bytes", "memory.state_bytes"]
        counted += ["compute.prefill_flops", "compute.prefill_causal_flops"]
        counted += [f"compute.prefill_by_operator.{name}" for name in self.compute.prefill_by_operator]
        if self.compute.decode_by_operator is not None:
            counted += ["compute.decode_flops_per_token"]
            counted += [f"compute.decode_by_operator.{name}" for name in self.compute.decode_by_operator]
        modelled = ["memory.activations_bytes", "memory.total_bytes"]
        modelled += ["memory.prefill_activations_bytes", "memory.decode_activations_bytes"]
        modelled += ["memory.total_low_bytes", "memory.total_high_bytes"]
        if self.memory.runtime_bytes is not None:
            modelled.append("memory.runtime_bytes")
        if self.fits is not None:
            modelled.append("fits")
        origins = dict.fromkeys(counted, "counted") | dict.fromkeys(modelled, "modelled")
        if self.network.has_only_weights:
            return {path: origin for path, origin in origins.items() if path.startswith("params.")} | {
                "memory.weights_bytes": "counted"
            }
        timed = {} if self.latency is None else self.latency.origins
        return origins | {f"latency.{name}": origin for name, origin in timed.items()}

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `estimator size --json`; its keys are a contract."""
        document: dict[str, Any] = {
            "model": {
                "name": self.name,
                "architecture": self.network.architecture,
                "model_type": self.network.model_type,
                "architecture_hash": (self.config or self.network).architecture_hash(),
                "stacks": [_stack_dict(stack) for stack in self.network.stacks],
                "config": None if self.config is None else self.config.to_dict(),
            },
            "workload": asdict(self.workload),
            "params": asdict(self.params) | {"by_layer": {k: list(v) for k, v in self.params.by_layer.items()}},
            "memory": asdict(self.memory),
            "compute": asdict(self.compute),
            "fits": self.fits,
            "warnings": list(self.warnings),
            "origins": self.origins,
        }
        if self.network.has_only_weights:
            document["memory"] |= dict.fromkeys(document["memory"], None) | {"weights_bytes": self.memory.weights_bytes}
            document["compute"] |= dict.fromkeys(document["compute"], None)
        if self.device is not None:
            document["device"] = self.device.to_dict()
            none = {"prefill_s": None, "decode_s_per_token": None}
            document["latency"] = none if self.latency is None else self.latency.to_dict()
        return document


def estimate(
    model: TransformerConfig | Network,
    workload: Workload | None = None,
    device: Device | str | None = None,
    achievable: Achievable | None = None,
    *,
    stored_bytes: int | None = None,
) -> Estimate:
    """Counts parameters, bytes and FLOPs of a model, and models its time on a device.

    Args:
        model: a config that can be built, or a network.
        workload: batch, lengths and number types; `Workload()` when not given.
        device: one of `load_devices()` or its name; without it there is no latency and `fits` is None.
        achievable: which part of its peaks the device sustains; that of its class when not given.
        stored_bytes: bytes of the weights as a file holds them, in place of the workload's weight type.

    Raises:
        UnknownDeviceError: no device of that name.
    """
    workload = workload or Workload()
    network = network_of(model)
    device = get_device(device) if isinstance(device, str) else device
    memory = estimate_memory(network, workload, device, stored_bytes=stored_bytes)
    latency = None
    if device is not None and not network.has_only_weights:
        latency = estimate_latency(network, workload, device, achievable, stored_bytes=stored_bytes)
    return Estimate(
        network=network,
        config=model if isinstance(model, TransformerConfig) else None,
        workload=workload,
        device=device,
        params=count_params(network),
        memory=memory,
        compute=count_flops(network, workload),
        latency=latency,
        fits=_fits(network, memory, device),
        stored_bytes=stored_bytes,
        warnings=(*_workload_warnings(network, workload), *_device_warnings(workload, memory, device)),
    )


def _fits(network: Network, memory: MemoryEstimate, device: Device | None) -> bool | None:
    """None when the device's memory, or what the model needs beside weights that would fit, is not known."""
    if device is None or device.memory_bytes is None:
        return None
    if network.has_only_weights:
        return False if memory.weights_bytes > device.memory_bytes else None
    return memory.total_bytes <= device.memory_bytes


def _stack_dict(stack: Stack) -> dict[str, Any]:
    return {
        "name": stack.name,
        "num_hidden_layers": len(stack.layers),
        "hidden_size": stack.hidden_size,
        "length": stack.length,
    }


def _workload_warnings(network: Network, workload: Workload) -> list[str]:
    warnings = []
    longest, needed = network.max_position_embeddings, longest_sequence(network, workload)
    if longest is not None and needed > longest:
        what = "has no learned positions" if network.learned_positions else "was not trained"
        warnings.append(f"{needed:,} tokens are more than the {longest:,} beyond which it {what}")
    if workload.generated_length and not network.is_causal:
        warnings.append("an encoder generates nothing; the generated tokens count as nothing but context")
    if workload.num_images and not any(stack.optional for stack in network.stacks):
        warnings.append("the model reads no images beside its input; num_images changes nothing")
    return warnings + _idle_options(network, workload)


def _idle_options(network: Network, workload: Workload) -> list[str]:
    """Warnings for what was asked of a model that has no part for it to change."""
    if network.has_only_weights:
        return []
    warnings = []
    if workload.prompt_length != Workload().prompt_length and all(stack.length for stack in network.stacks):
        warnings.append("the model's input has one length; prompt_length changes nothing")
    if workload.cache_scales is not None and count_kv_cache_bytes(network, workload, 1) == 0:
        warnings.append(f"the model keeps no keys and values; a cache in {workload.kv_cache_dtype} changes nothing")
    if workload.logits == "last" and (not network.logits_width or network.architecture != "decoder"):
        kind = "an encoder computes all logits" if network.architecture == "encoder" else "it has no others"
        warnings.append(f"logits of the last position change nothing: {kind}")
    has_attention = any(block.attention is not None for stack in network.stacks for block in stack.blocks)
    if workload.attention is not None and not has_attention:
        warnings.append("the model has no softmax attention; how it runs changes nothing")
    return warnings


def _device_warnings(workload: Workload, memory: MemoryEstimate, device: Device | None) -> list[str]:
    if device is None:
        return []
    warnings = []
    if memory.runtime_bytes is None:
        warnings.append(f"the total leaves out what a runtime takes on {device.name}: there is no model for it yet")
    if device.memory_bytes is None:
        warnings.append(f"{device.name} is sold without memory, so whether it fits is not known")
    elif memory.total_bytes > device.memory_bytes:
        warnings.append(f"does not fit: {memory.total_bytes:,} bytes of {device.memory_bytes:,}")
    elif memory.total_high_bytes > device.memory_bytes:
        warnings.append(f"fits, but {memory.runtime} may take up to {memory.total_high_bytes:,} bytes in all")
    rates = device.peak_flops_per_s
    if not rates or device.memory_bandwidth_bytes_per_s is None:
        warnings.append(f"no latency: {device.name} has no published arithmetic rate or bandwidth")
    elif device.kind == "gpu" and workload.weight_dtype in ("int8", "fp8") and workload.weight_dtype in rates:
        name = workload.weight_dtype
        warnings.append(f"the time is that of products in {name}, so of activations that are {name} too")
    elif workload.activation_dtype not in rates and peak_rate(workload, device) == rates.get("fp32"):
        warnings.append(f"{device.name} has no published {workload.activation_dtype} rate; the time is that of fp32")
    return warnings
