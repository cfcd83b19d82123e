"""Latency inside a gradient search: the value at hard widths, the slope over one allowed step.

A latency model that resolves the target's staircase has slope 0 almost everywhere, and one that does not has an
arbitrary one. The useful slope is the secant to the next allowed width on either side (our design).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hwprune.core.widths import SearchSpace
from hwprune.latency.features import Array, IntArray


class BatchPredictor(Protocol):
    """Anything that predicts milliseconds (or any other cost) `[B]` for width rows `[B, G]`."""

    def predict_batch(self, values: IntArray) -> Array:
        """The predictions."""


class SecantLatency:
    """Predicted latency of one sub-network as a differentiable function of its widths.

    Call it with a tensor of widths `(G,)` in space order, of any real values: the forward reads the nearest allowed
    widths; the backward passes `dE/dn_g = [E(n + step) - E(n - step)] / gap` straight through the snap, one-sided at
    the ends of the grid. Negative slopes would reward widening, so they count as 0.
    """

    def __init__(self, model: BatchPredictor, space: SearchSpace) -> None:
        self.model = model
        self.space = space

    def __call__(self, widths: Tensor) -> Tensor:
        """Predicted ms, a scalar, for widths `(G,)`."""
        result: Tensor = _Secant.apply(widths, self)  # type: ignore[no-untyped-call]
        return result

    def secants(self, widths: IntArray) -> tuple[float, Array]:
        """Predicted ms and the slopes `(G,)` in ms a unit, negative ones too, at allowed widths `(G,)`."""
        below, above = self._neighbours(widths)
        count = len(widths)
        rows = np.tile(widths, (2 * count + 1, 1))
        groups = np.arange(count)
        rows[1 + groups, groups] = above
        rows[1 + count + groups, groups] = below
        predicted = self.model.predict_batch(rows)
        gap = np.maximum(above - below, 1)
        return float(predicted[0]), np.asarray((predicted[1 : count + 1] - predicted[count + 1 :]) / gap)

    def _neighbours(self, widths: IntArray) -> tuple[IntArray, IntArray]:
        """The allowed widths next below and above each one; the width itself at the end of the grid."""
        step = getattr(self.model, "step", 1)
        return neighbour(self.space, widths, step, -1), neighbour(self.space, widths, step, +1)


def neighbour(space: SearchSpace, widths: IntArray, step: int, direction: int) -> IntArray:
    """The next allowed width of each group above (+1) or below (-1); the last one of the grid where there is none.

    On a grid finer than the target's `step` (in channels) the next one that is not padded to as many channels: the
    others cost the same.
    """
    found = []
    for group, allowed, width in zip(space.groups, space.widths, widths.tolist(), strict=True):
        place = allowed.index(width)
        beyond = allowed[place + 1 :] if direction > 0 else allowed[:place][::-1]
        padded = -(-width * group.unit_channels // step)
        others = (other for other in beyond if -(-other * group.unit_channels // step) != padded)
        found.append(next(others, beyond[-1] if beyond else width))
    return np.array(found, dtype=np.int64)


def secant_latency(model: BatchPredictor, space: SearchSpace, widths: Tensor) -> Tensor:
    """`SecantLatency(model, space)(widths)`: predicted ms with secants as the gradient."""
    return SecantLatency(model, space)(widths)


class _Secant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, widths: Tensor, latency: SecantLatency) -> Tensor:
        snapped = latency.space.snap([float(width) for width in widths.detach()])
        predicted_ms, slopes = latency.secants(np.array(snapped.values_tuple(), dtype=np.int64))
        ctx.slopes = widths.new_tensor(np.maximum(slopes, 0.0))
        return widths.new_tensor(predicted_ms)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.slopes, None
