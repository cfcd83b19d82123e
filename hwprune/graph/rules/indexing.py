"""Look-ups by index: embedding tables, relative position biases."""

from __future__ import annotations

from torch import Tensor

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import Factor, renamed, vector
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
    """`index` along `dim`."""
    x = call.tensor("self")
    call.put(outside(call, x, {call.dim("dim", x)}))


@rule("index")
def index(call: Call) -> None:
    """`self[indices]`: dims with an index tensor are pinned; the others pass if the indexed ones are neighbours."""
    x = call.tensor("self")
    given = call.value("indices")
    indices = list(given) if isinstance(given, (list, tuple)) else []
    used = [dim for dim, item in enumerate(indices) if isinstance(item, Tensor)]
    layout = outside(call, x, set(used))
    if used != list(range(used[0], used[-1] + 1)) or any(indices[dim].dtype.is_floating_point for dim in used):
        call.pin_factors(layout, _REASON)
        call.put()
        return
    shift = call.outputs[0].ndim - x.ndim
    names = {dim: dim if dim < used[0] else dim + shift for dim in range(x.ndim)}
    result: list[Factor] = list(renamed(layout, names))
    call.put(tuple(result))
