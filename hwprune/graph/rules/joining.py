"""Concatenation, splitting, padding, repeating: channels move to other positions."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hwprune.graph.call import Call, rule, tensors_in
from hwprune.graph.layout import Factor, Ids, Layout, factor_on, renamed, vector
from hwprune.graph.rules.elementwise import broadcast


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> None:
    """`tensors` one after the other along `dim`."""
    out = call.outputs[0]
    dim = call.integer("dim") % out.ndim
    parts = [tensor for tensor in tensors_in(call.value("tensors")) if tensor.ndim == out.ndim]
    along = np.concatenate([call.labels(part, dim) for part in parts])
    rest = [
        (tuple(factor for factor in call.layout(part) if dim not in factor.dims), _without(part, dim)) for part in parts
    ]
    call.put(vector(dim, along) + broadcast(call, rest))
    call.note_plain("concat", parts[0])


def _without(tensor: Tensor, dim: int) -> tuple[int, ...]:
    """The shape with size 1 at the dim, so that broadcasting does not look at it."""
    return tuple(1 if d == dim else size for d, size in enumerate(tensor.shape))


@rule("stack")
def stack(call: Call) -> None:
    """`tensors` along a new dim."""
    parts = tensors_in(call.value("tensors"))
    layout = broadcast(call, [(call.layout(part), tuple(part.shape)) for part in parts])
    dim = call.integer("dim") % call.outputs[0].ndim
    call.put(renamed(layout, {d: d + (d >= dim) for d in range(parts[0].ndim)}))


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def split(call: Call) -> None:
    """Parts along `dim`. Equal parts lose the same positions: the code may compute their size from the whole."""
    x = call.tensor("self")
    dim = call.dim("dim", x)
    sizes = [output.shape[dim] for output in call.outputs]
    starts = np.cumsum([0, *sizes])
    factor = factor_on(call.layout(x), dim)
    if factor is not None and len(set(sizes)) == 1:
        _tie_parts(call, factor, dim, len(sizes))
    for number in range(len(sizes)):
        call.put(part_of(call, x, dim, int(starts[number]), int(starts[number + 1])), output=number)


def _tie_parts(call: Call, factor: Factor, dim: int, parts: int) -> None:
    axis = factor.dims.index(dim)
    moved = np.moveaxis(factor.ids, axis, 0)
    call.tie(moved.reshape(parts, -1).T)


def part_of(call: Call, x: Tensor, dim: int, start: int, end: int) -> Layout:
    """The layout of a slice of `x` along one dim. A single channel alone can never go."""
    result: list[Factor] = []
    for factor in call.layout(x):
        if dim not in factor.dims:
            result.append(factor)
            continue
        axis = factor.dims.index(dim)
        ids = factor.ids.take(np.arange(start, end), axis)
        if end - start > 1:
            result.append(Factor(factor.dims, ids, factor.preferred))
        else:
            result.extend(without_axis(factor, dim, ids))
            if len(factor.dims) == 1:
                call.pin(ids, "it takes a single channel")
    return tuple(result)


def without_axis(factor: Factor, dim: int, ids: Ids) -> Layout:
    """The factor after one of its dims shrank to size 1."""
    dims = tuple(d for d in factor.dims if d != dim)
    if not dims:
        return ()
    preferred = factor.preferred if factor.preferred != dim else dims[-1]
    return (Factor(dims, ids.squeeze(factor.dims.index(dim)), preferred),)


@rule("constant_pad_nd")
def pad(call: Call) -> None:
    """`pad`: (before, after) for the last dim, then the one before, ...

    Padded channels can never be removed, unless the module keeps their number in an attribute.
    """
    x, amounts = call.tensor("self"), call.integers("pad")
    layout: list[Factor] = []
    padded = {x.ndim - 1 - n: (amounts[2 * n], amounts[2 * n + 1]) for n in range(len(amounts) // 2)}
    for factor in call.layout(x):
        moved = [dim for dim in factor.dims if padded.get(dim, (0, 0)) != (0, 0)]
        if not moved:
            layout.append(factor)
        elif min(padded[moved[0]]) < 0 or len(moved) > 1:
            call.pin(factor.ids, "it cuts channels off at a fixed place")
        else:
            layout.extend(vector(moved[0], _padded(call, call.reduced(factor, moved[0]).ids, *padded[moved[0]])))
    call.put(tuple(layout))
    call.note_plain("reshape", x)


def _padded(call: Call, ids: Ids, before: int, after: int) -> Ids:
    taken: set[str] = set()
    ends = []
    for amount in (before, after):
        made = call.record.count_by_attribute(amount, taken)
        ends.append(made if made is not None else np.zeros(amount, np.int64))
    return np.concatenate([ends[0], ids, ends[1]])


@rule("repeat", "tile")
def repeat(call: Call) -> None:
    """The whole tensor several times along each dim."""
    x, times = call.tensor("self"), call.integers("repeats")
    shift = len(times) - x.ndim
    layout: list[Factor] = []
    for factor in call.layout(x):
        counts = [times[dim + shift] for dim in factor.dims]
        ids = np.tile(factor.ids, counts)
        layout.append(Factor(tuple(dim + shift for dim in factor.dims), ids, factor.preferred + shift))
    call.put(tuple(layout))


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> None:
    """`(n, c*r*r, h, w)` to `(n, c, h*r, w*r)`: r*r consecutive channels make one."""
    x, factor = call.tensor("self"), call.integer("upscale_factor")
    _merge(call, x, x.ndim - 3, factor * factor)


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> None:
    """`(n, c, h*r, w*r)` to `(n, c*r*r, h, w)`."""
    x, factor = call.tensor("self"), call.integer("downscale_factor")
    _spread(call, x, x.ndim - 3, factor * factor)


@rule("im2col")
def im2col(call: Call) -> None:
    """`(n, c, h, w)` to `(n, c*k, positions)`: every channel comes with its k neighbours (`F.unfold`)."""
    x, out = call.tensor("self"), call.outputs[0]
    dim = x.ndim - 3
    call.keep_only(x, {dim})
    _spread(call, x, dim, out.shape[dim] // x.shape[dim])


@rule("col2im")
def col2im(call: Call) -> None:
    """`(n, c*k, positions)` to `(n, c, h, w)`: k consecutive channels make one (`F.fold`)."""
    x, out = call.tensor("self"), call.outputs[0]
    dim = x.ndim - 2
    call.keep_only(x, {dim})
    _merge(call, x, dim, x.shape[dim] // out.shape[dim])


def _merge(call: Call, x: Tensor, dim: int, count: int) -> None:
    """The output has one channel for every `count` consecutive ones of the input, which go together."""
    matrix = call.labels(x, dim).reshape(-1, count)
    call.tie(matrix)
    call.put_vector(dim, matrix[:, 0].copy())
    call.note_plain("reshape", x)


def _spread(call: Call, x: Tensor, dim: int, count: int) -> None:
    """The output has `count` consecutive channels for every one of the input."""
    call.put_vector(dim, np.repeat(call.labels(x, dim), count))
    call.note_plain("reshape", x)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> None:
    """`(n, g*c, ...)`: channels of g groups interleaved; every group loses the same positions."""
    x = call.tensor("self")
    matrix = call.labels(x, 1).reshape(call.integer("groups"), -1)
    call.tie(matrix.T)
    call.put_vector(1, matrix.T.ravel().copy())
    call.note_plain("reshape", x)


@rule("glu")
def glu(call: Call) -> None:
    """The first half along `dim` times the sigmoid of the second."""
    x = call.tensor("self")
    dim = call.dim("dim", x)
    matrix = call.labels(x, dim).reshape(2, -1)
    call.tie(matrix.T)
    rest = tuple(factor for factor in call.layout(x) if dim not in factor.dims)
    call.put(vector(dim, matrix[0].copy()) + rest)
    call.note_plain("mul", x)


@rule("unbind")
def unbind(call: Call) -> None:
    """One output for each index of `dim`."""
    x = call.tensor("self")
    dim = call.dim("dim", x)
    for number in range(len(call.outputs)):
        call.put(selected(call, x, dim, number), output=number)


@rule("select")
def select(call: Call) -> None:
    """One index of `dim`."""
    x = call.tensor("self")
    dim = call.dim("dim", x)
    call.put(selected(call, x, dim, call.integer("index") % x.shape[dim]))


def selected(call: Call, x: Tensor, dim: int, index: int) -> Layout:
    """The layout without `dim`, at one of its indices."""
    names = {d: d - (d > dim) for d in range(x.ndim) if d != dim}
    result: list[Factor] = []
    for factor in call.layout(x):
        if dim not in factor.dims:
            result.append(factor)
        elif len(factor.dims) == 1:
            call.pin(factor.ids, "it picks a channel by its number")
        else:
            moved = np.moveaxis(factor.ids, factor.dims.index(dim), 0)
            call.tie(moved.reshape(moved.shape[0], -1).T)
            ids = factor.ids.take([index], factor.dims.index(dim))
            result.extend(without_axis(factor, dim, ids))
    return renamed(tuple(result), names)


@rule("slice")
def slice_(call: Call) -> None:
    """A range of `dim`. One of k equal parts loses the same positions as the others, as with `split`.

    A range with a literal bound stops being right when channels before it go; the self-check finds and pins those.
    """
    x = call.tensor("self")
    dim = call.dim("dim", x)
    size, step = x.shape[dim], call.integer("step")
    given = call.value("start")
    start = min(max(given + size * (given < 0), 0), size) if isinstance(given, int) else 0
    length = call.outputs[0].shape[dim]
    factor = factor_on(call.layout(x), dim)
    if factor is None or length == size:
        call.put(call.layout(x))
    elif step == 1:
        if length and size % length == 0 and start % length == 0:
            _tie_parts(call, factor, dim, size // length)
        call.put(part_of(call, x, dim, start, start + length))
    else:
        call.pin(factor.ids, "it takes every second or so channel by number")
        call.put(tuple(other for other in call.layout(x) if other is not factor))
