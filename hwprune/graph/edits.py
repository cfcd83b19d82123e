"""Attributes that repeat the shape of a module's weights (`out_channels`, `num_features`, ...) and follow the cut."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Edit = tuple[str, str, int | None, int]


def typed_edits(path: str, module: nn.Module, weights: dict[str, torch.Size]) -> Iterator[Edit]:
    """The edits `(module, attribute, index, value)` of one module whose own tensors get these new shapes."""
    shape = weights.get("weight", weights.get("running_mean"))
    if shape is None:
        return
    values: dict[str, int] = {}
    if isinstance(module, _ConvNd):
        values = _convolution(module, shape)
    elif isinstance(module, nn.Linear):
        values = {"out_features": shape[0], "in_features": shape[1]}
    elif isinstance(module, nn.Bilinear):
        values = {"out_features": shape[0], "in1_features": shape[1], "in2_features": shape[2]}
    elif isinstance(module, _NormBase):
        values = {"num_features": shape[0]}
    elif isinstance(module, nn.GroupNorm):
        group_size = module.num_channels // module.num_groups
        values = {"num_channels": shape[0], "num_groups": max(1, shape[0] // group_size)}
    elif isinstance(module, nn.Embedding):
        values = {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    elif isinstance(module, nn.PReLU):
        values = {"num_parameters": shape[0]}
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        for index, size in enumerate(shape):
            yield (path, "normalized_shape", index, size)
    yield from ((path, name, None, int(value)) for name, value in values.items() if getattr(module, name) != value)


def _convolution(module: _ConvNd, shape: torch.Size) -> dict[str, int]:
    depthwise = module.groups > 1 and module.groups == module.in_channels
    if module.transposed:
        groups = shape[0] if depthwise else module.groups
        return {"in_channels": shape[0], "out_channels": shape[1] * groups, "groups": groups}
    multiplier = module.out_channels // module.in_channels if depthwise else 1
    groups = shape[0] // multiplier if depthwise else module.groups
    return {"in_channels": shape[1] * groups, "out_channels": shape[0], "groups": groups}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers registered on the module itself."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def set_attribute(model: nn.Module, edit: Edit) -> None:
    """Carry out one edit."""
    path, attribute, index, value = edit
    module = model.get_submodule(path)
    if index is None:
        setattr(module, attribute, value)
        return
    old = getattr(module, attribute)
    new = [*old[:index], value, *old[index + 1 :]]
    setattr(module, attribute, new if isinstance(old, list) else tuple(new))
