"""Two questions to a latency model that many methods ask: what one network costs, and where a bound is met."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwprune.core.widths import Widths
from hwprune.latency.secant import BatchPredictor


def predicted(model: BatchPredictor, widths: Widths) -> float:
    """What the model predicts for one network: ms, or whatever else it predicts."""
    return float(model.predict_batch(np.array([widths.values_tuple()], dtype=np.int64))[0])


def first_within(last: int, cost: Callable[[int], float], bound: float) -> int:
    """The least of the places 0 to `last`, at which costs fall, whose cost is within the bound; `last` if none is.

    By bisection: `cost` is asked about log2(`last`) times, never at `last` itself.
    """
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= bound else (middle + 1, high)
    return low
