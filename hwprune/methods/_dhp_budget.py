"""What latency asks of the latents: which groups shrink faster, how far all must, and what a threshold keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.models._base import AbstractLatencyModel
from hwprune.methods._adjust import Fit
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._families import ranked_family, widest_that_fits


@dataclass(frozen=True)
class Prices:
    """`weights` `(G,)`: of the proximal step, mean 1 over the groups; all 0 when no group costs anything now."""

    weights: np.ndarray
    cost: float


def tile_prices(efficiency: Efficiency, space: SearchSpace, widths: Widths) -> Prices:
    """`max(0, E(c) - E(c - tile)) / tile` for each group at the hard widths c, over their mean; and E(c), 1.0 = dense.

    The tile is one step of the space's grid. Over less, a staircase has slopes of 0 or of noise. A group at its least
    width has price 0: it may not shrink.
    """
    values = np.array(widths.values_tuple(), dtype=np.int64)
    places = [allowed.index(int(width)) for allowed, width in zip(space.widths, values, strict=True)]
    below = np.array([a[max(place - 1, 0)] for a, place in zip(space.widths, places, strict=True)], dtype=np.int64)
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
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        counts = [float(len(times) - np.searchsorted(times, levels[middle], "right")) for times in ordered]
        row = np.array([space.snap(counts).values_tuple()])
        cost = float(efficiency.predict_batch(row)[0]) / efficiency.dense
        low, high = (low, middle) if cost <= budget else (middle + 1, high)
    return float(levels[low])


def threshold_fit(
    space: SearchSpace, latency: AbstractLatencyModel, ranks: Mapping[str, np.ndarray], target_ms: float
) -> Fit:
    """The widest network that one threshold on all groups' ranks leaves within `target_ms`.

    Widths are snapped to the grid; where the next lower threshold is too slow, each group may still take its next step
    if that fits. Raises `BudgetInfeasible`.
    """
    family = ranked_family(space, [ranks[name] for name in space.names])
    return widest_that_fits(space, latency, family, target_ms)
