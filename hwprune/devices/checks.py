"""Is this machine fit to measure? Each check has a status, what was found, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwprune.core.measurement import Protocol
from hwprune.core.statistics import robust_variation
from hwprune.runtimes._base import Check, Status
from hwprune.runtimes._host import usable_cores

if TYPE_CHECKING:
    from hwprune.devices.board import Board

GIB = 1 << 30
PROBE = "probe"


def run_checks(board: Board, probe: bytes) -> tuple[Check, ...]:
    """All checks of a board: its runtime, the machine it is in, and how well `probe` can be measured on it now."""
    return tuple(_checks(board, probe))


def _checks(board: Board, probe: bytes) -> Iterator[Check]:
    fingerprint = board.fingerprint
    if board.simulated:
        yield Check("hardware", "warn", "SIMULATED: no hardware is timed", "use --device cpu for real latencies")
    else:
        cores = f"{usable_cores()} cores usable, {fingerprint.threads} used"
        yield Check("processor", "pass", f"{fingerprint.cpu_model}, {cores}")
        yield virtual_machine(Path("/proc/cpuinfo"))
        yield governor(Path("/sys/devices/system/cpu/cpu0/cpufreq"), Path("/etc/nv_tegra_release"))
        yield load(Path("/proc/loadavg"), Path("/proc/pressure/cpu"), usable_cores())
        yield memory(Path("/proc/meminfo"))
        yield priority(fingerprint.threads)
    yield Check("runtime", "pass", f"{fingerprint.runtime} {fingerprint.runtime_version}")
    yield Check("precision", "pass", f"computes in {fingerprint.precision}")
    yield from board.runtime.findings()
    yield from noise(board, probe)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def virtual_machine(cpuinfo: Path) -> Check:
    """Whether strangers may share the processor."""
    if "hypervisor" in _text(cpuinfo):
        detail = "virtual machine: neighbours on the same processor slow it now and then"
        fix = "cannot be fixed from inside the virtual machine; measure on the real device before you decide"
        return Check("virtual machine", "warn", detail, fix)
    return Check("virtual machine", "pass", "none seen")


def governor(folder: Path, tegra: Path) -> Check:
    """Whether the clock is left to change. `tegra`: a file that only a Jetson has, which has a command of its own."""
    name = _text(folder / "scaling_governor").strip()
    lowest, highest = (_text(folder / f"scaling_{end}_freq").strip() for end in ("min", "max"))
    if not name:
        return Check("clock", "pass", "no frequency control visible")
    if name == "performance":
        return Check("clock", "pass", "governor performance")
    if lowest and lowest == highest:
        return Check("clock", "pass", f"governor {name}, locked at {lowest} kHz")
    fix = "sudo jetson_clocks" if tegra.exists() else "sudo cpupower frequency-set -g performance"
    return Check("clock", "warn", f"governor {name}: the clock changes with the load", fix)


def load(loadavg: Path, pressure: Path, cores: int) -> Check:
    """How busy the machine is with other work."""
    fields = _text(loadavg).split()
    if not fields:
        return Check("load", "pass", "not visible on this system")
    busy = float(fields[0])
    detail = f"load {busy:.1f} on {cores} cores"
    shares = [word[len("avg10=") :] for word in _text(pressure).split() if word.startswith("avg10=")]
    waiting = float(shares[0]) if shares else 0.0
    if shares:
        detail += f", processes waited for a core {waiting:.0f} % of the last 10 s"
    if busy > cores or waiting > 50:
        return Check("load", "fail", detail, "stop other work on this machine, then measure")
    if busy > cores / 2 or waiting > 10:
        return Check("load", "warn", detail, "stop other work on this machine for the narrowest intervals")
    return Check("load", "pass", detail)


def memory(meminfo: Path) -> Check:
    """Whether there is room for models and sessions."""
    rows = dict(line.split(":", 1) for line in _text(meminfo).splitlines() if ":" in line)
    if "MemAvailable" not in rows:
        return Check("memory", "pass", "not visible on this system")
    free, total = (int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    detail = f"{free / GIB:.1f} GiB free of {total / GIB:.1f} GiB"
    return Check("memory", "pass", detail) if free >= GIB else Check("memory", "warn", detail, "close other programs")


def priority(threads: int) -> Check:
    """Whether the measuring thread may go before all others; it may not for most users, and need not."""
    if threads > 1 or not hasattr(os, "sched_setscheduler"):
        return Check("priority", "pass", "normal")
    previous = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return Check("priority", "pass", "normal: other processes may interrupt a run (CPU time does not count them)")
    os.sched_setscheduler(0, *previous)
    return Check("priority", "pass", "real-time while measuring")


def noise(board: Board, probe: bytes) -> Iterator[Check]:
    """The share of quiet moments, and the interval of a network of about 1 ms in 5 to 8 rounds."""
    protocol = replace(Protocol.default(), rounds_max=8, retries=0)
    measured = board.measure({PROBE: probe}, protocol=protocol)[PROBE]
    laps = sum(len(item.laps_ms) for item in measured.rounds)
    share = sum(item.quiet_laps for item in measured.rounds) / laps
    scatter = 100 * robust_variation(measured.samples_ms)
    detail = f"{100 * share:.0f} % of the runs were undisturbed; they scatter by {scatter:.1f} %"
    fix = "stop other work; on a shared machine choose a quieter hour"
    quiet: Status = "pass" if share >= 0.3 else "warn" if share >= 0.02 else "fail"
    yield Check("quiet moments", quiet, detail, "" if quiet == "pass" else fix)
    half = 100 * measured.scatter
    detail = f"+-{half:.1f} % (95 %) for a network of {measured.latency_ms:.2f} ms, {measured.round_count} rounds"
    status: Status = "pass" if half <= 1.5 else "warn" if half <= 5 else "fail"
    yield Check("interval", status, detail, "" if status == "pass" else fix)
