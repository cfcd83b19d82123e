"""What laps are paired with: the reference kernel, which sees other work on the machine, or an anchor network.

The reference kernel is small and has a floor, so it tells undisturbed moments from others. An anchor is of the size of
the networks it is paired with: what slows them slows it alike, so that every moment counts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from hwprune.core import statistics
from hwprune.core.errors import DeviceError
from hwprune.core.protocol import QUIET_TOLERANCE
from hwprune.runtimes._base import AbstractClock, AbstractSession

BURST_MS, BURST_LAPS = 2.0, 4  # a burst lasts about so long, in at most so many laps
REFRESH_MS, REFRESH_LAPS = 1.0, 4  # untimed runs after a change of network: about so long, at most so many
REFERENCE_REFRESH = 3  # untimed runs of the reference after a change of network
CALIBRATION_S, WINDOW_S = 0.25, 0.01  # the reference is calibrated for so long, in windows of such length
AGREEING_WINDOWS, AGREEMENT = 6, 1.02  # until so many of them have come down to the floor
JITTER_REACH = 1.8  # readings this many times as far above the floor as the best window's median can be jitter
SPREAD_MAX = 0.12  # more jitter of the reference than this is taken for disturbance
POLL_S = 0.01  # wait so long for a quiet moment before trying another core
LUCKY = 3  # the floor is the third least reading of a second
FLOOR_MEMORY_S = 60  # and the least of so many seconds
ANY_MS = 1e9  # every moment is quiet
# Untimed runs after another network of its size, which has pushed its weights out of the caches: about so long, at most
# so many. Networks that take equally long warm differed by 10 % after one, by 1.5 % after two, by 1 % after three; but
# with three the turns are so slow that what comes and goes in 30 ms no longer hits both alike.
WARM_MS, WARM_LAPS = 6.0, 2
COLD_MS = 20.0  # in a lap that lasts longer, cold caches do not show


def burst_of(expected_ms: float) -> tuple[int, int]:
    """(laps of a burst, untimed runs before it) of a network whose lap lasts about so long, beside a small kernel."""
    laps = min(max(round(BURST_MS / expected_ms), 1), BURST_LAPS)
    refresh = min(math.ceil(REFRESH_MS / expected_ms), REFRESH_LAPS) if expected_ms < BURST_MS else 0
    return laps, refresh


class AbstractGauge(ABC):
    """What is timed before and after every burst of laps; `anchored` where that is an anchor network."""

    anchored: ClassVar[bool] = False

    @property
    @abstractmethod
    def floor_ms(self) -> float:
        """Its time on the undisturbed machine, as far as it knows."""

    @abstractmethod
    def quiet_ms(self, tolerance: float) -> float:
        """The longest reading that counts as undisturbed."""

    @abstractmethod
    def time_ms(self) -> float:
        """Its time now."""

    @abstractmethod
    def before_ms(self, after_ms: float | None, tolerance: float, patience_s: float) -> float:
        """Its time before a burst, `after_ms` that after the burst just done; may wait for a quiet moment."""

    def burst(self, expected_ms: float) -> tuple[int, int]:
        """(laps of a burst, untimed runs before it) of a network whose lap lasts about so long."""
        return burst_of(expected_ms)


@dataclass(frozen=True)
class Calibration:
    """The reference kernel at the opening of a session, in ms: its floor, and its typical time in quiet moments.

    `spread` is how far above the floor (relative) a reading may lie by its own jitter.
    """

    floor_ms: float
    typical_ms: float
    spread: float


class Reference(AbstractGauge):
    """The reference kernel as a gauge: its time on the undisturbed machine, and whether the machine is so now.

    The floor is the least of the last minute, so that a clock which has become slower for good is accepted in the
    end, and a disturbance of seconds is not. Single lucky readings do not count.
    """

    def __init__(self, session: AbstractSession, clock: AbstractClock, calibration: Calibration) -> None:
        self._session = session
        self._clock = clock
        self._spread = calibration.spread
        self._seconds: dict[int, list[float]] = {int(clock.now_s()): [calibration.floor_ms] * LUCKY}

    @property
    def floor_ms(self) -> float:
        """The least time of the reference kernel lately."""
        return min(low[-1] for low in self._seconds.values() if len(low) == LUCKY)

    def quiet_ms(self, tolerance: float) -> float:
        """The longest reading that counts as undisturbed: `tolerance` above the floor, or its own jitter if more."""
        return (1 + max(tolerance, self._spread)) * self.floor_ms

    def time_ms(self) -> float:
        """The mean of two runs after untimed ones, which find their data gone from the caches."""
        for _ in range(REFERENCE_REFRESH):
            self._session.run()
        return self._pair()

    def before_ms(self, after_ms: float | None, tolerance: float, patience_s: float) -> float:
        """The reference time once it is within `tolerance` of the floor, or the last one when patience ends.

        Two readings in a row must be quiet. Tries another core after a while.
        """
        begin = self._clock.now_s()
        previous, now = math.inf, self.time_ms()
        until = begin + POLL_S
        while max(previous, now) > self.quiet_ms(tolerance) and self._clock.now_s() < begin + patience_s:
            if self._clock.now_s() > until:
                self._clock.elsewhere()
                until = self._clock.now_s() + POLL_S
            previous, now = now, self._pair()
        return now

    def _pair(self) -> float:
        timed, run = self._clock.time, self._session.run
        reading = (timed(run).time_ms + timed(run).time_ms) / 2
        self._note(reading)
        return reading

    def _note(self, reading: float) -> None:
        if not reading > 0:
            return
        second = int(self._clock.now_s())
        low = self._seconds.setdefault(second, [])
        if len(low) < LUCKY or reading < low[-1]:
            low.append(reading)
            low.sort()
            del low[LUCKY:]
        complete = [key for key, values in self._seconds.items() if len(values) == LUCKY]
        for old in [key for key in self._seconds if key < second - FLOOR_MEMORY_S and key != complete[-1]]:
            del self._seconds[old]


class AnchorGauge(AbstractGauge):
    """A network timed in turn with those that are measured, in bursts as short as theirs and as warm.

    Alternating every few laps matters: on a machine with a shared last cache, the ratio of two networks in bursts of 4
    laps scattered by 1.2 % a second, in bursts of 24 by 3.5 %. So does that both are as warm, lap by lap.
    """

    anchored: ClassVar[bool] = True

    def __init__(self, session: AbstractSession, clock: AbstractClock) -> None:
        self._session = session
        self._clock = clock
        for _ in range(REFRESH_LAPS):
            session.run()
        self._first_ms = min(clock.time(session.run).time_ms for _ in range(REFRESH_LAPS))
        lap_ms = max(self._first_ms, 1e-3)
        self._laps, refresh = burst_of(lap_ms)
        warming = min(math.ceil(WARM_MS / lap_ms), WARM_LAPS) if lap_ms < COLD_MS else 0
        self._refresh = max(refresh, warming)

    @property
    def floor_ms(self) -> float:
        return self._first_ms

    def quiet_ms(self, tolerance: float) -> float:
        return ANY_MS

    def time_ms(self) -> float:
        for _ in range(self._refresh):
            self._session.run()
        return statistics.mean([self._clock.time(self._session.run).time_ms for _ in range(self._laps)])

    def before_ms(self, after_ms: float | None, tolerance: float, patience_s: float) -> float:
        return self.time_ms() if after_ms is None else after_ms

    def burst(self, expected_ms: float) -> tuple[int, int]:
        return self._laps, self._refresh


def calibrate(session: AbstractSession, clock: AbstractClock, *, limit_s: float = 2.0) -> Calibration:
    """Find the reference kernel's undisturbed time, in windows of 10 ms, cores taking turns.

    It is done when several windows, a quarter of a second apart, have come down to the floor. At `limit_s` the least
    so far has to do. The window with the least median tells the kernel's own jitter. Raises `DeviceError` for a clock
    that stands still.
    """
    begin = clock.now_s()
    windows: list[list[float]] = []
    least: list[float] = []
    while True:
        for _ in range(REFERENCE_REFRESH):
            session.run()
        until = clock.now_s() + WINDOW_S
        window: list[float] = []
        while len(window) < 3 * LUCKY or clock.now_s() < until:
            window.append((clock.time(session.run).time_ms + clock.time(session.run).time_ms) / 2)
        window.sort()
        windows.append(window)
        least = sorted(least + window[:LUCKY])[:LUCKY]
        floor = least[-1]
        agreeing = sum(1 for done in windows if done[LUCKY - 1] <= AGREEMENT * floor)
        elapsed = clock.now_s() - begin
        if (agreeing >= AGREEING_WINDOWS and elapsed >= CALIBRATION_S) or elapsed > limit_s:
            break
        clock.elsewhere()
    if not floor > 0:
        raise DeviceError(
            f"the clock of this device stands still: the reference kernel reads {floor:g} ms",
            hint="a clock of finer steps is needed, or another device",
        )
    best = min(statistics.median(done) for done in windows)
    spread = min(JITTER_REACH * (best / floor - 1), SPREAD_MAX)
    limit = (1 + max(spread, QUIET_TOLERANCE)) * floor
    quiet = [reading for done in windows for reading in done if reading <= limit]
    return Calibration(floor, statistics.median(quiet), spread)
