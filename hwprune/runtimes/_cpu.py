"""What every runtime on a CPU does alike: look at the threads, choose the clock, say what a latency is true for."""

from __future__ import annotations

import platform

from hwprune.core.errors import UsageError
from hwprune.core.measurement import Fingerprint, Target
from hwprune.runtimes._base import AbstractClock
from hwprune.runtimes._clocks import ThreadCpuClock, WallClock
from hwprune.runtimes._host import cpu_model, usable_cores


def check_threads(target: Target) -> None:
    """Raise `UsageError` for more threads than this process has cores."""
    cores = usable_cores()
    if target.threads > cores:
        raise UsageError(f"{target.threads} threads on {cores} usable cores", hint=f"use at most {cores} threads")


def cpu_clock(target: Target) -> AbstractClock:
    """The calling thread's CPU time, where that thread does all the work; else the wall clock."""
    return ThreadCpuClock() if target.threads == 1 else WallClock()


def cpu_fingerprint(
    target: Target, *, runtime: str, version: str, flags: tuple[tuple[str, str], ...], precision: str = "fp32"
) -> Fingerprint:
    """The fingerprint of a runtime on this processor; `precision` is the one really computed in."""
    return Fingerprint(
        device=target.device,
        cpu_model=cpu_model(),
        cores=target.threads,
        runtime=runtime,
        runtime_version=version,
        precision=precision,
        batch=target.batch,
        threads=target.threads,
        os=f"{platform.system()} {platform.machine()}",
        flags=flags,
    )
