"""Limits on parameters and MACs beside a latency, in the one number that a search steers by.

Flash and download sizes are bounds too, and users have both at once: "10 ms, and at most 2 million parameters".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hwprune.core.errors import BudgetInfeasible
from hwprune.core.widths import Limits, SearchSpace, Widths
from hwprune.graph import ChannelGraph
from hwprune.latency.features import Array, IntArray, widths_array
from hwprune.latency.secant import BatchPredictor


class SearchLatency(BatchPredictor, Protocol):
    """What a search asks of a latency model: milliseconds for widths of `space`, equal within a `step` of channels."""

    @property
    def space(self) -> SearchSpace:
        """The search space whose widths it predicts for."""

    @property
    def step(self) -> int:
        """The channels to which it rounds."""


@dataclass(frozen=True)
class LimitedLatency:
    """Predicted ms of a sub-network, or more where it is over a limit (our design).

    `max(ms, target_ms * params / most params, target_ms * macs / most MACs)`: at most `target_ms` exactly where the
    predicted latency is *and* every limit is kept, with the slope of the tightest of them. So every method keeps the
    limits without knowing of them, and its multiplier climbs on whichever is violated most.
    """

    latency: SearchLatency
    graph: ChannelGraph
    limits: Limits
    target_ms: float

    @property
    def space(self) -> SearchSpace:
        """That of the latency model."""
        return self.latency.space

    @property
    def step(self) -> int:
        """That of the latency model."""
        return self.latency.step

    def predict_batch(self, values: IntArray) -> Array:
        """Milliseconds `[B]` for widths `[B, G]`."""
        shares = limit_shares(self.graph, self.space, self.limits, values)
        cost_ms = self.latency.predict_batch(values)
        for _, share in shares:
            cost_ms = np.maximum(cost_ms, self.target_ms * share)
        return cost_ms


def limit_shares(
    graph: ChannelGraph, space: SearchSpace, limits: Limits, values: IntArray
) -> Iterator[tuple[str, Array]]:
    """For each limit its name and what widths `[B, G]` take of it, `[B]`; at most 1 is within."""
    for name, count in (("params", graph.params_batch), ("macs", graph.macs_batch)):
        most = getattr(limits, name)
        if most is not None:
            yield name, count(space, values) / most


def check_limits(graph: ChannelGraph, space: SearchSpace, limits: Limits) -> None:
    """Raise `BudgetInfeasible` when even the smallest network of the space is over a limit."""
    least = space.smallest()
    for name, share in limit_shares(graph, space, limits, widths_array(space, [least])):
        if share[0] > 1:
            most, words = getattr(limits, name), Limits.WORDS[name]
            has = round(float(share[0]) * most)
            raise BudgetInfeasible(
                f"no network of this space has at most {most:,} {words}: the smallest allowed one has {has:,}",
                hint="raise the limit, or lower --min-keep",
            )


def tightest(graph: ChannelGraph, space: SearchSpace, limits: Limits, widths: Widths) -> tuple[str, float] | None:
    """The limit that a network uses most, and its share; None without limits."""
    shares = limit_shares(graph, space, limits, widths_array(space, [widths]))
    return max(((name, float(share[0])) for name, share in shares), key=lambda item: item[1], default=None)
