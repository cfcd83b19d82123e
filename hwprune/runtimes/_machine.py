"""A machine on a virtual clock, with the disturbances that real ones show: for tests and the simulated runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from hwprune.core.errors import UsageError
from hwprune.runtimes._base import AbstractClock, Lap


@dataclass(frozen=True)
class Disturbances:
    """What disturbs the simulated machine. Shares and rises are relative: 0.01 is 1 %."""

    seed: int = field(default=0, metadata={"help": "of all random numbers"})
    jitter: float = field(default=0.003, metadata={"help": "standard deviation of every run, independent"})
    wander: float = field(default=0.0, metadata={"help": "standard deviation of an AR(0.9) process over the runs"})
    drift: float = field(default=0.0, metadata={"help": "amplitude of a slow wave in the machine's speed"})
    drift_period_s: float = field(default=60.0, metadata={"help": "period of that wave"})
    spikes: float = field(default=0.0, metadata={"help": "share of runs that take 1.5 to 10 times as long"})
    contention: float = field(default=0.0, metadata={"help": "share of the time in which strangers slow the machine"})
    contention_rise: float = field(default=0.45, metadata={"help": "how much they slow the reference kernel"})
    contention_s: float = field(default=0.02, metadata={"help": "mean length of such a stretch"})
    flip_rise: float = field(default=0.0, metadata={"help": "second speed of the networks, not of the reference"})
    flip_s: float = field(default=1.0, metadata={"help": "how long each of the two speeds lasts"})
    throttle_rise: float = field(default=0.0, metadata={"help": "slow-down of everything from throttle_from to _to"})
    throttle_from_s: float = field(default=0.0, metadata={"help": "seconds of virtual time"})
    throttle_to_s: float = field(default=0.0, metadata={"help": "seconds of virtual time"})
    dead_from_s: float = field(default=0.0, metadata={"help": "the device's timer stands still from here"})
    dead_to_s: float = field(default=0.0, metadata={"help": "to here"})

    def __post_init__(self) -> None:
        for name in ("spikes", "contention"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"{name}={getattr(self, name)} is a share and lies between 0 and 1", hint="0 leaves it out"
                )
        for name in ("drift_period_s", "contention_s", "flip_s"):
            if not getattr(self, name) > 0:
                raise UsageError(
                    f"{name}={getattr(self, name)} must be a positive number of seconds", hint="give 1 or more"
                )


class Machine:
    """Virtual time in ms, and how long a run takes that would take `ms` on the undisturbed machine."""

    def __init__(self, disturbances: Disturbances) -> None:
        self._what = disturbances
        self._rng = Random(disturbances.seed)
        self.now_ms = 0.0
        self.throttle_events = 0
        self._wander = 0.0
        self._contended = False
        self._change_ms = 0.0

    def run(self, ms: float, *, sensitivity: float, flips: bool) -> None:
        """Pass the time of one run. `sensitivity`: share of `contention_rise` that this network suffers."""
        self.now_ms += ms * self._factor(sensitivity, flips)

    def _factor(self, sensitivity: float, flips: bool) -> float:
        what, rng, now_s = self._what, self._rng, self.now_ms / 1e3
        factor = 1 + what.jitter * rng.gauss(0, 1)
        if what.wander:
            self._wander = 0.9 * self._wander + math.sqrt(1 - 0.81) * what.wander * rng.gauss(0, 1)
            factor *= 1 + self._wander
        if what.drift:
            factor *= 1 + what.drift * math.sin(2 * math.pi * now_s / what.drift_period_s)
        if what.spikes and rng.random() < what.spikes:
            factor *= rng.uniform(1.5, 10)
        if what.contention and self._is_contended():
            factor *= 1 + what.contention_rise * sensitivity
        if flips and what.flip_rise and int(now_s / what.flip_s) % 2:
            factor *= 1 + what.flip_rise
        if what.throttle_from_s <= now_s < what.throttle_to_s:
            factor *= 1 + what.throttle_rise
        return max(factor, 0.1)

    def _is_contended(self) -> bool:
        """Stretches of exponential length, quiet and contended in turn."""
        what = self._what
        while self.now_ms >= self._change_ms:
            self._contended = not self._contended if self._change_ms else self._rng.random() < what.contention
            share = what.contention if self._contended else 1 - what.contention
            mean_ms = 1e3 * what.contention_s * max(share, 1e-6) / max(what.contention, 1e-6)
            self._change_ms += self._rng.expovariate(1 / mean_ms)
        return self._contended

    @property
    def dead(self) -> bool:
        """Whether the device's timer stands still."""
        return self._what.dead_from_s <= self.now_ms / 1e3 < self._what.dead_to_s


class VirtualClock(AbstractClock):
    """The machine's own time: measuring takes no real time."""

    name: ClassVar[str] = "virtual"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def time(self, run: Callable[[], None]) -> Lap:
        begin, dead = self._machine.now_ms, self._machine.dead
        run()
        elapsed = self._machine.now_ms - begin
        return Lap(0.0 if dead else elapsed, elapsed)

    def now_s(self) -> float:
        return self._machine.now_ms / 1e3
