"""The clocks of a CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

from hwprune.runtimes._base import AbstractClock, Lap
from hwprune.runtimes._host import waited_s


class ThreadCpuClock(AbstractClock):
    """CPU time of the calling thread: other processes cannot lengthen it by taking the core away."""

    name: ClassVar[str] = "thread_cpu"

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def time(self, run: Callable[[], None]) -> Lap:
        wall = time.perf_counter_ns()
        begin = time.thread_time_ns()
        run()
        end = time.thread_time_ns()
        return Lap((end - begin) / 1e6, (time.perf_counter_ns() - wall) / 1e6)

    def now_s(self) -> float:
        return time.perf_counter()

    def waited_s(self) -> float:
        return waited_s()

    def elsewhere(self) -> None:
        if len(self._cores) > 1:
            self._cores.append(self._cores.pop(0))
            with suppress(OSError):
                os.sched_setaffinity(0, {self._cores[-1]})


class WallClock(AbstractClock):
    """Elapsed time: the only one that is true for several threads, and the one other processes disturb."""

    name: ClassVar[str] = "wall"

    def time(self, run: Callable[[], None]) -> Lap:
        begin = time.perf_counter_ns()
        run()
        elapsed = (time.perf_counter_ns() - begin) / 1e6
        return Lap(elapsed, elapsed)

    def now_s(self) -> float:
        return time.perf_counter()

    def waited_s(self) -> float:
        return waited_s()
