"""Which unit every index of every value in an ONNX network belongs to, and what a cut has to rewrite.

Each dimension of a value carries labels: one integer an index, the unit that governs it, or `FIXED`. A walk over the
nodes in topological order derives the labels of every value from those of the weights, once. What it leaves behind is
a `CutPlan`: arrays to select from, shape constants and attributes that are counts of surviving labels. Cutting to any
keep set is then arithmetic on the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import onnx

from hwprune.core.errors import GraphError
from hwprune.graph.onnx.network import Array, Ints, Network, attribute, copy_node, integer

Labels = npt.NDArray[np.int32]
Dims = tuple[Labels | None, ...]  # one entry a dimension; None: every index stays
FIXED = -1


@dataclass(frozen=True)
class TensorCut:
    """An initialiser of which the indices with living labels are taken: `dims` holds (dimension, layout)."""

    name: str
    source: str
    dims: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CountConstant:
    """An integer constant of which some entries are counts of living labels: `entries` holds (position, layout)."""

    name: str
    base: Ints
    entries: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class IndexConstant:
    """Indices into a cut dimension: those of `indices` that live (`kept`, None: all), renumbered within `source`."""

    name: str
    indices: Ints
    source: int
    kept: int | None


@dataclass(frozen=True)
class GroupCount:
    """The attribute `group` of a convolution: the number of living labels."""

    node: int
    layout: int


@dataclass(frozen=True)
class CutPlan:
    """What has to be rewritten in a network when units are removed, as functions of the labels that live.

    `network` is the dense network, with constants that must differ between their readers already told apart.
    """

    network: Network
    layouts: tuple[Labels, ...]
    tensors: tuple[TensorCut, ...]
    counts: tuple[CountConstant, ...]
    indices: tuple[IndexConstant, ...]
    groups: tuple[GroupCount, ...]


Rule = Callable[["Walk", onnx.NodeProto], None]


@dataclass
class Walk:
    """The state of the walk: labels so far and the plan so far; the rules of the operators write into it."""

    network: Network
    rules: Mapping[str, Rule]
    labels: dict[str, Dims] = field(default_factory=dict)
    layouts: dict[bytes, int] = field(default_factory=dict)
    layout_arrays: list[Labels] = field(default_factory=list)
    tensors: dict[str, TensorCut] = field(default_factory=dict)
    counts: list[CountConstant] = field(default_factory=list)
    indices: list[IndexConstant] = field(default_factory=list)
    groups: list[GroupCount] = field(default_factory=list)
    new_tensors: dict[str, Array] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def shape(self, name: str) -> tuple[int, ...]:
        """The dense shape of a value."""
        return self.network.shape(name)

    def dims(self, name: str) -> Dims:
        """The labels of a value, one entry a dimension."""
        return self.labels.get(name) or (None,) * len(self.shape(name))

    def set(self, name: str, dims: Dims) -> None:
        """Label the output `name`; `GraphError` when the labels do not fit its dense shape."""
        shape = self.shape(name)
        lengths = tuple(size if labels is None else len(labels) for labels, size in zip(dims, shape, strict=True))
        if lengths != shape:
            raise GraphError(f"labels of the ONNX value '{name}' fit the shape {lengths}, it has {shape}")
        if any(labels is not None for labels in dims):
            self.labels[name] = tuple(plain(labels) for labels in dims)

    def is_cut(self, name: str) -> bool:
        """Whether any index of a value can be removed."""
        return name in self.labels

    def constant(self, name: str) -> Array | None:
        """The value of an anonymous constant, or None."""
        return self.network.constant(name)

    def layout(self, labels: Labels) -> int:
        """The number of a label array in the plan; equal arrays have equal numbers."""
        key = labels.tobytes()
        if key not in self.layouts:
            self.layouts[key] = len(self.layout_arrays)
            self.layout_arrays.append(labels)
        return self.layouts[key]

    def match(self, node: onnx.NodeProto, index: int, dims: Dims) -> None:
        """Demand that an input carries exactly these labels; an anonymous constant is cut to carry them.

        Raises `GraphError` when two sides of an operator would lose different indices.
        """
        name = node.input[index]
        if name in self.network.tensors and name not in self.network.stateful and not self.is_cut(name):
            node.input[index] = self._cut_constant(name, dims)
        elif not same_dims(self.dims(name), dims) and not self._widen(name, dims):
            refuse(node, f"its inputs would lose different indices ('{name}')")

    def _cut_constant(self, name: str, dims: Dims) -> str:
        cuts = tuple((dim, self.layout(labels)) for dim, labels in enumerate(dims) if labels is not None)
        if not cuts:
            return name
        cut = f"{name}:" + ",".join(f"{dim}.{layout}" for dim, layout in cuts)
        self.tensors.setdefault(cut, TensorCut(cut, name, cuts))
        return cut

    def is_padding(self, name: str) -> bool:
        """Whether a value was padded with constants: then what was padded on can follow other labels."""
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Concat":
            return any(self.constant(part) is not None for part in maker.input)
        return maker is not None and maker.op_type == "Pad" and attribute(maker, "mode", b"constant") == b"constant"

    def _widen(self, name: str, dims: Dims) -> bool:
        """Let what pads a value follow `dims`, when all else in it already does and nobody has read it yet."""
        if not self.is_padding(name) or name in self.read:
            return False
        return self._widen_concat(name, dims) if self.makers[name].op_type == "Concat" else self._widen_pad(name, dims)

    def _widen_concat(self, name: str, dims: Dims) -> bool:
        maker, own = self.makers[name], self.dims(name)
        axis = integer(maker, "axis", 0) % len(dims)
        size = self.shape(name)[axis]
        ends = np.cumsum([self.shape(part)[axis] for part in maker.input])[:-1]
        wanted, present = (np.split(explicit(each[axis], size), ends) for each in (dims, own))
        changed = [i for i, pair in enumerate(zip(wanted, present, strict=True)) if not np.array_equal(*pair)]
        others = (*dims[:axis], own[axis], *dims[axis + 1 :])
        if not same_dims(others, own) or any(self.constant(maker.input[i]) is None for i in changed):
            return False
        for i in changed:
            maker.input[i] = self._cut_constant(maker.input[i], (*dims[:axis], wanted[i], *dims[axis + 1 :]))
        self.set(name, dims)
        return True

    def _widen_pad(self, name: str, dims: Dims) -> bool:
        amounts = self.constant(self.makers[name].input[1])
        if amounts is None or amounts.min() < 0:
            return False
        rank = len(dims)
        counted: dict[int, Labels] = {}
        for dim, (new, old) in enumerate(zip(dims, self.dims(name), strict=True)):
            before, after = int(amounts[dim]), int(amounts[dim + rank])
            size = self.shape(name)[dim]
            new, old = explicit(new, size), explicit(old, size)
            if not np.array_equal(new[before : size - after], old[before : size - after]):
                return False
            if before or after:
                counted |= {dim: new[:before], dim + rank: new[size - after :]}
        self.set(name, dims)
        self.count(self.makers[name], 1, amounts, counted)
        return True

    def count(self, node: onnx.NodeProto, index: int, base: Array, counted: Mapping[int, Labels]) -> None:
        """Replace an integer input by a constant whose entries in `counted` are counts of living labels."""
        entries = tuple((position, self.layout(labels)) for position, labels in sorted(counted.items()))
        if not entries:
            return
        while len(node.input) <= index:
            node.input.append("")
        name = f"{node.name}:in{index}"
        node.input[index] = name
        self.new_tensors[name] = base.astype(np.int64)
        self.counts.append(CountConstant(name, base.astype(np.int64), entries))

    def renumber(self, node: onnx.NodeProto, index: int, indices: Ints, source: Labels, kept: Labels | None) -> None:
        """Replace an input by indices into a cut dimension."""
        name = f"{node.name}:in{index}"
        node.input[index] = name
        self.new_tensors[name] = indices
        layout = None if kept is None else self.layout(kept)
        self.indices.append(IndexConstant(name, indices, self.layout(source), layout))

    def count_groups(self, labels: Labels) -> None:
        """Let the current node's `group` attribute be the number of living labels."""
        self.groups.append(GroupCount(len(self.nodes), self.layout(labels)))

    def visit(self, original: onnx.NodeProto) -> None:
        """Label the outputs of the next node, and rewrite its inputs where they depend on the widths."""
        node = copy_node(original)
        if any(self.is_cut(name) for name in node.input):
            rule = self.rules.get(node.op_type)
            try:
                if rule is None:
                    refuse(node, "there is no rule for this operator")
                rule(self, node)
            except CannotCut as error:
                error.labels = self._labels_into(original)
                raise
        self.nodes.append(node)
        self.makers.update((name, node) for name in node.output)
        self.read.update(node.input)

    def _labels_into(self, node: onnx.NodeProto) -> frozenset[int]:
        """The units that the inputs of a node depend on."""
        dims = [labels for name in node.input if name for labels in self.labels.get(name, ()) if labels is not None]
        return frozenset(int(label) for labels in dims for label in np.unique(labels) if label != FIXED)

    def plan(self) -> CutPlan:
        """The finished plan."""
        tensors = dict(self.network.tensors) | self.new_tensors
        tensors |= {cut.name: self.network.tensors[cut.source] for cut in self.tensors.values()}
        return CutPlan(
            network=replace(self.network, nodes=tuple(self.nodes), tensors=tensors).without_unused(),
            layouts=tuple(self.layout_arrays),
            tensors=tuple(self.tensors.values()),
            counts=tuple(self.counts),
            indices=tuple(self.indices),
            groups=tuple(self.groups),
        )


