"""What a process takes beyond its tensors, by the runtime that executes the model."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.devices import Device
from estimator.errors import InputError
from estimator.workload import Workload

__all__ = [
    "CUDA_CONTEXT_BYTES",
    "RUNTIMES",
    "RUNTIME_BASE_BYTES",
    "RUNTIME_WEIGHTS_PERCENT",
    "Runtime",
    "Span",
    "attention_of",
    "base_bytes",
    "resolve_runtime",
    "runs_on",
    "runtime_bytes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A value and the interval that it was found in."""

    low: int
    value: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime on one kind of device.

    base_bytes: what it takes for itself. workspace: cuBLAS keeps a workspace beside it. weights_percent: copies or
    unfilled regions beside the weights. spare_percent: of the memory by which all widest moments of a pass together
    exceed the widest one, what the allocator has reserved for them. copies_outputs: the result and the new keys and
    values exist twice. reuses_activations: one moment's memory serves the next. attentions: the ways it runs attention,
    the usual one first. score_bytes: what eager attention holds for each score at its widest, None for one element of
    the activations' type.
    """

    name: str
    device_kind: str
    attentions: tuple[str, ...]
    base_bytes: Span
    workspace: bool
    weights_percent: Span
    spare_percent: Span
    copies_outputs: bool
    reuses_activations: bool
    score_bytes: int | None
    source: str


# ONNX Runtime 1.32 on a CPU, measured by benchmarks/runtime_memory.py: loading adds 11 MB and, beside the weights,
# packed copies of about 0.45 of them (0.03 to 0.85 in 48 runs: the allocator gives memory back or not).
RUNTIME_BASE_BYTES = 11_000_000
RUNTIME_WEIGHTS_PERCENT = 45
# The process's memory on the GPU less what PyTorch has reserved. Low and high: 287 MB with kernels loaded when they are
# first called (the default since CUDA 11.7) and 667 MB with all loaded at once, github.com/pytorch/pytorch/pull/86509
# (2022-10). Value: 426 MiB, PyTorch 2.10 with CUDA 13 on an RTX 6000 Ada, github.com/unslothai/unsloth-zoo/pull/1053
# (2026-08).
CUDA_CONTEXT_BYTES = Span(low=287_047_680, value=426 * 2**20, high=666_632_192)
# PyTorch's cuBLAS workspace: 2 * 4 MiB + 8 * 16 KiB, and 8 * 4 MiB from compute capability 9.0 on
# (aten/src/ATen/cuda/CublasHandlePool.cpp, 2024-03; docs.nvidia.com/cuda/cublas, cublasSetWorkspace).
_WORKSPACE_BYTES, _LARGE_WORKSPACE_BYTES = 8_519_680, 33_554_432
_LARGE_WORKSPACE_FAMILIES = ("hopper", "blackwell")
_CUDA_FAMILIES = ("maxwell", "pascal", "volta", "turing", "ampere", "ada", *_LARGE_WORKSPACE_FAMILIES)
_NONE = Span(low=0, value=0, high=0)
# A caching allocator's blocks serve the next moment if they are large enough: between none and all of it is reserved.
_SPARE = Span(low=0, value=50, high=100)
_CONTEXT_SOURCE = "CUDA context: pytorch pull request 86509, unsloth-zoo 1053; cuBLAS workspace: CublasHandlePool.cpp"

RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="onnxruntime-cpu",
            device_kind="cpu",
            attentions=("eager",),
            base_bytes=Span(low=RUNTIME_BASE_BYTES, value=RUNTIME_BASE_BYTES, high=RUNTIME_BASE_BYTES),
            workspace=False,
            weights_percent=Span(low=3, value=RUNTIME_WEIGHTS_PERCENT, high=85),
            spare_percent=_NONE,
            copies_outputs=True,
            reuses_activations=False,
            score_bytes=None,
            source="ONNX Runtime 1.32 on a CPU, measured by benchmarks/runtime_memory.py",
        ),
        Runtime(
            name="onnxruntime-cuda",
            device_kind="gpu",
            attentions=("fused", "eager"),
            base_bytes=CUDA_CONTEXT_BYTES,
            workspace=True,
            # Its arena grows by regions of the next power of two, which weights fill to 1/2 to 1: 1/ln 2 on average
            # (onnxruntime.ai, CUDA execution provider, arena_extend_strategy kNextPowerOfTwo).
            weights_percent=Span(low=0, value=44, high=100),
            spare_percent=_SPARE,
            copies_outputs=True,
            reuses_activations=True,
            score_bytes=None,
            source=_CONTEXT_SOURCE + "; arena: onnxruntime.ai, arena_extend_strategy",
        ),
        Runtime(
            name="pytorch-cpu",
            device_kind="cpu",
            attentions=("fused", "eager"),
            # Without transformers, and with it: 218 and 369 MB of code, and 16 MB that the first pass loads.
            base_bytes=Span(low=234_000_000, value=385_000_000, high=385_000_000),
            workspace=False,
            weights_percent=_NONE,
            # glibc keeps freed blocks of up to 64 MB in its heap: the share lay between these in 8 runs.
            spare_percent=Span(low=0, value=320, high=870),
            copies_outputs=False,
            reuses_activations=True,
            score_bytes=8,
            source="PyTorch 2.13 on a CPU, measured by benchmarks/pytorch_memory.py",
        ),
        Runtime(
            name="pytorch-cuda",
            device_kind="gpu",
            attentions=("fused", "eager"),
            base_bytes=CUDA_CONTEXT_BYTES,
            workspace=True,
            weights_percent=_NONE,
            spare_percent=_SPARE,
            copies_outputs=False,
            reuses_activations=True,
            score_bytes=8,
            source=_CONTEXT_SOURCE,
        ),
    )
}


def resolve_runtime(name: str | None, device: Device | None) -> Runtime | None:
    """The runtime that is meant: the named one, else ONNX Runtime on a CPU or without a device, PyTorch on CUDA.

    None for a GPU or accelerator on which neither of them is known.

    Raises:
        InputError: the named runtime does not run on the device.
    """
    is_cuda = device is not None and device.kind == "gpu" and device.family in _CUDA_FAMILIES
    if name is None:
        if device is None or device.kind == "cpu":
            return RUNTIMES["onnxruntime-cpu"]
        return RUNTIMES["pytorch-cuda"] if is_cuda else None
    runtime = RUNTIMES[name]
    if device is not None and (device.kind != "cpu" if runtime.device_kind == "cpu" else not is_cuda):
        where = "a CPU" if runtime.device_kind == "cpu" else "an NVIDIA GPU"
        able = [other.name for other in RUNTIMES.values() if (other.device_kind == "gpu") == is_cuda]
        instead = f"; choose {' or '.join(able)}" if is_cuda or device.kind == "cpu" else ""
        raise InputError(f"runtime {name} needs {where}, and {device.label} is none{instead}")
    return runtime


def attention_of(workload: Workload, runtime: Runtime | None) -> str:
    """How attention runs: as asked for, else as the runtime does it.

    Raises:
        InputError: the runtime has no such attention.
    """
    ways = ("fused", "eager") if runtime is None else runtime.attentions
    if workload.attention is None:
        return ways[0]
    if workload.attention not in ways:
        named = "the runtime" if runtime is None else runtime.name
        raise InputError(f"{named} has no {workload.attention} attention, only {' and '.join(ways)}")
    return workload.attention


def runs_on(workload: Workload, device: Device) -> bool:
    """Whether the workload's runtime, if it names one, runs on the device, with the attention that is asked for."""
    try:
        attention_of(workload, resolve_runtime(workload.runtime, device))
    except InputError:
        return False
    return True


