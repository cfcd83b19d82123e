"""Counters of everything that slows a GPU down; one that differs after a round from before it voids the round."""

from __future__ import annotations

from collections.abc import Mapping

from hwprune.runtimes._nvidia.jetson import Jetson
from hwprune.runtimes._nvidia.nvml import SM, Nvml

MOVED = 0.02  # a clock that changed by more ran the round at two speeds


class Throttle:
    """Called before and after a round.

    What the hardware counts (over-current events, time held back) is passed on. What it only shows at a moment, such as
    a thermal slowdown, is counted here: at every call at which it is on, and once more at the call after, so that a
    slowdown that was on at the beginning, at the end, or throughout a round always changes its counter. A clock that
    moved by more than 2 % since the last call is counted too.
    """

    def __init__(self, board: Jetson | None, card: Nvml | None) -> None:
        self._board = board
        self._card = card
        self._counts: dict[str, int] = {}
        self._on: frozenset[str] = frozenset()
        self._clock_mhz: int | None = None

    def __call__(self) -> Mapping[str, int]:
        on = frozenset(self._states())
        for name in on | self._on:
            self._counts[name] = self._counts.get(name, 0) + 1
        self._on = on
        self._watch_clock()
        return {**self._counts, **self._hardware_counters()}

    def close(self) -> None:
        """Give NVML back."""
        if self._card is not None:
            self._card.close()
            self._card = None

    def _states(self) -> list[str]:
        found = []
        if self._board is not None:
            found += [f"cooling {name}" for name, state in self._board.cooling().items() if state]
            found += [f"alarm {name}" for name, state in self._board.power_alarms().items() if state]
        if self._card is not None:
            found += [name for name, active in (self._card.reasons() or {}).items() if active]
        return found

    def _hardware_counters(self) -> dict[str, int]:
        found: dict[str, int] = {}
        if self._board is not None:
            found.update((f"over-current {name}", count) for name, count in self._board.over_current_events().items())
        if self._card is not None:
            found.update((f"held back by {name}", count) for name, count in self._card.violations_ns().items())
        return found

    def locked(self) -> bool | None:
        """Whether the clocks of GPU and CPU are locked; None where that cannot be told, as through NVML."""
        return self._board.clocks_locked() if self._board is not None else None

    def _watch_clock(self) -> None:
        now = self.clock_mhz()
        if now is None:
            return
        before, self._clock_mhz = self._clock_mhz, now
        if before is not None and moved(before, now):
            self._counts["gpu clock moved"] = self._counts.get("gpu clock moved", 0) + 1

    def clock_mhz(self) -> int | None:
        """The GPU's clock now, None where it cannot be read."""
        if self._board is not None:
            clock = self._board.gpu_clock()
            return clock.current_mhz if clock is not None and clock.current_mhz > 0 else None
        return self._card.clock_mhz(SM) if self._card is not None else None

    def near_mhz(self) -> int | None:
        """The GPU's clock now to 100 MHz, where no bounds of it are known and it alone may tell of a lock: NVML."""
        now = self.clock_mhz() if self._board is None else None
        return None if now is None else round(now, -2)


class ClockSpan:
    """The GPU's clock from now to whenever it is asked for: a row of a table says so, since few clocks are locked."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._begin_mhz = throttle.clock_mhz()

    def facts(self) -> dict[str, str]:
        """`clocks_locked` (yes, no, unknown: NVML shows at best that they are not) and `sm_mhz` at begin and end."""
        begin, end, locked = self._begin_mhz, self._throttle.clock_mhz(), self._throttle.locked()
        found: dict[str, str] = {}
        if begin is not None and end is not None:
            found["sm_mhz"] = f"{begin} to {end}"
            locked = False if locked is None and moved(begin, end) else locked
        found["clocks_locked"] = "unknown" if locked is None else "yes" if locked else "no"
        return found


def moved(before_mhz: int, after_mhz: int) -> bool:
    """Whether a clock changed by more than what a locked one shows."""
    return abs(after_mhz - before_mhz) > MOVED * before_mhz
