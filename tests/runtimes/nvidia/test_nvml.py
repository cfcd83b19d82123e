"""NVML by ctypes, against a libnvidia-ml of our own written in C and compiled here."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwprune.runtimes import _nvidia
from hwprune.runtimes._nvidia import nvml
from hwprune.runtimes._nvidia.nvml import MEMORY, REASONS, SM, Nvml

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
FIRST, SECOND = "00000000:01:00.0", "00000000:42:00.0"
SOURCE = Path(__file__).parents[2] / "helpers" / "fake_nvml.c"
# Copied from nvml.h (nvmlClocksEventReason...), not read from the code: the bit, and our name if it means a slowdown
EVENT_REASONS = {
    "GpuIdle": (0x1, ""),
    "ApplicationsClocksSetting": (0x2, ""),
    "SwPowerCap": (0x4, "sw_power_cap"),
    "HwSlowdown": (0x8, "hw_slowdown"),
    "SyncBoost": (0x10, ""),
    "SwThermalSlowdown": (0x20, "sw_thermal_slowdown"),
    "HwThermalSlowdown": (0x40, "hw_thermal_slowdown"),
    "HwPowerBrakeSlowdown": (0x80, "hw_power_brake_slowdown"),
    "DisplayClockSetting": (0x100, ""),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(made), str(SOURCE)], check=True)
    return str(made)


class Fake:
    """The fake library and the means to change its GPU."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.library: Any = ctypes.CDLL(path)

    def set(self, key: str, value: int) -> None:
        self.library.fake_set(key.encode(), ctypes.c_ulonglong(value))

    def fail(self, function: str, code: int) -> None:
        self.library.fake_fail(function.encode(), ctypes.c_int(code))


@pytest.fixture
def fake(path: str) -> Iterator[Fake]:
    made = Fake(path)
    yield made
    made.fail("", 0)
    for key, value in {"reasons": 0, "power_ns": 0, "sm_mhz": 210, "celsius": 45, "pid": 0, "gpu_count": 2}.items():
        made.set(key, value)
    assert made.library.fake_open_count() == 0  # everything that was opened was closed


def _counts(throttle: _nvidia.Throttle) -> dict[str, int]:
    return dict(throttle())


def test_what_the_gpu_says(fake: Fake) -> None:
    with Nvml.opened(FIRST, fake.path) as card:
        assert card is not None
        assert (card.name(), card.driver()) == ("NVIDIA Fake GPU", "570.10.1")
        reading = card.reading()
        assert (reading.sm_mhz, reading.celsius, reading.watts) == (210, 45, 30.5)
        assert (card.highest_mhz(SM), card.highest_mhz(MEMORY)) == (2000, 7000)
        assert card.power_limit_w() == 80.0
        assert card.violations_ns() == {"power": 0, "thermal": 0}  # the board's limit is not counted by this GPU
        supported = card.supported_mhz()
        assert supported is not None
        assert (supported[0], supported[1][:2], len(supported[1])) == (7000, (2000, 1985), 121)


@pytest.mark.parametrize("reason", EVENT_REASONS)
def test_each_reason_has_its_bit(fake: Fake, reason: str) -> None:
    bit, name = EVENT_REASONS[reason]
    fake.set("reasons", bit)
    with Nvml.opened(FIRST, fake.path) as card:
        assert card is not None
        assert [key for key, active in (card.reasons() or {}).items() if active] == ([name] if name else [])


def test_every_slowdown_of_the_header_is_looked_for() -> None:
    assert {name: bit for bit, name in EVENT_REASONS.values() if name} == REASONS


def test_the_other_numbers_are_those_of_the_header() -> None:
    """nvmlClockType_t, nvmlTemperatureSensors_t, nvmlTemperatureThresholds_t, nvmlPerfPolicyType_t, nvmlReturn_t."""
    assert (nvml.GRAPHICS, nvml.SM, nvml.MEMORY) == (0, 1, 2)
    assert (nvml.CELSIUS_OF_GPU, nvml.SLOWDOWN_LIMIT) == (0, 1)
    assert nvml.VIOLATIONS == {"power": 0, "thermal": 1, "board_limit": 3}
    assert (nvml.SUCCESS, nvml.INSUFFICIENT_SIZE) == (0, 7)


