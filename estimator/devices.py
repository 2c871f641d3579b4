"""Named devices: what their makers publish. A number that is not published is None, never a guess."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from estimator.errors import UnknownDeviceError

__all__ = ["DEVICE_KINDS", "NUMBERS", "RATE_DTYPES", "SEGMENTS", "Device", "Source", "get_device", "load_devices"]

DEVICE_KINDS = ("cpu", "gpu", "accelerator")
SEGMENTS = ("embedded", "phone", "laptop", "desktop", "workstation", "server")
RATE_DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8", "int4")
# The fields of a device that come from a document, in the order in which they are shown.
NUMBERS = (
    "num_cores",
    "clock_hz",
    "instruction_set",
    "memory_bytes",
    "memory_bandwidth_bytes_per_s",
    "l2_cache_bytes",
    "l3_cache_bytes",
    "peak_flops_per_s",
    "tdp_w",
    "price_usd",
)


_MAKERS = {"label", "nvidia", "amd", "intel", "apple", "tesla", "geforce", "instinct", "radeon"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a number was published: document, address, and the year and month of the publication."""

    title: str
    url: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One row of devices.toml. `sources` names the origin of every number that is not None, by field name.

    `kind` is cpu, gpu or accelerator (matrix units that run no general code); `family` the maker's generation, such as
    ampere, cdna2 or zen4; `segment` what it is sold for. `num_cores` counts a CPU's cores, all sorts together, and a
    GPU's fp32 lanes; `clock_hz` is the highest published rate of any of them. `instruction_set` is a CPU's widest for
    matrix products. `l2_cache_bytes` and `l3_cache_bytes` are totals of the device; a GPU's memory-side cache counts as
    its L3. `peak_flops_per_s` holds dense rates by number type (RATE_DTYPES; an integer multiply and add count as two),
    fp32 without TF32. `memory_bytes` is None for a processor sold without memory.
    """

    name: str
    label: str
    kind: str
    family: str
    segment: str
    num_cores: int | None
    clock_hz: float | None
    instruction_set: str | None
    memory_bytes: int | None
    memory_bandwidth_bytes_per_s: float | None
    l2_cache_bytes: int | None
    l3_cache_bytes: int | None
    peak_flops_per_s: dict[str, float]
    tdp_w: float | None
    price_usd: float | None
    note: str
    sources: dict[str, Source]
    origin: str = "published"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, with title, address and date for each number."""
        values = {
            name: getattr(self, name) for name in ("name", "label", "kind", "family", "segment", *NUMBERS, "note")
        }
        sources = {name: {"title": s.title, "url": s.url, "date": s.date} for name, s in self.sources.items()}
        return values | {"sources": sources, "origin": self.origin}


@functools.cache
def load_devices() -> dict[str, Device]:
    """All devices by name, in the order of the table."""
    return {name: _device(name) for name in _read_table()[1]}


def get_device(name: str) -> Device:
    """The device of that name, whatever its case; spaces and underscores count as hyphens.

    Words of one device's label in any order are a name too: "A100-40GB-PCIe" is NVIDIA A100 PCIe 40 GB.

    Raises:
        UnknownDeviceError: names the devices that are closest, or how to list them.
    """
    key = name.strip().lower().replace(" ", "-").replace("_", "-")
    devices = _read_table()[1]
    if key in devices:
        return _device(key)
    asked = _words(key)
    named = [device for device, row in devices.items() if asked and asked <= _words(f"{device} {row.splitlines()[0]}")]
    if len(named) == 1:
        return _device(named[0])
    import difflib

    holding = named or [device for device in devices if key and key in device]
    close = holding[:3] or difflib.get_close_matches(key, devices, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "`estimator devices` lists the names"
    raise UnknownDeviceError(f"unknown device {name[:60]!r}; {hint}")


@functools.cache
def _read_table() -> tuple[dict[str, Source], dict[str, str]]:
    """The sources, and the text of each row by name; parsing all rows takes some 40 ms, which few commands need."""
    text = resources.files("estimator").joinpath("devices.toml").read_text(encoding="utf-8")
    head, *rows = text.split("\n[devices.")
    sources = {key: Source(**source) for key, source in tomllib.loads(head)["sources"].items()}
    return sources, {name: body for name, _, body in (row.partition("]\n") for row in rows)}


@functools.cache
def _device(name: str) -> Device:
    sources, rows = _read_table()
    row = tomllib.loads(rows[name])
    own = row.get("source_of", {})
    given = [number for number in NUMBERS if row.get(number) is not None]
    return Device(
        name=name,
        label=row["label"],
        kind=row["kind"],
        family=row["family"],
        segment=row["segment"],
        num_cores=row.get("num_cores"),
        clock_hz=row.get("clock_hz"),
        instruction_set=row.get("instruction_set"),
        memory_bytes=_whole(row.get("memory_bytes")),
        memory_bandwidth_bytes_per_s=row.get("memory_bandwidth_bytes_per_s"),
        l2_cache_bytes=_whole(row.get("l2_cache_bytes")),
        l3_cache_bytes=_whole(row.get("l3_cache_bytes")),
        peak_flops_per_s=row.get("peak_flops_per_s", {}),
        tdp_w=row.get("tdp_w"),
        price_usd=row.get("price_usd"),
        note=row.get("note", ""),
        sources={number: sources[own.get(number, row["source"])] for number in given},
    )


def _words(text: str) -> set[str]:
    """The words of a device's name or label without its maker's; a number and its unit are one word, SXM5 is SXM."""
    joined = re.sub(r"sxm\d", "sxm", re.sub(r"(\d) gb", r"\1gb", text.lower()))
    return set(re.findall(r"[a-z0-9.]+", joined)) - _MAKERS


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
