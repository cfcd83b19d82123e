"""How the labels of indices pass through the ONNX operators that move elements, and which shape constants follow."""

from __future__ import annotations

import numpy as np
import onnx

from hwprune.graph.onnx.labels import Dims, Labels, Rule, Walk, explicit, plain, refuse, reshape_labels, same_dims
from hwprune.graph.onnx.network import Array, attribute, integer


def reshape(walk: Walk, node: onnx.NodeProto) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: labels follow the elements; the target of a Reshape is counted anew."""
    target = walk.shape(node.output[0])
    dims = reshape_labels(walk.shape(node.input[0]), walk.dims(node.input[0]), target)
    if dims is None:
        refuse(node, "what remains after the cut is not a rectangular block of its output")
    walk.set(node.output[0], dims)
    if node.op_type == "Reshape":
        walk.count(node, 1, np.array(target), _labelled(dims))


def transpose(walk: Walk, node: onnx.NodeProto) -> None:
    """Transpose: labels follow the permutation."""
    dims = walk.dims(node.input[0])
    order = attribute(node, "perm")
    if not isinstance(order, list):
        order = list(range(len(dims)))[::-1]
    walk.set(node.output[0], tuple(dims[dim] for dim in order))


def concat(walk: Walk, node: onnx.NodeProto) -> None:
    """Concat: labels are joined along the axis; the other dimensions agree."""
    shape = walk.shape(node.output[0])
    axis = integer(node, "axis", 0) % len(shape)
    joined = np.concatenate([explicit(walk.dims(name)[axis], walk.shape(name)[axis]) for name in node.input])
    others: list[Labels | None] = [None] * len(shape)
    for name in node.input:
        others = [ours if ours is not None else theirs for ours, theirs in zip(others, walk.dims(name), strict=True)]
    for index, name in enumerate(node.input):
        own = walk.dims(name)[axis]
        walk.match(node, index, (*others[:axis], own, *others[axis + 1 :]))
    walk.set(node.output[0], (*others[:axis], joined, *others[axis + 1 :]))


def split(walk: Walk, node: onnx.NodeProto) -> None:
    """Split: each output takes its stretch of the labels; the sizes are counted anew."""
    dims = walk.dims(node.input[0])
    axis = integer(node, "axis", 0) % len(dims)
    labels = explicit(dims[axis], walk.shape(node.input[0])[axis])
    sizes = [walk.shape(name)[axis] for name in node.output]
    stretches = np.split(labels, np.cumsum(sizes)[:-1])
    for name, stretch in zip(node.output, stretches, strict=True):
        walk.set(name, (*dims[:axis], plain(stretch), *dims[axis + 1 :]))
    counted = {index: stretch for index, stretch in enumerate(stretches) if plain(stretch) is not None}
    walk.count(node, 1, np.array(sizes), counted)


def slice_(walk: Walk, node: onnx.NodeProto) -> None:
    """Slice: along a cut axis the bounds are counted anew; with a step it becomes a Gather."""
    dims = list(walk.dims(node.input[0]))
    shape = walk.shape(node.input[0])
    starts, ends = _constant(walk, node, 1), _constant(walk, node, 2)
    axes = _constant(walk, node, 3) if len(node.input) > 3 and node.input[3] else np.arange(len(starts))
    steps = _constant(walk, node, 4) if len(node.input) > 4 and node.input[4] else np.ones(len(starts), np.int64)
    first: dict[int, Labels] = {}
    last: dict[int, Labels] = {}
    bounds = starts.copy(), ends.copy()
    for position, axis in enumerate(int(axis) % len(dims) for axis in axes):
        labels = dims[axis]
        if labels is None:
            continue
        taken = slice(int(starts[position]), int(ends[position]), int(steps[position]))
        start, stop, step = taken.indices(shape[axis])
        indices = np.arange(start, stop, step)
        dims[axis] = plain(labels[indices])
        if step != 1:
            _slice_to_gather(walk, node, axis, indices, labels, tuple(dims))
            return
        bounds[0][position] = bounds[1][position] = 0
        first[position], last[position] = labels[:start], labels[: max(start, stop)]
    walk.set(node.output[0], tuple(dims))
    walk.count(node, 1, bounds[0], first)
    walk.count(node, 2, bounds[1], last)


def _slice_to_gather(walk: Walk, node: onnx.NodeProto, axis: int, indices: Array, labels: Labels, dims: Dims) -> None:
    if _constant(walk, node, 1).size != 1:
        refuse(node, "it takes steps along one of several axes at once")
    gather_node = onnx.helper.make_node(
        "Gather", [node.input[0], ""], list(node.output), name=node.name.replace("Slice", "Gather"), axis=axis
    )
    node.CopyFrom(gather_node)
    walk.renumber(node, 1, indices.astype(np.int64), labels, labels[indices])
    walk.set(node.output[0], dims)


def gather(walk: Walk, node: onnx.NodeProto) -> None:
    """Gather: along a cut axis the constant indices are renumbered, and those of removed units dropped."""
    dims = walk.dims(node.input[0])
    axis = integer(node, "axis", 0) % len(dims)
    inner: Dims = walk.dims(node.input[1])
    labels = dims[axis]
    if labels is not None:
        indices = _constant(walk, node, 1).astype(np.int64) % walk.shape(node.input[0])[axis]
        taken = labels[indices]
        if indices.ndim > 1 or (indices.ndim == 0 and plain(taken.reshape(1)) is not None):
            refuse(node, "it picks an index that could be removed")
        inner = (plain(taken),) if indices.ndim else ()
        walk.renumber(node, 1, indices, labels, taken if indices.ndim else None)
    walk.set(node.output[0], (*dims[:axis], *inner, *dims[axis + 1 :]))


def pad(walk: Walk, node: onnx.NodeProto) -> None:
    """Pad: new elements stay, unless a later operator demands otherwise (`Walk.match`)."""
    dims = list(walk.dims(node.input[0]))
    amounts = _constant(walk, node, 1)
    for dim, labels in enumerate(dims):
        before, after = int(amounts[dim]), int(amounts[dim + len(dims)])
        if labels is None or not (before or after):
            continue
        if attribute(node, "mode", b"constant") != b"constant" or min(before, after) < 0:
            refuse(node, "it repeats or crops along a dimension that would lose indices")
        dims[dim] = np.concatenate([explicit(None, before), labels, explicit(None, after)])
    walk.set(node.output[0], tuple(dims))


def expand(walk: Walk, node: onnx.NodeProto) -> None:
    """Expand: dimensions that are not broadcast keep their labels; the target is counted anew."""
    own, target = walk.shape(node.input[0]), walk.shape(node.output[0])
    offset = len(target) - len(own)
    dims = (None,) * offset + tuple(
        labels if size == target[offset + dim] else None
        for dim, (labels, size) in enumerate(zip(walk.dims(node.input[0]), own, strict=True))
    )
    walk.set(node.output[0], dims)
    walk.count(node, 1, np.array(target), _labelled(dims))


def tile(walk: Walk, node: onnx.NodeProto) -> None:
    """Tile: labels are repeated."""
    repeats = _constant(walk, node, 1)
    dims = walk.dims(node.input[0])
    walk.set(
        node.output[0],
        tuple(None if labels is None else np.tile(labels, int(n)) for labels, n in zip(dims, repeats, strict=True)),
    )


def resize(walk: Walk, node: onnx.NodeProto) -> None:
    """Resize: dimensions that would lose indices keep their size; a target size is counted anew."""
    dims, target = walk.dims(node.input[0]), walk.shape(node.output[0])
    if any(labels is not None and len(labels) != size for labels, size in zip(dims, target, strict=True)):
        refuse(node, "it resizes a dimension that would lose indices")
    walk.set(node.output[0], dims)
    if len(node.input) > 3 and node.input[3]:
        walk.count(node, 3, np.array(target), _labelled(dims))


def depth_to_space(walk: Walk, node: onnx.NodeProto) -> None:
    """DepthToSpace: the block positions of each channel are removed together."""
    block = integer(node, "blocksize", 1)
    dims, channels = walk.dims(node.input[0]), walk.shape(node.input[0])[1]
    if attribute(node, "mode", b"DCR") == b"DCR":
        factored = reshape_labels((channels,), (dims[1],), (block**2, channels // block**2))
        within, labels = factored or (dims[1], None)
    else:
        factored = reshape_labels((channels,), (dims[1],), (channels // block**2, block**2))
        labels, within = factored or (None, dims[1])
    if not same_dims((within, *dims[2:]), (None, None, None)):
        refuse(node, "it would lose parts of a block")
    walk.set(node.output[0], (dims[0], labels, None, None))


def space_to_depth(walk: Walk, node: onnx.NodeProto) -> None:
    """SpaceToDepth: the channels `(block, block, in)` of the output repeat the labels of the input."""
    block = integer(node, "blocksize", 1)
    dims = walk.dims(node.input[0])
    if dims[1] is None or not same_dims(dims[2:], (None, None)):
        refuse(node, "it would lose rows or columns")
    walk.set(node.output[0], (dims[0], np.tile(dims[1], block**2), None, None))


def columns_to_image(walk: Walk, node: onnx.NodeProto) -> None:
    """Col2Im: the channels `(out, block)` of the input; the positions of a block are removed together."""
    dims, channels = walk.dims(node.input[0]), walk.shape(node.input[0])[1]
    shape = walk.shape(node.output[0])
    factored = reshape_labels((channels,), (dims[1],), (shape[1], channels // shape[1]))
    labels, within = factored or (None, dims[1])
    if not same_dims((within, dims[2]), (None, None)):
        refuse(node, "it would lose parts of a block")
    walk.set(node.output[0], (dims[0], labels, *(None for _ in shape[2:])))


def triangle(walk: Walk, node: onnx.NodeProto) -> None:
    """Trilu: the last two dimensions keep their places."""
    dims = walk.dims(node.input[0])
    if not same_dims(dims[-2:], (None, None)):
        refuse(node, "it would lose rows or columns")
    walk.set(node.output[0], dims)


def _labelled(dims: Dims) -> dict[int, Labels]:
    return {dim: labels for dim, labels in enumerate(dims) if plain(labels) is not None and labels is not None}


def _constant(walk: Walk, node: onnx.NodeProto, index: int) -> Array:
    value = walk.constant(node.input[index])
    if value is None:
        refuse(node, f"its input '{node.input[index]}' is known only at run time")
    return value


SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "Resize": resize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Col2Im": columns_to_image,
    "Trilu": triangle,
}
