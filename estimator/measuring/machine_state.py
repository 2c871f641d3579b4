"""How fast and how hot the cores are at this moment, where Linux says so.

It belongs to the record of a measurement and not to the device's fingerprint: it changes from minute to minute.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from estimator.measuring.records import MachineState

__all__ = ["read_machine_state"]

_SYS = Path("/sys")


def read_machine_state(cores: Sequence[int], *, sys: Path = _SYS) -> MachineState:
    """The state of these logical cores now; what the kernel does not tell is None.

    Clock rates and governors come from `cpufreq`, throttles from `thermal_throttle`, the temperature from the hottest
    of the thermal zones. Virtual machines mostly have none of them.
    """
    folders = [sys / "devices" / "system" / "cpu" / f"cpu{core}" for core in cores]
    kilohertz = _numbers(folder / "cpufreq" / "scaling_cur_freq" for folder in folders)
    governors = {text for folder in folders if (text := _text(folder / "cpufreq" / "scaling_governor"))}
    throttles = _numbers(folder / "thermal_throttle" / "core_throttle_count" for folder in folders)
    millidegrees = _numbers(sorted((sys / "class" / "thermal").glob("thermal_zone*/temp")))
    return MachineState(
        frequency_hz=statistics.fmean(kilohertz) * 1e3 if kilohertz else None,
        governor=", ".join(sorted(governors)) or None,
        num_throttles=sum(throttles) if throttles else None,
        temperature_celsius=max(millidegrees) / 1e3 if millidegrees else None,
    )


def _numbers(paths: Iterable[Path]) -> list[int]:
    texts = [_text(path) for path in paths]
    return [int(text) for text in texts if text is not None and text.lstrip("-").isdecimal()]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
