"""An anchor: a network of the budget's size, timed in turn with every candidate of a run.

A budget that is a share of the dense latency is a ratio, and is measured as one. The reference kernel cannot do that
for networks whose weights fill the last cache: it is small, so it does not see the neighbours that share that cache.
Two networks of one size do, and slow down alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprune.core.measurement import Measurement
from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.limited import SearchLatency
from hwprune.methods._families import uniform_family, widest_that_fits

NAME = "anchor"  # in the sessions that time it


@dataclass(frozen=True)
class Anchor:
    """The widths of a run's anchor network, and its median latency in ms when the budget was fixed."""

    widths: Widths
    latency_ms: float

    def correct(self, timed: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """The other measurements of a session that timed the anchor too, in ms of when the budget was fixed.

        Round by round, so that their intervals hold what both networks scatter by.
        """
        found = dict(timed)
        anchor = found.pop(NAME)
        level = anchor.latency_ms / self.latency_ms
        slowdowns = {item.index: item.ratio * anchor.reference_ms / self.latency_ms for item in anchor.valid_rounds}
        return {
            name: replace(
                measured,
                rounds=tuple(replace(item, slowdown=slowdowns.get(item.index, level)) for item in measured.rounds),
            )
            for name, measured in found.items()
        }

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"widths": dict(self.widths), "latency_ms": self.latency_ms}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Anchor:
        """What `to_json` gave."""
        return cls(Widths(tuple(document["widths"].items())), float(document["latency_ms"]))


def anchor_widths(space: SearchSpace, latency: SearchLatency, budget_ms: float) -> Widths:
    """The uniform network predicted nearest below the budget. Raises `BudgetInfeasible` when none is."""
    return widest_that_fits(space, latency, uniform_family(space), budget_ms).widths