def plan_cuts(network: Network, labels: Mapping[str, Mapping[int, Labels]]) -> CutPlan:
    """Walk the dense network from the labels of its weights (`name -> dim -> labels`) to a `CutPlan`.

    Raises `GraphError`, naming operator and node, where removed indices meet an operator without a rule, inputs would
    lose different indices, or an output of the network would shrink.
    """
    from hwprune.graph.onnx.rules import RULES

    walk = Walk(network, RULES)
    for name, by_dim in labels.items():
        if name in network.tensors:
            walk.set(name, tuple(by_dim.get(dim) for dim in range(network.tensors[name].ndim)))
            cuts = tuple((dim, walk.layout(array)) for dim, array in enumerate(walk.dims(name)) if array is not None)
            if cuts:
                walk.tensors[name] = TensorCut(name, name, cuts)
    for node in network.nodes:
        walk.visit(node)
    for name in network.outputs:
        if walk.is_cut(name):
            raise GraphError(f"the ONNX output '{name}' would lose indices", hint="protect the last layer")
    return walk.plan()


class CannotCut(GraphError):
    """An operator whose inputs would lose indices in a way that nobody can write down.

    `labels` are the units that reach it, `groups` the channel groups they belong to, once somebody knows those.
    """

    labels: frozenset[int] = frozenset()
    groups: tuple[str, ...] = ()


