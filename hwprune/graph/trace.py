"""`trace`: from a model and an example input to its `ChannelGraph`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from hwprune.core.errors import GraphError, did_you_mean
from hwprune.core.widths import ChannelGroup
from hwprune.graph.build import build
from hwprune.graph.channel_graph import ChannelGraph
from hwprune.graph.groups import find_groups
from hwprune.graph.labels import Pin
from hwprune.graph.tape import record_run
from hwprune.graph.verify import verified


def trace(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    verify: bool = True,
    protect: Sequence[str] = (),
    allow_inexact: bool = False,
) -> ChannelGraph:
    """The channel groups of a model, found by one forward run on the example input. The model is untouched.

    `verify`: prove on the example that cutting each group equals masking it, and pin the groups where it does not.
    `protect`: groups or modules whose output channels stay, also those of every module inside, and patterns of them
    (`layer*.0`). `allow_inexact`: let groups be removed that a layer or group normalisation takes its statistics over;
    their `reason` says so, and `cut` then differs from `mask` until finetuning. Raises `GraphError` if the model does
    not run, cannot be copied, or has nothing that can be removed.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or not all(isinstance(item, Tensor) for item in inputs):
        raise GraphError(
            "the example input is not a tensor or a tuple of tensors", hint="trace(model, torch.randn(...))"
        )
    structure = find_groups(record_run(model, inputs), allow_inexact=allow_inexact)
    pinned = _protected(structure.groups, protect)
    if verify:
        return verified(structure, model, inputs, pinned)
    return build(structure, model, inputs, pinned)


def _protected(groups: Sequence[ChannelGroup], protect: Sequence[str]) -> dict[str, Pin]:
    """The pins of groups that are, or are made by, what a protected name or pattern stands for."""
    pinned: dict[str, Pin] = {}
    for name in (protect,) if isinstance(protect, str) else protect:
        found = [group for group in groups if any(_is_within(item, name) for item in (group.name, *group.producers))]
        if not found:
            layers = {item for group in groups for item in (group.name, *group.producers)}
            known = sorted(layers | {layer.rpartition(".")[0] for layer in layers} - {""})
            raise GraphError(
                f"nothing to protect: no group or module '{name}'.{did_you_mean(name, known)}",
                hint=f"groups: {', '.join(group.name for group in groups)}",
            )
        for group in found:
            if group.removable:
                channels = group.units * group.unit_channels
                pinned.setdefault(group.name, Pin("protect", name, "", channels, "protected on request"))
    return pinned


def _is_within(module: str, name: str) -> bool:
    """True if `name` is the module, one that it lies in, or a pattern for either, such as `layer*.0`."""
    return module == name or fnmatchcase(module, name) or fnmatchcase(module, f"{name}.*")
