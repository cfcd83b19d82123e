"""The classic latency table: layer times measured inside whole networks, interpolated, added up.

Each convolution and linear layer gets its own line in its tile-rounded MACs and activations (non-negative); every
other node of the runtime counts with its mean. The sum misses what lies between the layers, so a scale and an offset
are fitted to whole networks. Layers timed in isolation were two to three times off where we tried it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.core.errors import TableError
from hwprune.latency.features import Array, IntArray, Work
from hwprune.latency.models._base import AbstractLatencyModel, Fitted
from hwprune.latency.models._regression import relative_nnls
from hwprune.latency.samples import LayerSample, Samples

_LEAST_MS = 1e-4  # a runtime's profile counts in microseconds; a layer below its resolution still takes time


@dataclass(eq=False)
class TableSum(AbstractLatencyModel):
    """Sum over layers of `constant + a * MACs + b * activations`, then `offset + scale * sum`."""

    def train(self, samples: Samples, seed: int) -> None:
        """Lines from the layer times, offset and scale from the whole networks."""
        if len(samples.layers) < 2:
            raise TableError(
                f"a table sum needs layer times of 2 networks or more, the table has {len(samples.layers)}",
                hint="run hwprune profile again; it also measures layer times",
            )
        self._work = Work(samples.op_templates, samples.space, samples.tile)
        self._lines, self._other_ms = _layer_lines(self._work, samples.layers)
        sums = self._sums(samples.values)
        self._affine = relative_nnls(np.stack([np.ones(len(sums)), sums], axis=1), samples.latency_ms)

    def predict_batch(self, values: IntArray) -> Array:
        """Predicted ms `[B]` for widths `[B, G]`."""
        return np.asarray(self._affine[0] + self._affine[1] * self._sums(values))

    def spread_batch(self, values: IntArray) -> Array:
        """Zeros: there is one table only."""
        return np.zeros(len(values))

    def state(self) -> dict[str, Any]:
        """Three coefficients for each layer, the mean of the rest, offset and scale."""
        affine = self._affine.tolist()
        return {"lines": self._lines.tolist(), "other_ms": self._other_ms, "affine": affine}

    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """The table again."""
        self._work = Work(fitted.op_templates, fitted.space, fitted.tile)
        self._lines = np.array(state["lines"], dtype=np.float64)
        self._other_ms = float(state["other_ms"])
        self._affine = np.array(state["affine"], dtype=np.float64)

    def _sums(self, values: IntArray) -> Array:
        return np.asarray(np.einsum("bof,of->b", _columns(self._work, values), self._lines) + self._other_ms)


def _columns(work: Work, values: IntArray) -> Array:
    """`[B, O, 3]`: a constant, MACs and activations of every layer."""
    layers = work.layers(values)
    return np.stack([np.ones_like(layers.macs), layers.macs, layers.reads + layers.writes], axis=2)


def _layer_lines(work: Work, samples: Sequence[LayerSample]) -> tuple[Array, float]:
    """Coefficients `[O, 3]` of each layer's line (zeros for layers the runtime does not show), and the rest's ms."""
    columns = _columns(work, np.array([sample.values for sample in samples], dtype=np.int64))
    times = np.zeros((len(samples), len(work.ops)))
    for row, sample in enumerate(samples):
        for layer in sample.layers:
            owner = _owner(layer.name, work)
            if owner is not None:
                times[row, owner] += layer.latency_ms
    lines = np.zeros((len(work.ops), 3))
    for place in np.flatnonzero(times.sum(axis=0) > 0):
        lines[place] = relative_nnls(columns[:, place], np.maximum(times[:, place], _LEAST_MS))
    totals = np.array([sum(layer.latency_ms for layer in sample.layers) for sample in samples])
    return lines, float(np.mean(totals - times.sum(axis=1)))


def _owner(node: str, work: Work) -> int | None:
    """The operator whose dotted module path a runtime's node begins with; the longest match counts."""
    matches = [(len(op.name), place) for place, op in enumerate(work.ops) if _is_of(node, op.name)]
    return max(matches)[1] if matches else None


def _is_of(node: str, name: str) -> bool:
    return node == name or (node.startswith(name) and node[len(name)] in "/_:")
