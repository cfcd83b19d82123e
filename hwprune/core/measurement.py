"""A measurement: every lap that was timed, how, on what, and the statistics that follow from them.

Laps are timed in short bursts between runs of a reference kernel, and count when that kernel ran at its floor on both
sides: the machine was undisturbed. What counts is the ratio of the lap to the reference time; `reference_ms` (the
kernel's undisturbed time, fixed once for a latency table) turns it back into milliseconds. A round is one visit to a
network, and rounds, not laps, are what intervals are computed from: laps of one visit share the state of the machine.
This file needs the standard library only and runs on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from hwprune.core import plugins, statistics
from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.prediction import LayerTime, Prediction
from hwprune.core.protocol import Protocol
from hwprune.core.round import DISTURBED, Round
from hwprune.core.statistics import Estimate
from hwprune.core.target import PRECISIONS, Fingerprint, Target

__all__ = [
    "PRECISIONS",
    "WARNINGS",
    "Explains",
    "Fingerprint",
    "LayerTime",
    "Measurement",
    "Prediction",
    "Protocol",
    "Round",
    "Target",
    "explain",
    "is_warning",
]

BIMODAL_GAP = 0.03  # two clusters of round medians further apart than this are two different speeds


WARNINGS: dict[str, tuple[str, str]] = {
    "single_round": (
        "the interval comes from one burst of runs and is too narrow when the machine's state changes slowly",
        "measure with the default protocol before you decide on this number",
    ),
    "wide_interval": (
        "the interval is wider than the protocol asks for",
        "quieten the machine (`hwprune doctor` says how) or measure for longer (`hwprune bench --rounds 40`)",
    ),
    "all_rounds_void": (
        "every round was disturbed; the number is from the least disturbed moments, and probably too high",
        "stop other load on the machine: see `hwprune doctor`",
    ),
    "many_void_rounds": (
        "more than a third of the rounds were disturbed and repeated",
        "look for other load on the machine: see `hwprune doctor`",
    ),
    "bimodal": (
        "the network runs at two different speeds; their mean is neither",
        "look for a change of clock or kernel; compare the two clusters in the samples",
    ),
    "unsteady_clock": (
        "the reference kernel moved between slow and fast by more than 10 %; the ratio cancels most of it, not all",
        "fix the clocks or stop other load, then measure again",
    ),
    "outliers": (
        "more than 5 % of the laps are outliers (counted, not dropped)",
        "look at p90, and time the application itself if it waits for the slowest run",
    ),
}


class Explains:
    """What a runtime's engines may warn of besides `WARNINGS`: name -> (sentence, advice)."""

    own_warnings: ClassVar[Mapping[str, tuple[str, str]]] = {}


@lru_cache(maxsize=1)
def _warnings_of_runtimes() -> Mapping[str, tuple[str, str]]:
    """What the runtimes bring along; asked for only where `WARNINGS` does not know a name, since it imports them."""
    found: dict[str, tuple[str, str]] = {}
    for name in plugins.names("hwprune.runtimes"):
        with suppress(DeviceError):  # a runtime that is not installed
            found.update(plugins.load("hwprune.runtimes", name, Explains).own_warnings)
    return found


def is_warning(text: str) -> bool:
    """Whether a text is the name of a warning, with or without a detail, and no sentence."""
    name = text.partition(": ")[0]
    return name in WARNINGS or (name.isidentifier() and name in _warnings_of_runtimes())


def explain(warning: str) -> str:
    """The sentence and the advice for a warning: a known name, with `: detail` where there is more.

    One that nobody knows any more, from a runtime that is gone, stays as it is.
    """
    if not is_warning(warning):
        return warning
    name, _, detail = warning.partition(": ")
    sentence, advice = WARNINGS[name] if name in WARNINGS else _warnings_of_runtimes()[name]
    return f"{sentence} ({detail}); {advice}" if detail else f"{sentence}; {advice}"


