"""A sub-network as a function of the full-size weights: really smaller, and differentiable in what it was cut from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwprune.graph import ChannelGraph, Recipe, apply_recipe
from hwprune.graph.stateless import called_with

Keep = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Slices:
    """The cut module at some kept units, and how its tensors come out of full-size ones.

    `indices`: name of a tensor that shrinks -> (dim, indices that stay). `factors`: what makes up, in the queries of an
    attention, for its scale by the size of its heads.
    """

    keep: Keep
    small: nn.Module
    indices: Mapping[str, tuple[tuple[int, Tensor], ...]]
    factors: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, keep: Keep) -> Slices:
        """The slices of a model at these kept units."""
        recipe = Recipe.of(model, graph, keep, hashed=False)
        small = apply_recipe(recipe, model)
        device = next(model.parameters()).device
        indices = {
            name: tuple((dim, torch.tensor(kept, dtype=torch.int64, device=device)) for dim, kept in dims.items())
            for name, dims in recipe.kept.items()
        }
        factors = {}
        for scale in recipe.scales:
            weight = small.get_parameter(scale.parameter)
            factor = weight.new_ones(weight.shape[scale.dim])
            factor[list(scale.positions)] = scale.factor
            factors[scale.parameter] = factor.reshape([-1 if d == scale.dim else 1 for d in range(weight.ndim)])
        return cls(dict(keep), small, indices, factors)

    def select(self, name: str, full: Tensor) -> Tensor:
        """The small network's part of a full-size tensor; differentiable."""
        for dim, kept in self.indices.get(name, ()):
            full = full.index_select(dim, kept)
        return full * self.factors[name] if name in self.factors else full


class SlicedNetwork:
    """Calls the cut network of `model` at any kept units with slices of the model's own weights.

    The small module is made again only when the kept units change. Weights of removed units get a gradient of
    exactly 0, those of kept ones the gradient of the small network.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.model, self.graph = model, graph
        self._slices: Slices | None = None

    def __call__(self, keep: Keep, images: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """Outputs for images `(N, C, H, W)`; `buffers` are full-size and are updated where the network updates them.

        The mode, training or eval, is the model's.
        """
        if self._slices is None or self._slices.keep != dict(keep):
            self._slices = Slices.of(self.model, self.graph, keep)
        slices = self._slices
        slices.small.train(self.model.training)
        weights = {name: slices.select(name, value) for name, value in self.model.named_parameters()}
        sliced = {name: slices.select(name, value) for name, value in buffers.items()}
        outputs = called_with(slices.small, {**weights, **sliced}, images)
        with torch.no_grad():
            for name, value in sliced.items():
                dims = slices.indices.get(name, ())
                if len(dims) == 1:
                    buffers[name].index_copy_(dims[0][0], dims[0][1], value)
        return outputs
