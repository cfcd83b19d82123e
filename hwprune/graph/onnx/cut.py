"""An ONNX file of any width from a `CutPlan`: select the surviving indices, count them, write the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from hwprune.graph.onnx.depth import without_empty_branches
from hwprune.graph.onnx.labels import CutPlan, Labels
from hwprune.graph.onnx.network import (
    Array,
    Ints,
    Network,
    check_size,
    copy_node,
    skeleton,
    to_model,
)

Alive = npt.NDArray[np.bool_]  # one entry a unit, and a last one, True, that stands for `FIXED`


class Cutter:
    """Cuts one network many times; what does not depend on the widths is prepared once."""

    def __init__(self, plan: CutPlan) -> None:
        self.plan = plan
        self._skeleton = skeleton(plan.network)
        self._cuts = tuple(cut for cut in plan.tensors if cut.name in plan.network.tensors)
        changed = {cut.name for cut in self._cuts} | {constant.name for constant in plan.counts}
        changed |= {constant.name for constant in plan.indices}
        self._fixed = tuple(
            numpy_helper.from_array(array, name) for name, array in plan.network.tensors.items() if name not in changed
        )

    def cut_tensors(self, alive: Alive) -> dict[str, Array]:
        """The initialisers that differ from the dense ones."""
        kept = [_survivors(labels, alive) for labels in self.plan.layouts]
        changed: dict[str, Array] = {}
        for cut in self._cuts:
            changed[cut.name] = _select(self.plan.network.tensors[cut.name], [(d, kept[i]) for d, i in cut.dims])
        for constant in self.plan.counts:
            values = constant.base.copy()
            for position, layout in constant.entries:
                values[position] = len(kept[layout])
            changed[constant.name] = values
        for renumbered in self.plan.indices:
            indices = renumbered.indices
            if renumbered.kept is not None:
                indices = indices[kept[renumbered.kept]]
            changed[renumbered.name] = np.searchsorted(kept[renumbered.source], indices).astype(np.int64)
        return changed

    def network(self, alive: Alive) -> Network:
        """The cut network; of its shapes only those of inputs and outputs are known."""
        dense = self.plan.network
        nodes = list(dense.nodes)
        for index, count in self._group_counts(alive):
            nodes[index] = copy_node(nodes[index])
            _set_group(nodes[index], count)
        interface = {*dense.inputs, *dense.outputs}
        return replace(
            dense,
            nodes=tuple(nodes),
            tensors=dict(dense.tensors) | self.cut_tensors(alive),
            shapes={name: shape for name, shape in dense.shapes.items() if name in interface},
        )

    def model_bytes(self, alive: Alive) -> bytes:
        """The cut network as a serialised ONNX file, without the branches of which nothing is left."""
        changed = self.cut_tensors(alive)
        if not all(array.size for array in changed.values()):
            return bytes(to_model(without_empty_branches(self.network(alive))).SerializeToString())
        check_size([*changed.values()])
        model = onnx.ModelProto()
        model.CopyFrom(self._skeleton)
        for index, count in self._group_counts(alive):
            _set_group(model.graph.node[index], count)
        model.graph.initializer.extend(self._fixed)
        for name, array in changed.items():
            model.graph.initializer.add().CopyFrom(numpy_helper.from_array(array, name))
        return bytes(model.SerializeToString())

    def _group_counts(self, alive: Alive) -> list[tuple[int, int]]:
        return [(item.node, int(alive[self.plan.layouts[item.layout]].sum())) for item in self.plan.groups]


def _survivors(labels: Labels, alive: Alive) -> Ints:
    return np.flatnonzero(alive[labels])


def _select(array: Array, dims: Sequence[tuple[int, Ints]]) -> Array:
    """The chosen indices along several dimensions; leading runs are views, so that nothing is copied twice."""
    for dim, indices in dims:
        if len(indices) == array.shape[dim]:
            continue
        if len(indices) and indices[-1] == len(indices) - 1:
            array = array[(slice(None),) * dim + (slice(0, len(indices)),)]
        else:
            array = array.take(indices, axis=dim)
    return np.ascontiguousarray(array)


def _set_group(node: onnx.NodeProto, count: int) -> None:
    for item in node.attribute:
        if item.name == "group":
            item.i = count
