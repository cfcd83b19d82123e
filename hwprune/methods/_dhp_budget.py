"""What latency asks of the latents: which groups shrink faster, how far all must, and what a threshold keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.limited import SearchLatency
from hwprune.latency.secant import neighbour
from hwprune.methods._adjust import Fit, check_feasible, fit_to_target
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._questions import first_within, predicted


@dataclass(frozen=True)
class Prices:
    """`weights` `(G,)`: of the proximal step, mean 1 over the groups; all 0 when no group costs anything now."""

    weights: np.ndarray
    cost: float


def tile_prices(efficiency: Efficiency, space: SearchSpace, widths: Widths) -> Prices:
    """`max(0, E(c) - E(c - tile)) / tile` for each group at the hard widths c, over their mean; and E(c), 1.0 = dense.

    The tile is one step of the space's grid, or of the target where that is wider. Over less, a staircase has slopes of
    0 or of noise. A group at its least width has price 0: it may not shrink.
    """
    values = np.array(widths.values_tuple(), dtype=np.int64)
    below = neighbour(space, values, efficiency.step, -1)
    rows = np.tile(values, (len(values) + 1, 1))
    rows[np.arange(len(values)), np.arange(len(values))] = below
    cost = efficiency.predict_batch(rows) / efficiency.dense
    slopes = np.maximum(cost[-1] - cost[:-1], 0.0) / np.maximum(values - below, 1)
    mean = float(slopes.mean())
    return Prices(slopes / mean if mean > 0 else slopes, float(cost[-1]))


def needed_travel(efficiency: Efficiency, space: SearchSpace, lifetimes: Sequence[np.ndarray], budget: float) -> float:
    """How far proximal steps of weight 1 must go in sum for the units that survive to cost at most `budget`.

    `lifetimes`: group -> `(units,)`, the travel at which each unit reaches 0, inf for one that never does. 0 when the
    budget is met already; where all that can go do not suffice, the travel at which all of them are gone. Bisection,
    about a dozen predictions.
    """
    ordered = [np.sort(times) for times in lifetimes]
    levels = np.unique(np.concatenate([np.zeros(1), *[times[np.isfinite(times)] for times in ordered]]))

    def cost(place: int) -> float:
        counts = [float(len(times) - np.searchsorted(times, levels[place], "right")) for times in ordered]
        return efficiency.share(space.snap(counts))

    return float(levels[first_within(len(levels) - 1, cost, budget)])


def threshold_fit(space: SearchSpace, latency: SearchLatency, ranks: Mapping[str, np.ndarray], target_ms: float) -> Fit:
    """The widest network that one threshold on all groups' ranks leaves within `target_ms`, by bisection.

    Counts are snapped to the grid. Where the next lower threshold is too slow, each group may still take its next
    step, in the order of the ranks that ask for it, if that fits. Raises `BudgetInfeasible`.
    """
    least = check_feasible(space, latency, target_ms)
    ordered = [np.sort(ranks[name]) for name in space.names]
    levels = np.append(np.unique(np.concatenate(ordered)), np.inf)

    def widths(place: int) -> Widths:
        return space.snap([float(len(group) - np.searchsorted(group, levels[place])) for group in ordered])

    base = widths(first_within(len(levels) - 1, lambda place: predicted(latency, widths(place)), target_ms))
    fit = Fit(base, predicted(latency, base))
    if fit.predicted_ms > target_ms:
        return least
    for name, width in _next_steps(space, base, ordered):
        wider = fit.widths.replace(name, width)
        predicted_ms = predicted(latency, wider)
        if predicted_ms <= target_ms:
            fit = Fit(wider, predicted_ms)
    return fit


def exchange_fit(
    space: SearchSpace,
    latency: SearchLatency,
    ranks: Mapping[str, np.ndarray],
    worth: Mapping[str, np.ndarray],
    target_ms: float,
) -> Fit:
    """The widths of the threshold on `ranks`, then steps of the grid traded between groups while `worth` is gained.

    One threshold weighs groups by prices along the way to the target; what a step costs at the target is known only
    there. Raises `BudgetInfeasible`.
    """
    base = threshold_fit(space, latency, ranks, target_ms)
    return fit_to_target(space, latency, worth, target_ms, start=base.widths)


def _next_steps(space: SearchSpace, base: Widths, ordered: Sequence[np.ndarray]) -> list[tuple[str, int]]:
    """The next wider width of each group, best first: by the rank of the unit half way to it (`ordered` ascends)."""
    steps = []
    for name, allowed, ranks in zip(space.names, space.widths, ordered, strict=True):
        wider = [width for width in allowed if width > base[name]]
        if wider:
            middle = (base[name] + wider[0] + 1) // 2
            steps.append((float(ranks[len(ranks) - middle]), name, wider[0]))
    return [(name, width) for _, name, width in sorted(steps, key=lambda step: -step[0])]