def base_bytes(runtime: Runtime, device: Device | None) -> Span:
    """What the runtime takes for itself on a device, cuBLAS's workspace with it; without a device the smaller one."""
    if not runtime.workspace:
        return runtime.base_bytes
    large = device is not None and device.family in _LARGE_WORKSPACE_FAMILIES
    workspace, base = _LARGE_WORKSPACE_BYTES if large else _WORKSPACE_BYTES, runtime.base_bytes
    return Span(low=base.low + workspace, value=base.value + workspace, high=base.high + workspace)


def runtime_bytes(
    runtime: Runtime, device: Device | None, *, weights_bytes: int, outputs_bytes: int, spare_bytes: int
) -> Span:
    """Bytes that the process takes beyond weights, cache, state and activations.

    A base, a share of the weights, a share of the spare moments, and a copy of the outputs where the runtime makes one.
    The outputs are the result and the keys and values of the request.
    """
    base, outputs = base_bytes(runtime, device), outputs_bytes if runtime.copies_outputs else 0

    def at(base_part: int, weights_percent: int, spare_percent: int) -> int:
        shares = weights_bytes * weights_percent // 100 + spare_bytes * spare_percent // 100
        return base_part + shares + outputs

    weights, spare = runtime.weights_percent, runtime.spare_percent
    return Span(
        low=at(base.low, weights.low, spare.low),
        value=at(base.value, weights.value, spare.value),
        high=at(base.high, weights.high, spare.high),
    )
