"""How the labels of indices pass through each ONNX operator: arithmetic, convolutions, matrices, reductions.

An operator that is not in `RULES` and meets a dimension with labels is refused by the walk.
"""

from __future__ import annotations

import numpy as np
import onnx

from hwprune.graph.onnx.labels import Dims, Labels, Rule, Walk, refuse, reshape_labels, same
from hwprune.graph.onnx.network import attribute, integer
from hwprune.graph.onnx.rules_index import INDEX_RULES
from hwprune.graph.onnx.rules_shape import SHAPE_RULES

_ONE_INPUT = (
    "Abs Acos Asin Atan Cast Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log"
    " LogSoftmax Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Tan"
    " Tanh ThresholdedRelu Identity Dropout CumSum"
)
_BROADCASTING = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
_POOLING = "AveragePool GridSample GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool"
_REDUCING = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)


def one_input(walk: Walk, node: onnx.NodeProto) -> None:
    """Element-wise: the output has the labels of the input (limits of Clip are scalars)."""
    walk.set(node.output[0], walk.dims(node.input[0]))


def broadcasting(walk: Walk, node: onnx.NodeProto) -> None:
    """Element-wise with broadcasting: inputs that are not broadcast along a dimension agree on its labels."""
    shape = walk.shape(node.output[0])
    result = [_agreed(walk, node, dim - len(shape), shape[dim]) for dim in range(len(shape))]
    for index, name in enumerate(node.input):
        own = walk.shape(name)
        offset = len(shape) - len(own)
        walk.match(
            node, index, tuple(result[offset + dim] if size == shape[offset + dim] else None
                               for dim, size in enumerate(own))
        )  # fmt: skip
    walk.set(node.output[0], tuple(result))


def _agreed(walk: Walk, node: onnx.NodeProto, dim: int, size: int) -> Labels | None:
    """The labels along `dim` (counted from the end) of the first input that has any; padded inputs follow others."""
    for name in sorted(node.input, key=walk.is_padding):
        own = walk.shape(name)
        if len(own) >= -dim and own[dim] == size:
            labels = walk.dims(name)[dim]
            if labels is not None:
                return labels
    return None


def pooling(walk: Walk, node: onnx.NodeProto) -> None:
    """Windows over positions, or samples at positions of a grid; samples and channels pass."""
    dims = walk.dims(node.input[0])
    if any(labels is not None for labels in dims[2:]) or any(walk.is_cut(name) for name in node.input[1:]):
        refuse(node, "it pools over a dimension that would lose indices")
    for name in node.output:
        walk.set(name, dims)


def reducing(walk: Walk, node: onnx.NodeProto) -> None:
    """A reduction: the labels of the reduced dimensions end here."""
    dims = walk.dims(node.input[0])
    axes = attribute(node, "axes")
    if len(node.input) > 1:
        constant = walk.constant(node.input[1])
        if constant is None:
            refuse(node, "its axes are known only at run time")
        axes = [int(axis) for axis in constant.ravel()]
    if not isinstance(axes, list) or not axes:
        axes = list(range(len(dims)))
    reduced = {int(axis) % len(dims) for axis in axes}
    if integer(node, "keepdims", 1):
        walk.set(node.output[0], tuple(None if dim in reduced else dims[dim] for dim in range(len(dims))))
    else:
        walk.set(node.output[0], tuple(dims[dim] for dim in range(len(dims)) if dim not in reduced))


