"""One visit of a session to a network: the laps and the reference kernel around them, and what of them counts.

Standard library only; runs on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from hwprune.core import statistics

DISTURBED = "disturbed"  # why a round is void that met too few quiet moments
STOOD_STILL = "clock stood still"
CHANGED = "{} changed"  # a counter of the device, such as one of throttling, moved in the round


@dataclass(frozen=True)
class Round:
    """One visit to a network: bursts of `burst` laps, the reference kernel timed before and after each.

    A burst is quiet when the reference kernel took at most `quiet_ms` on both sides of it; `floor_ms` is its time on
    the undisturbed machine. `index` numbers the visits of a session, the same for all its subjects. `void` says why
    the round does not count, "" when it does. `wall_ms` is the median lap by the wall clock; `waited` the share of
    the wall time in which the process was ready to run and did not. Where an anchor network is timed in place of the
    reference kernel, its times stand in `before_ms` and `after_ms`, and every burst is quiet.
    """

    index: int
    laps_ms: tuple[float, ...]
    before_ms: tuple[float, ...]
    after_ms: tuple[float, ...]
    burst: int
    floor_ms: float
    quiet_ms: float
    void: str = ""
    wall_ms: float = 0.0
    waited: float = 0.0

    @cached_property
    def _levels(self) -> tuple[float, ...]:
        return tuple(map(max, self.before_ms, self.after_ms))

    @property
    def quiet_laps(self) -> int:
        """How many laps ran on an undisturbed machine."""
        return sum(self.burst for level in self._levels if level <= self.quiet_ms)

    @property
    def unfit(self) -> bool:
        """Whether the device itself was at fault, throttled or without a clock; else other work may have delayed it."""
        return self.void == STOOD_STILL or self.void.endswith(CHANGED.format(""))

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """The laps that count, in units of the reference kernel's time.

        Quiet laps over the mean of the reference times around their burst. Where there are none, the laps of the
        least disturbed quarter of the bursts over `floor_ms`: disturbances slow different networks by different
        factors, so they are left in rather than taken out with the wrong one.
        """
        levels = self._levels
        if min(levels) <= self.quiet_ms:
            units = [(a + b) / 2 for a, b in zip(self.before_ms, self.after_ms)]
            chosen = [place for place, level in enumerate(levels) if level <= self.quiet_ms]
        else:
            units = [self.floor_ms] * len(levels)
            chosen = sorted(sorted(range(len(levels)), key=levels.__getitem__)[: math.ceil(len(levels) / 4)])
        laps = self.burst
        return tuple(lap / units[place] for place in chosen for lap in self.laps_ms[place * laps : (place + 1) * laps])

    @cached_property
    def ratio(self) -> float:
        """The median of `ratios` without the disturbances too short for the reference kernel to see."""
        return statistics.undisturbed_median(self.ratios)

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal round."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Round:
        """The round that `to_json` wrote."""
        fields: dict[str, Any] = dict(document)
        for name in ("laps_ms", "before_ms", "after_ms"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
