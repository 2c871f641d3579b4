"""Which cores a measurement may use, which of them it takes, and what others take of them."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

__all__ = ["choose_cores", "default_num_threads", "others_cpu_s"]

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_num_threads(*, cpus: Path = _CPUS, quota: Path = _QUOTA) -> int:
    """All physical cores that this process may run on, but no more than its container's share of time."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    usable = len(_first_siblings(_available_cores(), cpus)) or physical
    return max(1, min(physical, usable, _quota_cores(quota) or physical))


def choose_cores(num_threads: int, *, available: list[int] | None = None, cpus: Path = _CPUS) -> list[int]:
    """Logical cores for so many threads: one of each physical core, the fastest first, then the highest numbers.

    The first cores serve most interrupts. All that are available when there are more threads than physical cores, and
    none where the platform does not say.
    """
    available = _available_cores() if available is None else available
    cores = _first_siblings(available, cpus)
    if num_threads > len(cores):
        return available
    fastest_first = sorted(cores, key=lambda core: (_top_speed(core, cpus), core), reverse=True)
    return sorted(fastest_first[:num_threads])


def others_cpu_s() -> float:
    """Seconds the cores have spent so far on anything but this process, stolen time of a virtual machine included."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # On Linux, guest time is part of user time.
    busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return float(busy - own.user - own.system)


def _available_cores() -> list[int]:
    process = psutil.Process()
    return list(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else []


def _first_siblings(available: list[int], cpus: Path) -> list[int]:
    """The first available logical core of every physical core."""
    firsts: dict[str, int] = {}
    for core in available:
        siblings = _read(cpus / f"cpu{core}" / "topology" / "thread_siblings_list")
        firsts.setdefault(siblings or str(core), core)
    return list(firsts.values())


def _top_speed(core: int, cpus: Path) -> int:
    """The core's highest clock rate in kHz, 0 where the kernel does not say."""
    return int(_read(cpus / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq") or 0)


def _quota_cores(quota: Path) -> int | None:
    """Cores' worth of time that a cgroup (version 2) gets, rounded up; None without a limit."""
    share, _, period = (_read(quota) or "").partition(" ")
    return math.ceil(int(share) / int(period)) if share.isdecimal() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
