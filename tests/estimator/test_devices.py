"""The device table: complete, sourced, and in agreement with itself and with closed forms."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from estimator.devices import DEVICE_KINDS, NUMBERS, RATE_DTYPES, SEGMENTS, get_device, load_devices
from estimator.errors import UnknownDeviceError


def _every(*needed, kinds=DEVICE_KINDS):
    """Runs a test for each device of these kinds that has all of these fields or rates."""
    rows = [device for device in load_devices().values() if device.kind in kinds]
    for name in needed:
        rows = [device for device in rows if getattr(device, name, None) or name in device.peak_flops_per_s]
    return pytest.mark.parametrize("device", rows, ids=lambda device: device.name)


EVERY = _every()
# Operations of fp32 per lane and cycle: a multiply-add, twice that on CDNA's matrix cores and with RDNA's two issues.
OPERATIONS_PER_LANE = {"cdna": 4, "cdna2": 4, "cdna3": 4, "cdna4": 4, "rdna3": 4, "rdna4": 4}
TERM = re.compile(r"(\d+) [\w -]+? x ([\d.]+) GHz x (\d+)")
MULTIPLE = re.compile(r"\b(fp16|bf16|int8) (\d+) times that")


def test_table_covers_the_promised_classes():
    """Boards, phones, laptop, desktop and server CPUs, and the GPUs and accelerators that people use."""
    names = set(load_devices())
    promised = {
        *("raspberry-pi-5", "jetson-agx-orin", "jetson-orin-nano", "core-i7-1185g7", "ryzen-7-7840u", "xeon-8480"),
        *("epyc-9654", "t4", "l4", "a10", "a100-40gb", "a100-80gb", "h100", "h200", "rtx-4090", "apple-m2", "v100"),
        *("p4", "p40", "b200", "mi300x", "gtx-1080-ti", "arc-a770", "gaudi-3", "tpu-v5e", "inferentia2", "graviton3"),
    }
    assert promised <= names
    assert len(names) >= 75
    assert {device.segment for device in load_devices().values()} == set(SEGMENTS)
    assert {device.kind for device in load_devices().values()} == set(DEVICE_KINDS)


@EVERY
def test_every_number_has_a_source_and_a_date(device):
    """What is given is positive and says where and when it was published; what is not given has no source."""
    assert device.kind in DEVICE_KINDS
    assert device.segment in SEGMENTS
    assert device.family
    for name in NUMBERS:
        value = getattr(device, name)
        if not value:
            assert name not in device.sources
            continue
        if name != "instruction_set":
            assert all(number > 0 for number in (value.values() if isinstance(value, dict) else [value]))
        source = device.sources[name]
        assert source.title
        assert re.match("https?://", source.url)
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", source.date)
    assert set(device.peak_flops_per_s) <= set(RATE_DTYPES)
    assert json.loads(json.dumps(device.to_dict(), allow_nan=False))["family"] == device.family


def test_rows_are_read_as_a_toml_parser_reads_the_whole_file():
    """Reading row by row loses nothing: fields, order, sources; no row has a field that is not known."""
    table = tomllib.loads(resources.files("estimator").joinpath("devices.toml").read_text(encoding="utf-8"))
    assert list(table["devices"]) == list(load_devices())
    used = set()
    for name, row in table["devices"].items():
        device = get_device(name)
        own = row.pop("source_of", {})
        used |= {row["source"], *own.values()}
        assert device.sources.keys() == {key for key in row if key in NUMBERS}
        source = table["sources"][row.pop("source")]
        assert all(s.url == source["url"] for key, s in device.sources.items() if key not in own)
        assert {key: getattr(device, key) for key in row} == row
    assert used == set(table["sources"])


@EVERY
def test_shorter_types_are_not_slower(device):
    """fp32 <= tf32 <= fp16 <= fp8 <= fp4, fp16 <= int8 <= int4, and bf16 at most fp16, wherever both are published."""
    rates = device.peak_flops_per_s
    for chain in (("fp32", "tf32", "fp16", "fp8", "fp4"), ("fp32", "bf16", "fp8"), ("fp16", "int8", "int4")):
        order = [rates[dtype] for dtype in chain if dtype in rates]
        assert order == sorted(order)
    if {"fp16", "bf16"} <= set(rates):
        assert rates["bf16"] == rates["fp16"] or device.family == "cdna"


@_every("fp16", kinds=("gpu", "accelerator"))
def test_dense_rates_double_as_the_type_halves(device):
    """Sparse rates would break these: matrix units that offer both do fp8, int8 and fp4 in simple ratios to fp16."""
    rates = device.peak_flops_per_s
    allowed = {"fp8": (1, 2), "int8": (1, 2, 4), "int4": (1, 2, 4, 8), "fp4": (4, 8), "bf16": (0.5, 1)}
    for dtype, ratios in allowed.items():
        if dtype in rates:
            assert any(rates[dtype] / rates["fp16"] == pytest.approx(ratio, rel=0.03) for ratio in ratios), dtype
    if "tf32" in rates:
        assert (
            rates["fp16"] / rates["tf32"] == pytest.approx(2, rel=0.02)
            or device.family == "neuron-v2"
            or (device.family == "neuron-v3" and rates["fp16"] == rates["tf32"])
        )


@_every("num_cores", "clock_hz", "fp32", kinds=("gpu",))
def test_gpu_fp32_is_lanes_times_clock_times_two(device):
    """Where lanes and clock are published; documents round, by 2.1 % at most."""
    expected = device.num_cores * device.clock_hz * OPERATIONS_PER_LANE.get(device.family, 2)
    assert device.peak_flops_per_s["fp32"] == pytest.approx(expected, rel=0.021)


@_every(kinds=("cpu",))
def test_cpu_rates_are_what_their_note_derives(device):
    """The sum over sorts of cores of count x clock x operations per cycle, times what shorter types gain."""
    terms = [(int(count), float(clock), int(width)) for count, clock, width in TERM.findall(device.note)]
    fp32 = sum(count * clock * 1e9 * width for count, clock, width in terms)
    expected = {"fp32": fp32} | {dtype: fp32 * int(times) for dtype, times in MULTIPLE.findall(device.note)}
    assert device.peak_flops_per_s == pytest.approx(expected, rel=1e-6)
    assert device.num_cores == sum(count for count, _, _ in terms)
    assert device.clock_hz == max(clock for _, clock, _ in terms) * 1e9
    assert device.instruction_set
    vector_bits = {"avx512": 512, "amx": 512, "avx2": 256, "neon": 128, "sve": 256, "sve2": 128}
    widest = max(width for _, _, width in terms)
    assert widest % (vector_bits[device.instruction_set.split("-")[0]] // 32) == 0


@EVERY
def test_bandwidth_is_width_times_data_rate(device):
    """Where the note names the memory: channels x 8 bytes, or bits / 8, times transfers per second."""
    words = {"two channels of": 16, "64-bit": 8, "32-bit": 4, "128-bit": 16}
    found = re.search(r"(?:(\d+) x|(two channels of|\d+-bit)) (?:LP)?DDR\d\w*-(\d+)", device.note)
    graphics = re.search(r"(\d+) bits x ([\d.]+) Gbit/s", device.note)
    if found:
        width = 8 * int(found[1]) if found[1] else words[found[2]]
        assert device.memory_bandwidth_bytes_per_s == pytest.approx(width * int(found[3]) * 1e6, rel=0.025)
    if graphics:
        expected = int(graphics[1]) / 8 * float(graphics[2]) * 1e9
        assert device.memory_bandwidth_bytes_per_s == pytest.approx(expected, rel=0.01)
    assert found or device.kind != "cpu"


@EVERY
def test_numbers_are_plausible(device):
    """A slip of a power of ten, or of an order between two fields, would leave these ranges."""
    rates, bandwidth = device.peak_flops_per_s, device.memory_bandwidth_bytes_per_s
    assert 3e9 <= bandwidth <= 10e12
    assert device.memory_bytes is None or 1e9 <= device.memory_bytes <= 600e9
    assert device.tdp_w is None or 5 <= device.tdp_w <= 1500
    assert device.clock_hz is None or 0.5e9 <= device.clock_hz <= 6.5e9
    assert all(1e10 <= rate <= 2e16 for rate in rates.values())
    if rates:
        assert 3 <= max(rates.values()) / bandwidth <= 5000
    if device.tdp_w and "fp32" in rates:
        assert 5e9 <= rates["fp32"] / device.tdp_w <= 0.5e12
    if device.l2_cache_bytes and device.kind == "cpu":
        assert 64 * 1024 <= device.l2_cache_bytes / device.num_cores <= 4 * 2**20


def test_memory_sizes_and_links_order_the_variants_of_a_model():
    """SXM beats PCIe, more memory is not slower, a later generation is faster in its own class."""
    for slow, fast in [
        ("v100-pcie", "v100"),
        ("a100-pcie-80gb", "a100-80gb"),
        ("h100-pcie", "h100"),
        ("p100", "p100-sxm2"),
    ]:
        below, above = get_device(slow), get_device(fast)
        assert below.peak_flops_per_s["fp16"] <= above.peak_flops_per_s["fp16"]
        assert below.memory_bandwidth_bytes_per_s <= above.memory_bandwidth_bytes_per_s
        assert below.tdp_w < above.tdp_w
    for line in (["p100-sxm2", "v100", "a100-80gb", "h100", "b200", "gb200"], ["rtx-3090", "rtx-4090", "rtx-5090"]):
        rates = [get_device(name).peak_flops_per_s["fp16"] for name in line]
        assert rates == sorted(set(rates))


def test_known_rows():
    """A100, H100 and MI300X from their data sheets."""
    a100, h100, mi300x = get_device("a100-80gb"), get_device("h100"), get_device("mi300x")
    assert (a100.memory_bytes, a100.memory_bandwidth_bytes_per_s) == (80_000_000_000, 2.039e12)
    assert (a100.peak_flops_per_s["bf16"], h100.peak_flops_per_s["bf16"]) == (312e12, 989.5e12)
    assert (mi300x.memory_bytes, mi300x.peak_flops_per_s["bf16"]) == (192_000_000_000, 1307.4e12)
    assert (a100.l2_cache_bytes, a100.num_cores, a100.family) == (40 * 2**20, 6912, "ampere")


@pytest.mark.parametrize("name", ["T4", " t4 ", "RTX 4090", "rtx_4090", "H100"])
def test_names_are_forgiving(name):
    """Case, spaces and underscores do not matter."""
    assert get_device(name).name in ("t4", "rtx-4090", "h100")


@pytest.mark.parametrize(("name", "hint"), [("a100", "a100-40gb"), ("rtx-409", "rtx-4090"), ("", "lists the names")])
def test_unknown_device_is_refused_with_a_hint(name, hint):
    """The error lists what is near."""
    with pytest.raises(UnknownDeviceError, match=hint):
        get_device(name)


def test_guide_shows_a_row_as_it_stands_in_the_table():
    """The example of docs/howto/add-device.md is a row of devices.toml, word for word where it names a field."""
    guide = (Path(__file__).parents[2] / "docs" / "howto" / "add-device.md").read_text(encoding="utf-8")
    example = tomllib.loads(guide.split("```toml")[1].split("```")[0])["devices"]
    table = tomllib.loads(resources.files("estimator").joinpath("devices.toml").read_text(encoding="utf-8"))
    assert example == {name: table["devices"][name] for name in example}


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("A100-40GB-PCIe", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("Tesla T4", "t4"),
        ("V100-PCIE-16GB", "v100-pcie"),
        ("geforce rtx 4090", "rtx-4090"),
    ],
)
def test_words_of_the_label_are_a_name(name: str, device: str) -> None:
    """The names that drivers and papers use find the row, in whatever order the words stand."""
    assert get_device(name).name == device


@pytest.mark.parametrize("name", ["a100", "pcie 80gb"])
def test_words_of_several_labels_are_refused(name: str) -> None:
    """What fits several devices is not guessed; the message lists some of them."""
    with pytest.raises(UnknownDeviceError, match="did you mean"):
        get_device(name)
