"""Smoothed-L0 gates: `theta**2 / (theta**2 + eps)`, exact zeros by soft thresholding, absorption into the next layer.

Source: Guo et al. 2021, "GDP: Stabilized Neural Network Pruning via Gates with Differentiable Polarization"
(arXiv 2109.02220). Only its abstract and one figure were available: what they leave open is our design.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hwprune.core.widths import SearchSpace
from hwprune.graph import ChannelGraph, gate_parameters

# theta of an untouched gate; eps and every step length are relative to it.
START = 1.0
# Of the gate function, at sqrt(eps / 3): the largest slope times sqrt(eps).
STEEPEST = 3 * math.sqrt(3) / 8


def smoothed_l0(theta: Tensor, eps: Tensor | float) -> Tensor:
    """`theta**2 / (theta**2 + eps)` in float32 or wider: 0 at 0, 1/2 at sqrt(eps), 1 far away; slope 0 at 0."""
    wide = theta if theta.dtype == torch.float64 else theta.float()
    square = wide * wide
    return square / (square + eps)


class GateVectors(nn.Module):
    """`theta (units,)` a group, all `START`, and the one `eps` of the gate function, a buffer.

    The gate is divided by its value at `START`, so the network is unchanged at the start whatever eps is; a gate
    lies in 0..1 as long as theta does not exceed `START`. 0.0 is absorbing: the slope there is 0.
    """

    eps: Tensor

    def __init__(self, space: SearchSpace, like: Tensor, eps: float) -> None:
        super().__init__()
        starts = [like.new_full((group.units,), START, dtype=torch.float32) for group in space.groups]
        self.theta = nn.ParameterList([nn.Parameter(start) for start in starts])
        self.register_buffer("eps", torch.tensor(eps, dtype=torch.float64, device=like.device))

    def forward(self) -> list[Tensor]:
        """`(units,)` gates a group, float32."""
        eps = float(self.eps)
        return [smoothed_l0(theta, eps) * (1 + eps / START**2) for theta in self.theta]

    def occupancy(self) -> list[Tensor]:
        """The gate function itself, not divided: `(units,)` a group, detached."""
        return [smoothed_l0(theta.detach(), float(self.eps)) for theta in self.theta]

    def slope_scale(self) -> float:
        """The largest slope a gate can have now."""
        eps = float(self.eps)
        return STEEPEST / math.sqrt(eps) * (1 + eps / START**2)

    def counts(self) -> list[int]:
        """Gates of each group that are not exactly zero."""
        return [int((theta.detach() != 0).sum()) for theta in self.theta]


def absorbed(
    state: Mapping[str, Tensor], graph: ChannelGraph, names: Sequence[str], gates: Sequence[Tensor]
) -> dict[str, Tensor]:
    """A full-size state with the surviving gates multiplied into the weights that read them.

    Weights of closed units (gate 0.0) stay as they are: the cut removes them, and another budget may want them back.
    """
    spared = {
        name: torch.where(gate == 0, torch.ones_like(gate), gate) for name, gate in zip(names, gates, strict=True)
    }
    with torch.no_grad():
        return graph.changed_state(state, gate_parameters(state, graph, spared))
