"""ONNX operators that move, cut and join values, as layers of ncnn; axes are counted without the batch there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hwprune.runtimes._ncnn.model import Writer, block_sizes
from hwprune.runtimes._ncnn.patterns import channel_shuffle, group_norm
from hwprune.runtimes._onnx.graph import Node

if TYPE_CHECKING:
    from hwprune.runtimes._ncnn.model import Parameter

_ORDERS = {
    2: ("WH", "HW"),
    3: ("WHC", "HWC", "WCH", "CWH", "HCW", "CHW"),
    4: (
        *("WHDC", "HWDC", "WDHC", "DWHC", "HDWC", "DHWC", "WHCD", "HWCD", "WCHD", "CWHD", "HCWD", "CHWD"),
        *("WDCH", "DWCH", "WCDH", "CWDH", "DCWH", "CDWH", "HDCW", "DHCW", "HCDW", "CHDW", "DCHW", "CDHW"),
    ),
}
_AXES = {2: "HW", 3: "CHW", 4: "CDHW"}


def reshapes(node: Node) -> bool:
    """Whether a node only says how values are to be counted."""
    return node.kind in ("Reshape", "Flatten", "Squeeze")


def reshape(writer: Writer, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze, and the patterns that begin with a Reshape."""
    before, after = writer.graph.shape(node.inputs[0]), writer.graph.shape(node.outputs[0])
    if before == after:
        writer.same(node.outputs[0], node.inputs[0])
    elif channel_shuffle(writer, node) or group_norm(writer, node):
        return
    elif len(after) == 2:
        writer.add("Flatten", node, node.inputs[:1], node.outputs)
    else:
        writer.add("Reshape", node, node.inputs[:1], node.outputs, block_sizes(after))


def identity(writer: Writer, node: Node) -> None:
    """Nothing at all at inference."""
    writer.same(node.outputs[0], node.inputs[0])


def transpose(writer: Writer, node: Node) -> None:
    """Permute, by its number for the order of w, h, d and c."""
    rank = len(writer.graph.shape(node.inputs[0]))
    order = node.ints("perm", range(rank)[::-1])
    if order[0] != 0:
        writer.graph.refuse(node, f"it moves the batch: {list(order)}")
    name = "".join(_AXES[rank - 1][axis - 1] for axis in reversed(order[1:])) if rank > 2 else ""
    if not name or list(order) == list(range(rank)):
        writer.same(node.outputs[0], node.inputs[0])
    else:
        writer.add("Permute", node, node.inputs, node.outputs, {0: _ORDERS[rank - 1].index(name)})


def axis_of(writer: Writer, node: Node, default: int) -> int:
    """An axis as ncnn counts, without the batch."""
    axis = node.integer("axis", default) % len(writer.graph.shape(node.inputs[0]))
    if axis == 0:
        writer.graph.refuse(node, "its axis is the batch")
    return axis - 1


def concat(writer: Writer, node: Node) -> None:
    """Concat."""
    rank = len(writer.graph.shape(node.outputs[0]))
    inputs = [writer.operand(node, place, rank) for place in range(len(node.inputs))]
    writer.add("Concat", node, inputs, node.outputs, {0: axis_of(writer, node, 1)})


def split(writer: Writer, node: Node) -> None:
    """Slice, as ncnn calls it."""
    axis = axis_of(writer, node, 0)
    sizes = [writer.graph.shape(name)[axis + 1] for name in node.outputs]
    writer.add("Slice", node, node.inputs[:1], node.outputs, {0: sizes, 1: axis})


