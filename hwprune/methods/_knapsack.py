"""The multiple-choice knapsack over discretised time: one width a group, the most importance within the target.

Exact by dynamic programming where the latency is a sum over groups. Real networks couple neighbouring groups, since a
layer's time is about the product of the widths on both its sides: there the latency is linearised around the widths
reached so far, solved for every capacity at once, and each solution judged by the latency model itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.features import Array, IntArray, widths_array
from hwprune.latency.limited import SearchLatency
from hwprune.methods._adjust import Fit, check_feasible
from hwprune.methods._families import uniform_family, widest_that_fits

# The linearised latency of a solution may be this much above the target and the true one still within it.
_COUPLING = 1.3
_ROUNDS = 30


def solve_all(values: Sequence[Array], costs: Sequence[IntArray], capacity: int) -> IntArray:
    """The best choice for every capacity 0..`capacity`: places `(capacity + 1, G)`.

    `values` and `costs`: `(n,)` a group, costs in whole bins >= 0, each group's least cost 0. Exactly one item of each
    group is taken; row `b` has the greatest sum of values among the choices of cost at most `b`. Ties go to the earlier
    item. Time and memory: `capacity * sum(n)` and `capacity * G`.
    """
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(values), capacity + 1), dtype=np.int64)
    for group, (value, cost) in enumerate(zip(values, costs, strict=True)):
        reached = np.full((len(value), capacity + 1), -np.inf)
        for item, (gain, bins) in enumerate(zip(value, cost, strict=True)):
            if bins <= capacity:
                reached[item, bins:] = best[: capacity + 1 - bins] + gain
        taken[group] = np.argmax(reached, axis=0)
        best = np.max(reached, axis=0)
    left = np.arange(capacity + 1)
    places = np.zeros((capacity + 1, len(values)), dtype=np.int64)
    for group in range(len(values) - 1, -1, -1):
        places[:, group] = taken[group, left]
        left = left - costs[group][places[:, group]]
    return places


@dataclass
class Knapsack:
    """Widths within a target that keep the most importance. `bins`: into how many parts the target is divided.

    `scores`: group -> `(units,)`, additive; each group keeps its best units. No group goes below the fraction `floor`
    of its units unless the target cannot be met otherwise.
    """

    space: SearchSpace
    latency: SearchLatency
    scores: Mapping[str, np.ndarray]
    bins: int
    floor: float

    def fit(self, target_ms: float) -> Fit:
        """Linearise, solve, judge exactly; again from there until nothing is gained. Raises `BudgetInfeasible`."""
        least = check_feasible(self.space, self.latency, target_ms)
        start = widest_that_fits(self.space, self.latency, uniform_family(self.space), target_ms)
        return self._settled(start, target_ms, self.floor) or self._settled(start, target_ms, 0.0) or least

    def importance(self, widths: Widths) -> float:
        """The sum of the scores of the units kept at `widths`."""
        pairs = zip(self._values(), self.space.widths, widths.values_tuple(), strict=True)
        return float(sum(values[allowed.index(width)] for values, allowed, width in pairs))

    def _settled(self, start: Fit, target_ms: float, floor: float) -> Fit | None:
        around, best = start.widths, None
        for _ in range(_ROUNDS):
            found = self._solve_around(around, target_ms, floor)
            if found is None or (best is not None and self.importance(found.widths) <= self.importance(best.widths)):
                break
            around, best = found.widths, found
        return best

    def _solve_around(self, around: Widths, target_ms: float, floor: float) -> Fit | None:
        """The best network within the target among the solutions for all capacities; None when none is within."""
        now_ms, costs_ms = self._linearised(around)
        allowed = [_from_floor(widths, floor) for widths in self.space.widths]
        values = [value[place] for value, place in zip(self._values(), allowed, strict=True)]
        costs_ms = [cost[place] for cost, place in zip(costs_ms, allowed, strict=True)]
        base_ms = now_ms + sum(float(cost.min()) for cost in costs_ms)
        bin_ms = target_ms / self.bins
        costs = [np.round((cost - cost.min()) / bin_ms).astype(np.int64) for cost in costs_ms]
        capacity = max(0, int(np.ceil((_COUPLING * target_ms - base_ms) / bin_ms)))
        places = np.unique(solve_all(values, costs, min(capacity, sum(int(cost.max()) for cost in costs))), axis=0)
        columns = zip(places.T, allowed, self.space.widths, strict=True)
        rows = np.stack([np.asarray(widths)[place[column]] for column, place, widths in columns], axis=1)
        return self._best_within(rows, target_ms)

    def _best_within(self, rows: IntArray, target_ms: float) -> Fit | None:
        predicted = np.asarray(self.latency.predict_batch(rows))
        within = np.flatnonzero(predicted <= target_ms)
        if not len(within):
            return None
        fits = [Fit(self.space.make(rows[row].tolist()), float(predicted[row])) for row in within]
        return max(fits, key=lambda fit: (self.importance(fit.widths), -fit.predicted_ms))

    def _linearised(self, around: Widths) -> tuple[float, list[Array]]:
        """Predicted ms at `around`, and for each group the change `(n,)` when it alone takes each allowed width."""
        pairs = zip(self.space.names, self.space.widths, strict=True)
        rows = [around.replace(name, width) for name, allowed in pairs for width in allowed]
        predicted = np.asarray(self.latency.predict_batch(widths_array(self.space, [around, *rows])))
        ends = np.cumsum([len(allowed) for allowed in self.space.widths])[:-1]
        return float(predicted[0]), np.split(predicted[1:] - predicted[0], ends)

    def _values(self) -> list[Array]:
        """What each group keeps at each of its allowed widths, `(n,)`."""
        values = []
        for name, allowed in zip(self.space.names, self.space.widths, strict=True):
            best_first = np.sort(np.asarray(self.scores[name], dtype=np.float64))[::-1]
            values.append(np.concatenate([[0.0], np.cumsum(best_first)])[np.asarray(allowed)])
        return values


def _from_floor(allowed: Sequence[int], floor: float) -> IntArray:
    """Places of the allowed widths that are at least the fraction `floor` of the dense one."""
    return np.flatnonzero(np.asarray(allowed) >= floor * allowed[-1])
