"""The files of a Jetson under a folder of the test, as Jetson Linux 36 lays them out on an Orin Nano."""

from __future__ import annotations

from pathlib import Path

MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC"
MODES = """< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""
QUERY = "NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n"


class FakeJetson:
    """Writes files under `root`; each method changes one thing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/device-tree/model", f"{MODEL}\0")
        self.write("etc/nv_tegra_release", f"{RELEASE}\n")
        self.write("etc/nvpmodel.conf", MODES)
        self.write("var/lib/nvpmodel/status", "pmode:0002 fmode:quiet\n")
        self.power_query(QUERY)
        self.write("sys/class/devfreq/15340000.vic/cur_freq", "115200000\n")
        self.clock(cur=306, low=306, high=1020)
        self.write(f"{self.gpu}/governor", "nvhost_podgov\n")
        self.cpu_clock(cur=729, low=115, high=1510)
        self.zone(0, "cpu-thermal", 47125, {"passive": 99000, "critical": 104500})
        self.zone(1, "gpu-thermal", 48500, {"passive": 99000, "active": 50000})
        self.zone(2, "cv0-thermal", None, {"passive": 99000})
        self.cooling(0, "pwm-fan", 2)
        self.cooling(1, "cpufreq-cpu0", 0)
        self.cooling(2, "gpu-throttle-alert", 0)
        self.cooling(3, "hot-surface-alert", 0)
        self.trip(0, 2, "passive", 70000)
        for bond, (trip, device) in enumerate([(0, 1), (2, 3)]):
            self.bind(0, bond, trip, device)
        self.write("sys/class/hwmon/hwmon0/name", "ina3221\n")
        self.alarm(0)
        self.write("sys/class/hwmon/hwmon3/name", "soctherm_oc\n")
        for number in (1, 2, 3):
            self.over_current(number, 0)

    gpu = "sys/class/devfreq/17000000.gpu"

    def write(self, path: str, text: str) -> Path:
        """A file with this text."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def power_query(self, answer: str) -> None:
        """What nvpmodel -q prints; it fails for any other argument."""
        printed = self.write("usr/share/nvpmodel.txt", answer)
        program = self.write("usr/sbin/nvpmodel", f'#!/bin/sh\n[ "$*" = -q ] || exit 1\ncat "{printed}"\n')
        program.chmod(0o755)

    def clock(self, *, cur: int, low: int, high: int) -> None:
        """The GPU's clock in MHz."""
        for name, value in (("cur", cur), ("min", low), ("max", high)):
            self.write(f"{self.gpu}/{name}_freq", f"{value * 1_000_000}\n")

    def cpu_clock(self, *, cur: int, low: int, high: int, policy: int = 0) -> None:
        """The clock of a group of cores in MHz."""
        folder = f"sys/devices/system/cpu/cpufreq/policy{policy}"
        for name, value in (("cur", cur), ("min", low), ("max", high)):
            self.write(f"{folder}/scaling_{name}_freq", f"{value * 1000}\n")
        self.write(f"{folder}/scaling_governor", "schedutil\n")

    def lock(self) -> None:
        """As after jetson_clocks."""
        self.clock(cur=1020, low=1020, high=1020)
        self.cpu_clock(cur=1510, low=1510, high=1510)

    def zone(self, number: int, name: str, millidegrees: int | None, limits: dict[str, int]) -> None:
        """A thermal zone; a temperature of None is that of a part that is switched off."""
        folder = f"sys/class/thermal/thermal_zone{number}"
        self.write(f"{folder}/type", f"{name}\n")
        self.write(f"{folder}/temp", "" if millidegrees is None else f"{millidegrees}\n")
        for index, (kind, limit) in enumerate(limits.items()):
            self.trip(number, index, kind, limit)

    def trip(self, zone: int, number: int, kind: str, limit: int) -> None:
        """A limit of a zone in thousandths of a degree."""
        folder = f"sys/class/thermal/thermal_zone{zone}"
        self.write(f"{folder}/trip_point_{number}_type", f"{kind}\n")
        self.write(f"{folder}/trip_point_{number}_temp", f"{limit}\n")

    def bind(self, zone: int, bond: int, trip: int, device: int) -> None:
        """A zone's limit calls a cooling device: a link to the device, and beside it the number of the limit."""
        self.write(f"sys/class/thermal/thermal_zone{zone}/cdev{bond}_trip_point", f"{trip}\n")
        link = self.root / f"sys/class/thermal/thermal_zone{zone}/cdev{bond}"
        link.symlink_to(f"../cooling_device{device}")

    def cooling(self, number: int, name: str, state: int) -> None:
        """A cooling device."""
        self.write(f"sys/class/thermal/cooling_device{number}/type", f"{name}\n")
        self.write(f"sys/class/thermal/cooling_device{number}/cur_state", f"{state}\n")

    def over_current(self, number: int, count: int) -> None:
        """Events since the start."""
        self.write(f"sys/class/hwmon/hwmon3/oc{number}_event_cnt", f"{count}\n")

    def alarm(self, state: int) -> None:
        """The critical-current alarm of the first rail."""
        self.write("sys/class/hwmon/hwmon0/curr1_crit_alarm", f"{state}\n")
