"""The command `estimator calibrate`: measured rates in place of published ones, for this machine or a named device."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from dataclasses import asdict
from typing import Any

from estimator.achievable import FRACTIONS, Achievable, achievable_of
from estimator.calibrating.points import Point, fit_points, modelled_time, read_points
from estimator.calibrating.profiles import THIS_MACHINE, Profile, forget_profile, is_this_machine, keep_profile
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

_BUSY = "others used over a tenth of the cores meanwhile, so the interval is wider: calibrate again when it is quiet"
_MOST_SHOWN = 20


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
    here = args.device is None or is_this_machine(args.device)
    name = THIS_MACHINE if here else get_device(args.device).name
    if args.forget:
        if args.points is not None:
            raise InputError("--forget removes a calibration and reads no points: leave --from out")
        return _forget(name, args)
    if here:
        return _calibrate_machine(args)
    if args.points is None:
        raise InputError("calibrate --device needs --from FILE, a table of measured latencies, or --forget")
    return _calibrate_device(get_device(name), args)


def _forget(name: str, args: argparse.Namespace) -> int:
    existed = forget_profile(name)
    if args.json:
        print_json({"device": name, "forgotten": existed})
    else:
        print(f"the calibration of {name} is gone" if existed else f"{name} had no calibration")
    return 0


def _calibrate_device(device: Device, args: argparse.Namespace) -> int:
    points = read_points(args.points, device)
    achievable = fit_points(device, points)
    path = keep_profile(Profile(device=device.name, achievable=achievable, points=len(points), date=_today()))
    if args.json:
        print_json({"device": device.name, "achievable": asdict(achievable), "points": len(points), "path": str(path)})
        return 0
    print(_table(device, achievable, points))
    model = shlex.quote(points[0].model)
    print(f"\nkept in {path}\nnext: estimator size {model} --device {device.name}", file=sys.stderr)
    return 0


def _calibrate_machine(args: argparse.Namespace) -> int:
    if args.points is not None:
        raise InputError("--from holds the points of a named device: give --device NAME with it")
    from estimator.calibrating.machine import is_busy, machine_achievable, machine_device, probe_machine

    probes = probe_machine(lambda text: print(text, file=sys.stderr))
    device, achievable = machine_device(probes), machine_achievable(probes)
    profile = Profile(device=THIS_MACHINE, achievable=achievable, points=0, date=_today(), machine=device)
    path = keep_profile(profile)
    warnings = [_BUSY] if is_busy(probes) else []
    if args.json:
        probed = [asdict(probe) for probe in probes]
        document = {"device": device.to_dict(), "achievable": asdict(achievable), "probes": probed}
        print_json(document | {"path": str(path), "warnings": warnings})
        return 0
    print(device.label)
    print(f"{'threads':>8}{'fp32':>16}{'int8':>16}{'bandwidth':>14}{'one operator':>15}")
    for probe in probes:
        rates = (shorten(rate, "FLOP/s") for rate in (probe.fp32_flops_per_s, probe.int8_flops_per_s))
        cells = "".join(f"{cell:>16}" for cell in rates)
        bandwidth = shorten(probe.bandwidth_bytes_per_s, "B/s")
        print(f"{probe.num_threads:>8}{cells}{bandwidth:>14}{shorten(probe.operator_s, 's'):>15}")
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"\nkept in {path}\nnext: estimator size gpt2 --device {THIS_MACHINE}", file=sys.stderr)
    return 0


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _table(device: Device, achievable: Achievable, points: tuple[Point, ...]) -> str:
    start = achievable_of(device)
    lines = [f"{device.label}, {len(points)} point{'s' * (len(points) > 1)}", ""]
    lines.append(
        f"{'model':<22}{'length':>8}{'batch':>7}  {'phase':<8}{'measured':>12}{'of its class':>14}{'calibrated':>12}"
    )
    for point in points[:_MOST_SHOWN]:
        modelled = (modelled_time(device, point, chosen).time_s.value for chosen in (start, achievable))
        before, after = (f"{time / point.latency_s - 1:+.0%}" for time in modelled)
        lines.append(
            f"{point.model[:21]:<22}{point.sequence_length:>8,}{point.batch_size:>7,}  {point.phase:<8}"
            f"{shorten(point.latency_s, 's'):>12}{before:>14}{after:>12}"
        )
    if len(points) > _MOST_SHOWN:
        lines.append(f"... and {len(points) - _MOST_SHOWN:,} more")
    lines += ["", f"{'fraction of the peak':<34}{'class':>8}{'calibrated':>12}"]
    for name in FRACTIONS:
        learnt = f"{getattr(achievable, name):>12.2f}" if name in achievable.learnt else f"{'no point':>12}"
        lines.append(f"{name:<34}{getattr(start, name):>8.2f}{learnt}")
    lines.append(f"{'interval, times and divided by':<34}{start.spread:>8.2f}{achievable.learnt_spread:>12.2f}")
    return "\n".join(lines)
