"""A Jetson's files: facts, throttle counters and findings, on a made-up tree; no real Jetson has been read yet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fake_jetson import MODEL, FakeJetson

from hwprune.runtimes import _nvidia
from hwprune.runtimes._nvidia.jetson import Jetson, PowerMode

NO_NVML = "libnvidia-ml-absent.so"


@pytest.fixture
def board(tmp_path: Path) -> FakeJetson:
    return FakeJetson(tmp_path)


def _counts(throttle: _nvidia.Throttle) -> dict[str, int]:
    return dict(throttle())


def test_facts(board: FakeJetson) -> None:
    expected = {
        "board": MODEL,
        "l4t": "36.4.3",
        "power_mode": "25W (1)",
        "gpu_clock": "306 to 1020 MHz",
        "gpu_governor": "nvhost_podgov",
        "cpu_clock": "115 to 1510 MHz",
        "cpu_governor": "schedutil",
    }
    assert dict(_nvidia.facts(root=board.root)) == expected
    board.lock()
    locked = {"gpu_clock": "locked 1020 MHz", "cpu_clock": "locked 1510 MHz"}
    assert dict(_nvidia.facts(root=board.root)) == {**expected, **locked}


def test_groups_of_cores_with_clocks_of_their_own(board: FakeJetson) -> None:
    board.lock()
    board.cpu_clock(cur=729, low=115, high=1190, policy=4)
    board.write("sys/devices/system/cpu/cpufreq/policy4/scaling_governor", "performance")
    facts = dict(_nvidia.facts(root=board.root))
    assert (facts["cpu_clock"], facts["cpu_governor"]) == (
        "locked 1510 MHz, 115 to 1190 MHz",
        "schedutil, performance",
    )
    found = {finding.name: finding for finding in _nvidia.findings(root=board.root)}
    assert (found["GPU clock"].status, found["CPU clock"].status) == ("pass", "warn")
    assert found["CPU clock"].detail == (
        "moves with the load: locked 1510 MHz, 115 to 1190 MHz, governor schedutil, performance; tables say so"
    )


def test_the_clock_of_the_memory_is_told_where_it_can_be_read(board: FakeJetson) -> None:
    folder = "sys/kernel/debug/bpmp/debug/clk/emc"
    board.write(f"{folder}/rate", "2133000000\n")
    assert "memory_clock" not in dict(_nvidia.facts(root=board.root))
    for locked, told in ((0, "not locked"), (1, "locked 2133 MHz")):
        board.write(f"{folder}/mrq_rate_locked", f"{locked}\n")
        assert dict(_nvidia.facts(root=board.root))["memory_clock"] == told


def test_the_power_mode_without_nvpmodel_is_that_of_its_status_file(board: FakeJetson) -> None:
    (board.root / "usr/sbin/nvpmodel").unlink()
    jetson = Jetson(board.root, MODEL)
    assert jetson.power_mode() == PowerMode("MAXN_SUPER", 2)
    (board.root / "etc/nvpmodel.conf").unlink()
    assert str(jetson.power_mode()) == "2"
    (board.root / "var/lib/nvpmodel/status").unlink()
    assert jetson.power_mode() is None
    assert dict(jetson.facts())["power_mode"] == "unknown"


def test_a_name_of_a_mode_may_hold_what_a_shell_would_read(board: FakeJetson) -> None:
    board.power_query("NV Power Mode: $(touch${IFS}x);15W\n3\n")
    mode = Jetson(board.root, MODEL).power_mode()
    assert mode == PowerMode("$(touch${IFS}x);15W", 3)


@pytest.mark.parametrize("name", ["17000000.ga10b", "17000000.gv11b", "17000000.gpu", "gpu-gpc-0"])
def test_the_gpu_is_found_by_its_name(tmp_path: Path, name: str) -> None:
    board = FakeJetson(tmp_path)
    os.rename(tmp_path / board.gpu, tmp_path / "sys/class/devfreq" / name)
    clock = Jetson(tmp_path, MODEL).gpu_clock()
    assert clock is not None
    assert (clock.current_mhz, clock.lowest_mhz, clock.highest_mhz, clock.locked) == (306, 306, 1020, False)


def test_the_gpu_is_found_by_its_node(board: FakeJetson) -> None:
    os.rename(board.root / board.gpu, board.root / "sys/class/devfreq/57000000.device")
    assert Jetson(board.root, MODEL).gpu_clock() is None
    assert dict(_nvidia.facts(root=board.root))["gpu_clock"] == "unknown"
    board.write("sys/class/devfreq/57000000.device/device/of_node/name", "ga10b\0")
    assert Jetson(board.root, MODEL).gpu_clock() is not None


@pytest.mark.parametrize("unreadable", [("min", "max"), ("min",), ("max",)])
def test_bounds_that_cannot_be_read_are_not_taken_for_locked_clocks(
    board: FakeJetson, unreadable: tuple[str, ...]
) -> None:
    board.clock(cur=1020, low=1020, high=1020)
    for name in unreadable:
        (board.root / board.gpu / f"{name}_freq").unlink()
    clock = Jetson(board.root, MODEL).gpu_clock()
    assert clock is not None
    assert not clock.locked
    assert dict(_nvidia.facts(root=board.root))["gpu_clock"] == "unknown"
    (found,) = [item for item in _nvidia.findings(root=board.root) if item.name == "GPU clock"]
    assert (found.status, found.detail) == (
        "warn",
        "its bounds cannot be read: whether it is locked cannot be told",
    )
    assert "sudo jetson_clocks" in found.fix


def test_temperatures_and_their_limits(board: FakeJetson) -> None:
    jetson = Jetson(board.root, MODEL)
    assert jetson.temperatures() == {"cpu-thermal": 47.125, "gpu-thermal": 48.5}
    assert jetson.headroom() == ("gpu-thermal", 48.5, 50.5)  # an active limit is only the fan's


def test_the_warning_of_a_hot_case_is_no_throttling(board: FakeJetson) -> None:
    """An Orin turns it on at 70 C by a limit of the kind that slows others down; clocks stay until 99 C."""
    throttle = _nvidia.throttle_counters(root=board.root, library=NO_NVML)
    before = _counts(throttle)
    board.zone(0, "cpu-thermal", 78000, {"passive": 99000, "critical": 104500})
    board.cooling(3, "hot-surface-alert", 1)
    assert _counts(throttle) == before
    jetson = Jetson(board.root, MODEL)
    assert "hot-surface-alert" not in jetson.cooling()
    assert jetson.headroom() == ("cpu-thermal", 78.0, 21.0)
    found = {finding.name: finding.status for finding in _nvidia.findings(root=board.root)}
    assert (found["temperature"], found["throttling"]) == ("pass", "pass")


def test_a_limit_that_also_slows_down_counts(board: FakeJetson) -> None:
    board.zone(0, "cpu-thermal", 66000, {"passive": 99000, "critical": 104500})
    board.bind(0, 2, 2, 1)
    assert Jetson(board.root, MODEL).headroom() == ("cpu-thermal", 66.0, 4.0)


def test_a_limit_of_which_nothing_is_known_counts(board: FakeJetson) -> None:
    board.zone(0, "cpu-thermal", 66000, {"passive": 99000})
    (board.root / "sys/class/thermal/thermal_zone0/cdev1_trip_point").unlink()
    assert Jetson(board.root, MODEL).headroom() == ("cpu-thermal", 66.0, 4.0)


def test_what_is_no_jetson(tmp_path: Path) -> None:
    assert Jetson.find(tmp_path) is None
    assert _nvidia.facts(root=tmp_path, library=NO_NVML) == ()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 3.1, GCID: 1")
    found = Jetson.find(tmp_path)
    assert found is not None
    assert (found.model, found.l4t) == ("Jetson", "35.3.1")
    assert {value for name, value in found.facts() if name not in ("board", "l4t")} == {"unknown"}
    assert found.headroom() is None
    assert {finding.status for finding in _nvidia.findings(root=tmp_path)} == {"pass", "warn"}


def test_an_undisturbed_round_changes_no_counter(board: FakeJetson) -> None:
    throttle = _nvidia.throttle_counters(root=board.root, library=NO_NVML)
    before = _counts(throttle)
    assert _counts(throttle) == before
    assert before == {"over-current oc1": 0, "over-current oc2": 0, "over-current oc3": 0}
    throttle.close()


def test_everything_that_throttles_changes_a_counter(board: FakeJetson) -> None:
    throttle = _nvidia.throttle_counters(root=board.root, library=NO_NVML)
    changes = {
        "over-current oc3": lambda: board.over_current(3, 27390),
        "cooling gpu-throttle-alert": lambda: board.cooling(2, "gpu-throttle-alert", 1),
        "alarm hwmon0/curr1_crit_alarm": lambda: board.alarm(1),
        "gpu clock moved": lambda: board.clock(cur=408, low=306, high=1020),
    }
    for name, change in changes.items():
        before = _counts(throttle)
        change()
        after = _counts(throttle)
        assert after.get(name, 0) > before.get(name, 0), name


def test_a_slowdown_at_either_end_or_throughout_voids_the_round(board: FakeJetson) -> None:
    name = "cooling cpufreq-cpu0"
    throttle = _nvidia.throttle_counters(root=board.root, library=NO_NVML)
    for at_begin, at_end in ((1, 0), (0, 1), (1, 1), (0, 0)):
        for state in (0, 0):  # two quiet moments between the rounds
            board.cooling(1, "cpufreq-cpu0", state)
            throttle()
        board.cooling(1, "cpufreq-cpu0", at_begin)
        before = _counts(throttle)
        board.cooling(1, "cpufreq-cpu0", at_end)
        after = _counts(throttle)
        assert (after.get(name, 0) != before.get(name, 0)) == bool(at_begin or at_end)


def test_a_fan_and_a_step_of_the_clock_void_nothing(board: FakeJetson) -> None:
    board.clock(cur=1000, low=306, high=1020)
    throttle = _nvidia.throttle_counters(root=board.root, library=NO_NVML)
    before = _counts(throttle)
    board.cooling(0, "pwm-fan", 4)
    board.clock(cur=1015, low=306, high=1020)
    assert _counts(throttle) == before


def test_a_row_says_whether_the_clocks_were_locked(board: FakeJetson) -> None:
    throttle = _nvidia.throttle_counters(root=board.root, library=NO_NVML)
    span = _nvidia.ClockSpan(throttle)
    assert span.facts() == {"sm_mhz": "306 to 306", "clocks_locked": "no"}
    board.clock(cur=1020, low=1020, high=1020)
    assert span.facts() == {"sm_mhz": "306 to 1020", "clocks_locked": "no"}, "the CPU's still moves"
    board.lock()
    assert span.facts() == {"sm_mhz": "306 to 1020", "clocks_locked": "yes"}
    assert _nvidia.ClockSpan(throttle).facts() == {"sm_mhz": "1020 to 1020", "clocks_locked": "yes"}
    shutil.rmtree(board.root / "sys/devices/system/cpu/cpufreq")
    assert _nvidia.ClockSpan(throttle).facts()["clocks_locked"] == "unknown"
    (board.root / board.gpu / "min_freq").unlink()
    assert span.facts()["clocks_locked"] == "no", "it moved"
    throttle.close()


def test_findings_give_the_commands(board: FakeJetson) -> None:
    found = {finding.name: finding for finding in _nvidia.findings(root=board.root)}
    assert [finding.status for finding in found.values()] == ["pass", "pass", "warn", "warn", *["pass"] * 3]
    assert found["board"].detail == f"{MODEL}, Jetson Linux 36.4.3"
    assert "25W (1)" in found["power mode"].detail
    assert (
        "0 15W, 1 25W, 2 MAXN_SUPER; another one: sudo nvpmodel -m ID, before clocks are locked"
        in found["power mode"].detail
    )
    assert found["GPU clock"].fix.startswith("sudo jetson_clocks --store && sudo jetson_clocks ")
    assert "governor nvhost_podgov" in found["GPU clock"].detail
    board.lock()
    board.cooling(2, "gpu-throttle-alert", 1)
    board.over_current(3, 12)
    board.zone(1, "gpu-thermal", 95500, {"passive": 99000})
    (board.root / "usr/sbin/nvpmodel").write_text("#!/bin/sh\nexit 1\n")
    (board.root / "var/lib/nvpmodel/status").unlink()
    found = {finding.name: finding for finding in _nvidia.findings(root=board.root)}
    assert found["GPU clock"].status == found["CPU clock"].status == "pass"
    assert found["CPU clock"].detail == "locked at 1510 MHz"
    assert (found["throttling"].status, found["throttling"].detail) == ("fail", "slowed down now by gpu-throttle-alert")
    assert found["throttling"].fix.endswith("sudo jetson_clocks --fan")
    assert found["temperature"].fix.endswith("sudo jetson_clocks --fan")
    assert found["power supply"].detail.endswith("oc3 12 events")
    assert (found["temperature"].status, found["temperature"].detail) == (
        "fail",
        "gpu-thermal 96 C, 4 degrees below its first limit",
    )
    assert (
        found["power mode"].fix
        == "sudo nvpmodel -q says which; sudo nvpmodel -m ID sets one of 0 15W, 1 25W, 2 MAXN_SUPER"
    )
    assert all(finding.fix for finding in found.values() if finding.status != "pass")


@pytest.mark.jetson
def test_a_real_jetson() -> None:
    """Needs to run on the board itself; what needs a board behind SSH is in tests/devices/test_jetson_device.py."""
    found = Jetson.find(Path("/"))
    if found is None:
        pytest.skip("this machine is no Jetson: run the test on the board")
    facts = dict(found.facts())
    assert "unknown" not in facts.values(), facts
    assert found.temperatures()
    assert set(found.over_current_events()) <= {"oc1", "oc2", "oc3"}  # a Xavier counts none
    throttle = _nvidia.throttle_counters()
    assert _counts(throttle)
    throttle.close()
