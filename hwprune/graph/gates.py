"""Gates on channel groups by scaling the weights that read them: no module is edited."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hwprune.core.errors import GraphError
from hwprune.graph.channel_graph import ChannelGraph, ConsumerSlice


def gate_parameters(
    parameters: Mapping[str, Tensor], graph: ChannelGraph, gates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters that gates change, multiplied; for `called_with(model, {**parameters, **changed}, x)`.

    `gates`: group -> `(units,)`. Every weight that reads the group is multiplied along its input dim, which equals a
    gate on its input. A gate of 0 equals removal, gates of 1 change nothing. Differentiable in weights and gates.
    Raises `GraphError` for an unknown or pinned group and for a gate of another length.
    """
    changed: dict[str, Tensor] = {}
    for name, gate in gates.items():
        units = graph.group(name).units
        if gate.shape != (units,):
            raise GraphError(f"the gate of group '{name}' has shape {tuple(gate.shape)}", hint=f"it must be ({units},)")
        for item in graph.consumer_slices(name):
            weight = changed.get(item.parameter, parameters[item.parameter])
            factor = _factor(gate.to(weight), item, weight.shape[item.dim])
            changed[item.parameter] = weight * factor.reshape([-1 if d == item.dim else 1 for d in range(weight.ndim)])
    return changed


def _factor(gate: Tensor, item: ConsumerSlice, size: int) -> Tensor:
    """The gate spread over a dim of `size`: 1 where the weight reads other channels."""
    if item.is_ordered and item.positions.size == size == gate.numel():
        return gate
    positions = torch.as_tensor(item.positions, device=gate.device)
    units = torch.as_tensor(item.units, device=gate.device)
    return gate.new_ones(size).index_put((positions,), gate[units])
