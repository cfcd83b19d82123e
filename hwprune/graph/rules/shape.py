"""Views, permutations, expansion: no channel changes its value."""

from __future__ import annotations

from torch import Tensor

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import Layout, merges, renamed, reshaped


@rule(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "unflatten", "view_copy",
    "squeeze_copy", "unsqueeze_copy",
)  # fmt: skip
def view(call: Call) -> None:
    """Another shape for the same values in the same order."""
    x = call.tensor("self")
    call.put(viewed(call, x, tuple(call.outputs[0].shape)))
    call.record.get(call.outputs[0]).op = call.seen(x).op


def viewed(call: Call, x: Tensor, shape: tuple[int, ...]) -> Layout:
    """The layout after a reshape; a dim that was split and is merged in another order has its rows tied before."""
    old = tuple(x.shape)
    if 0 in old:
        return ()
    for factor in call.layout(x):
        if merges(factor, old, shape):
            call.reduced(factor, factor.preferred)
    kept, lost = reshaped(call.layout(x), old, shape)
    call.pin_factors(lost, "it merges them with another dimension that could shrink")
    return kept


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "permute_copy", "transpose_copy", "t_copy")
def permute(call: Call) -> None:
    """Dims in another order."""
    x = call.tensor("self")
    order = list(range(x.ndim))
    if call.name.startswith("permute"):
        order = list(call.dims("dims", x))
    elif call.name.startswith("transpose") or call.name == "swapaxes":
        first, second = call.dim("dim0", x), call.dim("dim1", x)
        order[first], order[second] = second, first
    else:
        order.reverse()
    call.put(renamed(call.layout(x), {old: new for new, old in enumerate(order)}))
    call.record.get(call.outputs[0]).op = call.seen(x).op


@rule("expand", "expand_copy", "broadcast_to")
def expand(call: Call) -> None:
    """Dims of size 1 repeated, new dims in front."""
    x = call.tensor("self")
    shift = call.outputs[0].ndim - x.ndim
    call.put(renamed(call.layout(x), {dim: dim + shift for dim in range(x.ndim)}))


@rule("as_strided")
def as_strided(call: Call) -> None:
    """Other strides. Torch itself does it after pooling channels-last tensors, where no index changes its place."""
    x = call.tensor("self")
    if tuple(x.shape) == tuple(call.outputs[0].shape) and call.in_place:
        call.put(call.layout(x))
        return
    call.pin_factors(call.layout(x), "it addresses memory directly")
    call.put()
