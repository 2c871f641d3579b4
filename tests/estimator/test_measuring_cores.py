"""Which cores a measurement takes, on machines described by files as Linux has them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from estimator.measuring.cores import choose_cores, default_num_threads


def machine(folder: Path, siblings: list[str], kilohertz: list[int]) -> Path:
    """A folder like /sys/devices/system/cpu: siblings and highest clock rate of each logical core."""
    for core, (names, speed) in enumerate(zip(siblings, kilohertz, strict=True)):
        for name, text in (("topology/thread_siblings_list", names), ("cpufreq/cpuinfo_max_freq", str(speed))):
            path = folder / f"cpu{core}" / name
            path.parent.mkdir(parents=True)
            path.write_text(f"{text}\n", encoding="ascii")
    return folder


@pytest.mark.parametrize(
    ("siblings", "num_threads", "cores"),
    [
        (["0,2", "1,3", "0,2", "1,3"], 2, [0, 1]),
        (["0-1", "0-1", "2-3", "2-3"], 2, [0, 2]),
        (["0-1", "0-1", "2-3", "2-3"], 1, [2]),
        (["0-1", "0-1", "2-3", "2-3"], 3, [0, 1, 2, 3]),
        (["0", "1", "2", "3"], 3, [1, 2, 3]),
    ],
)
def test_threads_get_physical_cores_of_their_own(
    tmp_path: Path, siblings: list[str], num_threads: int, cores: list[int]
) -> None:
    """Two threads never share a core while another is idle, however the machine numbers them."""
    cpus = machine(tmp_path, siblings, [3_000_000] * 4)
    assert choose_cores(num_threads, available=[0, 1, 2, 3], cpus=cpus) == cores


def test_fast_cores_come_first(tmp_path: Path) -> None:
    """On a machine with fast and slow cores, fewer threads than cores run on the fast ones."""
    cpus = machine(tmp_path, ["0", "1", "2", "3"], [5_000_000, 5_000_000, 3_000_000, 3_000_000])
    assert choose_cores(2, available=[0, 1, 2, 3], cpus=cpus) == [0, 1]
    assert choose_cores(2, available=[1, 2, 3], cpus=cpus) == [1, 3]


def test_unknown_machine_is_left_as_it_is(tmp_path: Path) -> None:
    """Without affinity there is nothing to choose from; without a description each logical core counts as its own."""
    assert choose_cores(2, available=[], cpus=tmp_path) == []
    assert choose_cores(2, available=[4, 5, 6], cpus=tmp_path) == [5, 6]


@pytest.mark.parametrize(("text", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_default_threads_stay_within_the_containers_share(tmp_path: Path, text: str, most: int | None) -> None:
    """A container with one core's worth of time gets one thread; one without a limit gets the physical cores."""
    quota = tmp_path / "cpu.max"
    quota.write_text(text, encoding="ascii")
    unlimited = default_num_threads(quota=tmp_path / "missing")
    assert default_num_threads(quota=quota) == (unlimited if most is None else most)
    assert 1 <= unlimited <= (psutil.cpu_count() or 1)
