"""Damaged and hostile files of weights: readers answer or refuse in one line, and stay small and quick.

benchmarks/fuzz_readers.py runs the same with more files, and with the largest ones that the limits allow.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_readers import LIMIT_BYTES, good_files, hostile_files, mutate, outcome
from tests.estimator.file_samples import onnx_bytes, safetensors_bytes

_SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def test_good_files_are_read(tmp_path: Path) -> None:
    """What is damaged below is whole at first."""
    for name, data in good_files().items():
        (tmp_path / name).write_bytes(data)
    assert {name: outcome(tmp_path / name) for name in good_files()} == dict.fromkeys(good_files(), "read")


@pytest.mark.parametrize("name", good_files())
def test_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """400 files with one to four faults each; both outcomes occur."""
    rng = random.Random(name)
    files = good_files()
    for other, data in files.items():
        (tmp_path / other).write_bytes(data)
    outcomes = set()
    for _ in range(400):
        (tmp_path / name).write_bytes(mutate(files[name], rng))
        outcomes.add(outcome(tmp_path / name))
    assert {"read", "CorruptFileError"} <= outcomes


def test_damaged_onnx_file_of_the_package_is_read_or_refused(tmp_path: Path) -> None:
    """The same for a model that onnx wrote, with nested graphs."""
    rng, data = random.Random(0), onnx_bytes()
    outcomes = set()
    for _ in range(300):
        (tmp_path / "x.onnx").write_bytes(mutate(data, rng))
        outcomes.add(outcome(tmp_path / "x.onnx"))
    assert {"read", "CorruptFileError"} <= outcomes


@_SETTINGS
@given(
    start=st.sampled_from([b"", b"GGUF\x03\0\0\0", b"\x08\x08", b"\x10\0\0\0\0\0\0\0{", b"{"]),
    data=st.binary(max_size=300),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, start: bytes, data: bytes) -> None:
    """Noise behind the first bytes of each format."""
    (tmp_path / "x").write_bytes(start + data)
    outcome(tmp_path / "x")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4"]) | _JSON,
        "shape": st.lists(st.integers(-2, 2**64), max_size=4) | _JSON,
        "data_offsets": _JSON,
    }
)


@_SETTINGS
@given(header=st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), _ENTRY | _JSON, max_size=4))
def test_any_header_is_read_or_refused(tmp_path: Path, header: dict[str, object]) -> None:
    """Objects that look like entries, with anything in their fields."""
    (tmp_path / "x").write_bytes(safetensors_bytes(header))
    outcome(tmp_path / "x")


@pytest.mark.parametrize(
    "name", ["safetensors of lists", "safetensors metadata of lists", "gguf with too many texts", "gguf with many keys"]
)
def test_hostile_file_takes_little_memory(tmp_path: Path, name: str) -> None:
    """Read in a process of its own, whose peak stays under 200 MB."""
    path = tmp_path / "hostile"
    hostile_files()[name](path)
    command = [sys.executable, "-m", "benchmarks.fuzz_readers", "--child", "hostile", name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout)["peak_bytes"] <= LIMIT_BYTES