def test_reasons_of_an_older_driver(fake: Fake) -> None:
    fake.set("reasons", 0x8)
    fake.fail("nvmlDeviceGetCurrentClocksEventReasons", 13)  # function not found
    with Nvml.opened(FIRST, fake.path) as card:
        assert card is not None
        assert (card.reasons() or {})["hw_slowdown"]
        fake.fail("nvmlDeviceGetCurrentClocksEventReasons", 3)  # not supported, under either name
        assert card.reasons() is None


def test_other_programs_are_those_besides_this_one(fake: Fake) -> None:
    fake.set("pid", os.getpid())
    fake.set("second_pid", 4242)
    with Nvml.opened(FIRST, fake.path) as card:
        assert card is not None
        assert card.other_processes() == (4242,)
        fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", 3)
        assert card.other_processes() == ()


def test_what_cannot_be_opened_is_none(fake: Fake, tmp_path: Path) -> None:
    assert Nvml.open(FIRST, str(tmp_path / "absent.so")) is None
    assert Nvml.open("00000000:43:00.0", fake.path) is None
    fake.fail("nvmlInit_v2", 9)  # the driver is not loaded
    assert Nvml.open(FIRST, fake.path) is None
    fake.fail("nvmlDeviceGetHandleByIndex_v2", 15)
    assert Nvml.open("", fake.path) is None


