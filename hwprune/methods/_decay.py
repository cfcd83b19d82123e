"""Weight decay that spares the weights of closed units, so that they can be reopened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.graph import ChannelGraph


def open_factors(graph: ChannelGraph, model: nn.Module, closed: Mapping[str, np.ndarray]) -> dict[str, list[Tensor]]:
    """For each parameter that a closed unit touches: factors that broadcast, 0.0 at the closed unit, else 1.0.

    `closed`: group -> `(units,)` bool. What makes a unit is touched by it, and what reads it.
    """
    factors: dict[tuple[str, int], Tensor] = {}
    for group, units in closed.items():
        for piece in (*graph.producer_slices(group), *graph.consumer_slices(group)) if units.any() else ():
            parameter = model.get_parameter(piece.parameter)
            shape = [-1 if dim == piece.dim else 1 for dim in range(parameter.ndim)]
            key = (piece.parameter, piece.dim)
            factor = factors.setdefault(key, parameter.new_ones(parameter.shape[piece.dim]).reshape(shape))
            positions = torch.from_numpy(piece.positions[units[piece.units]])
            factor.view(-1).index_fill_(0, positions.to(factor.device), 0.0)
    found: dict[str, list[Tensor]] = {}
    for (name, _), factor in factors.items():
        found.setdefault(name, []).append(factor)
    return found


@torch.no_grad()
def decay_open(model: nn.Module, factors: Mapping[str, Sequence[Tensor]], decay: float) -> None:
    """Add L2 decay to the gradients of weight matrices and filters, except where `open_factors` are 0.

    A closed unit gets no gradient, so decay alone would shrink its weights until reopening it is useless.
    """
    for name, parameter in model.named_parameters() if decay else ():
        if parameter.ndim > 1 and parameter.grad is not None:
            shrunk: Tensor = parameter
            for factor in factors.get(name, ()):
                shrunk = shrunk * factor
            parameter.grad.add_(shrunk, alpha=decay)
