"""The clock of a GPU: events on its stream for the time that counts, the host's clock for a request end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

from hwprune.runtimes._base import AbstractClock, Lap
from hwprune.runtimes._host import waited_s
from hwprune.runtimes._tensorrt.cuda import Cuda

WINDOW_MS = 0.5  # the timed region is about so long: an event is 0.5 us fine, so this is true to 0.1 %
LEAD_MS = 0.1  # and so much work is queued before it, so that the GPU never waits for the host
COPIES_MAX = 32


class DeviceClock(AbstractClock):
    """Times a function that puts one inference on the stream, in two ways.

    `wall_ms` (e2e): one request alone, from the call until its result is there, by the host's clock; no copies of
    inputs or outputs. `time_ms` (gpu): requests one behind the other, as trtexec does it, by events on the stream:
    the mean of as many as fill half a millisecond, one for a network that takes longer.
    """

    name: ClassVar[str] = "device"

    def __init__(self, cuda: Cuda, counters: Callable[[], Mapping[str, int]] = dict) -> None:
        self._cuda = cuda
        self._counters = counters
        self._events = cuda.event(), cuda.event()
        self._begin, self._end = (cuda.recorder(event) for event in self._events)

    def time(self, run: Callable[[], None]) -> Lap:
        cuda, now_s = self._cuda, self._cuda.now_s
        cuda.synchronise()
        start_s = now_s()
        run()
        cuda.synchronise()
        wall_ms = 1e3 * (now_s() - start_s)
        copies = _fill(WINDOW_MS, wall_ms)
        for _ in range(_fill(LEAD_MS, wall_ms)):
            run()
        self._begin()
        for _ in range(copies):
            run()
        self._end()
        cuda.synchronise()
        return Lap(cuda.elapsed_ms(*self._events) / copies, wall_ms)

    def now_s(self) -> float:
        return self._cuda.now_s()

    def waited_s(self) -> float:
        return waited_s()

    def counters(self) -> Mapping[str, int]:
        return self._counters()

    def close(self) -> None:
        """Free the events."""
        for event in self._events:
            self._cuda.destroy_event(event)


def _fill(window_ms: float, each_ms: float) -> int:
    """How many runs of `each_ms` fill the window."""
    return min(max(math.ceil(window_ms / max(each_ms, 1e-3)), 1), COPIES_MAX)
