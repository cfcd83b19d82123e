"""Ridge regression on the work of every layer, channels rounded up to the tile.

The best of the simple forms that we tried on CPUs: features matter more than the model. The penalty is chosen by
cross-validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwprune.latency.features import Array, IntArray, Work
from hwprune.latency.models._base import AbstractLatencyModel, Fitted, folds
from hwprune.latency.models._regression import relative_ridge
from hwprune.latency.samples import Samples

_STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(eq=False)
class Linear(AbstractLatencyModel):
    """Latency as a weighted sum of each layer's MACs and of the sums of work by kind."""

    strength: float = field(default=0.0, metadata={"help": "ridge penalty; 0 chooses it by cross-validation"})

    def train(self, samples: Samples, seed: int) -> None:
        """Coefficients by ridge on relative errors."""
        self._work = Work(samples.op_templates, samples.space, samples.tile)
        columns = self._columns(samples.values)
        strength = self.strength or _best_strength(columns, samples.latency_ms, seed)
        self._coefficients = relative_ridge(columns, samples.latency_ms, strength)

    def predict_batch(self, values: IntArray) -> Array:
        """Predicted ms `[B]` for widths `[B, G]`; never below a thousandth of a millisecond."""
        return np.maximum(self._columns(values) @ self._coefficients, 1e-3)

    def spread_batch(self, values: IntArray) -> Array:
        """Zeros: there is one fit only."""
        return np.zeros(len(values))

    def state(self) -> dict[str, Any]:
        """One coefficient for each column."""
        return {"coefficients": self._coefficients.tolist()}

    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """The coefficients again."""
        self._work = Work(fitted.op_templates, fitted.space, fitted.tile)
        self._coefficients = np.array(state["coefficients"], dtype=np.float64)

    def _columns(self, values: IntArray) -> Array:
        """A constant, the sums by kind, then each layer's MACs."""
        macs = self._work.layers(values).macs
        return np.concatenate([np.ones((len(macs), 1)), self._work.terms(values), macs], axis=1)


def _best_strength(columns: Array, latency_ms: Array, seed: int) -> float:
    errors = np.zeros(len(_STRENGTHS))
    for train, test in folds(len(latency_ms), seed):
        for place, strength in enumerate(_STRENGTHS):
            coefficients = relative_ridge(columns[train], latency_ms[train], strength)
            predicted = columns[test] @ coefficients
            # Of the larger of the two: a label that is far too low would decide alone.
            errors[place] += float(
                (np.abs(predicted - latency_ms[test]) / np.maximum(predicted, latency_ms[test])).sum()
            )
    return _STRENGTHS[int(np.argmin(errors))]
