"""A random forest on rounded work (scikit-learn): the usual choice of the literature, as a rival.

A forest is not stored: its file keeps the training data and the seed, and it is grown again when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwprune.latency.features import Array, IntArray, Work
from hwprune.latency.models._base import AbstractLatencyModel, Fitted
from hwprune.latency.samples import Samples


@dataclass(eq=False)
class Forest(AbstractLatencyModel):
    """Random forest on log latency; its inputs are the sums of work by kind and each layer's rounded MACs."""

    trees: int = field(default=100, metadata={"help": "number of trees"})

    def train(self, samples: Samples, seed: int) -> None:
        """Grow the trees."""
        self._work = Work(samples.op_templates, samples.space, samples.tile)
        self._grow(samples.values, samples.latency_ms, seed)

    def _grow(self, values: IntArray, latency_ms: Array, seed: int) -> None:
        from sklearn.ensemble import RandomForestRegressor

        self._values, self._latency_ms, self._seed = values, latency_ms, seed
        forest = RandomForestRegressor(self.trees, random_state=seed, max_features=0.5)
        self._forest = forest.fit(self._columns(values), np.log(latency_ms))

    def predict_batch(self, values: IntArray) -> Array:
        """Predicted ms `[B]` for widths `[B, G]`."""
        return np.asarray(np.exp(self._forest.predict(self._columns(values))))

    def spread_batch(self, values: IntArray) -> Array:
        """Standard deviation of the trees' log latencies."""
        columns = self._columns(values)
        return np.asarray(np.std([tree.predict(columns) for tree in self._forest.estimators_], axis=0))

    def state(self) -> dict[str, Any]:
        """The training data and the seed."""
        return {"values": self._values.tolist(), "latency_ms": self._latency_ms.tolist(), "seed": self._seed}

    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """The same forest, grown again."""
        self._work = Work(fitted.op_templates, fitted.space, fitted.tile)
        self._grow(np.array(state["values"], dtype=np.int64), np.array(state["latency_ms"]), int(state["seed"]))

    def _columns(self, values: IntArray) -> Array:
        return np.concatenate([self._work.terms(values), self._work.layers(values).macs], axis=1)
