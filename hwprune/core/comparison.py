"""Two networks compared: the ratio of their latencies with its interval, from rounds that shared the machine's state.

This file needs the standard library only and runs on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hwprune.core import statistics
from hwprune.core.errors import UsageError
from hwprune.core.measurement import Measurement

FEWEST_PAIRS = 3  # with fewer undisturbed pairs of rounds, a comparison takes the disturbed ones in


@dataclass(frozen=True)
class Comparison:
    """Two networks timed in one session. `ratio` is the subject's latency over the baseline's, `ci` its interval.

    `disturbed`: too few rounds were undisturbed in both, so disturbed ones are among the `pairs`.
    """

    baseline: str
    subject: str
    ratio: float
    ci: tuple[float, float]
    pairs: int
    disturbed: bool = False
    simulated: bool = False

    @property
    def verdict(self) -> str:
        """`faster` or `slower` (the subject) when the whole interval says so, else `no difference shown`."""
        if self.ci[1] < 1:
            return "faster"
        return "slower" if self.ci[0] > 1 else "no difference shown"

    def to_json(self) -> dict[str, Any]:
        """A JSON document, the verdict included."""
        return {**asdict(self), "ci": list(self.ci), "verdict": self.verdict}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_json` wrote. Unknown keys are left out."""
        names = {entry.name for entry in fields(cls)}
        low, high = document["ci"]
        return cls(**{**{key: value for key, value in document.items() if key in names}, "ci": (low, high)})


def compare(baseline: Measurement, subject: Measurement) -> Comparison:
    """The ratio of two latencies with its 95 % interval: t on the logarithms of the ratios of paired rounds.

    Rounds are paired by index, so both must come from one session: same fingerprint, except for what an engine says
    of itself in its `facts`, and at least two rounds in common; raises `UsageError` otherwise. Disturbed rounds are
    used only when fewer than three pairs are undisturbed, those with quiet laps first; throttled ones never are.
    """
    own = tuple(f"flag {name}:" for name, _ in (*baseline.facts, *subject.facts))
    differences = baseline.fingerprint.differences(subject.fingerprint)
    differing = [text for text in differences if not text.startswith(own)]
    if differing:
        raise UsageError(
            f"'{baseline.subject}' and '{subject.subject}' were measured on different targets ({'; '.join(differing)})",
            hint="measure both in one session",
        )
    paired = [
        [theirs[index] - ours[index] for index in sorted(set(ours) & set(theirs))]
        for ours, theirs in zip(_tiers(baseline), _tiers(subject))
    ]
    logs, disturbed = _first_of_enough(paired)
    if len(logs) < 2:
        raise UsageError(
            f"'{baseline.subject}' and '{subject.subject}' share {len(logs)} rounds; a comparison takes at least two",
            hint="measure both in one session with the default protocol",
        )
    simulated = subject.simulated or baseline.simulated
    return _compared(baseline.subject, subject.subject, logs, disturbed=disturbed, simulated=simulated)


def compare_anchored(baseline: str, subject: Measurement) -> Comparison:
    """The ratio of a network to the anchor `baseline` that it was timed beside: t on the logarithms of its rounds.

    Rounds count as in `compare`. Raises `UsageError` for a measurement without an anchor and for less than two rounds.
    """
    logs, disturbed = _first_of_enough([list(tier.values()) for tier in _tiers(subject)])
    if not subject.anchored or len(logs) < 2:
        anchor = "an" if subject.anchored else "no"
        raise UsageError(
            f"'{subject.subject}' has {len(logs)} rounds and {anchor} anchor; a comparison takes at least two rounds",
            hint=f"measure it with '{baseline}' as its anchor and the default protocol",
        )
    return _compared(baseline, subject.subject, logs, disturbed=disturbed, simulated=subject.simulated)


def _tiers(measured: Measurement) -> tuple[dict[int, float], ...]:
    """Logarithms of the rounds' ratios by index: of the undisturbed rounds, of those that count, of all fit ones."""
    return tuple(
        {item.index: math.log(item.ratio) for item in rounds}
        for rounds in (
            [item for item in measured.rounds if not item.void],
            [item for item in measured.valid_rounds if not item.unfit],
            [item for item in measured.rounds if not item.unfit],
        )
    )


def _first_of_enough(tiers: list[list[float]]) -> tuple[list[float], bool]:
    """The first with enough members, or the longest; and whether it is not the first of all."""
    place = max(range(len(tiers)), key=lambda place: min(len(tiers[place]), FEWEST_PAIRS))
    return tiers[place], place > 0


def _compared(baseline: str, subject: str, logs: list[float], *, disturbed: bool, simulated: bool) -> Comparison:
    found = statistics.t_interval(logs)
    interval = math.exp(found.low), math.exp(found.high)
    return Comparison(baseline, subject, math.exp(found.value), interval, len(logs), disturbed, simulated)
