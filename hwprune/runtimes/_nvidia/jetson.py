"""A Jetson from its files: board, L4T, power mode, GPU clock, temperatures, throttling, over-current events."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_GPU_NAME = re.compile(r"(^|[.\-])(gpu|ga10b|gv11b|gp10b|gpu-gpc-0)\b")
_RELEASE = re.compile(r"R(\d+).*REVISION:\s*([\d.]+)")
_MODE = re.compile(r"NV Power Mode:\s*(\S+)\s+(\d+)")
_STATUS = re.compile(r"pmode:(\d+)")
_LISTED_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
_TRIPS = ("passive", "hot", "critical")
_NO_SLOWDOWN = ("fan", "hot-surface-alert")  # in the names of what cools, and of Orin's warning of a hot case at 70 C
QUERY_S = 10.0


@dataclass(frozen=True)
class PowerMode:
    """A mode of nvpmodel by name and number; an empty name where only the number is known."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} ({self.number})" if self.name else str(self.number)


@dataclass(frozen=True)
class Clock:
    """A clock in MHz and the bounds it moves in; `locked` when they leave it no room. -1: cannot be read."""

    current_mhz: int
    lowest_mhz: int
    highest_mhz: int
    governor: str = ""

    @property
    def known(self) -> bool:
        """Whether both bounds could be read."""
        return min(self.lowest_mhz, self.highest_mhz) >= 0

    @property
    def locked(self) -> bool:
        """Whether it stands still, as far as is known."""
        return self.known and self.lowest_mhz == self.highest_mhz

    def __str__(self) -> str:
        if not self.known:
            return "unknown"
        return f"locked {self.highest_mhz} MHz" if self.locked else f"{self.lowest_mhz} to {self.highest_mhz} MHz"


