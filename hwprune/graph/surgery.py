"""The two ways to remove channels: `cut` makes a smaller module, `mask` the same function at full size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.graph.channel_graph import ChannelGraph, Keep
from hwprune.graph.edits import set_attribute
from hwprune.graph.hollow import make_hollow
from hwprune.graph.recipe import Recipe, Scale, check_model
from hwprune.graph.recipe_check import check_recipe
from hwprune.graph.tape import copied


def cut(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A new, smaller module of the model's own class; the model is untouched.

    `keep`: group name -> indices of the units that stay (any order, none twice); absent groups stay whole. A skippable
    group may keep none: its residual branch then adds a constant.
    Raises `GraphError` for an unknown or pinned group, an empty group, an index out of range, or another model than
    the traced one.
    """
    return _carried_out(Recipe.of(model, graph, keep, hashed=False), model)


def apply_recipe(recipe: Recipe, fresh_model: nn.Module) -> nn.Module:
    """A new module of the same class with the recipe's shapes; `fresh_model` is untouched.

    Its weights are those of `fresh_model` at the kept indices, so a fresh model's cut state dict is loaded next.
    Raises `GraphError` if `fresh_model` is another network, or the recipe says what no cut does.
    """
    check_recipe(recipe, fresh_model)
    return _carried_out(recipe, fresh_model)


def mask(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A copy at full size with everything that belongs to removed units set to zero.

    In eval mode it computes the same function as `cut`. Raises what `cut` raises.
    """
    check_model(model, graph.sizes)
    masked = copied(model)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, kept in graph.check_keep(keep).items():
            removed = torch.ones(graph.group(name).units, dtype=torch.bool)
            removed[torch.from_numpy(kept)] = False
            if not removed.any():
                continue
            for role, item in graph.slices[name]:
                # A variance of zero would be right too, but divides by the square root of eps alone.
                if role != "gate" and not item.parameter.endswith("running_var"):
                    tensor = tensors[item.parameter]
                    gone = torch.from_numpy(item.positions)[removed[torch.from_numpy(item.units)]]
                    tensor.index_fill_(item.dim, gone.to(tensor.device), 0)
    return masked


def _carried_out(recipe: Recipe, model: nn.Module) -> nn.Module:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    memo: dict[int, Any] = {}
    for name, dims in recipe.kept.items():
        if name in tensors:
            scales = [scale for scale in recipe.scales if scale.parameter == name]
            memo[id(tensors[name])] = _cut_tensor(tensors[name], dims, scales)
    small = copied(model, memo)
    for edit in recipe.edits:
        set_attribute(small, edit)
    make_hollow(small)
    return small


def _cut_tensor(tensor: Tensor, dims: Mapping[int, tuple[int, ...]], scales: Sequence[Scale]) -> Tensor:
    with torch.no_grad():
        data = tensor.detach()
        for dim, kept in dims.items():
            data = data.index_select(dim, torch.tensor(kept, dtype=torch.int64, device=data.device))
        for scale in scales:
            factors = torch.ones(data.shape[scale.dim], dtype=data.dtype, device=data.device)
            factors[list(scale.positions)] = scale.factor
            data = data * factors.reshape([-1 if d == scale.dim else 1 for d in range(data.ndim)])
        data = data.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data
