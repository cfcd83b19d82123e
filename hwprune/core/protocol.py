"""How to measure: rounds, laps, when to stop and what makes a round void. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hwprune.core.errors import UsageError

QUIET_TOLERANCE = 0.06  # the machine counts as undisturbed while the reference kernel is this close to its floor


@dataclass(frozen=True)
class Protocol:
    """How to measure. The named ones are `sample`, `quick`, `default`, `verdict` and `publish`."""

    name: str = "default"
    rounds_min: int = 5
    rounds_max: int = 20
    laps: int = field(default=30, metadata={"help": "timed runs in a round"})
    warmup_laps: int = field(default=3, metadata={"help": "untimed runs at the beginning of every round"})
    warmup_s: float = field(default=0.2, metadata={"help": "longest warm-up of a newly built engine"})
    settle: float = field(default=0.01, metadata={"help": "warm when three windows of runs differ by less"})
    interval_target: float = field(default=0.01, metadata={"help": "stop at this relative half-width (95 %)"})
    patience_s: float = field(default=0.15, metadata={"help": "longest wait for quiet moments in a round"})
    quiet_tolerance: float = field(
        default=QUIET_TOLERANCE, metadata={"help": "quiet: reference this close to its floor"}
    )
    trend_tolerance: float = field(default=0.02, metadata={"help": "void rounds that drift by more"})
    wait_tolerance: float = field(default=0.05, metadata={"help": "void wall-clock rounds that waited longer"})
    retries: int = field(default=3, metadata={"help": "how often a void round is repeated"})

    def __post_init__(self) -> None:
        if not 1 <= self.rounds_min <= self.rounds_max:
            raise UsageError(f"rounds_min={self.rounds_min} and rounds_max={self.rounds_max} must be 1 <= min <= max")
        if self.laps < 3:
            raise UsageError(f"laps={self.laps} is too few for a median", hint="use 3 or more")
        for item in ("interval_target", "quiet_tolerance", "trend_tolerance", "wait_tolerance", "settle"):
            if not 0 < getattr(self, item) < math.inf:
                raise UsageError(f"{item}={getattr(self, item)} must be a positive number")

    @classmethod
    def sample(cls) -> Protocol:
        """A row of a latency table: one round of 8 paired laps, well under 100 ms with the building of the session.

        After three runs a lap of a newly built engine can still be 2 to 5 % slow (OpenVINO, LiteRT, ncnn).
        """
        rounds = {"rounds_min": 1, "rounds_max": 1, "laps": 8, "warmup_laps": 5}
        return cls("sample", **rounds, warmup_s=0.0, patience_s=0.08, retries=1)

    @classmethod
    def quick(cls) -> Protocol:
        """3 to 5 rounds of 20 laps, to 3 %."""
        return cls("quick", rounds_min=3, rounds_max=5, laps=20, warmup_s=0.1, interval_target=0.03, patience_s=0.1)

    @classmethod
    def default(cls) -> Protocol:
        """5 to 20 rounds of 30 laps, to 1 %."""
        return cls()

    @classmethod
    def verdict(cls) -> Protocol:
        """10 to 20 rounds of 50 laps, to 0.75 %: what decides in a search."""
        rounds = {"rounds_min": 10, "rounds_max": 20, "laps": 50}
        return cls("verdict", **rounds, interval_target=0.0075, patience_s=0.2)

    @classmethod
    def publish(cls) -> Protocol:
        """10 to 40 rounds of 100 laps, to 0.5 %."""
        rounds = {"rounds_min": 10, "rounds_max": 40, "laps": 100}
        return cls("publish", **rounds, warmup_s=0.5, interval_target=0.005, patience_s=0.5)

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal protocol."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Protocol:
        """The protocol that `to_json` wrote."""
        return cls(**document)