def convolution(walk: Walk, node: onnx.NodeProto) -> None:
    """Conv: weight `(out, in / group, *kernel)`."""
    groups = integer(node, "group", 1)
    if groups == 1:
        _follow(walk, node, 1, walk.dims(node.input[1])[1])
    data = walk.dims(node.input[0])
    whole, inner = _split_groups(walk, node, node.input[0], 1, groups)
    out = walk.shape(node.input[1])[0]
    weight = list(walk.dims(node.input[1]))
    weight[1] = inner
    if walk.constant(node.input[1]) is not None:
        weight[0] = None if whole is None else np.repeat(whole, out // groups)
    walk.match(node, 1, tuple(weight))
    if groups > 1 and not same(_split_groups(walk, node, node.input[1], 0, groups)[0], whole):
        refuse(node, "its weight would lose other groups than its input")
    _finish_convolution(walk, node, data, weight[0], whole)


def _follow(walk: Walk, node: onnx.NodeProto, dim: int, labels: Labels | None) -> None:
    """Let what pads the first input follow the weight that reads it."""
    if labels is not None and walk.is_padding(node.input[0]):
        dims = walk.dims(node.input[0])
        walk.match(node, 0, (*dims[:dim], labels, *dims[dim + 1 :]))


def transposed_convolution(walk: Walk, node: onnx.NodeProto) -> None:
    """ConvTranspose: weight `(in, out / group, *kernel)`."""
    groups = integer(node, "group", 1)
    data = walk.dims(node.input[0])
    whole, _ = _split_groups(walk, node, node.input[0], 1, groups)
    weight = walk.dims(node.input[1])
    walk.match(node, 1, (data[1], *weight[1:]))
    out = walk.shape(node.input[1])[1]
    if whole is not None and weight[1] is not None and groups > 1:
        refuse(node, "it would lose groups and channels within groups")
    labels = weight[1] if groups == 1 else None
    if groups > 1 and whole is not None:
        labels = np.repeat(whole, out)
    elif groups > 1 and weight[1] is not None:
        labels = np.tile(weight[1], groups)
    _finish_convolution(walk, node, data, labels, whole if groups > 1 else None)


def _finish_convolution(
    walk: Walk, node: onnx.NodeProto, data: Dims, out: Labels | None, groups: Labels | None
) -> None:
    if any(labels is not None for labels in data[2:]):
        refuse(node, "it slides along a dimension that would lose indices")
    if len(node.input) > 2 and node.input[2]:
        walk.match(node, 2, (out,))
    if groups is not None:
        walk.count_groups(groups)
    walk.set(node.output[0], (data[0], out, *data[2:]))


def _split_groups(
    walk: Walk, node: onnx.NodeProto, name: str, dim: int, groups: int
) -> tuple[Labels | None, Labels | None]:
    """The labels of whole groups and of the channels within each group, of which at most one is cut."""
    labels = walk.dims(name)[dim]
    if groups == 1:
        return None, labels
    size = walk.shape(name)[dim]
    factored = reshape_labels((size,), (labels,), (groups, size // groups))
    if factored is None:
        refuse(node, f"its {groups} groups would lose different channels")
    return factored[0], factored[1]


def batch_normalization(walk: Walk, node: onnx.NodeProto) -> None:
    """BatchNormalization and InstanceNormalization: vectors along the channels."""
    dims = walk.dims(node.input[0])
    for index in range(1, len(node.input)):
        walk.match(node, index, (dims[1],))
    walk.set(node.output[0], dims)


def layer_normalization(walk: Walk, node: onnx.NodeProto) -> None:
    """LayerNormalization: scale and bias have the shape of the normalised dimensions."""
    dims = walk.dims(node.input[0])
    axis = integer(node, "axis", -1) % len(dims)
    for index in range(1, len(node.input)):
        walk.match(node, index, dims[axis:])
    walk.set(node.output[0], dims)


def general_matrix_product(walk: Walk, node: onnx.NodeProto) -> None:
    """Gemm: `A' (m, k) @ B' (k, n) + C`, either factor possibly stored transposed."""
    left = 1 if not integer(node, "transA", 0) else 0
    right = 0 if not integer(node, "transB", 0) else 1
    _contract(walk, node, left, right)
    rows, columns = walk.dims(node.input[0])[1 - left], walk.dims(node.input[1])[1 - right]
    out = walk.shape(node.output[0])
    if len(node.input) > 2 and node.input[2]:
        wanted = (rows, columns)
        own = walk.shape(node.input[2])
        walk.match(node, 2, tuple(
            wanted[dim] if own[dim] == out[dim] else None for dim in range(-len(own), 0)
        ))  # fmt: skip
    walk.set(node.output[0], (rows, columns))


def matrix_product(walk: Walk, node: onnx.NodeProto) -> None:
    """MatMul: `(..., m, k) @ (..., k, n)` with broadcasting before the last two dimensions; `(k)` is a vector."""
    ranks = [len(walk.shape(name)) for name in node.input]
    _contract(walk, node, ranks[0] - 1, max(ranks[1] - 2, 0))
    first, second = walk.dims(node.input[0]), walk.dims(node.input[1])
    if min(ranks) == 1:
        walk.set(node.output[0], first[:-1] if ranks[1] == 1 else (*second[:-2], second[-1]))
        return
    shape = walk.shape(node.output[0])
    batch = tuple(_agreed(walk, node, dim - len(shape), shape[dim]) for dim in range(len(shape) - 2))
    for index, dims in enumerate((first, second)):
        own = walk.shape(node.input[index])
        offset = len(shape) - len(own)
        outer = tuple(batch[offset + dim] if own[dim] == shape[offset + dim] else None for dim in range(len(own) - 2))
        walk.match(node, index, (*outer, *dims[-2:]))
    walk.set(node.output[0], (*batch, first[-2], second[-1]))


def _contract(walk: Walk, node: onnx.NodeProto, left: int, right: int) -> None:
    """Demand that dimension `left` of the first input and `right` of the second lose the same indices."""
    _follow(walk, node, left, walk.dims(node.input[1])[right])
    first, second = walk.dims(node.input[0]), walk.dims(node.input[1])
    labels = first[left] if first[left] is not None else second[right]
    walk.match(node, 0, (*first[:left], labels, *first[left + 1 :]))
    walk.match(node, 1, (*second[:right], labels, *second[right + 1 :]))


def einsum(walk: Walk, node: onnx.NodeProto) -> None:
    """Einsum: a letter carries the same labels wherever it stands."""
    terms, output = _letters(walk, node)
    shapes = [walk.shape(name) for name in node.input]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    found: dict[str, Labels] = {}
    for term, name in zip(terms, node.input, strict=True):
        pairs = zip(term, walk.dims(name), strict=True)
        found = {letter: labels for letter, labels in pairs if labels is not None} | found
    for index, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        wide = (size == sizes[letter] for letter, size in zip(term, shape, strict=True))
        walk.match(node, index, tuple(found.get(a) if full else None for a, full in zip(term, wide, strict=True)))
    walk.set(node.output[0], tuple(found.get(letter) for letter in output))


def _letters(walk: Walk, node: onnx.NodeProto) -> tuple[list[list[str]], list[str]]:
    """The letters of each input and of the output; dimensions behind an ellipsis count from its end: `...0`."""
    given = attribute(node, "equation", b"")
    equation = (given.decode() if isinstance(given, bytes) else str(given)).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    ranks = [len(walk.shape(name)) for name in node.input]
    hidden = [rank - len(term.replace("...", "")) for rank, term in zip(ranks, terms, strict=True)]
    if not arrow:
        single = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        right = "..." * ("..." in left) + "".join(single)
    most = max(n if "..." in term else 0 for n, term in zip(hidden, terms, strict=True))
    expanded = [_expanded(term, n) for term, n in zip(terms, hidden, strict=True)]
    return expanded, _expanded(right, most)


def _expanded(term: str, hidden: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(f"...{n}" for n in reversed(range(hidden if dots else 0))), *after]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ONE_INPUT.split(), one_input),
    **dict.fromkeys(_BROADCASTING.split(), broadcasting),
    **dict.fromkeys(_POOLING.split(), pooling),
    **dict.fromkeys(_REDUCING.split(), reducing),
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "Gemm": general_matrix_product,
    "MatMul": matrix_product,
    "Einsum": einsum,
    **SHAPE_RULES,
    **INDEX_RULES,
}
