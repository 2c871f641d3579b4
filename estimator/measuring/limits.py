"""What a measuring process may take: memory, processor time, size of files. A process can only lower its own limits."""

from __future__ import annotations

import contextlib
import math
import resource
from pathlib import Path

import psutil

__all__ = ["default_memory_limit_bytes", "limit_this_process"]

# A fifth of the machine stays for everything else that runs on it.
_MEMORY_SHARE = 0.8
# Nothing is written but one answer and what the runtime says; a kernel cache of a GPU is the largest that is known.
_MAX_FILE_BYTES = 2**30
# Beyond its time on the clock on every thread, for starting and ending.
_EXTRA_CPU_S = 10
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STATUS = Path("/proc/self/status")


def default_memory_limit_bytes(*, limits: tuple[Path, ...] = _CGROUP_LIMITS) -> int:
    """Four fifths of the machine's memory, or of what its container may take."""
    total = psutil.virtual_memory().total
    return int(_MEMORY_SHARE * min([total, *(bytes_ for path in limits if (bytes_ := _number(path)))]))


def limit_this_process(*, memory_bytes: int, time_s: float, num_threads: int) -> None:
    """Takes away from this process what no candidate needs; from then on it fails or ends where it asks for more.

    Memory is what the process may map for itself to write to (RLIMIT_DATA), beyond what it has now: an allocation above
    that fails, before a page of it is touched. Processor time holds for all threads together, and ends the process
    even where nobody is left to do so. Core files are not written. Where a platform does not know a limit, it is not
    set: macOS has none for memory.
    """
    cpu_s = math.ceil(time_s * (num_threads + 1)) + _EXTRA_CPU_S
    _lower(resource.RLIMIT_DATA, memory_bytes + _mapped_bytes())
    _lower(resource.RLIMIT_CPU, cpu_s, hard=cpu_s + _EXTRA_CPU_S)
    _lower(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, soft: int, *, hard: int | None = None) -> None:
    """Sets a limit, unless a lower one holds already."""
    present = [value for value in resource.getrlimit(kind) if value != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (min([soft, *present]), min([soft if hard is None else hard, *present[1:]])))


def _mapped_bytes() -> int:
    """What counts against RLIMIT_DATA now; 0 where the kernel does not say."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def _number(path: Path) -> int | None:
    """The limit in a file of a control group; None when there is no file or no limit."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
