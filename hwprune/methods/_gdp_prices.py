"""What a unit of each group costs now, and how hard gates must be pressed for the rest to meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwprune.core.widths import SearchSpace
from hwprune.latency.secant import BatchPredictor, SecantLatency
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._questions import first_within

_DECAY = 0.9
# No group is free, whatever the staircase says: the least price as a share of the mean one.
_FLOOR = 0.05


class Prices:
    """Weights of the proximal step, `(G,)`: the cost of a unit of each group by differences over one step of the grid.

    Averaged over the calls, since a staircase makes single differences jump; negative ones, which would make the
    proximal step an expansion, count as 0. At least a twentieth of their mean each, and their mean is 1.
    """

    def __init__(self, cost: BatchPredictor, space: SearchSpace) -> None:
        self.secant = SecantLatency(cost, space)
        self.values = np.zeros(len(space.groups))

    def update(self, widths: np.ndarray) -> np.ndarray:
        """Prices `(G,)` after one more look, at these allowed widths `(G,)`."""
        _, slopes = self.secant.secants(widths)
        decay = _DECAY if self.values.any() else 0.0
        self.values = decay * self.values + (1 - decay) * np.maximum(slopes, 0.0)
        return self.weights()

    def weights(self) -> np.ndarray:
        """The current prices, floored and of mean 1; all equal when nothing costs anything."""
        mean = float(self.values.mean())
        if mean <= 0:
            return np.ones_like(self.values)
        floored = np.maximum(self.values / mean, _FLOOR)
        return np.asarray(floored / floored.mean())


def critical_pressure(
    efficiency: Efficiency,
    space: SearchSpace,
    benefits: Sequence[np.ndarray],
    live: Sequence[np.ndarray],
    weights: np.ndarray,
    budget: float,
) -> float:
    """The least pressure at which the live units that can resist it cost at most `budget` (dense: 1.0).

    A unit resists a pressure below benefit / weight. With everything closed that may close and the budget not met it
    is the largest such ratio. Found by bisection.
    """
    ratios = [np.sort(b[alive] / weight) for b, alive, weight in zip(benefits, live, weights, strict=True)]
    least = [allowed[0] for allowed in space.widths]

    def cost(level: float) -> float:
        counts = [max(w, len(r) - int(np.searchsorted(r, level, "right"))) for r, w in zip(ratios, least, strict=True)]
        return efficiency.share(space.snap([float(count) for count in counts]))

    levels = np.unique(np.concatenate(ratios))
    return _least_level(levels, cost, budget)


def shortened(
    efficiency: Efficiency,
    space: SearchSpace,
    thetas: Sequence[np.ndarray],
    free: Sequence[np.ndarray],
    amount: float,
    budget: float,
) -> float:
    """`amount`, or the least smaller proximal step that meets the budget already: none closes more than is asked.

    `free`: which units may close.
    """

    def cost(level: float) -> float:
        counts = []
        for theta, may_close in zip(thetas, free, strict=True):
            closing = may_close & (theta <= level) & (theta > 0)
            counts.append(float((theta > 0).sum() - closing.sum()))
        return efficiency.share(space.snap(counts))

    if cost(amount) > budget:
        return amount
    times = np.concatenate([theta[may_close & (theta > 0)] for theta, may_close in zip(thetas, free, strict=True)])
    levels = np.append(np.unique(times[times < amount]), amount)
    return min(amount, _least_level(levels, cost, budget))


def _least_level(levels: np.ndarray, cost: Callable[[float], float], budget: float) -> float:
    """The least of the ascending levels whose cost is within the budget; the last one when none is."""
    return float(levels[first_within(len(levels) - 1, lambda place: cost(float(levels[place])), budget)])