def test_a_gpu_is_found_where_it_is_plugged_in(fake: Fake, tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES=1 makes number 0 of CUDA what is number 1 of NVML: only the bus id is the same."""
    for bus_id, name, number in ((FIRST, "NVIDIA Fake GPU", "0"), (SECOND, "NVIDIA Second GPU", "1")):
        with Nvml.opened(bus_id, fake.path) as card:
            assert card is not None
            assert (card.name(), card.number()) == (name, number)
    found = {item.name: item for item in _nvidia.findings(SECOND, root=tmp_path, library=fake.path)}
    assert found["GPU"].detail == "number 1 of nvidia-smi: NVIDIA Second GPU, driver 570.10.1"
    assert "nvidia-smi -i 1 -lgc" in found["GPU clock"].fix


def test_the_only_gpu_is_found_without_its_bus_id(fake: Fake) -> None:
    """As on a Jetson, whose GPU is on no bus; of two it would be a guess."""
    nowhere = "00000000:00:00.0"
    assert Nvml.open(nowhere, fake.path) is None
    fake.set("gpu_count", 1)
    with Nvml.opened(nowhere, fake.path) as card:
        assert card is not None
        assert card.name() == "NVIDIA Fake GPU"
        fake.fail("nvmlDeviceGetIndex", 3)
        assert card.number() == nowhere  # which nvidia-smi takes as well


def test_facts_are_what_stays_the_same(fake: Fake, tmp_path: Path) -> None:
    facts = _nvidia.facts(FIRST, root=tmp_path, library=fake.path)
    assert facts == (("gpu", "NVIDIA Fake GPU"), ("driver", "570.10.1"), ("power_limit", "80 W"))
    fake.set("sm_mhz", 1900)
    fake.set("celsius", 70)
    assert _nvidia.facts(FIRST, root=tmp_path, library=fake.path) == facts
    fake.fail("nvmlDeviceGetName", 3)
    assert _nvidia.facts(FIRST, root=tmp_path, library=fake.path)[0] == ("gpu", "unknown")


def test_counters(fake: Fake, tmp_path: Path) -> None:
    throttle = _nvidia.throttle_counters(FIRST, root=tmp_path, library=fake.path)
    quiet = _counts(throttle)
    assert _counts(throttle) == quiet == {"held back by power": 0, "held back by thermal": 0}
    fake.set("power_ns", 1_000_000)
    assert _counts(throttle)["held back by power"] == 1_000_000
    fake.set("reasons", REASONS["sw_thermal_slowdown"])
    first = _counts(throttle)["sw_thermal_slowdown"]
    fake.set("reasons", 0)
    assert _counts(throttle)["sw_thermal_slowdown"] == first + 1  # it was on when the round began
    assert _counts(throttle)["sw_thermal_slowdown"] == first + 1
    fake.set("sm_mhz", 213)
    assert "gpu clock moved" not in _counts(throttle)
    fake.set("sm_mhz", 1900)
    assert _counts(throttle)["gpu clock moved"] == 1
    throttle.close()
    assert _counts(throttle)["gpu clock moved"] == 1  # closed: nothing is asked any more


def test_a_span_tells_the_clock_at_begin_and_end(fake: Fake, tmp_path: Path) -> None:
    throttle = _nvidia.throttle_counters(FIRST, root=tmp_path, library=fake.path)
    fake.set("sm_mhz", 1590)
    span = _nvidia.ClockSpan(throttle)
    fake.set("sm_mhz", 1605)
    assert span.facts() == {"sm_mhz": "1590 to 1605", "clocks_locked": "unknown"}
    fake.set("sm_mhz", 1410)
    assert span.facts() == {"sm_mhz": "1590 to 1410", "clocks_locked": "no"}
    throttle.close()
    assert span.facts() == {"clocks_locked": "unknown"}


def test_findings_of_a_healthy_gpu_give_the_commands(fake: Fake, tmp_path: Path) -> None:
    found = {item.name: item for item in _nvidia.findings(FIRST, root=tmp_path, library=fake.path)}
    assert found["GPU"].detail == "number 0 of nvidia-smi: NVIDIA Fake GPU, driver 570.10.1"
    assert {item.name for item in found.values() if item.status != "pass"} == {"GPU clock"}
    assert found["GPU clock"].fix == (
        "sudo nvidia-smi -i 0 -pm 1 && sudo nvidia-smi -i 0 -lgc 1595,1595 && sudo nvidia-smi -i 0 -lmc 7000,7000"
        " (undo: sudo nvidia-smi -i 0 -rgc && sudo nvidia-smi -i 0 -rmc)"
    )
    fake.fail("nvmlDeviceGetSupportedMemoryClocks", 3)
    found = {item.name: item for item in _nvidia.findings(FIRST, root=tmp_path, library=fake.path)}
    assert "-lgc 1600,1600" in found["GPU clock"].fix


def test_findings_of_a_sick_gpu(fake: Fake, tmp_path: Path) -> None:
    fake.set("celsius", 88)
    fake.set("reasons", REASONS["hw_thermal_slowdown"])
    fake.set("pid", 4242)
    found = {item.name: item for item in _nvidia.findings(FIRST, root=tmp_path, library=fake.path)}
    assert [found[name].status for name in ("temperature", "throttling")] == ["fail"] * 2
    assert found["other programs"].status == "warn"
    assert found["temperature"].detail == "GPU 88 C, 2 degrees below its first limit"
    assert found["throttling"].detail == "slowed down now: hw_thermal_slowdown"
    for name in ("temperature", "throttling"):
        assert "sudo nvidia-smi -i 0 -lgc 1595,1595" in found[name].fix
    assert "4242" in found["other programs"].detail
    fake.fail("nvmlDeviceGetCurrentClocksEventReasons", 3)
    found = {item.name: item for item in _nvidia.findings(FIRST, root=tmp_path, library=fake.path)}
    assert (found["throttling"].status, found["throttling"].detail) == ("warn", "this GPU does not tell")


def test_findings_without_nvml(tmp_path: Path) -> None:
    (only,) = _nvidia.findings(FIRST, root=tmp_path, library=str(tmp_path / "absent.so"))
    assert (only.name, only.status) == ("GPU state", "warn")
    assert "libnvidia-ml.so.1" in only.fix


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    """Needs an NVIDIA GPU with its driver."""
    with Nvml.opened() as card:
        assert card is not None
        assert card.name()
        assert card.driver()
        reading = card.reading()
    assert reading.sm_mhz
    assert reading.celsius
