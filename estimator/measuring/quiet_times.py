"""The yardsticks' quiet times of this machine: a small file per device fingerprint in the user's data folder.

All measurements of a study, and of later ones, are multiples of these few numbers, so they are found once and kept.
Times found on a busy machine are provisional: each measurement tries again, and keeps the lower ones, until the machine
was quiet. Then they are final: a second process that calibrated at the same time takes those that are there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from estimator.measuring.records import DeviceFingerprint
from estimator.measuring.yardstick import YARDSTICKS
from estimator.user_data import user_data_dir, write_text_atomically

__all__ = ["QuietTimes", "keep_quiet_times", "known_quiet_times"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietTimes:
    """Seconds of one call by yardstick. `is_final`: found while other processes left the machine alone."""

    seconds: dict[str, float]
    is_final: bool


def known_quiet_times(device: DeviceFingerprint) -> tuple[QuietTimes | None, str | None]:
    """The times that are kept, or None when there are none yet; and a warning when the file could not be read."""
    path = _path(device)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        seconds = {name: float(document["quiet_s"][name]) for name in YARDSTICKS}
        if all(math.isfinite(value) and value > 0 for value in seconds.values()):
            return QuietTimes(seconds=seconds, is_final=document["is_final"] is True), None
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None, f"the quiet times in {path} cannot be read; they were measured anew"


def keep_quiet_times(device: DeviceFingerprint, found: QuietTimes) -> tuple[QuietTimes, str | None]:
    """Keeps new times, unless final ones are there or provisional ones are lower; those that hold, and a warning."""
    path = _path(device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            known, _ = known_quiet_times(device)
            times = found if known is None else _better(known, found)
            document = {"device": device.to_dict(), "quiet_s": times.seconds, "is_final": times.is_final}
            write_text_atomically(path, json.dumps(document, indent=2))
    except OSError as error:
        return found, f"the yardstick's quiet times could not be kept ({error}); they hold for this measurement alone"
    return times, None


def _better(known: QuietTimes, found: QuietTimes) -> QuietTimes:
    if known.is_final or found.is_final:
        return known if known.is_final else found
    lower = {name: min(value, found.seconds[name]) for name, value in known.seconds.items()}
    return QuietTimes(seconds=lower, is_final=False)


def _path(device: DeviceFingerprint) -> Path:
    return user_data_dir() / "yardsticks" / f"{device.hash}.json"
