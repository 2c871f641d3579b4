"""The command `estimator devices`: the table by kind, and the page of one device."""

from __future__ import annotations

import json

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


def test_unknown_kind_is_wrong_usage(capsys):
    """The message lists the kinds."""
    with pytest.raises(SystemExit) as stop:
        main(["devices", "--kind", "toaster"])
    assert stop.value.code == 2
    assert all(kind in capsys.readouterr().err for kind in DEVICE_KINDS[:1])


@pytest.mark.parametrize("name", ["t4", "xeon-8480", "apple-m4-max", "tpu-v5e"])
def test_page_shows_every_field_and_says_what_is_not_published(capsys, name):
    """Each field with its source; one line `not published` for each that is missing."""
    device, page = get_device(name), output(capsys, name)
    assert all(f"  {number} " in page for number in NUMBERS)
    missing = [number for number in NUMBERS if number not in device.sources]
    assert page.count("not published") == len(missing) + device.note.count("not published")
    assert all(f"{dtype} " in page for dtype in device.peak_flops_per_s)
