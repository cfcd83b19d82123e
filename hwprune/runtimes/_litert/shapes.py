"""ONNX operators that move, cut, join and normalise values, as operators of LiteRT.

An operator works on its input channels last where it lies so, with its axes translated; what counts values one after
the other (Reshape) works on them as ONNX has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.runtimes._litert.model import LAST, Writer, schema
from hwprune.runtimes._onnx.graph import Array, Node

_SWAPPED = (0, 2, 1, 3, 4)  # the permutation of a channel shuffle


def elementwise(writer: Writer, node: Node, kind: str, options: str = "", **settings: object) -> None:
    """An operator of one input whose output lies as the input does."""
    source, last = _source(writer, node)
    writer.add(kind, [source], [writer.new(node.outputs[0], last=last)], options, **settings)


def scalar_steps(writer: Writer, node: Node, steps: Sequence[tuple[str, float, str]]) -> None:
    """Several operators with a number each, one after the other: kind, number, options."""
    source, last = _source(writer, node)
    shape = _stored_shape(writer, node.outputs[0], last=last)
    for place, (kind, number, options) in enumerate(steps):
        at_end = place == len(steps) - 1
        result = writer.new(node.outputs[0], last=last) if at_end else writer.temporary(shape)
        writer.add(kind, [source, writer.constant(np.array([number], np.float32))], [result], options)
        source = result


def scale_and_shift(writer: Writer, node: Node, factor: Array, shift: Array) -> None:
    """Multiply every channel by its factor and add its shift."""
    source, last = _source(writer, node)
    shape = _stored_shape(writer, node.outputs[0], last=last)
    by_channel = [1] * len(shape)
    by_channel[-1 if last else 1] = -1
    middle = writer.temporary(shape)
    writer.add("MUL", [source, writer.constant(factor.reshape(by_channel))], [middle], "MulOptions")
    result = writer.new(node.outputs[0], last=last)
    writer.add("ADD", [middle, writer.constant(shift.reshape(by_channel))], [result], "AddOptions")


def reduce(writer: Writer, node: Node, kind: str, axes: Sequence[int], *, keep: bool) -> None:
    """A mean, sum, maximum or minimum over some dimensions."""
    source, last = _source(writer, node)
    places = [LAST.index(axis) for axis in axes] if last else list(axes)
    remaining = [axis for axis in range(len(writer.graph.shape(node.inputs[0]))) if axis not in axes]
    if last and not keep and len(remaining) > 2:
        writer.graph.refuse(node, f"it reduces an image over {list(axes)}")
    result = writer.new(node.outputs[0], last=last and keep)
    writer.add(kind, [source, writer.integers(sorted(places))], [result], "ReducerOptions", keepDims=keep)


def layer_norm(writer: Writer, node: Node) -> None:
    """Normalisation over the last dimension, then a scale and a shift."""
    shape = writer.graph.shape(node.inputs[0])
    if node.integer("axis", -1) % len(shape) != len(shape) - 1:
        writer.graph.refuse(node, "only the last dimension can be normalised")
    scale = writer.graph.constant(node, 1)
    shift = writer.graph.constant(node, 2) if node.has(2) else np.zeros_like(scale)
    source = writer.plain(node.inputs[0])
    middle = _normalised(writer, source, shape, [len(shape) - 1], node.number("epsilon", 1e-5))
    scaled = writer.temporary(shape)
    writer.add("MUL", [middle, writer.constant(scale)], [scaled], "MulOptions")
    writer.add("ADD", [scaled, writer.constant(shift)], [writer.new(node.outputs[0], last=False)], "AddOptions")


def instance_norm(writer: Writer, node: Node) -> None:
    """Normalisation of every channel of every image by itself, then its scale and shift."""
    source, last = _source(writer, node)
    shape = _stored_shape(writer, node.inputs[0], last=last)
    rank = len(shape)
    axes = list(range(1, rank - 1)) if last else list(range(2, rank))
    middle = _normalised(writer, source, shape, axes, node.number("epsilon", 1e-5))
    by_channel = [1] * rank
    by_channel[-1 if last else 1] = -1
    scale, shift = (writer.graph.constant(node, place).reshape(by_channel) for place in (1, 2))
    scaled = writer.temporary(shape)
    writer.add("MUL", [middle, writer.constant(scale)], [scaled], "MulOptions")
    writer.add("ADD", [scaled, writer.constant(shift)], [writer.new(node.outputs[0], last=last)], "AddOptions")


def _normalised(writer: Writer, source: int, shape: Sequence[int], axes: Sequence[int], epsilon: float) -> int:
    """Values less their mean, divided by their standard deviation, over some dimensions."""
    small = [1 if axis in axes else size for axis, size in enumerate(shape)]
    mean, variance, stable, inverse = (writer.temporary(small) for _ in range(4))
    centred, squared, result = (writer.temporary(shape) for _ in range(3))
    writer.add("MEAN", [source, writer.integers(axes)], [mean], "ReducerOptions", keepDims=True)
    writer.add("SUB", [source, mean], [centred], "SubOptions")
    writer.add("MUL", [centred, centred], [squared], "MulOptions")
    writer.add("MEAN", [squared, writer.integers(axes)], [variance], "ReducerOptions", keepDims=True)
    writer.add("ADD", [variance, writer.constant(np.array([epsilon], np.float32))], [stable], "AddOptions")
    writer.add("RSQRT", [stable], [inverse])
    writer.add("MUL", [centred, inverse], [result], "MulOptions")
    return result


def reshape(writer: Writer, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze; a channel shuffle stays channels last."""
    source, output = node.inputs[0], node.outputs[0]
    after = writer.graph.shape(output)
    if writer.graph.shape(source) == after:
        writer.same(output, source)
    elif not _channel_shuffle(writer, node):
        result = writer.new(output, last=False)
        _reshaped(writer, writer.plain(source), result, after)


