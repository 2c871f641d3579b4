"""Calibrations as files: kept whole, read with suspicion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from estimator.achievable import achievable_of
from estimator.calibrating.profiles import (
    Profile,
    find_device,
    forget_profile,
    is_this_machine,
    keep_profile,
    profile_path,
    read_profile,
)
from estimator.devices import get_device
from estimator.errors import CorruptFileError, UnknownDeviceError

L4 = get_device("l4")
LEARNT = replace(
    achievable_of(L4), origin="predicted", learnt=("fp32_fraction",), learnt_spread=1.25, fp32_fraction=0.3
)
PROFILE = Profile(device="l4", achievable=LEARNT, points=1, date="2026-01-02")
HERE = replace(L4, name="this-machine", kind="cpu")
# Keeps one of two profiles again and again until it is killed.
WRITER = """
import dataclasses, sys
from estimator.calibrating.profiles import keep_profile, read_profile
profile = dataclasses.replace(read_profile("l4"), points=int(sys.argv[1]))
print("ready", flush=True)
while True:
    keep_profile(profile)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Calibrations of this test alone."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def start_writer(points):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(points)], stdout=subprocess.PIPE, env=os.environ)
    assert writer.stdout.readline() == b"ready\n"
    return writer


def kill(writer):
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def test_what_is_kept_is_read_again():
    """Every field, of a named device and of this machine."""
    keep_profile(PROFILE)
    keep_profile(replace(PROFILE, device="this-machine", machine=HERE))
    assert read_profile("l4") == PROFILE
    assert read_profile("this-machine").machine == HERE


@pytest.mark.parametrize("name", ["l4", "L4", "nvidia L4", "NVIDIA_L4", " l4 "])
def test_a_device_is_found_with_its_calibration(name):
    """Before calibrating there is none; afterwards in any spelling."""
    assert find_device(name) == (L4, None)
    keep_profile(PROFILE)
    assert find_device(name) == (L4, LEARNT)
    assert find_device("t4") == (get_device("t4"), None)


@pytest.mark.parametrize("name", ["this-machine", "This Machine", "THIS_MACHINE"])
def test_this_machine_is_known_once_calibrated(name):
    """Before, the message says how."""
    assert is_this_machine(name)
    with pytest.raises(UnknownDeviceError, match="run `estimator calibrate`"):
        find_device(name)
    keep_profile(replace(PROFILE, device="this-machine", machine=HERE))
    assert find_device(name) == (HERE, LEARNT)


def test_forgetting_removes_the_file():
    """And says whether there was one."""
    keep_profile(PROFILE)
    assert forget_profile("l4") is True
    assert forget_profile("l4") is False
    assert read_profile("l4") is None


def _changed(path, value):
    document = json.loads(json.dumps({"device": "l4", "points": 1, "date": "2026-01-02", "machine": None}))
    document["achievable"] = {name: getattr(LEARNT, name) for name in LEARNT.__slots__}
    *folders, last = path.split(".")
    inner = document
    for folder in folders:
        inner = inner[folder]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        json.dumps({"device": "l4"})[:8],
        "null",
        "[1]",
        "3",
        '"l4"',
        "{}",
        _changed("points", None),
        _changed("achievable.learnt", None),  # the shape before fractions were learnt one by one
        _changed("achievable.spread", None),
        _changed("achievable.more", 1),
        _changed("achievable.fp32_fraction", -0.5),
        _changed("achievable.fp32_fraction", "0.5"),
        _changed("achievable.bandwidth_fraction", float("nan")),
        _changed("achievable.matrix_fraction", float("inf")),
        _changed("achievable.operator_s", 1e9),
        _changed("achievable.learnt", ["everything"]),
        _changed("achievable.learnt", 5),
        _changed("achievable", []),
        _changed("device", "t4"),
        _changed("machine", {"name": "l4"}),
        _changed("machine", 1),
        "[" * 100_000,
    ],
)
def test_files_that_are_no_calibration_are_named(text):
    """Half-written, older, of another device or edited: one line with the path and what to do."""
    path = profile_path("l4")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=r"l4\.json is .*calibrat.*; delete it, or calibrate again") as caught:
        find_device("l4")
    assert "\n" not in str(caught.value)


def test_binary_files_are_named():
    """Bytes that are no text."""
    path = profile_path("l4")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFileError, match="delete it, or calibrate again"):
        find_device("l4")


def test_a_folder_in_place_of_the_file_is_named():
    """It cannot be read."""
    profile_path("l4").mkdir(parents=True)
    with pytest.raises(CorruptFileError, match=r"l4\.json"):
        find_device("l4")


def test_keeping_fails_where_no_folder_can_be(own_folder):
    """A file stands where the folder should be; nothing is left behind."""
    own_folder.parent.joinpath("data").write_text("a file")
    with pytest.raises(OSError, match="data"):
        keep_profile(PROFILE)
    assert own_folder.read_text() == "a file"


def test_a_killed_writer_leaves_a_whole_file():
    """kill -9 at whatever moment: the old one or the new one."""
    keep_profile(PROFILE)
    for points in (2, 3, 4):
        before = read_profile("l4").points
        kill(start_writer(points))
        assert read_profile("l4") in (replace(PROFILE, points=before), replace(PROFILE, points=points))


def test_two_writers_never_mix():
    """A reader sees one of both, always whole."""
    keep_profile(PROFILE)
    writers = [start_writer(2), start_writer(3)]
    try:
        seen = {read_profile("l4").points for _ in range(300)}
    finally:
        for writer in writers:
            kill(writer)
    assert seen <= {1, 2, 3}
    assert seen & {2, 3}
