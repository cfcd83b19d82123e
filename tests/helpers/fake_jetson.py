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
        self.zone(0, "cpu-thermal", 47125, {"passive": 99000, "critical": 104500})
        self.zone(1, "gpu-thermal", 48500, {"passive": 99000, "active": 50000})
        self.zone(2, "cv0-thermal", None, {"passive": 99000})
        self.cooling(0, "pwm-fan", 2)
        self.cooling(1, "cpufreq-cpu0", 0)
        self.cooling(2, "gpu-throttle-alert", 0)
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

    def zone(self, number: int, name: str, millidegrees: int | None, limits: dict[str, int]) -> None:
        """A thermal zone; a temperature of None is that of a part that is switched off."""
        folder = f"sys/class/thermal/thermal_zone{number}"
        self.write(f"{folder}/type", f"{name}\n")
        self.write(f"{folder}/temp", "" if millidegrees is None else f"{millidegrees}\n")
        for index, (kind, limit) in enumerate(limits.items()):
            self.write(f"{folder}/trip_point_{index}_type", f"{kind}\n")
            self.write(f"{folder}/trip_point_{index}_temp", f"{limit}\n")

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
