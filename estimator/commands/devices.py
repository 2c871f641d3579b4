"""The command `estimator devices`: the table of devices, or one device with its sources."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from estimator.calibrating.profiles import find_device
from estimator.devices import DEVICE_KINDS, NUMBERS, Device, load_devices
from estimator.display import print_json, shorten
from estimator.errors import InputError

__all__ = ["add_parser", "run"]

_UNITS = {
    "clock_hz": "Hz",
    "memory_bytes": "B",
    "memory_bandwidth_bytes_per_s": "B/s",
    "tdp_w": "W",
}
_HEADINGS = {"cpu": "processors", "gpu": "graphics processors", "accelerator": "other accelerators"}


def add_parser(commands: Any) -> None:
    """Adds `devices` to the subparsers of the command line."""
    parser = commands.add_parser("devices", help="the table of devices, or one with its sources")
    parser.add_argument("name", nargs="?", metavar="NAME", help="show one device with all sources")
    parser.add_argument("--kind", choices=DEVICE_KINDS, help="only the devices of this kind")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table or one device; 0.

    Raises:
        UnknownDeviceError: no device has that name. InputError: it is of another kind.
    """
    if args.name is not None:
        device, _ = find_device(args.name)
        if args.kind not in (None, device.kind):
            raise InputError(f"{device.name} is no {args.kind} but a {device.kind}; leave --kind out")
        if args.json:
            print_json(device.to_dict())
        else:
            sys.stdout.write(_page(device) + "\n")
        return 0
    devices = [device for device in load_devices().values() if args.kind in (None, device.kind)]
    if args.json:
        print_json({"devices": [device.to_dict() for device in devices]})
        return 0
    kinds = [kind for kind in DEVICE_KINDS if any(device.kind == kind for device in devices)]
    sys.stdout.write("\n\n".join(_table(kind, devices) for kind in kinds) + "\n")
    sys.stderr.write("\nnext: estimator devices NAME   (every number with its source and date)\n")
    return 0


def _table(kind: str, devices: Iterable[Device]) -> str:
    rows = [_line(_HEADINGS[kind], "memory", "bandwidth", "fp32", "16 bit", "int8", "power", "device")]
    for device in devices:
        if device.kind == kind:
            rates = device.peak_flops_per_s
            half = max((rates[dtype] for dtype in ("fp16", "bf16") if dtype in rates), default=None)
            rows.append(
                _line(
                    device.name,
                    _known(device.memory_bytes, "B"),
                    _known(device.memory_bandwidth_bytes_per_s, "B/s"),
                    _known(rates.get("fp32"), ""),
                    _known(half, ""),
                    _known(rates.get("int8"), ""),
                    _known(device.tdp_w, "W"),
                    device.label,
                )
            )
    return "\n".join(rows)


def _line(name: str, *cells: str) -> str:
    *numbers, label = cells
    return f"{name:<23}" + "".join(f"{cell:>{w}}" for cell, w in zip(numbers, _WIDTHS, strict=True)) + f"  {label}"


_WIDTHS = (8, 12, 8, 8, 8, 8)


def _page(device: Device) -> str:
    lines = [f"{device.name}: {device.label} ({device.kind}, {device.family}, {device.segment})"]
    given = [number for number in NUMBERS if number in device.sources]
    lines += [f"  {number:<30} {_shown(number, getattr(device, number))}" for number in given]
    lines.append(f"  {'not given':<30} {', '.join(number for number in NUMBERS if number not in given) or '-'}")
    for source in dict.fromkeys(device.sources.values()):
        numbers = [number for number in given if device.sources[number] == source]
        of = "" if numbers == given else f" of {', '.join(numbers)}"
        lines.append(f"  source{of}: {source.title}, {source.date}, {source.url}")
    if device.note:
        lines.append(f"  note: {device.note}")
    return "\n".join(lines)


def _shown(number: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{dtype} {shorten(rate, 'FLOP/s')}" for dtype, rate in value.items())
    if number.endswith("_cache_bytes"):
        return f"{value / 2**20:g} MiB"
    return shorten(value, _UNITS[number]) if number in _UNITS else str(value)


def _known(value: float | None, unit: str) -> str:
    return "-" if value is None else shorten(value, unit)
