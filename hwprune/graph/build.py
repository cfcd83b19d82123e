"""Puts a `ChannelGraph` together from the tape's structure and the groups found not to be removable after all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from hwprune.core.ops import ChannelCount, OpTemplate, ParameterTemplate
from hwprune.graph.channel_graph import AttributeEdit, ChannelGraph
from hwprune.graph.groups import Structure
from hwprune.graph.labels import Pin
from hwprune.graph.layout import Ids


def build(
    structure: Structure,
    model: nn.Module,
    example: tuple[Tensor, ...],
    pinned: Mapping[str, Pin],
    edits: tuple[AttributeEdit, ...] = (),
) -> ChannelGraph:
    """The graph with some groups pinned on top of those the tape pinned."""
    groups = tuple(
        replace(group, removable=False, reason=pinned[group.name].reason) if group.name in pinned else group
        for group in structure.groups
    )
    alive = np.array([group.removable for group in groups] + [False])
    counter = _Counter(structure, np.where(alive[structure.group_of], structure.group_of, -1))
    removable = {group.name for group in groups if group.removable}
    return ChannelGraph(
        groups=groups,
        pins=(*structure.pins, *pinned.values()),
        op_templates=_op_templates(structure, counter),
        parameter_templates=_parameter_templates(structure, model, counter),
        example=example,
        slices={group.name: structure.slices(n) for n, group in enumerate(groups) if group.removable},
        sizes={name: tuple(tensor.shape) for name, tensor in _tensors(model).items()},
        aliases=_aliases(model),
        edits=(*_counted(structure, counter), *(e for e in edits if all(g in removable for g, _ in e.value.terms))),
        query_scales=tuple(item for item in structure.query_scales() if item.group in removable),
    )


def _counted(structure: Structure, counter: _Counter) -> tuple[AttributeEdit, ...]:
    counted = ((path, attribute, counter.count(ids)) for path, attribute, ids in structure.record.counted)
    return tuple(AttributeEdit(path, attribute, None, value) for path, attribute, value in counted if value.terms)


class _Counter:
    def __init__(self, structure: Structure, group_of: Ids) -> None:
        self.groups = structure.groups
        self.group_of = group_of

    def count(self, ids: Ids) -> ChannelCount:
        """The number of channels with these labels as a function of the widths."""
        numbers, amounts = np.unique(self.group_of[ids], return_counts=True)
        constant = 0
        terms = []
        for number, amount in zip(numbers.tolist(), amounts.tolist(), strict=True):
            if number < 0:
                constant = amount
            else:
                group = self.groups[number]
                terms.append((group.name, amount // group.units))
        return ChannelCount(constant, tuple(terms))


def _op_templates(structure: Structure, counter: _Counter) -> tuple[OpTemplate, ...]:
    return tuple(
        OpTemplate(
            op.name,
            op.kind,
            counter.count(op.in_ids),
            counter.count(op.out_ids),
            op.kernel,
            op.stride,
            ChannelCount(op.groups) if isinstance(op.groups, int) else counter.count(op.groups),
            op.in_size,
            op.out_size,
            op.batch,
            op.fused,
        )
        for op in structure.record.ops
    )


def _parameter_templates(structure: Structure, model: nn.Module, counter: _Counter) -> tuple[ParameterTemplate, ...]:
    sources = {(source.name, source.dim): source for source in structure.record.labels.sources}
    result = []
    for name, parameter in model.named_parameters():
        shape = []
        for dim, size in enumerate(parameter.shape):
            source = sources.get((name, dim))
            if source is None:
                shape.append(ChannelCount(size))
            else:
                shape.append(counter.count(np.arange(source.first, source.first + size)))
        result.append(ParameterTemplate(name, tuple(shape)))
    return tuple(result)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For tensors registered under several names: first name -> the others."""
    first: dict[int, str] = {}
    result: dict[str, tuple[str, ...]] = {}
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in every:
        known = first.setdefault(id(tensor), name)
        if known != name:
            result[known] = (*result.get(known, ()), name)
    return result
