"""Clock and heat of the cores, read from a /sys folder that the test writes."""

from __future__ import annotations

from pathlib import Path

from estimator.measuring.machine_state import read_machine_state
from estimator.measuring.records import MachineState


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_state_is_that_of_the_used_cores(tmp_path: Path) -> None:
    """Two of three cores: their mean clock rate, their throttles together, and the machine's hottest sensor."""
    for core, kilohertz, throttles in ((0, 2_000_000, 3), (1, 3_000_000, 4), (2, 800_000, 100)):
        folder = tmp_path / "devices" / "system" / "cpu" / f"cpu{core}"
        write(folder / "cpufreq" / "scaling_cur_freq", f"{kilohertz}\n")
        write(folder / "cpufreq" / "scaling_governor", "powersave\n" if core == 2 else "performance\n")
        write(folder / "thermal_throttle" / "core_throttle_count", f"{throttles}\n")
    write(tmp_path / "class" / "thermal" / "thermal_zone0" / "temp", "41000\n")
    write(tmp_path / "class" / "thermal" / "thermal_zone1" / "temp", "67500\n")
    write(tmp_path / "class" / "thermal" / "thermal_zone2" / "temp", "no number\n")
    assert read_machine_state([0, 1], sys=tmp_path) == MachineState(
        frequency_hz=2.5e9, governor="performance", num_throttles=7, temperature_celsius=67.5
    )


def test_what_the_kernel_does_not_tell_is_unknown(tmp_path: Path) -> None:
    """A machine without these files, and a platform that does not say which cores are used."""
    unknown = MachineState(frequency_hz=None, governor=None, num_throttles=None, temperature_celsius=None)
    assert read_machine_state([0, 1], sys=tmp_path) == unknown
    assert read_machine_state([], sys=tmp_path) == unknown
