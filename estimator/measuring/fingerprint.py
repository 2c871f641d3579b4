"""What machine this is, in the terms that decide how fast a graph runs."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import psutil

from estimator.measuring.cores import default_num_threads
from estimator.measuring.records import DeviceFingerprint

__all__ = ["host_fingerprint"]

# Instruction sets that ONNX Runtime's CPU kernels choose by, as Linux names them.
_INSTRUCTION_SETS = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
)


def host_fingerprint(*, provider: str = "cpu", num_threads: int | None = None) -> DeviceFingerprint:
    """This machine with a provider and a thread count (None: the default)."""
    model, instruction_sets = _cpu_facts()
    return DeviceFingerprint(
        cpu_model=model,
        architecture=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        instruction_sets=instruction_sets,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        onnxruntime_version=_onnxruntime_version(),
        provider=provider,
        num_threads=num_threads or default_num_threads(),
        accelerator=_gpu_name() if provider == "cuda" else None,
    )


@lru_cache(maxsize=1)
def _cpu_facts() -> tuple[str | None, tuple[str, ...]]:
    """Model name and instruction sets, from Linux's /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None, ()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    model = facts.get("model name") or facts.get("Model") or platform.processor() or None
    return model, tuple(name for name in _INSTRUCTION_SETS if name in flags)


def _onnxruntime_version() -> str:
    for distribution in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    import onnxruntime  # built from source, without a distribution

    return str(onnxruntime.__version__)


def _gpu_name() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None
