"""The ONNX operators in torch that move elements: reshapes, slices, joins, padding, resizing."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from hwprune.runtimes._torch.from_onnx import Operator

if TYPE_CHECKING:
    from torch import fx

    from hwprune.runtimes._torch.from_onnx import Rule

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _torch() -> Any:
    import torch

    return torch


def _reshape(op: Operator) -> fx.Node:
    target = op.integers(1) or []
    if not op.attribute("allowzero", 0) and 0 in target:
        own = op.shape(0)
        target = [own[place] if size == 0 else size for place, size in enumerate(target)]
    return op.call(_torch().reshape, op.value(0), target)


def _flatten(op: Operator) -> fx.Node:
    axis = op.attribute("axis", 1)
    if axis == 1:
        return op.call(_torch().flatten, op.value(0), 1)
    return op.call(_torch().reshape, op.value(0), list(op.out_shape()))


def _squeeze(op: Operator) -> fx.Node:
    axes = op.integers(1, "axes")
    if axes is None:
        axes = [place for place, size in enumerate(op.shape(0)) if size == 1]
    rank = len(op.shape(0))
    x = op.value(0)
    for axis in sorted((axis % rank for axis in axes), reverse=True):
        x = op.call(_torch().squeeze, x, axis)
    return x


def _unsqueeze(op: Operator) -> fx.Node:
    axes = op.integers(1, "axes") or []
    rank = len(op.shape(0)) + len(axes)
    x = op.value(0)
    for axis in sorted(axis % rank for axis in axes):
        x = op.call(_torch().unsqueeze, x, axis)
    return x


def _transpose(op: Operator) -> fx.Node:
    order = op.attribute("perm") or list(range(len(op.shape(0))))[::-1]
    return op.call(_torch().permute, op.value(0), list(order))


def _concat(op: Operator) -> fx.Node:
    return op.call(_torch().cat, [op.value(index) for index in range(len(op.node.input))], op.attribute("axis"))


def _split(op: Operator) -> tuple[fx.Node, ...]:
    axis, count = op.attribute("axis", 0), len(op.node.output)
    sizes = op.integers(1, "split")
    if sizes is None:
        total = op.shape(0)[axis]
        each = -(-total // count)
        sizes = [min(each, total - each * place) for place in range(count)]
    parts = op.call(_torch().split, op.value(0), sizes, axis)
    return tuple(op.call(operator.getitem, parts, place) for place in range(count))


def _slice(op: Operator) -> fx.Node:
    starts, ends = op.integers(1, "starts") or [], op.integers(2, "ends") or []
    axes = op.integers(3, "axes") or list(range(len(starts)))
    steps = op.integers(4) or [1] * len(starts)
    if any(step < 1 for step in steps):
        op.refuse("it takes steps backwards")
    shape = op.shape(0)
    index = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        index[axis] = slice(*slice(start, end, step).indices(shape[axis]))
    return op.call(operator.getitem, op.value(0), tuple(index))


def _gather(op: Operator) -> fx.Node:
    axis, indices = op.attribute("axis", 0), op.constant(1).astype(np.int64)
    if indices.ndim == 0:
        return op.call(_torch().select, op.value(0), axis, int(indices))
    name = f"{op.node.name}.indices"
    op.builder.constants[name] = indices.ravel() % op.shape(0)[axis]
    taken = op.call(_torch().index_select, op.value(0), axis, op.builder.value(name))
    return taken if indices.ndim == 1 else op.call(_torch().reshape, taken, list(op.out_shape()))


def _expand(op: Operator) -> fx.Node:
    return op.call(_torch().broadcast_to, op.value(0), list(op.out_shape()))


def _tile(op: Operator) -> fx.Node:
    return op.call(_torch().tile, op.value(0), op.integers(1))


def _pad(op: Operator) -> fx.Node:
    import torch.nn.functional as functional

    mode = op.attribute("mode", "constant")
    amounts = op.integers(1, "pads") or []
    rank = len(op.shape(0))
    axes = [axis % rank for axis in op.integers(3) or range(rank)]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = amounts[place], amounts[place + len(axes)]
    pairs = list(zip(reversed(before), reversed(after)))
    while len(pairs) > 1 and pairs[-1] == (0, 0):
        pairs.pop()
    sizes = [size for pair in pairs for size in pair]
    if mode != "constant":
        return op.call(functional.pad, op.value(0), sizes, PAD_MODES[mode])
    value = float(op.constant(2).ravel()[0]) if op.has(2) else 0.0
    return op.call(functional.pad, op.value(0), sizes, "constant", value)


def _resize(op: Operator) -> fx.Node:
    import torch.nn.functional as functional

    shape, target = op.shape(0), op.out_shape()
    mode = op.attribute("mode", "nearest")
    where = op.attribute("coordinate_transformation_mode", "half_pixel")
    if shape[:2] != target[:2] or op.attribute("antialias", 0) or op.attribute("exclude_outside", 0):
        op.refuse("it resizes samples or channels, or smooths")
    options: dict[str, Any] = {"size": list(target[2:])}
    if mode == "nearest" and (where, op.attribute("nearest_mode")) == ("asymmetric", "floor"):
        return op.call(functional.interpolate, op.value(0), mode="nearest", **options)
    if mode == "nearest" or where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        op.refuse(f"mode {mode} with {where} and {op.attribute('nearest_mode')} has no counterpart")
    if mode == "cubic" and op.attribute("cubic_coeff_a", -0.75) != -0.75:
        op.refuse("its cubic coefficient is not -0.75")
    name = "bicubic" if mode == "cubic" else LINEAR[len(shape) - 2]
    return op.call(functional.interpolate, op.value(0), mode=name, align_corners=where == "align_corners", **options)


def _depth_to_space(op: Operator) -> fx.Node:
    torch, block = _torch(), op.attribute("blocksize")
    if op.attribute("mode", "DCR") == "CRD":
        return op.call(torch.nn.functional.pixel_shuffle, op.value(0), block)
    n, c, h, w = op.shape(0)
    blocks = op.call(torch.reshape, op.value(0), [n, block, block, c // block**2, h, w])
    return op.call(torch.reshape, op.call(torch.permute, blocks, [0, 3, 4, 1, 5, 2]), list(op.out_shape()))


def _space_to_depth(op: Operator) -> fx.Node:
    torch, block = _torch(), op.attribute("blocksize")
    n, c, h, w = op.shape(0)
    blocks = op.call(torch.reshape, op.value(0), [n, c, h // block, block, w // block, block])
    return op.call(torch.reshape, op.call(torch.permute, blocks, [0, 3, 5, 1, 2, 4]), list(op.out_shape()))


SHAPE_RULES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
