"""The one measuring loop: bursts of laps between runs of a reference kernel, rounds in random order, stop at a target.

It knows sessions and a clock, nothing of a runtime. Processors that share a core or a cache with strangers change
speed by up to 60 % for 0.1 to 300 ms at a time, and not by the same factor for every network. So the loop waits for
quiet moments: a lap counts when the reference kernel ran at its floor right before and right after it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

from hwprune.core import statistics
from hwprune.core.measurement import Fingerprint, Measurement, Protocol, Round
from hwprune.runtimes._base import AbstractClock, AbstractSession, Lap

Opener = Callable[[], AbstractSession]

BURST_MS, BURST_LAPS = 2.0, 4  # a burst lasts about so long, in at most so many laps
REFRESH_MS, REFRESH_LAPS = 1.0, 4  # untimed runs after a change of network: about so long, at most so many
REFERENCE_REFRESH = 3  # untimed runs of the reference after a change of network
WINDOW_S = 0.02  # the reference is calibrated in windows of this length
AGREEING_WINDOWS = 6  # until so many of them agree on the least time to 1 %
SETTLE_LAPS = 3  # laps of one window while warming up
POLL_S = 0.01  # wait so long for a quiet moment before trying another core
QUIET_SHARE = 0.25  # of the laps asked for: with fewer quiet ones a round is void
LUCKY = 3  # the floor is the third least reading of a second
FLOOR_MEMORY_S = 60  # and the least of so many seconds


class Reference:
    """The reference kernel as a gauge: the least it took lately, and whether the machine runs at that speed now.

    `floor_ms` is the least over the last minute, so that a clock which has become slower for good is accepted in
    the end, and a disturbance of seconds is not. Single lucky readings do not count.
    """

    def __init__(self, session: AbstractSession, clock: AbstractClock, floor_ms: float) -> None:
        self._session = session
        self._clock = clock
        self._seconds: dict[int, list[float]] = {int(clock.now_s()): [floor_ms] * LUCKY}

    @property
    def floor_ms(self) -> float:
        """The undisturbed time of the reference kernel in this session."""
        return min(low[-1] for low in self._seconds.values() if len(low) == LUCKY)

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
        while max(previous, now) > (1 + tolerance) * self.floor_ms and self._clock.now_s() < begin + patience_s:
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
        second = int(self._clock.now_s())
        low = self._seconds.setdefault(second, [])
        if len(low) < LUCKY or reading < low[-1]:
            low.append(reading)
            low.sort()
            del low[LUCKY:]
        if len(self._seconds) > FLOOR_MEMORY_S:
            complete = [key for key, values in self._seconds.items() if len(values) == LUCKY]
            for key in [key for key in self._seconds if key < second - FLOOR_MEMORY_S and key != complete[-1]]:
                del self._seconds[key]


@dataclass
class _Subject:
    """A network under measurement: how to build it, its session while one is open, the rounds so far."""

    name: str
    opener: Opener
    session: AbstractSession | None = None
    rounds: list[Round] = field(default_factory=list)


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

        All go on until the last has reached the interval target, so that their rounds stay paired.
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
        return {subject.name: self._measurement(subject, protocol) for subject in running}

    def _sweep(self, visits: list[_Visit], protocol: Protocol, on_round: Callable[[str, Round], None]) -> list[_Visit]:
        """Do the visits; those that were void and may be repeated come back."""
        again = []
        for visit in visits:
            done = self._visit(visit, protocol)
            visit.subject.rounds.append(done)
            on_round(visit.subject.name, done)
            if done.void and visit.tries < protocol.retries:
                again.append(_Visit(visit.index, visit.subject, visit.tries + 1))
        return again

    def _visit(self, visit: _Visit, protocol: Protocol) -> Round:
        subject = visit.subject
        fresh = subject.session is None
        if subject.session is None:
            subject.session = subject.opener()
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._warm_up(subject.session, protocol, settle=fresh)
            return self._round(visit.index, subject.session, protocol)
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
        refresh = min(max(math.ceil(REFRESH_MS / expected), 1), REFRESH_LAPS)
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
            (1 + protocol.quiet_tolerance) * self._reference.floor_ms,
            f"{changed[0]} changed" if changed else "",
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
            if max(before, after) <= (1 + protocol.quiet_tolerance) * self._reference.floor_ms:
                quiet += burst
                continue
            patience = max(patience - (self._clock.now_s() - begin), 0.0)
            if patience == 0.0 and len(found.laps) >= protocol.laps:
                break
        return found

    def _why_void(self, done: Round, protocol: Protocol) -> str:
        """Why the round does not count, or ""."""
        if not all(0 < time < math.inf for time in done.laps_ms + done.before_ms + done.after_ms):
            return "clock stood still"
        if done.quiet_laps < QUIET_SHARE * protocol.laps:
            return "disturbed"
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
            self._fingerprint,
            self._clock.name,
            self._simulated,
        )


def calibrate(session: AbstractSession, clock: AbstractClock, *, limit_s: float = 2.0) -> float:
    """The reference kernel's undisturbed time in ms: its least time, once that has come back in several windows.

    A window is 20 ms on one core; cores take turns. At `limit_s` the least so far has to do.
    """
    begin = clock.now_s()
    lows: list[float] = []
    while True:
        for _ in range(5):
            session.run()
        until, window = clock.now_s() + WINDOW_S, list[float]()
        while len(window) < 20 or clock.now_s() < until:
            window.append((clock.time(session.run).time_ms + clock.time(session.run).time_ms) / 2)
        lows.append(sorted(window)[LUCKY - 1])
        floor = min(lows)
        if sum(1 for low in lows if low <= 1.01 * floor) >= AGREEING_WINDOWS or clock.now_s() > begin + limit_s:
            return floor
        clock.elsewhere()


def _close(subject: _Subject) -> None:
    if subject.session is not None:
        subject.session.close()
        subject.session = None
