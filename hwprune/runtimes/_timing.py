"""The one measuring loop: bursts of laps between runs of a reference kernel, rounds in random order, stop at a target.

It knows sessions and a clock, nothing of a runtime. Processors that share a core or a cache with strangers change
speed by up to 60 % for 0.1 to 300 ms at a time, and not by the same factor for every network. So the loop waits for
quiet moments: a lap counts when the reference kernel ran at its floor right before and right after it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Callable

from hwprune.core import statistics
from hwprune.core.errors import DeviceError
from hwprune.core.measurement import Fingerprint, Measurement, Protocol, Round
from hwprune.core.protocol import QUIET_TOLERANCE
from hwprune.core.round import CHANGED, DISTURBED, STOOD_STILL
from hwprune.runtimes._base import AbstractClock, AbstractSession, Lap

Opener = Callable[[], AbstractSession]

BURST_MS, BURST_LAPS = 2.0, 4  # a burst lasts about so long, in at most so many laps
REFRESH_MS, REFRESH_LAPS = 1.0, 4  # untimed runs after a change of network: about so long, at most so many
REFERENCE_REFRESH = 3  # untimed runs of the reference after a change of network
CALIBRATION_S, WINDOW_S = 0.25, 0.01  # the reference is calibrated for so long, in windows of such length
AGREEING_WINDOWS, AGREEMENT = 6, 1.02  # until so many of them have come down to the floor
JITTER_REACH = 1.8  # readings this many times as far above the floor as the best window's median can be jitter
SPREAD_MAX = 0.12  # more jitter of the reference than this is taken for disturbance
SETTLE_LAPS = 3  # laps of one window while warming up
POLL_S = 0.01  # wait so long for a quiet moment before trying another core
QUIET_SHARE = 0.25  # of the laps asked for: with fewer quiet ones a round is void
LUCKY = 3  # the floor is the third least reading of a second
FLOOR_MEMORY_S = 60  # and the least of so many seconds


@dataclass(frozen=True)
class Calibration:
    """The reference kernel at the opening of a session, in ms: its floor, and its typical time in quiet moments.

    `spread` is how far above the floor (relative) a reading may lie by its own jitter.
    """

    floor_ms: float
    typical_ms: float
    spread: float


class Reference:
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

    def await_quiet(self, tolerance: float, patience_s: float) -> float:
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


@dataclass
class _Subject:
    """A network under measurement: how to build it, its session while one is open, the rounds so far."""

    name: str
    opener: Opener
    session: AbstractSession | None = None
    rounds: list[Round] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    def open(self) -> AbstractSession:
        """The session, built when there is none, and what it says of itself."""
        if self.session is None:
            self.session = self.opener()
            self.notes = self.session.warnings
            self.facts = dict(self.session.facts)
        return self.session


@dataclass(frozen=True)
class _Visit:
    """A round to be done: `tries` counts the void attempts before it."""

    index: int
    subject: _Subject
    tries: int = 0


@dataclass
class _Laps:
    """What was timed in one visit so far."""

    laps: list[Lap] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


class TimingLoop:
    """Measures sessions of one target against one reference session.

    `reference_ms` is the reference kernel's undisturbed time that ratios are multiplied with.
    """

    def __init__(
        self,
        reference: Reference,
        clock: AbstractClock,
        *,
        reference_ms: float,
        fingerprint: Fingerprint,
        simulated: bool = False,
    ) -> None:
        self._reference = reference
        self._clock = clock
        self._reference_ms = reference_ms
        self._fingerprint = fingerprint
        self._simulated = simulated

    def measure(
        self,
        subjects: Mapping[str, Opener],
        protocol: Protocol,
        *,
        seed: int = 0,
        on_round: Callable[[str, Round], None] = lambda name, done: None,
    ) -> dict[str, Measurement]:
        """One measurement a subject, in the order given; every sweep visits them in a fresh random order.

        All go on until the last has reached the interval target, so that their rounds stay paired. Raises
        `DeviceError` when the device was throttled in every round of a subject: such a time says nothing.
        """
        rng = Random(seed)
        running = [_Subject(name, opener) for name, opener in subjects.items()]
        again: list[_Visit] = []
        try:
            for index in range(protocol.rounds_max):
                visits = [_Visit(index, subject) for subject in running] + again
                rng.shuffle(visits)
                again = self._sweep(visits, protocol, on_round)
                if index + 1 >= protocol.rounds_min and all(self._done(item, protocol) for item in running):
                    break
            while again and not all(self._done(item, protocol) for item in running):
                again = self._sweep(again, protocol, on_round)
        finally:
            for subject in running:
                _close(subject)
        for subject in running:
            _check_fit(subject)
        return {subject.name: self._measurement(subject, protocol) for subject in running}

    def _sweep(self, visits: list[_Visit], protocol: Protocol, on_round: Callable[[str, Round], None]) -> list[_Visit]:
        """Do the visits; those that were void and may be repeated come back."""
        again = []
        for visit in visits:
            done = self._visit(visit, protocol)
            visit.subject.rounds.append(done)
            on_round(visit.subject.name, done)
            voided = sum(1 for item in visit.subject.rounds if item.void)
            if done.void and visit.tries < protocol.retries and voided <= protocol.rounds_max:
                again.append(_Visit(visit.index, visit.subject, visit.tries + 1))
        return again

    def _visit(self, visit: _Visit, protocol: Protocol) -> Round:
        subject = visit.subject
        fresh = subject.session is None
        session = subject.open()
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._warm_up(session, protocol, settle=fresh)
            return self._round(visit.index, session, protocol)
        finally:
            if collecting:
                gc.enable()
            if protocol.rounds_max == 1:
                _close(subject)

    def _warm_up(self, session: AbstractSession, protocol: Protocol, *, settle: bool) -> None:
        """Untimed runs; a network seen for the first time goes on until three windows in a row agree."""
        for _ in range(protocol.warmup_laps):
            session.run()
        deadline = self._clock.now_s() + protocol.warmup_s
        windows: list[float] = []
        while settle and self._clock.now_s() < deadline:
            windows.append(statistics.median([self._clock.time(session.run).time_ms for _ in range(SETTLE_LAPS)]))
            last = windows[-3:]
            settle = len(last) < 3 or max(last) - min(last) > protocol.settle * min(last)

    def _round(self, index: int, session: AbstractSession, protocol: Protocol) -> Round:
        counters, waited, begin = dict(self._clock.counters()), self._clock.waited_s(), self._clock.now_s()
        expected = max(self._clock.time(session.run).time_ms, 1e-3)
        burst = min(max(round(BURST_MS / expected), 1), BURST_LAPS)
        # What the small reference kernel has pushed out of the caches does not show in a lap that lasts long.
        refresh = min(math.ceil(REFRESH_MS / expected), REFRESH_LAPS) if expected < BURST_MS else 0
        found = self._bursts(session, protocol, burst, refresh)
        elapsed = self._clock.now_s() - begin
        share = (self._clock.waited_s() - waited) / elapsed if elapsed > 0 else 0.0
        changed = [name for name, count in self._clock.counters().items() if count != counters.get(name)]
        done = Round(
            index,
            tuple(lap.time_ms for lap in found.laps),
            tuple(found.before),
            tuple(found.after),
            burst,
            self._reference.floor_ms,
            self._reference.quiet_ms(protocol.quiet_tolerance),
            CHANGED.format(changed[0]) if changed else "",
            round(statistics.median([lap.wall_ms for lap in found.laps]), 6),
            round(share, 6),
        )
        return done if done.void else replace(done, void=self._why_void(done, protocol))

    def _bursts(self, session: AbstractSession, protocol: Protocol, burst: int, refresh: int) -> _Laps:
        """Bursts until enough laps were quiet, or patience and the number of laps asked for are both used up."""
        found, quiet = _Laps(), 0
        patience = protocol.patience_s
        while quiet < protocol.laps:
            begin = self._clock.now_s()
            before = self._reference.await_quiet(protocol.quiet_tolerance, patience)
            for _ in range(refresh):
                session.run()
            found.laps.extend(self._clock.time(session.run) for _ in range(burst))
            after = self._reference.time_ms()
            found.before.append(before)
            found.after.append(after)
            if max(before, after) <= self._reference.quiet_ms(protocol.quiet_tolerance):
                quiet += burst
                continue
            patience = max(patience - (self._clock.now_s() - begin), 0.0)
            if patience == 0.0 and len(found.laps) >= protocol.laps:
                break
        return found

    def _why_void(self, done: Round, protocol: Protocol) -> str:
        """Why the round does not count, or ""."""
        if not all(0 < time < math.inf for time in done.laps_ms + done.before_ms + done.after_ms):
            return STOOD_STILL
        if done.quiet_laps < QUIET_SHARE * protocol.laps:
            return DISTURBED
        drift = statistics.trend(done.ratios)
        if abs(drift.value) > protocol.trend_tolerance and not drift.low <= 0 <= drift.high:
            return "trend"
        if self._clock.name == "wall" and done.waited > protocol.wait_tolerance:
            return "preempted"
        return ""

    def _done(self, subject: _Subject, protocol: Protocol) -> bool:
        undisturbed = sum(1 for item in subject.rounds if not item.void)
        return undisturbed >= protocol.rounds_min and self._measurement(subject, protocol).converged

    def _measurement(self, subject: _Subject, protocol: Protocol) -> Measurement:
        rounds = tuple(sorted(subject.rounds, key=lambda item: item.index))
        return Measurement(
            subject.name,
            rounds,
            self._reference_ms,
            protocol,
            as_it_ran(self._fingerprint, subject.facts),
            self._clock.name,
            self._simulated,
            subject.notes,
            tuple(sorted(subject.facts.items())),
        )


def _check_fit(subject: _Subject) -> None:
    if subject.rounds and all(item.unfit for item in subject.rounds):
        reasons = ", ".join(dict.fromkeys(item.void for item in subject.rounds))
        raise DeviceError(
            f"'{subject.name}' cannot be timed: each of {len(subject.rounds)} rounds is void ({reasons})",
            hint="let the device cool down, choose a lower power mode, lock its clocks: hwprune doctor",
        )


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


def as_it_ran(fingerprint: Fingerprint, facts: Mapping[str, str]) -> Fingerprint:
    """The fingerprint with the flags that this engine's own facts correct."""
    flags = tuple((name, facts.get(name, value)) for name, value in fingerprint.flags)
    return fingerprint if flags == fingerprint.flags else replace(fingerprint, flags=flags)


def _close(subject: _Subject) -> None:
    if subject.session is not None:
        subject.facts = dict(subject.session.facts)  # some are known at the end only
        subject.session.close()
        subject.session = None