def _reshaped(writer: Writer, source: int, result: int, shape: Sequence[int]) -> None:
    writer.add("RESHAPE", [source, writer.integers(shape)], [result], "ReshapeOptions", newShape=list(shape))


def _channel_shuffle(writer: Writer, node: Node) -> bool:
    """Reshape to `N x G x C/G x H x W`, swap, reshape back: whether it is that, and was written."""
    graph = writer.graph
    before, middle = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    swap = graph.only_consumer(node.outputs[0])
    if swap is None or swap.kind != "Transpose" or swap.ints("perm", ()) != _SWAPPED or middle[3:] != before[2:]:
        return False
    back = graph.only_consumer(swap.outputs[0])
    if back is None or back.kind != "Reshape" or graph.shape(back.outputs[0]) != before:
        return False
    batch, groups, members, height, width = middle
    split = writer.temporary([batch, height, width, groups, members])
    swapped = writer.temporary([batch, height, width, members, groups])
    _reshaped(writer, writer.last(node.inputs[0]), split, [batch, height, width, groups, members])
    writer.add("TRANSPOSE", [split, writer.integers((0, 1, 2, 4, 3))], [swapped], "TransposeOptions")
    result = writer.new(back.outputs[0], last=True)
    _reshaped(writer, swapped, result, [batch, height, width, before[1]])
    writer.done.update((id(swap), id(back)))
    return True


def identity(writer: Writer, node: Node) -> None:
    """Nothing at all at inference."""
    writer.same(node.outputs[0], node.inputs[0])


def transpose(writer: Writer, node: Node) -> None:
    """Dimensions in another order."""
    order = node.ints("perm", range(len(writer.graph.shape(node.inputs[0])))[::-1])
    inputs = [writer.plain(node.inputs[0]), writer.integers(order)]
    writer.add("TRANSPOSE", inputs, [writer.new(node.outputs[0], last=False)], "TransposeOptions")


