"""The yardsticks' quiet times of this machine: a small file per device fingerprint in the user's data folder.

All measurements of a study, and of later ones, are multiples of these few numbers, so they are found once and kept.
Whoever comes first decides: a second process that calibrated at the same time takes the file that is there.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

from estimator.measuring.records import DeviceFingerprint
from estimator.measuring.yardstick import YARDSTICK_BY_PHASE
from estimator.user_data import user_data_dir

__all__ = ["keep_quiet_times", "known_quiet_times"]

QuietTimes = dict[str, float]


def known_quiet_times(device: DeviceFingerprint) -> tuple[QuietTimes | None, str | None]:
    """Seconds by yardstick as kept, or None when there are none yet; and a warning when the file could not be read."""
    path = _path(device)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["quiet_s"]
        times = {name: float(values[name]) for name in YARDSTICK_BY_PHASE.values()}
        if all(math.isfinite(value) and value > 0 for value in times.values()):
            return times, None
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None, f"the quiet times in {path} cannot be read; they were measured anew"


def keep_quiet_times(device: DeviceFingerprint, times: QuietTimes) -> tuple[QuietTimes, str | None]:
    """Keeps new quiet times unless another process was first; the times that hold, and a warning if none are kept."""
    path = _path(device)
    document = json.dumps({"device": device.to_dict(), "quiet_s": times}, indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
            complete = Path(scratch) / path.name
            complete.write_text(document, encoding="utf-8")
            try:
                os.link(complete, path)  # fails when the file exists: exactly one process wins
            except FileExistsError:
                theirs, _ = known_quiet_times(device)
                if theirs is not None:
                    return theirs, None
                complete.replace(path)
    except OSError as error:
        return times, f"the yardstick's quiet times could not be kept ({error}); they hold for this measurement alone"
    return times, None


def _path(device: DeviceFingerprint) -> Path:
    return user_data_dir() / "yardsticks" / f"{device.hash}.json"