def refuse(node: onnx.NodeProto, reason: str) -> NoReturn:
    """Raise the error for a node that cannot be cut."""
    raise CannotCut(
        f"ONNX node '{node.name}' ({node.op_type}) cannot be cut: {reason}",
        hint="protect the channel groups that reach it: trace(..., protect=[...])",
    )


def plain(labels: Labels | None) -> Labels | None:
    """None in place of labels that are all `FIXED`."""
    return None if labels is None or bool((labels == FIXED).all()) else labels


def explicit(labels: Labels | None, size: int) -> Labels:
    """The label array of a dimension, all `FIXED` for None."""
    return np.full(size, FIXED, np.int32) if labels is None else labels


def same(first: Labels | None, second: Labels | None) -> bool:
    """Whether two dimensions lose the same indices for every keep set."""
    if first is None or second is None:
        return first is None and second is None
    return first is second or np.array_equal(first, second)


def same_dims(first: Dims, second: Dims) -> bool:
    """`same` for every dimension."""
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def reshape_labels(shape: tuple[int, ...], dims: Dims, target: tuple[int, ...]) -> Dims | None:
    """The labels of a tensor of `shape` after a reshape to `target`; None when they do not factor into dimensions.

    Dimensions are grouped into the smallest blocks of equal product. Within a block the labels of all elements must
    vary along one dimension of the target only: then the surviving elements are an outer product of dimensions.
    """
    result: list[Labels | None] = []
    for sources, targets in _blocks(shape, target):
        factored = _factor(
            tuple(shape[dim] for dim in sources),
            tuple(dims[dim] for dim in sources),
            tuple(target[dim] for dim in targets),
        )
        if factored is None:
            return None
        result.extend(factored)
    return tuple(result)


def _blocks(shape: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[range, range]]:
    blocks = []
    i = j = 0
    while i < len(shape) or j < len(target):
        first_i, first_j = i, j
        left, right = 1, 1
        if i < len(shape) and j < len(target):
            left, right, i, j = shape[i], target[j], i + 1, j + 1
        while left != right or (i == len(shape)) != (j == len(target)):
            if (left <= right and i < len(shape)) or j == len(target):
                left, i = left * shape[i], i + 1
            else:
                right, j = right * target[j], j + 1
        blocks.append((range(first_i, i), range(first_j, j)))
    return blocks


def _factor(shape: tuple[int, ...], dims: Dims, target: tuple[int, ...]) -> Dims | None:
    cut = [index for index, labels in enumerate(dims) if labels is not None]
    if not cut:
        return (None,) * len(target)
    labels = dims[cut[0]]
    if len(cut) > 1 or labels is None:
        return dims if shape == target else None
    along = [1] * len(shape)
    along[cut[0]] = shape[cut[0]]
    elements = np.broadcast_to(labels.reshape(along), shape).reshape(target)
    for dim in sorted(range(len(target)), key=lambda dim: target[dim] == 1):
        others = tuple(slice(None) if other == dim else slice(0, 1) for other in range(len(target)))
        if bool((elements == elements[others]).all()):
            return tuple(elements[others].ravel() if other == dim else None for other in range(len(target)))
    return None
