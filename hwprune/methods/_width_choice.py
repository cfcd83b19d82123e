"""A distribution over the allowed widths of each group: soft masks by importance rank, expected width and cost.

Every probability belongs to a real width of the grid, so a latency model is asked only about networks that exist, and
its staircase, its dips and its couplings are used as they are: there is no derivative of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.features import widths_array
from hwprune.methods._efficiency import Efficiency

# A threshold may leave the range of widths by this share of the units: far enough to be decided, near enough to return.
_SLACK = 0.05
# In place of a width that is not decided on; 0 is one, where a residual branch may vanish.
_OPEN = -1


class WidthGrid:
    """The allowed widths of each group, `(n,)`, and for each unit, `(units,)`, the first of them that keeps the unit.

    Units enter in the order of their scores; ties go to the lower index, as in `top_units`.
    """

    def __init__(self, space: SearchSpace, scores: Mapping[str, np.ndarray], like: Tensor) -> None:
        self.space = space
        self.widths = [torch.tensor(allowed, dtype=like.dtype, device=like.device) for allowed in space.widths]
        self.levels: list[Tensor] = []
        for group, allowed in zip(space.groups, space.widths, strict=True):
            rank = np.empty(group.units, dtype=np.int64)
            rank[np.argsort(-np.asarray(scores[group.name]), kind="stable")] = np.arange(group.units)
            self.levels.append(torch.from_numpy(np.searchsorted(allowed, rank + 1)).to(like.device))

    def soft_masks(self, probabilities: Sequence[Tensor]) -> list[Tensor]:
        """P(unit stays), `(units,)` a group: exactly 1 for the units that the least width keeps."""
        return [kept_shares(p)[level] for p, level in zip(probabilities, self.levels, strict=True)]

    def expected(self, probabilities: Sequence[Tensor]) -> list[Tensor]:
        """The expected width of each group, `()`."""
        return [(p * widths).sum() for p, widths in zip(probabilities, self.widths, strict=True)]

    def nearest(self, probabilities: Sequence[Tensor]) -> Widths:
        """The allowed widths nearest to the expected ones."""
        return self.space.nearest([float(width.detach()) for width in self.expected(probabilities)])

    def above(self, probabilities: Sequence[Tensor]) -> Widths:
        """The least allowed widths that are not below the expected ones (rounding errors aside)."""
        values = []
        for expected, allowed in zip(self.expected(probabilities), self.space.widths, strict=True):
            place = int(np.searchsorted(allowed, float(expected.detach()) - 1e-4 * allowed[-1]))
            values.append(allowed[min(place, len(allowed) - 1)])
        return self.space.make(values)


def kept_shares(probabilities: Tensor) -> Tensor:
    """P(width >= k_i) for each allowed width, `(n,)`: the reverse cumulative sum, its first entry exactly 1."""
    tail = probabilities.flip(0).cumsum(0).flip(0)
    return torch.cat([torch.ones_like(tail[:1]), tail[1:]])


class AbstractWidthChoice(nn.Module, ABC):
    """What is learned: `values`, one tensor a group, and how probabilities over the allowed widths follow from them.

    Once the search has decided, `fix` keeps the widths in a buffer, so that a resumed search has them too.
    """

    def __init__(self, starts: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(start.clone()) for start in starts])
        self.register_buffer("fixed_widths", torch.full((len(starts),), _OPEN, dtype=torch.int64))

    def fix(self, widths: Widths) -> None:
        """Decide."""
        self.get_buffer("fixed_widths").copy_(torch.tensor(widths.values_tuple()))

    def fixed(self, space: SearchSpace) -> Widths | None:
        """The widths decided on, None before."""
        widths = self.get_buffer("fixed_widths").tolist()
        return None if _OPEN in widths else space.make(widths)

    @abstractmethod
    def probabilities(self, values: Sequence[Tensor], softness: float) -> list[Tensor]:
        """`(n,)` a group, summing to 1; concentrated on one width as `softness` goes to 0."""

    @abstractmethod
    def tidy(self) -> None:
        """After an optimiser step: put `values` back to where they are well conditioned."""

    def now(self, softness: float) -> list[Tensor]:
        """The probabilities now, without a graph."""
        with torch.no_grad():
            return self.probabilities(list(self.values), softness)


class SoftmaxChoice(AbstractWidthChoice):
    """Free logits over the allowed widths of a group: `softmax(logits / softness)`."""

    @classmethod
    def rising(cls, grid: WidthGrid, top: float) -> SoftmaxChoice:
        """Logits from 0 (narrowest) linearly to `top` (dense)."""
        return cls([torch.linspace(0, top, len(w), dtype=w.dtype, device=w.device) for w in grid.widths])

    @classmethod
    def dense(cls, grid: WidthGrid, softness: float) -> SoftmaxChoice:
        """P(dense) = next width / dense, at least .5, the rest spread evenly: the expectation rounds up to dense."""
        starts = []
        for widths in grid.widths:
            logits = torch.zeros_like(widths)
            if len(widths) > 1:
                share = max(0.5, float(widths[-2] / widths[-1]))
                logits[-1] = softness * math.log((len(widths) - 1) * share / (1 - share))
            starts.append(logits)
        return cls(starts)

    def probabilities(self, values: Sequence[Tensor], softness: float) -> list[Tensor]:
        """`(n,)` a group."""
        return [torch.softmax(logits / softness, dim=0) for logits in values]

    @torch.no_grad()
    def tidy(self) -> None:
        """Subtract each group's mean: a common shift changes nothing but drifts."""
        for logits in self.values:
            logits.sub_(logits.mean())


