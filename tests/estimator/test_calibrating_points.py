"""Tables of measured points, and what they teach about a device."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.achievable import FRACTIONS, achievable_of
from estimator.calibrating.points import Point, fit_points, modelled_time, read_points
from estimator.devices import get_device
from estimator.errors import CorruptFileError, InputError
from estimator.readers.source import read_source
from estimator.validating.rows import reference_rows

HEAD = "model\tsequence_length\tbatch_size\tlatency_ms"
GPT2 = read_source("gpt2").network


def table(folder, *lines, name="points.tsv"):
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def point(**changes):
    values = {"model": "gpt2", "network": GPT2, "sequence_length": 512, "batch_size": 4, "latency_s": 0.1}
    return Point(**(values | changes))


def test_table_with_tabs_is_read(tmp_path):
    """Each row becomes a point in seconds, fp32 and prefill unless it says otherwise."""
    (found,) = read_points(table(tmp_path, HEAD, "gpt2\t512\t4\t100"), get_device("l4"))
    assert found == point()


@pytest.mark.parametrize(
    "text",
    [
        "model,sequence_length,batch_size,latency_ms\ngpt2,512,4,100\n",
        "\ufeffmodel,sequence_length,batch_size,latency_ms\r\ngpt2,512,4,100\r\n",
        "latency_ms, batch_size ,note,sequence_length,model\n100,4,warm,512, gpt2 \n",
        "model,sequence_length,batch_size,latency_ms\n\ngpt2,512,4,1e2\n\n",
    ],
    ids=["commas", "byte order mark", "other order", "blank lines"],
)
def test_other_tables_say_the_same(tmp_path, text):
    """Commas, Windows files, columns in any order and columns that nobody asked for."""
    path = tmp_path / "points.csv"
    path.write_bytes(text.encode())
    assert read_points(path, get_device("l4")) == (point(),)


def test_phase_and_dtype_are_read(tmp_path):
    """Optional columns decide how the point is modelled; an empty cell means the default."""
    path = table(tmp_path, HEAD + "\tphase\tdtype", "gpt2\t512\t4\t100\tdecode\tbf16", "gpt2\t512\t4\t100\t\t")
    assert read_points(path, get_device("l4")) == (point(phase="decode", dtype="bf16"), point())


def test_rows_of_other_devices_are_left_out(tmp_path):
    """Names in any spelling; rows without a device belong to the one asked for."""
    rows = [f"gpt2\t512\t4\t{ms}\t{device}" for ms, device in enumerate(("L4", "t4", "nvidia L4", "unheard-of", ""), 1)]
    found = read_points(table(tmp_path, HEAD + "\tdevice", *rows), get_device("l4"))
    assert [round(own.latency_s * 1e3) for own in found] == [1, 3, 5]


def test_rows_of_one_device_by_its_label(tmp_path):
    """The bundled table of measured runs calls a device by the words of its label."""
    lines = ["\t".join(reference_rows("gpu_latency_fp32.tsv")[0])]
    lines += ["\t".join(row.values()) for row in reference_rows("gpu_latency_fp32.tsv")]
    path = table(tmp_path, *lines)
    assert [len(read_points(path, get_device(name))) for name in ("a100-40gb", "mi210")] == [5, 5]


def test_no_row_of_the_device_names_those_there_are(tmp_path):
    """A misspelled device is seen at once."""
    path = table(tmp_path, HEAD + "\tdevice", "gpt2\t512\t4\t100\tL44")
    with pytest.raises(InputError, match="no row of l4; its rows are of L44"):
        read_points(path, get_device("l4"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("gpt2\t512\t4\t-1", "line 2: latency_ms must be a positive number, not '-1'"),
        ("gpt2\t512\t4\tnan", "latency_ms must be a positive number, not 'nan'"),
        ("gpt2\t512\t4\tinf", "latency_ms must be a positive number, not 'inf'"),
        ("gpt2\t512\t4\t0", "latency_ms must be a positive number, not '0'"),
        ("gpt2\t512\t4\tfast", "latency_ms must be a positive number, not 'fast'"),
        ("gpt2\t512\t4", "latency_ms must be a positive number, not ''"),
        ("gpt2\t512.5\t4\t1", "sequence_length must be a whole number, not '512.5'"),
        ("gpt2\t512\t0\t1", "batch_size must be a positive number, not '0'"),
        ("gpt2\t512\t" + "9" * 400 + "\t1", "batch_size must be a positive number"),
        ("\t512\t4\t1", "line 2: model is empty"),
        ("gpt-two\t512\t4\t1", "line 2: 'gpt-two' is neither a file, a folder nor a bundled model"),
    ],
)
def test_bad_cells_are_named(tmp_path, row, message):
    """The line, the column and what it holds."""
    with pytest.raises(CorruptFileError) as caught:
        read_points(table(tmp_path, HEAD, row), get_device("l4"))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("cells", "message"),
    [("training\tfp32", "phase must be prefill or decode"), ("prefill\tint4", "dtype must be one of fp32, fp16, bf16")],
)
def test_unknown_phases_and_types_are_refused(tmp_path, cells, message):
    """What is allowed is said."""
    with pytest.raises(CorruptFileError, match=message):
        read_points(table(tmp_path, HEAD + "\tphase\tdtype", f"gpt2\t512\t4\t100\t{cells}"), get_device("l4"))


@pytest.mark.parametrize("missing", HEAD.split("\t"))
def test_missing_columns_are_named(tmp_path, missing):
    """And all that are needed."""
    header = "\t".join(name for name in HEAD.split("\t") if name != missing)
    with pytest.raises(CorruptFileError, match=f"no column {missing}; it needs model, sequence_length"):
        read_points(table(tmp_path, header, "1\t2\t3"), get_device("l4"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no column model"),
        (HEAD.encode(), "no row of l4"),
        (b"\x7fELF\xff\xfe\x00", "not a text file"),
        (HEAD.encode() + b"\n" + b"x" * 200_000 + b"\t1\t1\t1", "field larger than field limit"),
        (b"model\t" * 2_000_000, "larger than 8 MB"),
        (b"model,sequence_length,batch_size,latency_ms\ngpt2,8,1,5,decode,bf16", "line 2: more cells than columns"),
    ],
    ids=["empty", "header only", "binary", "huge cell", "huge file", "cells without a column"],
)
def test_files_that_are_no_tables_are_refused(tmp_path, data, message):
    """One line that names the file."""
    path = tmp_path / "points.tsv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_points(path, get_device("l4"))
    assert "points.tsv" in str(caught.value)


@pytest.mark.parametrize("name", ["absent.tsv", "."])
def test_unreadable_paths_are_refused(tmp_path, name):
    """Neither a missing file nor a folder is a table."""
    with pytest.raises(InputError, match="cannot read"):
        read_points(tmp_path / name, get_device("l4"))


def test_too_many_rows_are_refused(tmp_path):
    """A table of points is short."""
    with pytest.raises(InputError, match="more than 2,000 rows of l4"):
        read_points(table(tmp_path, HEAD, *["gpt2\t512\t4\t100"] * 2001), get_device("l4"))


PASSES = (
    {"sequence_length": 1024, "batch_size": 8},
    {"sequence_length": 512, "batch_size": 16},
    {"sequence_length": 1024, "batch_size": 8, "dtype": "fp16"},
    {"sequence_length": 512, "batch_size": 1, "phase": "decode"},
    {"sequence_length": 900, "batch_size": 1, "phase": "decode", "dtype": "fp16"},
)


@settings(max_examples=30, deadline=None)
@given(
    fractions=st.fixed_dictionaries({name: st.floats(0.05, 0.95) for name in FRACTIONS}),
    device=st.sampled_from(["l4", "v100", "t4", "rtx-4090", "mi250"]),
)
def test_points_of_known_fractions_give_them_back(fractions, device):
    """Whatever the class of the device says, points that were made with fractions are explained by just these."""
    device = get_device(device)
    true = dataclasses.replace(achievable_of(device), **fractions)
    points = [point(**own) for own in PASSES]
    made = [modelled_time(device, own, true) for own in points]
    points = [dataclasses.replace(own, latency_s=t.time_s.value) for own, t in zip(points, made, strict=True)]
    fitted = fit_points(device, points)
    decided = {t.fraction for t in made}
    assert set(fitted.learnt) == decided
    for name in decided:
        assert getattr(fitted, name) == pytest.approx(fractions[name])
    assert fitted.learnt_spread == pytest.approx(1.1)


def test_one_point_teaches_one_fraction():
    """The others stay those of the class, with its spread and as modelled; the time of the point is met."""
    device, start = get_device("l4"), achievable_of(get_device("l4"))
    own = point(latency_s=1.5 * modelled_time(device, point(), start).time_s.value)
    fitted = fit_points(device, [own])
    assert fitted.learnt == ("fp32_fraction",)
    assert (fitted.matrix_fraction, fitted.bandwidth_fraction) == (start.matrix_fraction, start.bandwidth_fraction)
    met = modelled_time(device, own, fitted).time_s
    assert (met.value, met.origin) == (pytest.approx(own.latency_s), "predicted")
    assert met.high == pytest.approx(1.25 * met.value)
    other = modelled_time(device, point(phase="decode"), fitted).time_s
    assert (other.origin, other.high) == ("modelled", pytest.approx(start.spread * other.value))


def test_points_that_disagree_widen_the_interval():
    """Points a factor of two apart leave an interval that holds both."""
    device = get_device("l4")
    points = [point(latency_s=seconds) for seconds in (0.4, 0.8)]
    time = modelled_time(device, points[0], fit_points(device, points)).time_s
    assert time.low < 0.4 < 0.8 < time.high


def test_types_without_a_published_rate_teach_fp32():
    """P4 has no fp16 rate: such a point runs in fp32, and says so."""
    fitted = fit_points(get_device("p4"), [point(dtype="fp16", latency_s=2.0)])
    assert fitted.learnt == ("fp32_fraction",)


def test_small_models_are_not_explained_by_fractions_alone():
    """A step that takes little more than its operators says little of the bandwidth; the fraction stays finite."""
    device = get_device("h100")
    own = point(phase="decode", batch_size=1, sequence_length=1, latency_s=2e-4)
    fitted = fit_points(device, [own])
    assert 0 < fitted.bandwidth_fraction < 10


def test_points_beyond_the_peak_are_refused():
    """Seconds taken for milliseconds, or fp32 for a run on matrix units, are named instead of learnt."""
    with pytest.raises(InputError, match=r"gpt2, 4 x 512: 0\.1 ms is .* times faster than the peaks of l4 allow"):
        fit_points(get_device("l4"), [point(latency_s=1e-4)])


def test_decode_points_need_a_decoder():
    """BERT generates nothing."""
    own = point(model="bert-large", network=read_source("bert-large").network, phase="decode")
    with pytest.raises(InputError, match="bert-large generates nothing"):
        fit_points(get_device("l4"), [own])


def test_devices_without_rates_are_refused():
    """There is no peak to take a fraction of."""
    with pytest.raises(InputError, match="apple-m4 has no published arithmetic rate"):
        fit_points(get_device("apple-m4"), [point()])
