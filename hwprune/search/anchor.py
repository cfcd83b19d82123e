"""An anchor: a network of the budget's size, timed in turn with every network of a run.

A budget that is a share of the dense latency is a ratio, and is measured as one. The reference kernel cannot do that
for networks whose weights fill the last cache: it is small, so it does not see the neighbours that share that cache.
Two networks of one size do, and slow down alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwprune.core.widths import SearchSpace, Widths
from hwprune.devices import Anchor
from hwprune.graph import OnnxTemplate
from hwprune.latency.limited import SearchLatency
from hwprune.methods._families import uniform_family, widest_that_fits


@dataclass(frozen=True)
class AnchorWidths:
    """The widths of a run's anchor network, and its median latency in ms when the budget was fixed."""

    widths: Widths
    latency_ms: float

    def network(self, template: OnnxTemplate) -> Anchor:
        """The network that laps are paired with."""
        return Anchor(template.at_widths(self.widths), self.latency_ms)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"widths": dict(self.widths), "latency_ms": self.latency_ms}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AnchorWidths:
        """What `to_json` gave."""
        return cls(Widths(tuple(document["widths"].items())), float(document["latency_ms"]))


def uniform_widths(space: SearchSpace, latency: SearchLatency, budget_ms: float) -> Widths:
    """The uniform network predicted nearest below the budget. Raises `BudgetInfeasible` when none is."""
    return widest_that_fits(space, latency, uniform_family(space), budget_ms).widths
