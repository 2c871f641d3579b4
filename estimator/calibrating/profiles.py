"""Calibrations of this user, one JSON file per device in `calibrations/` of the user's data folder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from estimator.achievable import FRACTIONS, Achievable
from estimator.devices import Device, Source, get_device
from estimator.errors import CorruptFileError, UnknownDeviceError
from estimator.user_data import user_data_dir, write_text_atomically

__all__ = [
    "THIS_MACHINE",
    "Profile",
    "find_device",
    "forget_profile",
    "is_this_machine",
    "keep_profile",
    "profile_path",
    "read_profile",
]

THIS_MACHINE = "this-machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What measuring says of a device. `date` is when it was measured; `points` how many points there were.

    `machine` is the device itself where it is in no table: this machine.
    """

    device: str
    achievable: Achievable
    points: int
    date: str
    machine: Device | None = None


def find_device(name: str) -> tuple[Device, Achievable | None]:
    """The device of that name, and what its calibration says it sustains, if this user has one.

    Raises:
        UnknownDeviceError: no such device, or this machine was never calibrated.
        CorruptFileError: its calibration cannot be read.
    """
    if is_this_machine(name):
        profile = read_profile(THIS_MACHINE)
        if profile is None or profile.machine is None:
            raise UnknownDeviceError("this machine was not calibrated yet: run `estimator calibrate`")
        return profile.machine, profile.achievable
    device = get_device(name)
    profile = read_profile(device.name)
    return device, None if profile is None else profile.achievable


def is_this_machine(name: str) -> bool:
    """Whether a device's name means this machine, in any spelling that `get_device` allows."""
    return name.strip().lower().replace(" ", "-").replace("_", "-") == THIS_MACHINE


def keep_profile(profile: Profile) -> Path:
    """Writes the calibration in place of an earlier one; the file's path.

    Raises:
        OSError: the folder cannot be written.
    """
    path = profile_path(profile.device)
    write_text_atomically(path, json.dumps(asdict(profile), indent=2) + "\n")
    return path


def forget_profile(device: str) -> bool:
    """Removes a device's calibration; whether there was one."""
    path = profile_path(device)
    existed = path.is_file()
    path.unlink(missing_ok=True)
    return existed


def read_profile(device: str) -> Profile | None:
    """The calibration of a device, or None.

    Raises:
        CorruptFileError: the file is not what `keep_profile` writes.
    """
    path = profile_path(device)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is no calibration ({error}); delete it, or calibrate again") from error
    try:
        profile = _profile(values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CorruptFileError(f"{path} is no calibration of this version; delete it, or calibrate again") from error
    if profile.device != device:
        raise CorruptFileError(f"{path} is a calibration of {profile.device}; delete it, or calibrate again")
    return profile


def profile_path(device: str) -> Path:
    """Where a device's calibration is kept; it may not exist."""
    return user_data_dir() / "calibrations" / f"{device}.json"


def _profile(values: Any) -> Profile:
    """The record of these values; TypeError, ValueError, KeyError or AttributeError where they are none."""
    learnt = tuple(values["achievable"]["learnt"])
    achievable = Achievable(**{**values["achievable"], "learnt": learnt})
    factors = [getattr(achievable, name) for name in (*FRACTIONS, "spread", "learnt_spread")]
    machine = None if values["machine"] is None else _machine(values["machine"])
    if not set(learnt) <= set(FRACTIONS) or not _are_numbers(*factors) or not 0 <= achievable.operator_s < 1:
        raise ValueError("not what calibrating gives")
    return Profile(**{**values, "achievable": achievable, "machine": machine})


def _machine(values: Any) -> Device:
    sources = {name: Source(**source) for name, source in values["sources"].items()}
    device = Device(**{**values, "sources": sources})
    if not _are_numbers(device.memory_bytes, device.memory_bandwidth_bytes_per_s, *device.peak_flops_per_s.values()):
        raise ValueError("not what calibrating gives")
    return device


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and 0 < value < math.inf for value in values)
