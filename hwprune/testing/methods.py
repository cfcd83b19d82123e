"""The conformance suite of pruning methods, and an exact staircase in place of a device.

A new method inherits its tests: subclass `MethodConformance` in a test module and give `method`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.core.widths import SearchSpace
from hwprune.graph import ChannelGraph
from hwprune.latency.features import Array, IntArray, restrict
from hwprune.latency.models._base import AbstractLatencyModel, Fitted
from hwprune.latency.samples import Samples

_FIXED_MS = 0.05
_MACS_A_MS = 5e7
_ELEMENTS_A_MS = 2e7


@dataclass(eq=False)
class StaircaseLatency(AbstractLatencyModel):
    """Known latency without a device: channels cost as much as the next multiple of `tile`, layers add up."""

    tile: int = 8

    @classmethod
    def of(cls, graph: ChannelGraph, space: SearchSpace, tile: int = 8) -> StaircaseLatency:
        """The staircase of a traced network."""
        model = cls(tile)
        operators = restrict(graph.op_templates, space, graph.dense())
        model._fitted = Fitted(space, operators, tile, None, 0, space.widths, 0.0, 0.0)
        return model

    def train(self, samples: Samples, seed: int) -> None:
        """There is nothing to learn."""

    def predict_batch(self, values: IntArray) -> Array:
        """Milliseconds `[B]` for widths `[B, G]`: multiply-accumulates and activations, rounded up to the tile."""
        work = self.fitted.work.layers(values)
        elements = (work.reads + work.writes).sum(axis=1)
        return np.asarray(_FIXED_MS + work.macs.sum(axis=1) / _MACS_A_MS + elements / _ELEMENTS_A_MS)

    def spread_batch(self, values: IntArray) -> Array:
        """Zeros: it is exact."""
        return np.zeros(len(values))

    def state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """Nothing to take back."""
