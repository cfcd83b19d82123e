"""Latent vectors, one for each channel group, and which of their entries scale which rows and columns of a weight.

A unit's latent multiplies every weight that reads the unit and every convolution that makes it. Where it is 0 the
unit's output slices and all consumers' input slices are exactly 0, so removal changes nothing. Source: Li et al.
2020, "DHP: Differentiable Meta Pruning via HyperNetworks"; gates on un-generated consumers are our addition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hwprune.core.widths import SearchSpace
from hwprune.graph import ChannelGraph, ConsumerSlice
from hwprune.methods._proximal import soft_threshold

# A unit whose saliency is below this share of the mean shrinks no faster than one at it.
_LEAST_SALIENCY = 1e-3


@dataclass(frozen=True, eq=False)
class Axis:
    """The latents along one dim of a weight: entry `index[p]` of the flat vector scales position p; the last is 1."""

    dim: int
    index: Tensor

    def spread(self, flat: Tensor, ndim: int) -> Tensor:
        """The factors shaped to broadcast against a weight of `ndim` dims."""
        return flat.index_select(0, self.index).reshape([-1 if d == self.dim else 1 for d in range(ndim)])


@dataclass(frozen=True, eq=False)
class Wiring:
    """Parameter -> the axes that latents scale: as producer (convolutions only) and as consumer.

    `generated`: the convolutions' weights among them; the others (linear layers, biases of attention queries) keep
    plain weights, and are gated.
    """

    made: Mapping[str, tuple[Axis, ...]]
    read: Mapping[str, tuple[Axis, ...]]
    generated: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter that latents scale."""
        return tuple(dict.fromkeys((*self.made, *self.read)))

    def factor(self, name: str, made: Tensor, read: Tensor, ndim: int) -> Tensor:
        """The product of the latents on all axes of a parameter, broadcastable against it.

        `made` and `read` are the flat latents `(units of all groups + 1,)` for the producer and the consumer side.
        """
        parts = [axis.spread(made, ndim) for axis in self.made.get(name, ())]
        parts += [axis.spread(read, ndim) for axis in self.read.get(name, ())]
        product = parts[0]
        for part in parts[1:]:
            product = product * part
        return product


