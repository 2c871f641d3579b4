"""Calibrations of this user, one JSON file per device in `calibrations/` of the user's data folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from estimator.achievable import Achievable
from estimator.devices import Device, Source, get_device
from estimator.errors import CorruptFileError, UnknownDeviceError
from estimator.user_data import user_data_dir, write_text_atomically

__all__ = ["THIS_MACHINE", "Profile", "find_device", "forget_profile", "keep_profile", "profile_path"]

THIS_MACHINE = "this-machine"
_NUMBERS = ("fp32_fraction", "matrix_fraction", "bandwidth_fraction", "spread")


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
    if name.strip().lower() == THIS_MACHINE:
        profile = read_profile(THIS_MACHINE)
        if profile is None or profile.machine is None:
            raise UnknownDeviceError("this machine was not calibrated yet: run `estimator calibrate`")
        return profile.machine, profile.achievable
    device = get_device(name)
    profile = read_profile(device.name)
    return device, None if profile is None else profile.achievable


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
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path} is no calibration ({error}); delete it, or calibrate again") from error
    if not _is_profile(values):
        raise CorruptFileError(f"{path} is no calibration; delete it, or calibrate again")
    machine = values["machine"]
    if machine is not None:
        sources = {name: Source(**source) for name, source in machine["sources"].items()}
        machine = Device(**{**machine, "sources": sources})
    return Profile(**{**values, "achievable": Achievable(**values["achievable"]), "machine": machine})


def profile_path(device: str) -> Path:
    """Where a device's calibration is kept; it may not exist."""
    return user_data_dir() / "calibrations" / f"{device}.json"


def _is_profile(values: Any) -> bool:
    if not isinstance(values, Mapping) or set(values) != {field.name for field in fields(Profile)}:
        return False
    inner, machine = values["achievable"], values["machine"]
    if not isinstance(inner, Mapping) or set(inner) != {field.name for field in fields(Achievable)}:
        return False
    if machine is not None and (
        not isinstance(machine, Mapping) or set(machine) != {field.name for field in fields(Device)}
    ):
        return False
    return all(isinstance(inner[name], int | float) and 0 < inner[name] < 1e6 for name in _NUMBERS)
