"""Means, maxima, softmax, sorting: along a labelled dim they mix channels with removed ones, so they pin it."""

from __future__ import annotations

from torch import Tensor

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import Layout, renamed
from hwprune.graph.rules.elementwise import elementwise

_REASON = "it combines these channels into one value, which removal would change"


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "norm", "logsumexp",
    "linalg_vector_norm", "argmax", "argmin", "any", "all", "median", "nansum", "count_nonzero",
)  # fmt: skip
def reduce(call: Call) -> None:
    """Values over some dims, which vanish or keep size 1."""
    x = call.tensor("self")
    if call.optional("other") is not None:  # max and min of two tensors are elementwise
        elementwise(call)
        return
    dims = set(call.dims("dim", x))
    layout = outside(call, x, dims)
    for number, output in enumerate(call.outputs):
        names = {dim: dim for dim in range(x.ndim)}
        if output.ndim != x.ndim:
            names = {dim: dim - sum(gone < dim for gone in dims) for dim in range(x.ndim)}
        call.put(renamed(layout, names), output=number)
    if call.outputs and call.outputs[0].ndim:
        call.note_plain("pool" if x.ndim >= 4 else "other", x)


def outside(call: Call, x: Tensor, dims: set[int]) -> Layout:
    """The layout on the other dims; labels on these are pinned."""
    return call.keep_only(x, set(range(x.ndim)) - dims, _REASON)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "flip",
      "roll", "topk", "logcumsumexp")  # fmt: skip
def along(call: Call) -> None:
    """Values along one or some dims depend on each other; the other dims are untouched."""
    x = call.tensor("self")
    if call.name in ("flip", "roll"):
        dims = set(call.dims("dims", x))
    else:
        dims = {call.dim("dim", x)}
    layout = outside(call, x, dims)
    for number in range(len(call.outputs)):
        call.put(layout, output=number)
    call.note_plain("other", x)