def wire(model: nn.Module, graph: ChannelGraph, space: SearchSpace) -> Wiring:
    """Where the latents of each group of the space act."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    convolutions = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _ConvNd)}
    one = sum(group.units for group in space.groups)
    made: dict[tuple[str, int], np.ndarray] = {}
    read: dict[tuple[str, int], np.ndarray] = {}
    offset = 0
    for group in space.groups:
        for piece in graph.producer_slices(group.name):
            if piece.parameter in convolutions:
                _enter(made, piece, shapes, offset, one)
        for piece in graph.consumer_slices(group.name):
            _enter(read, piece, shapes, offset, one)
        offset += group.units
    for key, index in read.items():
        if key in made:  # attention made by convolutions: its rows are gated already
            made[key][index != one] = one
    touched = dict.fromkeys(name for name, _ in (*made, *read))
    return Wiring(_axes(made), _axes(read), tuple(name for name in touched if name in convolutions))


def _enter(
    table: dict[tuple[str, int], np.ndarray],
    piece: ConsumerSlice,
    shapes: Mapping[str, tuple[int, ...]],
    offset: int,
    one: int,
) -> None:
    size = shapes[piece.parameter][piece.dim]
    index = table.setdefault((piece.parameter, piece.dim), np.full(size, one, np.int64))
    index[piece.positions] = offset + piece.units


def _axes(table: Mapping[tuple[str, int], np.ndarray]) -> dict[str, tuple[Axis, ...]]:
    axes: dict[str, tuple[Axis, ...]] = {}
    for (name, dim), index in table.items():
        axes[name] = (*axes.get(name, ()), Axis(dim, torch.from_numpy(index)))
    return axes


def soft_width(latents: Tensor, scale: Tensor | float) -> Tensor:
    """`sum |z| / (|z| + scale)`, `()`: 0 for latents of 0, with a slope of 1 / scale there.

    A logistic at the threshold would have no gradient, because latents live far from it.
    """
    size = latents.abs()
    return (size / (size + scale)).sum()


def kept_mask(latents: Tensor, threshold: float, least: int) -> Tensor:
    """True where `|z| >= threshold`; the largest are added until `least` entries (all of a shorter vector) are kept."""
    size = latents.abs()
    mask = size >= threshold
    if int(mask.sum()) >= min(least, len(size)):
        return mask
    order = torch.argsort(size, descending=True, stable=True)
    return torch.zeros_like(mask).index_fill(0, order[:least], True)


class Latents(nn.Module):
    """The latents of all groups, `vector` `(units of all groups,)` in space order, each a slice of it.

    `open`: 1.0, and 0.0 for units that are removed for good. `taken`: what proximal steps took off, signed: of a latent
    at 0 it is all that knows the sign. `deficit`: how far they went on past 0; units that died early have more.
    `saliency`: what the loss would rise by if a unit were gone, averaged over the steps that it lived. `final`: what
    units were removed by, zeros before.
    """

    open: Tensor
    taken: Tensor
    deficit: Tensor
    saliency: Tensor
    final: Tensor

    def __init__(self, space: SearchSpace, like: Tensor, *, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        self.units = tuple(group.units for group in space.groups)
        self.vector = nn.Parameter(like.new_ones(sum(self.units)))
        self.register_buffer("open", like.new_ones(sum(self.units)))
        self.register_buffer("taken", like.new_zeros(sum(self.units)))
        self.register_buffer("deficit", like.new_zeros(sum(self.units)))
        self.register_buffer("saliency", like.new_zeros(sum(self.units)))
        self.register_buffer("final", like.new_zeros(sum(self.units)))

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """`(units of all groups,)` -> one `(units,)` a group."""
        return torch.split(values, list(self.units))

    def values(self) -> Tensor:
        """The latents in force: 0 where a unit is removed for good."""
        return self.vector * self.open

    def flat(self, values: Tensor | None = None) -> Tensor:
        """What an `Axis` indexes: the latents in force (or these) and a 1 for positions of no group.

        With `normalise` each group's are divided by the scale of its large ones, `sqrt(sum z^4 / sum z^2)`. A factor
        common to a group is free where a batch norm follows; elsewhere it would weaken the signal while the latents
        shrink together.
        """
        now = self.values()
        values = now if values is None else values
        if self.normalise:
            parts = zip(self.split(values), self.split(now), strict=True)
            values = torch.cat([part / _scale(live) for part, live in parts])
        return torch.cat([values, values.new_ones(1)])

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Start from N(0, 1), as the paper's code does for networks that are trained from nothing."""
        self.vector.copy_(torch.randn(self.vector.shape, generator=generator))

    @torch.no_grad()
    def shrink(self, thresholds: Tensor, least: Sequence[int]) -> None:
        """Soft-threshold by `(units of all groups,)`; no group loses its last `least` units that are not 0."""
        before = self.vector.detach().clone()
        after = soft_threshold(before, thresholds)
        self.deficit.copy_(
            torch.where(after != 0, 0.0, self.deficit + torch.relu(thresholds - before.abs())) * self.open
        )
        pairs = zip(self.split(before), self.split(after), least, strict=True)
        self.vector.copy_(torch.cat([_spared(old, new, count) for old, new, count in pairs]))
        self.taken.add_(before - self.vector)

    @torch.no_grad()
    def remove(self, mask: Tensor, scores: Tensor, *, debias: bool) -> None:
        """Keep for good the units where `mask` `(units of all groups,)` is 1.0 and no others; `scores` chose them.

        Units at 0 that are kept, for widths are on a grid, come back. With `debias` every latent gets back what
        proximal steps have taken: soft-thresholding shrinks also what it keeps.
        """
        self.final.copy_(scores)
        self.open.copy_(mask)
        if debias:
            self.vector.add_(self.taken)
        else:
            self.vector.copy_(torch.where(self.open > 0, self.revived(), self.vector))

    @torch.no_grad()
    def ranks(self) -> Tensor:
        """Larger = keep, over all groups: 1 + |z| for a live unit, 1 / (1 + deficit) for one at 0. All positive."""
        size = self.vector.abs()
        return torch.where(size > 0, 1 + size, 1 / (1 + self.deficit))

    @torch.no_grad()
    def worth(self) -> Tensor:
        """What a network loses with each unit, additive: a group's saliencies, the largest to the unit of highest rank.

        So the proximal steps decide which units of a group stay, and the saliencies how many.
        """
        pairs = zip(self.split(self.ranks()), self.split(self.saliency), strict=True)
        return torch.cat([torch.zeros_like(s).index_copy(0, r.argsort(stable=True), s.sort().values) for r, s in pairs])

    @torch.no_grad()
    def revived(self) -> Tensor:
        """The latents, where units at 0 or removed are at least as large as their group's smallest live one.

        A unit that comes back at another budget needs a weight that is not 0.
        """
        live = self.values().abs()
        least = torch.cat([_smallest(part).expand(len(part)) for part in self.split(live)])
        size = torch.where(live > 0, live, torch.maximum(self.vector.abs(), least))
        sign = torch.where(self.vector == 0, self.taken, self.vector)
        return torch.where(sign < 0, -size, size)

    @torch.no_grad()
    def inverse_saliency(self) -> Tensor:
        """`(units of all groups,)`, 1 for the median unit: how fast a unit shrinks in the metric of its curvature.

        1 for all while nothing is known.
        """
        least = _LEAST_SALIENCY * float(self.saliency.mean())
        clipped = self.saliency.clamp_min(max(least, torch.finfo(self.saliency.dtype).tiny))
        return clipped.median() / clipped

    @torch.no_grad()
    def learn(self, gradient: Tensor, batch_size: int, decay: float) -> None:
        """Average in `batch_size / 2 * g^2`, g a batch's gradient by what multiplies the consumers' columns.

        That is half the Fisher information of a gate on the unit. Units at 0 keep what they had: nothing comes out of
        them that could tell.
        """
        now = self.saliency * decay + gradient.square() * ((1 - decay) * batch_size / 2)
        self.saliency.copy_(torch.where(self.values() != 0, now, self.saliency))


def _spared(before: Tensor, after: Tensor, least: int) -> Tensor:
    """`after`, with the largest entries back as they were if fewer than `least` would be left."""
    if int((after != 0).sum()) >= least:
        return after
    order = torch.argsort(before.abs(), descending=True, stable=True)[:least]
    return after.index_copy(0, order, before[order])


def _scale(values: Tensor) -> Tensor:
    """The scale of the large ones: exactly 1 for ones; it hardly changes when small entries become 0."""
    squares = values.square()
    tiny = 1e-30
    return (squares.square().sum() / squares.sum().clamp_min(tiny)).clamp_min(tiny).sqrt()


def _smallest(size: Tensor) -> Tensor:
    """The smallest positive entry, 1 if there is none."""
    smallest = torch.where(size > 0, size, math.inf).min()
    return torch.where(torch.isfinite(smallest), smallest, torch.ones_like(smallest))
