"""A sub-network as a function of the full-size weights: really smaller, and differentiable in what it was cut from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwprune.graph import ChannelGraph, Recipe, apply_recipe

Keep = Mapping[str, tuple[int, ...]]
_Indices = dict[str, list[tuple[int, Tensor]]]
_Factors = dict[str, Tensor]


class SlicedNetwork:
    """Calls the cut network of `model` at any kept units with slices of the model's own weights.

    The small module is made again only when the kept units change. Weights of removed units get a gradient of
    exactly 0, those of kept ones the gradient of the small network.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.model, self.graph = model, graph
        self._keep: dict[str, tuple[int, ...]] | None = None
        self._small: nn.Module = model
        self._indices: _Indices = {}
        self._factors: _Factors = {}

    def __call__(self, keep: Keep, images: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """Outputs for images `(N, C, H, W)`; `buffers` are full-size and are updated where the network updates them.

        The mode, training or eval, is the model's.
        """
        self._prepare(keep)
        self._small.train(self.model.training)
        weights = {name: self._select(name, value) for name, value in self.model.named_parameters()}
        sliced = {name: self._select(name, value) for name, value in buffers.items()}
        outputs: Tensor = functional_call(self._small, {**weights, **sliced}, (images,))
        with torch.no_grad():
            for name, value in sliced.items():
                self._write_back(name, value, buffers[name])
        return outputs

    def _prepare(self, keep: Keep) -> None:
        if self._keep == dict(keep):
            return
        recipe = Recipe.of(self.model, self.graph, keep, hashed=False)
        self._small = apply_recipe(recipe, self.model)
        device = next(self.model.parameters()).device
        self._indices = {
            name: [(dim, torch.tensor(kept, dtype=torch.int64, device=device)) for dim, kept in dims.items()]
            for name, dims in recipe.kept.items()
        }
        # An attention scales by the size of its heads; the cut network's queries make up for it.
        self._factors = {}
        for scale in recipe.scales:
            weight = self._small.get_parameter(scale.parameter)
            factor = weight.new_ones(weight.shape[scale.dim])
            factor[list(scale.positions)] = scale.factor
            self._factors[scale.parameter] = factor.reshape([-1 if d == scale.dim else 1 for d in range(weight.ndim)])
        self._keep = dict(keep)

    def _select(self, name: str, value: Tensor) -> Tensor:
        for dim, kept in self._indices.get(name, []):
            value = value.index_select(dim, kept)
        return value * self._factors[name] if name in self._factors else value

    def _write_back(self, name: str, small: Tensor, full: Tensor) -> None:
        dims = self._indices.get(name, [])
        if len(dims) == 1:
            full.index_copy_(dims[0][0], dims[0][1], small)