def concat(writer: Writer, node: Node) -> None:
    """Values one behind the other along a dimension."""
    rank = len(writer.graph.shape(node.outputs[0]))
    last = any(writer.is_last(name) for name in node.inputs)
    axis = node.integer("axis", 1) % rank
    inputs = [writer.operand(node, place, rank, last=last) for place in range(len(node.inputs))]
    result = writer.new(node.outputs[0], last=last)
    writer.add("CONCATENATION", inputs, [result], "ConcatenationOptions", axis=LAST.index(axis) if last else axis)


def joined(writer: Writer, parts: Sequence[int], shape: Sequence[int], axis: int) -> int:
    """Tensors one behind the other, as one of this shape."""
    result = writer.temporary(shape)
    writer.add("CONCATENATION", parts, [result], "ConcatenationOptions", axis=axis)
    return result


def split(writer: Writer, node: Node) -> None:
    """Pieces of a value along a dimension."""
    source, last = _source(writer, node)
    axis = node.integer("axis", 0) % len(writer.graph.shape(node.inputs[0]))
    sizes = [writer.graph.shape(name)[axis] for name in node.outputs]
    place = LAST.index(axis) if last else axis
    results = [writer.new(name, last=last) for name in node.outputs]
    inputs = [source, writer.integers(sizes), writer.constant(np.array(place, np.int32))]
    writer.add("SPLIT_V", inputs, results, "SplitVOptions", numSplits=len(sizes))


def split_channels(writer: Writer, source: int, shape: Sequence[int], groups: int) -> list[int]:
    """A value that lies channels last, its ONNX shape given, cut into groups of channels."""
    if groups == 1:
        return [source]
    members = shape[1] // groups
    parts = [writer.temporary([shape[0], *shape[2:], members]) for _ in range(groups)]
    inputs = [source, writer.integers([members] * groups), writer.constant(np.array(3, np.int32))]
    writer.add("SPLIT_V", inputs, parts, "SplitVOptions", numSplits=groups)
    return parts


def cut(writer: Writer, node: Node) -> None:
    """ONNX Slice."""
    graph, shape = writer.graph, writer.graph.shape(node.inputs[0])
    starts, ends = graph.integers(node, 1, "starts") or (), graph.integers(node, 2, "ends") or ()
    axes = [axis % len(shape) for axis in graph.integers(node, 3, "axes") or range(len(starts))]
    steps = (graph.integers(node, 4) if node.has(4) else None) or (1,) * len(axes)
    bounds = [(0, size, 1) for size in shape]
    for axis, start, end, step in zip(axes, starts, ends, steps):
        if step < 1:
            graph.refuse(node, f"it goes backwards, with step {step}")
        bounds[axis] = slice(start, end, step).indices(shape[axis])
    source, last = _source(writer, node)
    ordered = [bounds[axis] for axis in LAST] if last else bounds
    result = writer.new(node.outputs[0], last=last)
    strided_slice(writer, source, result, *([bound[place] for bound in ordered] for place in range(3)))


def strided_slice(
    writer: Writer, source: int, result: int, begins: Sequence[int], ends: Sequence[int], steps: Sequence[int]
) -> None:
    """Every n-th value from a begin to an end in every dimension."""
    inputs = [source, *(writer.integers(numbers) for numbers in (begins, ends, steps))]
    writer.add("STRIDED_SLICE", inputs, [result], "StridedSliceOptions")


