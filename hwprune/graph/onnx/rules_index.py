"""How the labels of indices pass through the ONNX operators that look up and write elements by their position.

Hardly any may choose along a dimension that would lose indices; all other dimensions keep their labels.
"""

from __future__ import annotations

import numpy as np
import onnx

from hwprune.graph.onnx.labels import Dims, Labels, Rule, Walk, plain, refuse
from hwprune.graph.onnx.network import integer


def gather_nd(walk: Walk, node: onnx.NodeProto) -> None:
    """GatherND: the leading dimensions are chosen from, those behind them come out at the end."""
    dims = walk.dims(node.input[0])
    indices = walk.shape(node.input[1])
    first = integer(node, "batch_dims", 0) + indices[-1]
    _demand_free(node, dims[:first])
    walk.set(node.output[0], (*(None for _ in indices[:-1]), *dims[first:]))


def scatter_nd(walk: Walk, node: onnx.NodeProto) -> None:
    """ScatterND: data and what is written over it agree behind the dimensions that are chosen from.

    A single such dimension may lose indices when they are constant: those of removed units are not written.
    """
    data, updates = walk.dims(node.input[0]), walk.dims(node.input[2])
    indices = walk.shape(node.input[1])
    chosen, count = indices[-1], len(indices) - 1
    rest = _either(data[chosen:], updates[count:])
    constant = walk.constant(node.input[1])
    if (chosen, count) == (1, 1) and data[0] is not None and constant is not None:
        places = constant.astype(np.int64) % len(data[0])
        written = data[0][places[:, 0]]
        walk.renumber(node, 1, places, data[0], written)
        updates = (plain(written), *updates[1:])
    else:
        _demand_free(node, data[:chosen] + updates[:count])
    walk.match(node, 0, (*data[:chosen], *rest))
    walk.match(node, 2, (*updates[:count], *rest))
    walk.set(node.output[0], (*data[:chosen], *rest))


def gather_elements(walk: Walk, node: onnx.NodeProto) -> None:
    """GatherElements: each index chooses along the axis, at its own place in the other dimensions."""
    walk.set(node.output[0], _elements(walk, node, (0, 1)))


def scatter_elements(walk: Walk, node: onnx.NodeProto) -> None:
    """ScatterElements: what is written, and the index that says where, lie like the data but along the axis."""
    walk.set(node.output[0], _elements(walk, node, (0, 1, 2)))


def _elements(walk: Walk, node: onnx.NodeProto, inputs: tuple[int, ...]) -> Dims:
    names = [node.input[index] for index in inputs]
    shape = walk.shape(names[0])
    axis = integer(node, "axis", 0) % len(shape)
    _demand_free(node, tuple(walk.dims(name)[axis] for name in names))
    result: Dims = (None,) * len(shape)
    for name in names:
        result = _either(result, walk.dims(name))
    for index, name in zip(inputs, names, strict=True):
        if any(labels is not None and walk.shape(name)[dim] != shape[dim] for dim, labels in enumerate(result)):
            refuse(node, "it reaches only part of a dimension that would lose indices")
        walk.match(node, index, result)
    return result


def along_axis(walk: Walk, node: onnx.NodeProto) -> None:
    """TopK: the values along one axis are compared with each other, the other dimensions pass."""
    dims = walk.dims(node.input[0])
    axis = integer(node, "axis", -1) % len(dims)
    _demand_free(node, (dims[axis],))
    for name in node.output:
        walk.set(name, dims)


def _either(first: Dims, second: Dims) -> Dims:
    pairs = zip(first, second, strict=True)
    return tuple(labels if labels is not None else other for labels, other in pairs)


def _demand_free(node: onnx.NodeProto, dims: tuple[Labels | None, ...]) -> None:
    if any(labels is not None for labels in dims):
        refuse(node, "it chooses along a dimension that would lose indices")


INDEX_RULES: dict[str, Rule] = {
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "GatherElements": gather_elements,
    "ScatterElements": scatter_elements,
    "TopK": along_axis,
}