def cut(writer: Writer, node: Node) -> None:
    """ONNX Slice: Crop in ncnn, or a stride."""
    graph, shape = writer.graph, writer.graph.shape(node.inputs[0])
    starts, ends = graph.integers(node, 1, "starts") or (), graph.integers(node, 2, "ends") or ()
    given = graph.integers(node, 3, "axes") or tuple(range(len(starts)))
    axes = [axis % len(shape) for axis in given]
    steps = (graph.integers(node, 4) if node.has(4) else None) or (1,) * len(axes)
    ranges = {
        axis: range(*slice(start, end, step).indices(shape[axis]))
        for axis, start, end, step in zip(axes, starts, ends, steps)
    }
    if 0 in ranges and len(ranges.pop(0)) != shape[0]:
        graph.refuse(node, "it cuts the batch")
    if all(cut == range(shape[axis]) for axis, cut in ranges.items()):
        writer.same(node.outputs[0], node.inputs[0])
    elif all(cut.step == 1 for cut in ranges.values()):
        bounds: dict[int, Parameter] = {9: [cut.start for cut in ranges.values()]}
        bounds.update({10: [cut.stop for cut in ranges.values()], 11: [axis - 1 for axis in ranges]})
        writer.add("Crop", node, node.inputs[:1], node.outputs, bounds)
    else:
        _stride(writer, node, ranges, shape)


def _stride(writer: Writer, node: Node, ranges: Mapping[int, range], shape: Sequence[int]) -> None:
    """Every n-th row or column, as a pooling over windows of one."""
    plain = all(
        cut.start == 0 and cut.step > 0 and len(range(0, shape[axis], cut.step)) == len(cut)
        for axis, cut in ranges.items()
    )
    if not plain or len(shape) != 4 or not set(ranges) <= {2, 3}:
        writer.graph.refuse(node, "with steps, only every n-th row or column from the first can be taken")
    steps = {axis: ranges[axis].step if axis in ranges else 1 for axis in (2, 3)}
    writer.add("Pooling", node, node.inputs[:1], node.outputs, {0: 0, 1: 1, 2: steps[3], 5: 1, 11: 1, 12: steps[2]})


def pad(writer: Writer, node: Node) -> None:
    """Padding of rows, columns and channels."""
    graph, shape = writer.graph, writer.graph.shape(node.inputs[0])
    pads = graph.integers(node, 1, "pads") or ()
    axes = [axis % len(shape) for axis in (graph.integers(node, 3) if node.has(3) else None) or range(len(shape))]
    before, after = dict(zip(axes, pads)), dict(zip(axes, pads[len(axes) :]))
    value = float(graph.constant(node, 2).ravel()[0]) if node.has(2) else node.number("value", 0.0)
    modes = {"constant": 0, "edge": 1, "reflect": 2}
    mode = node.text("mode", "constant")
    if len(shape) != 4 or before.get(0) or after.get(0) or mode not in modes:
        graph.refuse(node, f"it pads {pads} of a value of shape {shape} in mode {mode}")
    parameters: dict[int, Parameter] = {0: before.get(2, 0), 1: after.get(2, 0), 2: before.get(3, 0)}
    parameters.update({3: after.get(3, 0), 4: modes[mode], 5: value, 7: before.get(1, 0), 8: after.get(1, 0)})
    writer.add("Padding", node, node.inputs[:1], node.outputs, parameters)


def resize(writer: Writer, node: Node) -> None:
    """Interp: nearest and bilinear as torch computes them."""
    mode, where = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    kinds = {("nearest", "asymmetric"): (1, 0), ("linear", "align_corners"): (2, 1)}
    kinds.update({("linear", name): (2, 0) for name in ("half_pixel", "pytorch_half_pixel")})
    if mode == "nearest" and node.text("nearest_mode", "round_prefer_floor") != "floor":
        kinds.clear()
    shape, after = writer.graph.shape(node.inputs[0]), writer.graph.shape(node.outputs[0])
    if (mode, where) not in kinds or len(after) != 4 or shape[1] != after[1]:
        writer.graph.refuse(node, f"mode {mode}, {where}, from {shape} to {after}")
    kind, aligned = kinds[mode, where]
    scales: dict[int, Parameter] = {1: after[2] / shape[2], 2: after[3] / shape[3]}
    writer.add("Interp", node, node.inputs[:1], node.outputs, {0: kind, **scales, 3: after[2], 4: after[3], 6: aligned})


def depth_to_space(writer: Writer, node: Node) -> Mapping[int, Parameter]:
    """The parameters of PixelShuffle."""
    return {0: node.integer("blocksize", 1), 1: 0 if node.text("mode", "DCR") == "CRD" else 1}
