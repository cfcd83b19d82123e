"""The one measuring loop: paired laps, rounds in random order, void rounds repeated, stop at the interval target.

It knows sessions and a clock, nothing of a runtime. Protocol: docs/measuring.md; laps are paired with a reference
kernel because machines change speed by up to 50 % for seconds at a time, which slows both alike.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

from hwprune.core import statistics
from hwprune.core.measurement import Fingerprint, Measurement, Protocol, Round
from hwprune.runtimes._base import AbstractClock, AbstractSession, Lap

Opener = Callable[[], AbstractSession]

NEIGHBOUR_TOLERANCE = 0.10  # a lap whose two reference runs differ by more ran across a change of speed
NEIGHBOUR_SHARE = 1 / 3  # a round with more such laps is void
BURST_MS, BURST_LAPS = 2.0, 4  # a burst between two reference runs lasts about so long, in at most so many laps
REFRESH_MS, REFRESH_LAPS = 1.0, 4  # untimed runs after a change of network: about so long, at most so many
SETTLE_LAPS = 3  # laps of one window while warming up


@dataclass
class _Subject:
    """A network under measurement: how to build it, its session while one is open, the rounds so far."""

    name: str
    opener: Opener
    session: AbstractSession | None = None
    rounds: list[Round] = field(default_factory=list)
    visits: int = 0


@dataclass(frozen=True)
class _Visit:
    """A round to be done: `tries` counts the void attempts before it."""

    index: int
    subject: _Subject
    tries: int = 0


class TimingLoop:
    """Measures sessions of one target against one reference session.

    `reference_ms` is the reference kernel's undisturbed time that ratios are multiplied with; `floor_ms` its time in
    this session, against which a round is called slow.
    """

    def __init__(
        self,
        reference: AbstractSession,
        clock: AbstractClock,
        *,
        reference_ms: float,
        floor_ms: float,
        fingerprint: Fingerprint,
        simulated: bool = False,
    ) -> None:
        self._reference = reference
        self._clock = clock
        self._reference_ms = reference_ms
        self._floor_ms = floor_ms
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
                    again = []
                    break
            while again:
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
        if subject.session is None:
            subject.session = subject.opener()
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._warm_up(subject.session, protocol, settle=subject.visits == 0)
            subject.visits += 1
            return self._round(visit.index, subject.session, protocol)
        finally:
            if collecting:
                gc.enable()
            if protocol.rebuild or protocol.rounds_max == 1:
                _close(subject)

    def _warm_up(self, session: AbstractSession, protocol: Protocol, *, settle: bool) -> None:
        """Untimed runs; a network seen for the first time goes on until three windows in a row agree."""
        for _ in range(protocol.warmup_laps):
            session.run()
        if not settle:
            return
        deadline = self._clock.now_s() + protocol.warmup_s
        windows: list[float] = []
        while self._clock.now_s() < deadline:
            laps, references = self._bursts(session, 1, SETTLE_LAPS, 1)
            windows.append(statistics.median([lap.time_ms for lap in laps]) / statistics.mean(references))
            last = windows[-3:]
            if len(last) == 3 and max(last) - min(last) <= protocol.settle * min(last):
                return

    def _bursts(
        self, session: AbstractSession, count: int, burst: int, refresh: int
    ) -> tuple[list[Lap], tuple[float, ...]]:
        """`count` bursts of `burst` laps, and the reference times around them: one more.

        The first runs after a change of network find other data in the caches: `refresh` of them are not timed.
        """
        timed, run, reference = self._clock.time, session.run, self._reference.run
        reference()
        references = [timed(reference).time_ms]
        laps = []
        for _ in range(count):
            for _ in range(refresh):
                run()
            laps.extend(timed(run) for _ in range(burst))
            reference()
            references.append(timed(reference).time_ms)
        return laps, tuple(references)

    def _round(self, index: int, session: AbstractSession, protocol: Protocol) -> Round:
        counters, waited, begin = dict(self._clock.counters()), self._clock.waited_s(), self._clock.now_s()
        expected = max(self._clock.time(session.run).time_ms, 1e-3)
        burst = min(max(round(BURST_MS / expected), 1), BURST_LAPS)
        refresh = min(max(math.ceil(REFRESH_MS / expected), 1), REFRESH_LAPS)
        laps, references = self._bursts(session, math.ceil(protocol.laps / burst), burst, refresh)
        elapsed = self._clock.now_s() - begin
        share = (self._clock.waited_s() - waited) / elapsed if elapsed > 0 else 0.0
        wall_ms = statistics.median([lap.wall_ms for lap in laps])
        changed = [name for name, count in self._clock.counters().items() if count != counters.get(name)]
        done = Round(
            index,
            tuple(lap.time_ms for lap in laps),
            references,
            burst,
            f"{changed[0]} changed" if changed else "",
            round(wall_ms, 6),
            round(share, 6),
        )
        return done if done.void else replace(done, void=self._why_void(done, protocol))

    def _why_void(self, done: Round, protocol: Protocol) -> str:
        """Why the round does not count, or ""."""
        if not all(0 < time < math.inf for time in done.laps_ms + done.references_ms):
            return "clock stood still"
        level = statistics.median(done.references_ms)
        self._floor_ms = min(self._floor_ms, level)
        if level > (1 + protocol.reference_tolerance) * self._floor_ms:
            return "slow reference"
        before, after = done.references_ms[:-1], done.references_ms[1:]
        apart = sum(map(lambda a, b: abs(a - b) > NEIGHBOUR_TOLERANCE * min(a, b), before, after))
        if apart > NEIGHBOUR_SHARE * len(before):
            return "reference neighbours differ"
        drift = statistics.trend(done.ratios)
        if abs(drift.value) > protocol.trend_tolerance and not drift.low <= 0 <= drift.high:
            return "trend"
        if self._clock.name == "wall" and done.waited > protocol.wait_tolerance:
            return "preempted"
        return ""

    def _done(self, subject: _Subject, protocol: Protocol) -> bool:
        measured = self._measurement(subject, protocol)
        undisturbed = sum(1 for item in subject.rounds if not item.void)
        return undisturbed >= protocol.rounds_min and measured.converged

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


def calibrate(reference: AbstractSession, clock: AbstractClock, *, duration_s: float = 0.25) -> tuple[float, ...]:
    """Times of the reference kernel in ms over `duration_s`, at least 30 of them, after a warm-up."""
    for _ in range(10):
        reference.run()
    deadline = clock.now_s() + duration_s
    times: list[float] = []
    while len(times) < 30 or clock.now_s() < deadline:
        times.append(clock.time(reference.run).time_ms)
    return tuple(times)


def _close(subject: _Subject) -> None:
    if subject.session is not None:
        with suppress(OSError):
            subject.session.close()
        subject.session = None
