"""The command `estimator devices`: the table by kind, and the page of one device."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from estimator.cli import main
from estimator.devices import DEVICE_KINDS, NUMBERS, get_device, load_devices


def output(capsys, *arguments):
    """What `estimator devices` prints on stdout."""
    assert main(["devices", *arguments]) == 0
    return capsys.readouterr().out


def test_table_fits_a_terminal_and_has_every_device(capsys):
    """At most 120 columns; one heading per kind; each row starts with the name that other commands take."""
    lines = output(capsys).splitlines()
    assert max(len(line) for line in lines) <= 120
    first_words = [line.split()[0] for line in lines if line]
    assert sorted(set(load_devices()) - set(first_words)) == []
    assert sum("bandwidth" in line for line in lines) == len(DEVICE_KINDS)


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_kind_filters_table_and_document(capsys, kind):
    """Only the devices of that kind, in the table and in JSON."""
    names = [name for name, device in load_devices().items() if device.kind == kind]
    rows = [line for line in output(capsys, "--kind", kind).splitlines() if "bandwidth" not in line]
    assert [row.split()[0] for row in rows] == names
    document = json.loads(output(capsys, "--kind", kind, "--json"))
    assert [row["name"] for row in document["devices"]] == names


def test_device_of_another_kind_is_refused(capsys):
    """A name says which device; a kind that contradicts it is a mistake."""
    assert main(["devices", "l4", "--kind", "gpu"]) == 0
    assert main(["devices", "l4", "--kind", "cpu"]) == 3
    assert "l4 is no cpu but a gpu" in capsys.readouterr().err


def test_unknown_kind_is_wrong_usage(capsys):
    """The message lists the kinds."""
    with pytest.raises(SystemExit) as stop:
        main(["devices", "--kind", "toaster"])
    assert stop.value.code == 2
    assert all(kind in capsys.readouterr().err for kind in DEVICE_KINDS[:1])


@pytest.mark.parametrize("name", ["t4", "xeon-8480", "apple-m4-max", "tpu-v5e"])
def test_page_shows_every_number_its_source_and_what_is_not_given(capsys, name):
    """A line for each number that is given, one line for those that are not, and the source with its date."""
    device, lines = get_device(name), output(capsys, name).splitlines()
    shown = {line.split()[0] for line in lines if line.startswith("  ")}
    missing = [number for number in NUMBERS if number not in device.sources]
    assert {number for number in NUMBERS if number in shown} == set(device.sources)
    assert next(line for line in lines if "not given  " in line).split("given")[1].strip() == ", ".join(missing)
    source = device.sources["memory_bandwidth_bytes_per_s"]
    assert any(source.title in line and source.date in line and source.url in line for line in lines)
    assert all(f"{dtype} " in "\n".join(lines) for dtype in device.peak_flops_per_s)


def test_page_names_the_numbers_of_each_source(capsys, monkeypatch):
    """A number from another document than the rest of its row is shown with that document."""
    device = get_device("t4")
    other = replace(device.sources["tdp_w"], title="Some other document")
    mixed = replace(device, sources=device.sources | {"tdp_w": other})
    monkeypatch.setattr("estimator.commands.devices.find_device", lambda name: (mixed, None))
    page = output(capsys, "t4")
    assert "source of tdp_w: Some other document" in page
    assert f"l2_cache_bytes, peak_flops_per_s: {device.sources['clock_hz'].title}" in page