@dataclass(frozen=True)
class Measurement:
    """Everything that was timed for one network on one target, and the statistics derived from it.

    `reference_ms` is the reference kernel's undisturbed time; `clock` says what the laps are in; `simulated` is True
    when no hardware was timed at all. `notes` are the engine's own warnings, `facts` what else the runtime knows of it.
    `anchored`: laps are paired with an anchor network, and `reference_ms` is what that took when it was made one.
    Raises `UsageError` without any round.
    """

    subject: str
    rounds: tuple[Round, ...]
    reference_ms: float
    protocol: Protocol
    fingerprint: Fingerprint
    clock: str = "thread_cpu"
    simulated: bool = False
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    anchored: bool = False

    def __post_init__(self) -> None:
        if not self.rounds:
            raise UsageError(f"the measurement of '{self.subject}' has no rounds")

    @cached_property
    def valid_rounds(self) -> tuple[Round, ...]:
        """The rounds that count: the undisturbed ones.

        Where a session has fewer than two of them, those with any quiet lap count too; where those are not two
        either, the undisturbed one does, or all do in which the device itself was fit.
        """
        good = tuple(item for item in self.rounds if not item.void)
        if len(good) >= min(2, self.protocol.rounds_min):
            return good
        partly = tuple(item for item in self.rounds if not item.void or (item.void == DISTURBED and item.quiet_laps))
        if len(partly) >= 2:
            return partly
        return good or tuple(item for item in self.rounds if not item.unfit) or self.rounds

    @cached_property
    def samples_ms(self) -> tuple[float, ...]:
        """Every lap that counts, in order, in ms of the undisturbed machine."""
        return tuple(ratio * self.reference_ms for item in self.valid_rounds for ratio in item.ratios)

    @cached_property
    def round_medians_ms(self) -> tuple[float, ...]:
        """The median of each round that counts."""
        return tuple(item.ratio * self.reference_ms for item in self.valid_rounds)

    @cached_property
    def _median(self) -> Estimate:
        if len(self.round_medians_ms) == 1:
            return statistics.undisturbed_interval(self.samples_ms)
        return statistics.t_interval(self.round_medians_ms)

    @property
    def latency_ms(self) -> float:
        """The mean of the round medians."""
        return self._median.value

    @property
    def ci_ms(self) -> tuple[float, float]:
        """The 95 % interval of `latency_ms`: t over the rounds; from the laps' spread when there is one round only."""
        return self._median.low, self._median.high

    @property
    def scatter(self) -> float:
        """Half the width of `ci_ms` as a share of `latency_ms`."""
        return self._median.half_width / self._median.value

    @property
    def p90_ms(self) -> float:
        """The 90th percentile of the laps that count: of the network's own scatter, not of what other work adds."""
        return statistics.quantile(self.samples_ms, 0.90)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile of the laps; None below the 473 laps that it takes to bound it."""
        enough = self.lap_count >= statistics.laps_for_percentile(0.99)
        return statistics.quantile(self.samples_ms, 0.99) if enough else None

    @property
    def mad_ms(self) -> float:
        """The median absolute deviation of the laps, not scaled."""
        return statistics.mad(self.samples_ms)

    @property
    def wall_ms(self) -> float:
        """The median lap by the wall clock, as it was on this machine at that moment: not normalised."""
        return statistics.median([item.wall_ms for item in self.valid_rounds])

    @property
    def slowdown(self) -> float:
        """How many times its former time the anchor network took; 1 where laps are paired with the reference kernel."""
        levels = [statistics.median(item.before_ms + item.after_ms) for item in self.valid_rounds]
        return statistics.median(levels) / self.reference_ms if self.anchored else 1.0

    def joined(self, more: Measurement) -> Measurement:
        """The rounds of both: sessions of an anchored network are one long session. Rounds stay paired by index."""
        offset = 1 + max(item.index for item in self.rounds)
        return replace(self, rounds=(*self.rounds, *(replace(item, index=item.index + offset) for item in more.rounds)))

    @property
    def lap_count(self) -> int:
        """Laps that count."""
        return len(self.samples_ms)

    @property
    def round_count(self) -> int:
        """Rounds that count."""
        return len(self.valid_rounds)

    @property
    def void_rounds(self) -> dict[str, int]:
        """How many rounds were voided, by reason."""
        counts: dict[str, int] = {}
        for item in self.rounds:
            if item.void:
                counts[item.void] = counts.get(item.void, 0) + 1
        return counts

    @property
    def outlier_laps(self) -> int:
        """Laps more than 14.8 MADs from the median of all; they count like the others."""
        return statistics.outliers(self.samples_ms)

    @property
    def converged(self) -> bool:
        """Whether the interval is as narrow as the protocol asks for, from undisturbed rounds."""
        undisturbed = not all(item.void for item in self.rounds)
        return undisturbed and self.scatter <= self.protocol.interval_target

    @property
    def bimodal(self) -> bool:
        """Whether the round medians form two clusters more than 3 % apart."""
        return statistics.two_clusters(self.round_medians_ms, BIMODAL_GAP)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Names of warnings, some followed by a colon and a detail; `explain` makes sentences of them."""
        references = [statistics.median(item.before_ms) for item in self.valid_rounds]
        voided = sum(self.void_rounds.values())
        found = {
            "single_round": self.round_count == 1,
            "wide_interval": self.round_count > 1 and not self.converged,
            "all_rounds_void": voided == len(self.rounds),
            "many_void_rounds": len(self.rounds) / 3 < voided < len(self.rounds),
            "bimodal": self.bimodal,
            "unsteady_clock": not self.anchored and max(references) > 1.1 * min(references),
            "outliers": self.outlier_laps > 0.05 * self.lap_count,
        }
        return (*(name for name, holds in found.items() if holds), *self.notes)

    def statistic(self, name: str) -> tuple[float, float, float]:
        """(value, low, high) in ms of `median` or `p90`, with the 95 % interval. Raises `UsageError` for another."""
        if name == "median":
            return self._median.value, self._median.low, self._median.high
        if name != "p90":
            raise UsageError(f"unknown statistic '{name}'", hint="known: median, p90")
        tails = [statistics.quantile(item.ratios, 0.90) * self.reference_ms for item in self.valid_rounds]
        spread = statistics.t_interval(tails) if len(tails) > 1 else statistics.upper_decile_interval(self.samples_ms)
        half = spread.half_width
        return self.p90_ms, self.p90_ms - half, self.p90_ms + half

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal measurement: raw laps, no derived figures."""
        return {
            "subject": self.subject,
            "rounds": [item.to_json() for item in self.rounds],
            "reference_ms": self.reference_ms,
            "protocol": self.protocol.to_json(),
            "fingerprint": self.fingerprint.to_json(),
            "clock": self.clock,
            "simulated": self.simulated,
            "notes": list(self.notes),
            "facts": dict(self.facts),
            "anchored": self.anchored,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_json` wrote."""
        return cls(
            document["subject"],
            tuple(Round.from_json(item) for item in document["rounds"]),
            document["reference_ms"],
            Protocol.from_json(document["protocol"]),
            Fingerprint.from_json(document["fingerprint"]),
            document["clock"],
            document["simulated"],
            tuple(document.get("notes", ())),
            tuple(document.get("facts", {}).items()),
            document.get("anchored", False),
        )
