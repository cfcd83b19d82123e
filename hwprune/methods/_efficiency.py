"""The cost of a sub-network in units of the dense one, differentiable in the widths: latency or MACs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hwprune.core.widths import SearchSpace, Widths
from hwprune.graph import ChannelGraph
from hwprune.latency.limited import SearchLatency
from hwprune.latency.secant import secant_latency
from hwprune.methods._families import uniform_family, widest_that_fits
from hwprune.methods._questions import predicted

# "flops" is what papers call it; it counts as "macs".
CostKind = Literal["latency", "macs", "flops"]
COSTS: tuple[CostKind, ...] = get_args(CostKind)


@dataclass(frozen=True)
class Efficiency:
    """`forward` on the hard widths of the grid, `backward` by differences over one step of it.

    `kind` is "latency" (the frozen latency model; predicted ms / predicted dense ms), or "macs", also called "flops".
    1.0 is the dense network. Source: the switchable efficiency module of W-Gates (Li et al. 2022).
    """

    space: SearchSpace
    graph: ChannelGraph
    latency: SearchLatency
    kind: CostKind = "latency"
    dense: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense", predicted(self, self.space.dense()))

    @property
    def step(self) -> int:
        """The step in channels within which nothing is gained; MACs have none."""
        return self.latency.step if self.kind == "latency" else 1

    def predict_batch(self, values: np.ndarray) -> np.ndarray:
        """`[B, G]` widths -> `[B]` ms or MACs."""
        if self.kind == "latency":
            return self.latency.predict_batch(values)
        return self.graph.macs_batch(self.space, values).astype(np.float64)

    def share(self, widths: Widths) -> float:
        """The cost of one network of the space."""
        return predicted(self, widths) / self.dense

    def budget(self, target_ms: float) -> float:
        """The cost to which a search must come down for a predicted latency of `target_ms`; at most 1.0.

        45 % of the latency of EfficientNet-Lite0 at 64 px go with 62 % of its MACs, so a share of the one is no target
        for the other. In MACs it is the share of the network that `uniform` would choose. Raises `BudgetInfeasible`.
        """
        if self.kind == "latency":
            return min(1.0, target_ms / self.dense)
        fit = widest_that_fits(self.space, self.latency, uniform_family(self.space), target_ms)
        return self.share(fit.widths)

    def __call__(self, counts: Tensor) -> Tensor:
        """`counts`: open gates of each group, `(G,)`, any integers from 1 to the units -> cost, `()`.

        Counts are snapped to the grid; the gradient passes the snap unchanged.
        """
        snapped = self.space.snap([float(count) for count in counts.detach()])
        hard = torch.tensor(snapped.values_tuple(), dtype=counts.dtype, device=counts.device)
        return secant_latency(self, self.space, counts + (hard - counts).detach()) / self.dense
