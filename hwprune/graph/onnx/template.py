"""The dense network exported once, and the ONNX file of any sub-network by cutting it.

A torch export takes seconds; a cut takes milliseconds, because the walk that finds what each removed unit means for
every initialiser and shape constant is done once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from hwprune.core.errors import GraphError
from hwprune.graph.onnx.cut import Cutter
from hwprune.graph.onnx.depth import without_empty_branches
from hwprune.graph.onnx.export import export_network, shared_names
from hwprune.graph.onnx.fold import fold_batch_norms
from hwprune.graph.onnx.labels import CannotCut, plan_cuts
from hwprune.graph.onnx.network import Array, Ints, to_model
from hwprune.graph.onnx.parts import Parts, Scale, ScaleLike
from hwprune.graph.onnx.units import Units, find_labels, verify_labels


class GroupLike(Protocol):
    """What a template reads of a `ChannelGroup`."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> int: ...
    @property
    def removable(self) -> bool: ...
    @property
    def skippable(self) -> bool: ...


class GraphLike(Protocol):
    """What a template reads of a `ChannelGraph`."""

    @property
    def groups(self) -> Sequence[GroupLike]: ...
    @property
    def example(self) -> tuple[Tensor, ...]: ...
    @property
    def query_scales(self) -> Sequence[ScaleLike]: ...
    def kept_indices(self, keep: Mapping[str, Sequence[int]]) -> Mapping[str, Mapping[int, Ints]]: ...


def whole_onnx(model: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """The module as ONNX at the widths it has, in eval mode, BatchNormalization folded. Raises `GraphError`."""
    folded, _ = fold_batch_norms(export_network(model, example), {})
    return bytes(to_model(without_empty_branches(folded)).SerializeToString())


class OnnxTemplate:
    """The dense network as ONNX and everything needed to cut it to any widths.

    In every file it makes, BatchNormalization is folded, the inputs and outputs are called `input` and `output`
    (numbered where there are several), and the name of a node begins with the dotted path of its module.
    """

    def __init__(self, parts: Parts) -> None:
        """From what `export` made; raises `GraphError` when the network cannot be cut."""
        self._parts = parts
        self._units = parts.units
        try:
            self._folded = Cutter(plan_cuts(*fold_batch_norms(parts.network, parts.labels)))
        except CannotCut as error:
            error.groups = parts.units.groups_of(error.labels)
            raise

    @classmethod
    def export(cls, model: nn.Module, graph: GraphLike) -> OnnxTemplate:
        """Export the dense module once, in eval mode and with the batch of `graph.example`; takes seconds.

        Raises `GraphError` when torch cannot export the module, or when the channels of a group cannot be followed
        through the exported operators; the message names the operator.
        """
        network = export_network(model, tuple(graph.example))
        removable = [group for group in graph.groups if group.removable]
        units = Units(
            tuple(group.name for group in removable),
            tuple(group.units for group in removable),
            frozenset(group.name for group in removable if group.skippable),
        )
        shapes = {name: network.shape(name) for name in network.tensors if name in network.stateful}
        shared = shared_names(model)
        alias = {other: name for name in shapes for other in shared[name]}

        def kept_indices(keep: Mapping[str, Sequence[int]]) -> dict[str, Mapping[int, Ints]]:
            return {alias.get(name, name): by_dim for name, by_dim in graph.kept_indices(keep).items()}

        labels = find_labels(units, kept_indices, shapes)
        verify_labels(units, labels, kept_indices, shapes)
        saved = model.state_dict().keys()
        state = {name: other for name in shapes for other in (*reversed(shared[name]), name) if other in saved}
        scales = tuple(Scale.of(item, alias) for item in graph.query_scales)
        return cls(Parts(network, units, labels, state, tuple(scale for scale in scales if scale.tensor in shapes)))

    @cached_property
    def dense(self) -> bytes:
        """The dense network, BatchNormalization folded."""
        return self._folded.model_bytes(self._units.alive({}))

    def at(self, keep: Mapping[str, Sequence[int]]) -> bytes:
        """The dense network cut to the units in `keep` (group -> indices that stay; absent groups stay whole).

        Where a skippable group keeps none, the residual branch is gone from the file.
        """
        return self._folded.model_bytes(self._units.alive(keep))

    def at_widths(self, widths: Mapping[str, int]) -> bytes:
        """The dense network cut to the first `widths[group]` units of each group: for measuring, not for shipping."""
        return self._folded.model_bytes(self._units.alive_first(widths))

    def with_state(self, keep: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> bytes:
        """The file to ship: the network cut to `keep` with the weights of the cut, finetuned module's state dict.

        Raises `GraphError`, naming the tensor and both shapes, when the state does not fit the cut.
        """
        alive = self._units.alive(keep)
        network = self._unfolded.network(alive)
        tensors = dict(network.tensors)
        for name, key in self._parts.state.items():
            if name in tensors:
                tensors[name] = _state_array(state, key, tensors[name])
        for scale in self._parts.scales:
            labels = self._parts.labels.get(scale.tensor, {}).get(scale.dim)
            ratio = self._units.kept_ratio(scale.group, alive)
            tensors[scale.tensor] = scale.undo(tensors[scale.tensor], labels, alive, ratio)
        folded, _ = fold_batch_norms(replace(network, tensors=tensors), {})
        return bytes(to_model(without_empty_branches(folded)).SerializeToString())

    @cached_property
    def _unfolded(self) -> Cutter:
        return Cutter(plan_cuts(self._parts.network, self._parts.labels))


def _state_array(state: Mapping[str, Tensor], key: str, cut: Array) -> Array:
    if key not in state:
        raise GraphError(f"the state has no tensor '{key}'", hint="pass state_dict() of the cut module")
    tensor = state[key].detach().cpu()
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16
    if array.shape != cut.shape:
        raise GraphError(
            f"'{key}' has the shape {array.shape} in the state, the cut network needs {cut.shape}",
            hint="the state and the kept units must come from the same cut",
        )
    return array.astype(cut.dtype)
