"""Look-ups by index: embedding tables, relative position biases."""

from __future__ import annotations

import torch
from torch import Tensor

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import renamed, vector
from hwprune.graph.rules.reduction import outside

_REASON = "it looks entries up by their number"


@rule("embedding")
def embedding(call: Call) -> None:
    """`weight (n, c)` at `indices (...)`: rows stay, columns are channels."""
    weight = call.tensor("weight")
    call.pin(call.labels(weight, 0), _REASON)
    call.put(vector(call.outputs[0].ndim - 1, call.labels(weight, 1)))


@rule("index_select", "gather", "take_along_dim")
def index_select(call: Call) -> None:
    """`index` along `dim`. A gather may also cut the other dims short: labels there are pinned."""
    x, out = call.tensor("self"), call.outputs[0]
    dim = call.dim("dim", x)
    _pin_indices(call, x)
    shorter = {d for d in range(x.ndim) if x.shape[d] != out.shape[d]} if out.ndim == x.ndim else set(range(x.ndim))
    call.put(outside(call, x, {dim} | shorter))


@rule("index")
def index(call: Call) -> None:
    """`self[indices]`: dims with an index tensor are pinned; the others pass if the indexed ones are neighbours."""
    x = call.tensor("self")
    _pin_indices(call, x)
    used = _indexed_dims(call.value("indices"))
    layout = outside(call, x, set(used))
    if not used or used != list(range(used[0], used[-1] + 1)):
        call.pin_factors(layout, _REASON)
        call.put()
        return
    shift = call.outputs[0].ndim - x.ndim
    names = {dim: dim if dim < used[0] else dim + shift for dim in range(x.ndim)}
    call.put(renamed(layout, names))


def _indexed_dims(indices: object) -> list[int]:
    """The dims that index tensors stand for; a mask stands for as many as it has itself."""
    used: list[int] = []
    dim = 0
    for item in indices if isinstance(indices, (list, tuple)) else ():
        is_mask = isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
        count = item.ndim if is_mask else 1
        if isinstance(item, Tensor):
            used.extend(range(dim, dim + count))
        dim += count
    return used


def _pin_indices(call: Call, x: Tensor) -> None:
    """What is looked up, and how much of it, depends on every entry of an index."""
    for tensor in call.inputs:
        if tensor is not x:
            call.pin_factors(call.layout(tensor), _REASON)
