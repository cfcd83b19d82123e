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
from hwprune.core.round import CHANGED, DISTURBED, STOOD_STILL
from hwprune.runtimes._base import AbstractClock, AbstractSession, Lap
from hwprune.runtimes._gauge import AbstractGauge

Opener = Callable[[], AbstractSession]

SETTLE_LAPS = 3  # laps of one window while warming up
QUIET_SHARE = 0.25  # of the laps asked for: with fewer quiet ones a round is void


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
    """Measures sessions of one target against one gauge: the reference kernel, or an anchor network.

    `reference_ms` is what ratios are multiplied with: the reference kernel's undisturbed time, or the anchor's.
    """

    def __init__(
        self,
        gauge: AbstractGauge,
        clock: AbstractClock,
        *,
        reference_ms: float,
        fingerprint: Fingerprint,
        simulated: bool = False,
    ) -> None:
        self._gauge = gauge
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
        burst, refresh = self._gauge.burst(expected)
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
            self._gauge.floor_ms,
            self._gauge.quiet_ms(protocol.quiet_tolerance),
            CHANGED.format(changed[0]) if changed else "",
            round(statistics.median([lap.wall_ms for lap in found.laps]), 6),
            round(share, 6),
        )
        return done if done.void else replace(done, void=self._why_void(done, protocol))

    def _bursts(self, session: AbstractSession, protocol: Protocol, burst: int, refresh: int) -> _Laps:
        """Bursts until enough laps were quiet, or patience and the number of laps asked for are both used up."""
        found, quiet = _Laps(), 0
        patience = protocol.patience_s
        after: float | None = None
        while quiet < protocol.laps:
            begin = self._clock.now_s()
            before = self._gauge.before_ms(after, protocol.quiet_tolerance, patience)
            for _ in range(refresh):
                session.run()
            found.laps.extend(self._clock.time(session.run) for _ in range(burst))
            after = self._gauge.time_ms()
            found.before.append(before)
            found.after.append(after)
            if max(before, after) <= self._gauge.quiet_ms(protocol.quiet_tolerance):
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
            self._gauge.anchored,
        )


def _check_fit(subject: _Subject) -> None:
    if subject.rounds and all(item.unfit for item in subject.rounds):
        reasons = ", ".join(dict.fromkeys(item.void for item in subject.rounds))
        raise DeviceError(
            f"'{subject.name}' cannot be timed: each of {len(subject.rounds)} rounds is void ({reasons})",
            hint="let the device cool down, choose a lower power mode, lock its clocks: hwprune doctor",
        )


def as_it_ran(fingerprint: Fingerprint, facts: Mapping[str, str]) -> Fingerprint:
    """The fingerprint with the flags that this engine's own facts correct."""
    flags = tuple((name, facts.get(name, value)) for name, value in fingerprint.flags)
    return fingerprint if flags == fingerprint.flags else replace(fingerprint, flags=flags)


def _close(subject: _Subject) -> None:
    if subject.session is not None:
        subject.facts = dict(subject.session.facts)  # some are known at the end only
        subject.session.close()
        subject.session = None