@dataclass(frozen=True)
class Jetson:
    """The Jetson whose files are under `root`; `model` is the board's name in its device tree."""

    root: Path
    model: str

    @classmethod
    def find(cls, root: Path) -> Jetson | None:
        """The Jetson this is, or None on anything else."""
        model = text_of(root / "proc/device-tree/model")
        is_tegra = (root / "etc/nv_tegra_release").exists() or "jetson" in model.lower()
        return cls(root, model or "Jetson") if is_tegra else None

    @property
    def l4t(self) -> str:
        """The release of Jetson Linux, such as `36.4.3`, or ""."""
        found = _RELEASE.search(text_of(self.root / "etc/nv_tegra_release"))
        return f"{found.group(1)}.{found.group(2)}" if found else ""

    def power_mode(self) -> PowerMode | None:
        """The mode that nvpmodel tells, else the one in its status file; None where neither can be read."""
        found = _MODE.search(self._nvpmodel())
        if found:
            return PowerMode(found.group(1), int(found.group(2)))
        status = _STATUS.search(text_of(self.root / "var/lib/nvpmodel/status"))
        if status is None:
            return None
        number = int(status.group(1))
        return PowerMode({mode.number: mode.name for mode in self.power_modes()}.get(number, ""), number)

    def power_modes(self) -> tuple[PowerMode, ...]:
        """All modes of this board, from nvpmodel's configuration."""
        listed = _LISTED_MODE.findall(text_of(self.root / "etc/nvpmodel.conf"))
        return tuple(PowerMode(name, int(number)) for number, name in listed)

    def _nvpmodel(self) -> str:
        program = self.root / "usr/sbin/nvpmodel"
        try:
            done = subprocess.run(
                [str(program), "-q"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=QUERY_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.decode(errors="replace")

    def gpu_clock(self) -> Clock | None:
        """The GPU's clock; None where no such device is found."""
        folder = self._gpu_folder()
        if folder is None:
            return None
        return _clock(folder, "{}_freq", 1_000_000, "governor")

    def cpu_clocks(self) -> tuple[Clock, ...]:
        """The clock of each group of cores that share one, without those that are off; () where none is told."""
        groups = folders(self.root / "sys/devices/system/cpu/cpufreq", "policy")
        return tuple(_clock(folder, "scaling_{}_freq", 1000, "scaling_governor") for folder in groups)

    def memory_clock(self) -> str:
        """The clock of the memory, "" where it cannot be read, as without root."""
        folder = self.root / "sys/kernel/debug/bpmp/debug/clk/emc"
        rate, locked = number_of(folder / "rate"), number_of(folder / "mrq_rate_locked")
        if rate is None or locked is None:
            return ""
        return f"locked {rate // 1_000_000} MHz" if locked else "not locked"

    def clocks_locked(self) -> bool | None:
        """Whether the clocks of GPU and CPU stand still; None where that cannot be told."""
        gpu = self.gpu_clock()
        clocks = [*([] if gpu is None else [gpu]), *self.cpu_clocks()]
        if any(clock.known and not clock.locked for clock in clocks):
            return False
        return True if gpu is not None and len(clocks) > 1 and all(clock.locked for clock in clocks) else None

    def _gpu_folder(self) -> Path | None:
        for folder in folders(self.root / "sys/class/devfreq"):
            names = folder.name, text_of(folder / "device/of_node/name")
            if any(_GPU_NAME.search(name) for name in names):
                return folder
        return None

    def temperatures(self) -> Mapping[str, float]:
        """Degrees Celsius by thermal zone; zones that are switched off are left out."""
        found = {}
        for zone in folders(self.root / "sys/class/thermal", "thermal_zone"):
            value = number_of(zone / "temp")
            if value is not None and value > 0:
                found[text_of(zone / "type")] = value / 1000
        return found

    def headroom(self) -> tuple[str, float, float] | None:
        """(zone, degrees now, degrees below its first limit) of the zone nearest to throttling; None without limits."""
        nearest = []
        for zone in folders(self.root / "sys/class/thermal", "thermal_zone"):
            value = number_of(zone / "temp")
            limits = list(_limits(zone))
            if value is not None and value > 0 and limits:
                nearest.append((min(limits) - value / 1000, text_of(zone / "type"), value / 1000))
        if not nearest:
            return None
        room, name, now = min(nearest)
        return name, now, room

    def cooling(self) -> Mapping[str, int]:
        """The state of what slows the board down by name, 0 when it does not; fans and mere warnings are left out."""
        found: dict[str, int] = {}
        for device in folders(self.root / "sys/class/thermal", "cooling_device"):
            name, state = text_of(device / "type"), number_of(device / "cur_state")
            if name and state is not None and _slows_down(name):
                found[name] = max(state, found.get(name, 0))
        return found

    def over_current_events(self) -> Mapping[str, int]:
        """Events since the board started: `oc1` under-voltage, `oc2` average and `oc3` momentary over-current."""
        found = {}
        for monitor in folders(self.root / "sys/class/hwmon"):
            if text_of(monitor / "name") != "soctherm_oc":
                continue
            for number in (1, 2, 3):
                count = number_of(monitor / f"oc{number}_event_cnt")
                if count is not None:
                    found[f"oc{number}"] = count
        return found

    def power_alarms(self) -> Mapping[str, int]:
        """The critical-current alarms of the board's power monitors by rail, 1 while one is on."""
        found = {}
        for monitor in folders(self.root / "sys/class/hwmon"):
            if not text_of(monitor / "name").startswith("ina"):
                continue
            for alarm in sorted(monitor.glob("curr*_crit_alarm")):
                value = number_of(alarm)
                if value is not None:
                    found[f"{monitor.name}/{alarm.name}"] = value
        return found

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What belongs in a fingerprint: the same board in another mode is another device."""
        mode, gpu, cpu, memory = self.power_mode(), self.gpu_clock(), self.cpu_clocks(), self.memory_clock()
        return (
            ("board", self.model),
            ("l4t", self.l4t or "unknown"),
            ("power_mode", str(mode) if mode else "unknown"),
            ("gpu_clock", each(() if gpu is None else (str(gpu),))),
            ("gpu_governor", each(() if gpu is None else (gpu.governor,))),
            ("cpu_clock", each(str(clock) for clock in cpu)),
            ("cpu_governor", each(clock.governor for clock in cpu)),
            *((("memory_clock", memory),) if memory else ()),
        )


def each(texts: Iterable[str]) -> str:
    """Each text once, in order."""
    return ", ".join(dict.fromkeys(text or "unknown" for text in texts)) or "unknown"


def _clock(folder: Path, file: str, per_mhz: int, governor: str) -> Clock:
    values = [number_of(folder / file.format(name)) for name in ("cur", "min", "max")]
    current, lowest, highest = (-1 if value is None else value // per_mhz for value in values)
    return Clock(current, lowest, highest, text_of(folder / governor))


def _limits(zone: Path) -> Iterator[float]:
    """The temperatures of a zone from which on the board is slower; a limit that only warns or cools is none."""
    bound = _bound(zone)
    for kind in sorted(zone.glob("trip_point_*_type")):
        limit = number_of(zone / kind.name.replace("_type", "_temp"))
        number = int(kind.name.split("_")[2])
        harmless = number in bound and not any(_slows_down(name) for name in bound[number])
        if text_of(kind) in _TRIPS and limit is not None and limit > 0 and not harmless:
            yield limit / 1000


def _bound(zone: Path) -> Mapping[int, list[str]]:
    """The cooling devices that a zone's trip points call, by the number of the trip point."""
    found: dict[int, list[str]] = {}
    for file in sorted(zone.glob("cdev*_trip_point")):
        number, name = number_of(file), text_of(zone / file.name.partition("_")[0] / "type")
        if number is not None and name:
            found.setdefault(number, []).append(name)
    return found


def _slows_down(name: str) -> bool:
    """Whether a cooling device of this name takes speed away."""
    return not any(part in name for part in _NO_SLOWDOWN)


def folders(parent: Path, prefix: str = "") -> list[Path]:
    """The entries of a folder in order of their names, none where it cannot be read."""
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return []
    return [parent / name for name in names if name.startswith(prefix)]


def text_of(path: Path) -> str:
    """The text of a file without blanks and zeros around it, "" where it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def number_of(path: Path) -> int | None:
    """The integer in a file, or None."""
    try:
        return int(text_of(path))
    except ValueError:
        return None