def pad(writer: Writer, node: Node) -> None:
    """Padding with a constant, or with what lies mirrored at the edge."""
    graph, shape = writer.graph, writer.graph.shape(node.inputs[0])
    amounts = graph.integers(node, 1, "pads") or ()
    axes = [axis % len(shape) for axis in (graph.integers(node, 3) if node.has(3) else None) or range(len(shape))]
    value = float(graph.constant(node, 2).ravel()[0]) if node.has(2) else node.number("value", 0.0)
    mode = node.text("mode", "constant")
    if mode not in ("constant", "reflect") or min(amounts, default=0) < 0:
        graph.refuse(node, f"it pads by {amounts} in mode {mode}")
    pads = [(0, 0)] * len(shape)
    for axis, before, after in zip(axes, amounts, amounts[len(axes) :]):
        pads[axis] = (before, after)
    source, last = _source(writer, node)
    ordered = [pads[axis] for axis in LAST] if last else pads
    result = writer.new(node.outputs[0], last=last)
    table = writer.constant(np.array(ordered, np.int32))
    if mode == "reflect":
        settings = {"mode": schema().MirrorPadMode.REFLECT}
        writer.add("MIRROR_PAD", [source, table], [result], "MirrorPadOptions", **settings)
    else:
        _pad_constant(writer, source, table, result, value)


def padded(writer: Writer, source: int, shape: Sequence[int], pads: Sequence[tuple[int, int]], value: float) -> int:
    """An image that lies channels last, its ONNX shape given, with rows and columns of `value` around it."""
    sizes = [before + shape[axis] + after for axis, (before, after) in zip(LAST, pads)]
    result = writer.temporary(sizes)
    _pad_constant(writer, source, writer.constant(np.array(pads, np.int32)), result, value)
    return result


def _pad_constant(writer: Writer, source: int, table: int, result: int, value: float) -> None:
    if value == 0.0:
        writer.add("PAD", [source, table], [result], "PadOptions")
    else:
        number = writer.constant(np.array([value], np.float32))
        writer.add("PADV2", [source, table, number], [result], "PadV2Options")


def resize(writer: Writer, node: Node) -> None:
    """Nearest and bilinear, as torch computes them."""
    mode, where = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    shape, after = writer.graph.shape(node.inputs[0]), writer.graph.shape(node.outputs[0])
    known = {("linear", "align_corners"), ("linear", "half_pixel"), ("linear", "pytorch_half_pixel")}
    if node.text("nearest_mode", "round_prefer_floor") == "floor":
        known.add(("nearest", "asymmetric"))
    if (mode, where) not in known or len(shape) != 4 or shape[:2] != after[:2]:
        writer.graph.refuse(node, f"mode {mode}, {where}, from {shape} to {after}")
    inputs = [writer.last(node.inputs[0]), writer.integers(after[2:])]
    kind = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
    options = "ResizeNearestNeighborOptions" if mode == "nearest" else "ResizeBilinearOptions"
    settings = {"alignCorners": where == "align_corners", "halfPixelCenters": where.endswith("half_pixel")}
    writer.add(kind, inputs, [writer.new(node.outputs[0], last=True)], options, **settings)


def depth_to_space(writer: Writer, node: Node) -> None:
    """Channels become rows and columns; the order of torch's PixelShuffle is reached by a transposition."""
    batch, channels, height, width = writer.graph.shape(node.inputs[0])
    block = node.integer("blocksize", 1)
    source, result = writer.last(node.inputs[0]), writer.new(node.outputs[0], last=True)
    if node.text("mode", "DCR") == "DCR":
        writer.add("DEPTH_TO_SPACE", [source], [result], "DepthToSpaceOptions", blockSize=block)
        return
    made = channels // (block * block)
    apart, moved = [batch, height, width, made, block, block], [batch, height, block, width, block, made]
    first, second = writer.temporary(apart), writer.temporary(moved)
    _reshaped(writer, source, first, apart)
    writer.add("TRANSPOSE", [first, writer.integers((0, 1, 4, 2, 5, 3))], [second], "TransposeOptions")
    _reshaped(writer, second, result, [batch, height * block, width * block, made])


def _source(writer: Writer, node: Node) -> tuple[int, bool]:
    """The first input where it lies, and whether that is channels last."""
    last = writer.is_last(node.inputs[0])
    return (writer.last(node.inputs[0]) if last else writer.plain(node.inputs[0])), last


def _stored_shape(writer: Writer, value: str, *, last: bool) -> tuple[int, ...]:
    shape = writer.graph.shape(value)
    return tuple(shape[axis] for axis in LAST) if last else shape
