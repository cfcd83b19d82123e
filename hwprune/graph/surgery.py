"""The two ways to remove channels: `cut` makes a smaller module, `mask` the same function at full size."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.graph.channel_graph import ChannelGraph, Keep
from hwprune.graph.recipe import Recipe, apply_recipe, check_model
from hwprune.graph.tape import copied


def cut(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A new, smaller module of the model's own class; the model is untouched.

    `keep`: group name -> indices of the units that stay (any order, none twice); absent groups stay whole. A skippable
    group may keep none: its residual branch then adds a constant.
    Raises `GraphError` for an unknown or pinned group, an empty group, an index out of range, or another model than
    the traced one.
    """
    return apply_recipe(Recipe.of(model, graph, keep, hashed=False), model)


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
