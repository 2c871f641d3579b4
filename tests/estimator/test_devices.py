"""The device table: complete, sourced, and honest about what is unknown."""

from __future__ import annotations

import json
import re

import pytest

from estimator.devices import DEVICE_KINDS, get_device, load_devices
from estimator.errors import UnknownDeviceError
from estimator.workload import WEIGHT_DTYPES

NUMBERS = ("memory_bytes", "memory_bandwidth_bytes_per_s", "peak_flops_per_s", "tdp_w", "price_usd")


def test_table_covers_the_promised_classes():
    """Laptop and server CPUs, boards, and the GPUs that people use."""
    names = set(load_devices())
    promised = {
        *("raspberry-pi-5", "jetson-agx-orin", "jetson-orin-nano", "core-i7-1185g7", "ryzen-7-7840u", "xeon-8480"),
        *("epyc-9654", "t4", "l4", "a10", "a100-40gb", "a100-80gb", "h100", "h200", "rtx-4090", "apple-m2", "v100"),
    }
    assert promised <= names
    assert len(names) >= 15


@pytest.mark.parametrize("device", list(load_devices().values()), ids=lambda device: device.name)
def test_every_number_has_a_source_and_a_date(device):
    """What is given is positive and says where and when it was published; what is not given has no source."""
    assert device.kind in DEVICE_KINDS
    for name in NUMBERS:
        value = getattr(device, name)
        if not value:
            assert name not in device.sources
            continue
        assert all(number > 0 for number in (value.values() if isinstance(value, dict) else [value]))
        source = device.sources[name]
        assert source.title
        assert source.url.startswith("https://")
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", source.date)
    assert set(device.peak_flops_per_s) <= set(WEIGHT_DTYPES)
    assert json.dumps(device.to_dict(), allow_nan=False)


@pytest.mark.parametrize("device", list(load_devices().values()), ids=lambda device: device.name)
def test_shorter_types_are_not_slower(device):
    """fp32 <= fp16 <= int8 wherever both are published, and bf16 like fp16."""
    rates = device.peak_flops_per_s
    order = [rates[dtype] for dtype in ("fp32", "fp16", "int8") if dtype in rates]
    assert order == sorted(order)
    if {"fp16", "bf16"} <= set(rates):
        assert rates["fp16"] == rates["bf16"]


def test_known_rows():
    """A100 and H100 from their data sheets."""
    a100, h100 = get_device("a100-80gb"), get_device("h100")
    assert (a100.memory_bytes, a100.memory_bandwidth_bytes_per_s) == (80_000_000_000, 2.039e12)
    assert (a100.peak_flops_per_s["bf16"], h100.peak_flops_per_s["bf16"]) == (312e12, 989.5e12)


@pytest.mark.parametrize("name", ["T4", " t4 ", "RTX 4090", "rtx_4090", "H100"])
def test_names_are_forgiving(name):
    """Case, spaces and underscores do not matter."""
    assert get_device(name).name in ("t4", "rtx-4090", "h100")


@pytest.mark.parametrize(("name", "hint"), [("a100", "a100-40gb"), ("rtx-409", "rtx-4090"), ("", "lists the names")])
def test_unknown_device_is_refused_with_a_hint(name, hint):
    """The error lists what is near."""
    with pytest.raises(UnknownDeviceError, match=hint):
        get_device(name)
