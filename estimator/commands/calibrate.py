"""The command `estimator calibrate`: measured rates in place of published ones, for this machine or a named device."""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import asdict
from typing import Any

from estimator.achievable import Achievable, achievable_of
from estimator.calibrating.points import Point, fit_points, modelled_time, read_points
from estimator.calibrating.profiles import THIS_MACHINE, Profile, forget_profile, keep_profile
from estimator.devices import Device, get_device
from estimator.display import print_json, shorten
from estimator.errors import InputError

__all__ = ["add_parser", "run"]

_DESCRIPTION = """Learns what a device sustains, and keeps it for `size`, `fit` and searches.

Alone: this machine, with ONNX Runtime, in about 20 seconds: products per second by type and threads, memory bandwidth,
what a call takes. It is then the device `this-machine`.

With --device and --from: latencies that were measured on a device that is not here, as a table with the columns
model, sequence_length, batch_size, latency_ms and, where wanted, device, phase (prefill or decode), dtype (fp32, fp16,
bf16). One point is enough; more narrow the interval. Models are bundled names or paths of a config.json.
"""
_EXAMPLES = """examples:
  estimator calibrate                                     then: estimator size gpt2 --device this-machine
  estimator calibrate --device l4 --from points.tsv
  estimator calibrate --device l4 --forget                back to the fractions of its class"""

_BUSY_SHARE = 0.25
_BUSY = "others used over a quarter of the cores meanwhile: calibrate again on a quieter machine"


def add_parser(commands: Any) -> None:
    """Adds `calibrate` to the subparsers of the command line."""
    parser = commands.add_parser(
        "calibrate",
        help="learn what this machine, or a device with measured points, sustains",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", metavar="D", help="a name from `estimator devices`")
    parser.add_argument("--from", dest="points", metavar="FILE", help="a table of measured latencies")
    parser.add_argument("--forget", action="store_true", help="remove the calibration of the device")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fits and keeps a calibration, or removes one; 0.

    Raises:
        InputError: device, file or a point is not understood. OSError: the calibration cannot be written.
    """
    if args.device is None or args.device == THIS_MACHINE:
        return _run_machine(args)
    device = get_device(args.device)
    if args.forget:
        existed = forget_profile(device.name)
        print(f"{device.name} is back to its class" if existed else f"{device.name} had no calibration")
        return 0
    if args.points is None:
        raise InputError("calibrate --device needs --from FILE, a table of measured latencies, or --forget")
    points = read_points(args.points, device)
    achievable = fit_points(device, points)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = keep_profile(Profile(device=device.name, achievable=achievable, points=len(points), date=today))
    if args.json:
        print_json({"device": device.name, "achievable": asdict(achievable), "points": len(points), "path": str(path)})
        return 0
    print(_table(device, achievable, points))
    print(f"\nkept in {path}\nnext: estimator size {points[0].model} --device {device.name}", file=sys.stderr)
    return 0


def _run_machine(args: argparse.Namespace) -> int:
    if args.points is not None:
        raise InputError("--from holds the points of a named device: give --device NAME with it")
    if args.forget:
        print("this machine's calibration is gone" if forget_profile(THIS_MACHINE) else "this machine had none")
        return 0
    from estimator.calibrating.machine import machine_achievable, machine_device, probe_machine

    probes = probe_machine(lambda text: print(text, file=sys.stderr))
    device, achievable = machine_device(probes), machine_achievable(probes)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    profile = Profile(device=THIS_MACHINE, achievable=achievable, points=0, date=today, machine=device)
    path = keep_profile(profile)
    busy = max(probe.others_share for probe in probes) > _BUSY_SHARE
    if args.json:
        warnings = [_BUSY] if busy else []
        probed = [asdict(probe) for probe in probes]
        print_json({"device": device.to_dict(), "probes": probed, "path": str(path), "warnings": warnings})
        return 0
    print(device.label)
    print(f"{'threads':>8}{'fp32':>16}{'int8':>16}{'bandwidth':>14}{'one operator':>15}")
    for probe in probes:
        rates = (shorten(rate, "FLOP/s") for rate in (probe.fp32_flops_per_s, probe.int8_flops_per_s))
        cells = "".join(f"{cell:>16}" for cell in rates)
        bandwidth = shorten(probe.bandwidth_bytes_per_s, "B/s")
        print(f"{probe.num_threads:>8}{cells}{bandwidth:>14}{shorten(probe.operator_s, 's'):>15}")
    if busy:
        print(f"warning: {_BUSY}")
    print(f"\nkept in {path}\nnext: estimator size gpt2 --device {THIS_MACHINE}", file=sys.stderr)
    return 0


def _table(device: Device, achievable: Achievable, points: tuple[Point, ...]) -> str:
    start = achievable_of(device)
    lines = [f"{device.label}, {len(points)} points", ""]
    lines.append(
        f"{'model':<22}{'length':>8}{'batch':>7}  {'phase':<8}{'measured':>12}{'of its class':>14}{'calibrated':>12}"
    )
    for point in points[:20]:
        modelled = (modelled_time(device, point, chosen).time_s.value for chosen in (start, achievable))
        before, after = (f"{time / point.latency_s - 1:+.0%}" for time in modelled)
        lines.append(
            f"{point.model[:21]:<22}{point.sequence_length:>8,}{point.batch_size:>7,}  {point.phase:<8}"
            f"{shorten(point.latency_s, 's'):>12}{before:>14}{after:>12}"
        )
    if len(points) > 20:
        lines.append(f"... and {len(points) - 20:,} more")
    lines += ["", f"{'fraction of the peak':<34}{'class':>8}{'calibrated':>12}"]
    for name in ("fp32_fraction", "matrix_fraction", "bandwidth_fraction"):
        lines.append(f"{name:<34}{getattr(start, name):>8.2f}{getattr(achievable, name):>12.2f}")
    lines.append(f"{'interval, times and divided by':<34}{start.spread:>8.2f}{achievable.spread:>12.2f}")
    return "\n".join(lines)
