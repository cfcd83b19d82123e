"""The checks of `hwprune doctor` on made-up system files, and all of them on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.core.measurement import Target
from hwprune.devices import checks, connect


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_load(tmp_path: Path) -> None:
    average, pressure = tmp_path / "loadavg", tmp_path / "cpu"
    average.write_text("0.10 0.20 0.30 1/80 999\n")
    pressure.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")
    assert checks.load(average, pressure, 2).status == "pass"
    pressure.write_text("some avg10=30.00 avg60=0.00 avg300=0.00 total=1\n")
    assert checks.load(average, pressure, 2).status == "warn"
    average.write_text("7.00 0.20 0.30 1/80 999\n")
    found = checks.load(average, pressure, 2)
    assert (found.status, found.detail[:18]) == ("fail", "load 7.0 on 2 core")
    assert "stop other work" in found.fix


def test_load_without_pressure_or_without_linux(tmp_path: Path) -> None:
    average = tmp_path / "loadavg"
    assert checks.load(average, tmp_path / "none", 2).detail == "not visible on this system"
    average.write_text("1.50 0.20 0.30 1/80 999\n")
    assert checks.load(average, tmp_path / "none", 2).status == "warn"


def test_governor(tmp_path: Path, file: Path) -> None:
    assert checks.governor(tmp_path, file).status == "pass"
    name = tmp_path / "scaling_governor"
    name.write_text("performance\n")
    assert checks.governor(tmp_path, file).status == "pass"
    name.write_text("powersave\n")
    found = checks.governor(tmp_path, file)
    assert found.status == "warn"
    assert found.fix == "sudo cpupower frequency-set -g performance"


def test_governor_of_a_jetson(tmp_path: Path, file: Path) -> None:
    """`jetson_clocks` leaves the governor and closes the bounds."""
    file.write_text("# R36 (release), REVISION: 4.3\n")
    for name, text in {"governor": "schedutil", "min_freq": "729600", "max_freq": "1728000"}.items():
        (tmp_path / f"scaling_{name}").write_text(f"{text}\n")
    found = checks.governor(tmp_path, file)
    assert (found.status, found.fix) == ("warn", "sudo jetson_clocks")
    (tmp_path / "scaling_min_freq").write_text("1728000\n")
    found = checks.governor(tmp_path, file)
    assert (found.status, found.detail) == ("pass", "governor schedutil, locked at 1728000 kHz")


def test_memory(file: Path) -> None:
    assert checks.memory(file).status == "pass"
    file.write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    assert checks.memory(file).detail == "4.0 GiB free of 8.0 GiB"
    file.write_text("MemTotal: 8388608 kB\nMemAvailable: 104857 kB\n")
    assert checks.memory(file).status == "warn"


def test_virtual_machine(file: Path) -> None:
    file.write_text("flags : fpu hypervisor avx2\n")
    assert checks.virtual_machine(file).status == "warn"
    file.write_text("flags : fpu avx2\n")
    assert checks.virtual_machine(file).status == "pass"


def test_all_checks_of_this_machine() -> None:
    with connect(Target()) as board:
        found = board.checks()
    names = [check.name for check in found]
    assert names[0] == "processor"
    assert {"load", "memory", "runtime", "precision", "quiet moments", "interval"} <= set(names)
    assert all(check.fix for check in found if check.status != "pass")
    assert all(check.to_json()["status"] in ("pass", "warn", "fail") for check in found)


def test_a_quiet_simulated_machine_passes_and_a_contended_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {check.name: check.status for check in connect(Target(device="sim")).checks()}["interval"] == "pass"
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "busy.toml").write_text(
        'schema = 1\nname = "busy"\n[runtimes.simulated]\noptions = {contention = 0.99, contention_s = 0.5}\n'
    )
    found = {check.name: check for check in connect(Target(device="busy")).checks()}
    assert found["quiet moments"].status != "pass"
    assert found["quiet moments"].fix
