"""The dumb baseline: latency as a straight line in the network's MACs. A model that does not beat it is useless."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.latency.features import Array, IntArray, Work
from hwprune.latency.models._base import AbstractLatencyModel, Fitted
from hwprune.latency.models._regression import relative_nnls
from hwprune.latency.samples import Samples


@dataclass(eq=False)
class Macs(AbstractLatencyModel):
    """Latency = constant + slope * MACs, with true channel counts, not rounded ones."""

    def train(self, samples: Samples, seed: int) -> None:
        """Two non-negative coefficients."""
        self._work = Work(samples.op_templates, samples.space, 1)
        self._coefficients = relative_nnls(self._columns(samples.values), samples.latency_ms)

    def predict_batch(self, values: IntArray) -> Array:
        """Predicted ms `[B]` for widths `[B, G]`."""
        return self._columns(values) @ self._coefficients

    def spread_batch(self, values: IntArray) -> Array:
        """Zeros: there is one line only."""
        return np.zeros(len(values))

    def state(self) -> dict[str, Any]:
        """The two coefficients."""
        return {"coefficients": self._coefficients.tolist()}

    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """The line again."""
        self._work = Work(fitted.op_templates, fitted.space, 1)
        self._coefficients = np.array(state["coefficients"], dtype=np.float64)

    def _columns(self, values: IntArray) -> Array:
        macs = self._work.layers(values).macs.sum(axis=1)
        return np.stack([np.ones(len(macs)), macs], axis=1)