class SigmoidChoice(AbstractWidthChoice):
    """One threshold a group, as a share of its units: P(width >= k) = sigmoid((threshold - edge of k) / softness).

    The edge of a width lies half way to the next narrower one, so the most probable width is the one nearest to the
    threshold.
    """

    def __init__(self, grid: WidthGrid, start: float) -> None:
        super().__init__([widths.new_tensor([start]) for widths in grid.widths])
        self.edges = [(widths[1:] + widths[:-1]) / (2 * widths[-1]) for widths in grid.widths]
        self.least = [float(widths[0] / widths[-1]) for widths in grid.widths]

    def probabilities(self, values: Sequence[Tensor], softness: float) -> list[Tensor]:
        """`(n,)` a group."""
        found = []
        for threshold, edges in zip(values, self.edges, strict=True):
            shares = torch.sigmoid((threshold - edges) / softness)
            found.append(torch.cat([torch.ones_like(threshold), shares]) - torch.cat([shares, shares.new_zeros(1)]))
        return found

    @torch.no_grad()
    def tidy(self) -> None:
        """Keep thresholds near the range of widths, from where they can return."""
        for threshold, least in zip(self.values, self.least, strict=True):
            threshold.clamp_(least - _SLACK, 1 + _SLACK)


class ExpectedCost:
    """The cost of hard widths, with the gradient of the expectation over each group's width: 1.0 = dense.

    `cost = E(hard) + sum_g (mean_g - stop_gradient(mean_g))`, where `mean_g = sum_i p_i E(hard with group g at k_i)`.
    One batch of all groups' widths is predicted whenever the hard widths change; so the gradient is exact for one
    group at a time, and no latency model is ever differentiated.
    """

    def __init__(self, efficiency: Efficiency) -> None:
        self.efficiency = efficiency
        self._at: Widths | None = None
        self._value = 1.0
        self._levels: list[np.ndarray] = []

    def levels(self, hard: Widths) -> tuple[float, list[np.ndarray]]:
        """`E(hard)` and, for each group, the costs `(n,)` with that group at each of its allowed widths."""
        if hard != self._at:
            space = self.efficiency.space
            rows = [
                hard.replace(n, width)
                for n, allowed in zip(space.names, space.widths, strict=True)
                for width in allowed
            ]
            costs = self.efficiency.predict_batch(widths_array(space, [hard, *rows])) / self.efficiency.dense
            ends = np.cumsum([len(allowed) for allowed in space.widths])[:-1]
            self._at, self._value, self._levels = hard, float(costs[0]), np.split(costs[1:], ends)
        return self._value, self._levels

    def __call__(self, probabilities: Sequence[Tensor], hard: Widths) -> Tensor:
        """The cost, `()`, for probabilities `(n,)` a group."""
        value, levels = self.levels(hard)
        means = [(p * p.new_tensor(costs)).sum() for p, costs in zip(probabilities, levels, strict=True)]
        total = torch.stack(means).sum()
        return total - total.detach() + value
