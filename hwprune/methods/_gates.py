"""Binary gates whose scores are a function of the filters' own weights.

One linear map a channel group: a unit's feature vector is all weights that produce it, over all coupled layers, so a
residual stage's score is the sum of one linear score a layer and its gates are shared before they are binarised.
Source: Li et al. 2022, "Weight-dependent Gates for Network Pruning"; what the paper leaves open is our design.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.core.widths import SearchSpace
from hwprune.graph import ChannelGraph

Surrogate = Literal["arctan", "clipped"]


@dataclass(frozen=True)
class _Producer:
    """A weight whose rows (`dim`) at `rows`, `(units, k)`, produce the units; `norm` is the batch norm behind it."""

    parameter: str
    dim: int
    rows: Tensor
    norm: str


class GateNetwork(nn.Module):
    """Scores of all groups from the weights of the model: `(units,)` a group, open where >= 0.

    `directions[g]` `(features,)` and `bias` `(G,)` are all it learns. A group that no weight produces gets a free
    score a unit. `scale_fix` multiplies each filter by its batch norm's weight / sqrt(running_var + eps), so that a
    rescaling the norm undoes does not change the decision. With `sees_weights="detach"` the filters get no gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        space: SearchSpace,
        *,
        sees_weights: Literal["detach", "attach"] = "detach",
        scale_fix: bool = True,
    ) -> None:
        super().__init__()
        self.units = tuple(group.units for group in space.groups)
        self.sees_weights = sees_weights
        self.scale_fix = scale_fix
        norms = _norm_behind(model, graph)
        self.producers = tuple(_producers(model, graph, name, norms) for name in space.names)
        like = next(model.parameters())
        sizes = [phi.shape[1] for phi in self.features(model)]
        self.directions = nn.ParameterList([nn.Parameter(like.new_zeros(size)) for size in sizes])
        self.bias = nn.Parameter(like.new_zeros(len(sizes)))
        for index, units in enumerate(self.units):
            self.register_buffer(f"prior{index}", like.new_zeros(units))

    def features(self, model: nn.Module) -> list[Tensor]:
        """`(units, features)` a group, root mean square 1."""
        return [self._group_features(model, index) for index in range(len(self.units))]

    def forward(self, model: nn.Module) -> list[Tensor]:
        """`(units,)` scores a group."""
        scores = []
        for phi, direction, prior, bias in zip(
            self.features(model), self.directions, self.priors(), self.bias, strict=True
        ):
            scores.append(phi @ direction / math.sqrt(phi.shape[1]) + prior + bias)
        return scores

    @torch.no_grad()
    def open_all(self, model: nn.Module, margin: float, spread: float, generator: torch.Generator) -> None:
        """Start: random directions, and biases that put the lowest score of each group at `margin` > 0."""
        for direction in self.directions:
            direction.copy_(torch.randn(direction.shape, generator=generator) * spread)
        self.bias.zero_()
        self.bias.add_(margin - torch.stack([scores.min() for scores in self(model)]))

    @torch.no_grad()
    def open_in_order(self, model: nn.Module, prior: Sequence[Tensor], margin: float) -> None:
        """Start from known scores, `(units,)` a group: they stay as a constant term, the directions learn from 0.

        One constant lifts all groups, the lowest score of all to `margin`: the order over groups counts.
        """
        for buffer, scores, direction in zip(self.priors(), prior, self.directions, strict=True):
            buffer.copy_(scores)
            direction.zero_()
        self.bias.zero_()
        self.bias.add_(margin - torch.stack([scores.min() for scores in self(model)]).min())

    def priors(self) -> list[Tensor]:
        """The constant term of the scores, `(units,)` a group; 0 unless started from known scores."""
        return [self.get_buffer(f"prior{index}") for index in range(len(self.units))]

    def _group_features(self, model: nn.Module, index: int) -> Tensor:
        parts = [self._producer_rows(model, producer) for producer in self.producers[index]]
        if not parts:
            units = self.units[index]
            return next(model.parameters()).new_ones(units).diag() * math.sqrt(units)
        phi = torch.cat(parts, dim=1)
        phi = phi.detach() if self.sees_weights == "detach" else phi
        return phi / phi.detach().square().mean().sqrt().clamp_min(1e-12)

    def _producer_rows(self, model: nn.Module, producer: _Producer) -> Tensor:
        weight = model.get_parameter(producer.parameter).movedim(producer.dim, 0).flatten(1)
        if producer.norm and self.scale_fix:
            norm = model.get_submodule(producer.norm)
            scale = (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]
            weight = weight * (scale * norm.weight)[:, None]  # type: ignore[operator]
        return weight[producer.rows].flatten(1)


def _norm_behind(model: nn.Module, graph: ChannelGraph) -> dict[str, str]:
    """Module of a layer -> module of the batch norm that runs right after it on its output."""
    behind: dict[str, str] = {}
    for layer, norm in zip(graph.op_templates, graph.op_templates[1:], strict=False):
        if layer.kind not in ("conv", "conv_transpose", "linear") or norm.kind != "norm":
            continue
        module = dict(model.named_modules()).get(norm.name)
        usable = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.track_running_stats
        if usable and norm.out_channels == layer.out_channels:
            behind[layer.name] = norm.name
    return behind


def _producers(model: nn.Module, graph: ChannelGraph, group: str, norms: Mapping[str, str]) -> tuple[_Producer, ...]:
    found = []
    for piece in graph.producer_slices(group):
        if model.get_parameter(piece.parameter).ndim < 2:
            continue
        order = np.argsort(piece.units, kind="stable")
        rows = torch.from_numpy(piece.positions[order].astype(np.int64)).reshape(len(np.unique(piece.units)), -1)
        norm = norms.get(piece.parameter.rpartition(".")[0], "")
        found.append(_Producer(piece.parameter, piece.dim, rows, norm))
    return tuple(found)


class _Binarise(torch.autograd.Function):
    """1 where the mask is open, exactly; backward by a bump around score 0."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor, mask: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return mask.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * slope, None, None


def slope_of(scores: Tensor, surrogate: Surrogate, sharpness: float) -> Tensor:
    """What the backward takes for d gate / d score: `k / (pi (1 + k^2 s^2))`, or `0.5 [|s| <= 1]` when clipped."""
    scores = scores.detach()
    if surrogate == "arctan":
        return sharpness / (math.pi * (1 + (sharpness * scores) ** 2))
    return 0.5 * (scores.abs() <= 1).to(scores.dtype)


def open_mask(scores: Tensor, least: int) -> Tensor:
    """1.0 where the score is >= 0, else 0.0; the best-scoring ones are reopened until `least` units are open."""
    mask = (scores >= 0).to(scores.dtype)
    return mask if int(mask.sum()) >= least else best_mask(scores, least)


def best_mask(scores: Tensor, count: int) -> Tensor:
    """1.0 for the `count` best-scoring units, else 0.0; ties go to the lower index."""
    order = torch.argsort(scores, descending=True, stable=True)
    return torch.zeros_like(scores).index_fill(0, order[:count], 1.0)


def binarise(scores: Tensor, mask: Tensor, surrogate: Surrogate, sharpness: float) -> Tensor:
    """The gates `mask` (exactly 0.0 or 1.0), with the surrogate's gradient to `scores`."""
    gates: Tensor = _Binarise.apply(scores, mask, slope_of(scores, surrogate, sharpness))  # type: ignore[no-untyped-call]
    return gates
