"""Numbers that modules keep beside their weights (a head size, the sizes of a split) and that must follow a cut.

They are found by their dense value in the modules around a group's weights. A guess is only kept when the self-check
passes with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hwprune.core.ops import ChannelCount
from hwprune.graph.channel_graph import AttributeEdit, ChannelGraph

_LEVELS = 2


def candidate_edits(model: nn.Module, graph: ChannelGraph, name: str) -> tuple[AttributeEdit, ...]:
    """The attributes near the group whose value is one of the group's sizes, as functions of the widths."""
    counts = _sizes(graph, name)
    edits = []
    for path in _modules(model, graph, name):
        module = model.get_submodule(path)
        for attribute, index, value in _numbers(module):
            if value in counts:
                edits.append(AttributeEdit(path, attribute, index, counts[value]))
    return tuple(edits)


def _sizes(graph: ChannelGraph, name: str) -> dict[int, ChannelCount]:
    """Dense size -> channel count, for all sizes in the network that the group has a part in."""
    counts = [ChannelCount(0, ((name, 1),))]
    for op in graph.op_templates:
        counts += [op.in_channels, op.out_channels]
    for parameter in graph.parameter_templates:
        counts += parameter.shape
    dense = dict(graph.dense())
    result: dict[int, ChannelCount] = {}
    for count in counts:
        if any(group == name for group, _ in count.terms):
            result.setdefault(count.at(dense), count)
    return result


def _modules(model: nn.Module, graph: ChannelGraph, name: str) -> list[str]:
    """The modules of the user's (or another library's) code right above the group's weights, nearest first."""
    known = dict(model.named_modules())
    found: dict[str, None] = {}
    for _, item in graph.slices[name]:
        path, levels = item.parameter, 0
        while path and levels < _LEVELS:
            path = path.rpartition(".")[0]
            if not _is_library(known[path]):
                found[path] = None
                levels += 1
            for child, module in known[path].named_children():
                if isinstance(module, nn.Unflatten):
                    found[f"{path}.{child}" if path else child] = None
    return list(found)


def _is_library(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.MultiheadAttention)


def _numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield attribute, None, value
        elif isinstance(value, (tuple, list)) and all(type(item) is int for item in value):
            for index, item in enumerate(value):
                yield attribute, index, item
