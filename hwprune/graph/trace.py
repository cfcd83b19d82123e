"""`trace`: from a model and an example input to its `ChannelGraph`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwprune.core.errors import GraphError, did_you_mean
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
    `protect`: groups or modules whose output channels stay. `allow_inexact`: let groups be removed that a layer or
    group normalisation takes its statistics over; their `reason` says so, and `cut` then differs from `mask` until
    finetuning. Raises `GraphError` if the model does not run, cannot be copied, or has nothing that can be removed.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or not all(isinstance(item, Tensor) for item in inputs):
        raise GraphError(
            "the example input is not a tensor or a tuple of tensors", hint="trace(model, torch.randn(...))"
        )
    structure = find_groups(record_run(model, inputs), allow_inexact=allow_inexact)
    pinned = _protected(structure.groups_by_producer(), protect)
    if verify:
        return verified(structure, model, inputs, pinned)
    return build(structure, model, inputs, pinned)


def _protected(producers: dict[str, tuple[str, ...]], protect: Sequence[str]) -> dict[str, Pin]:
    """The pins of groups that are, or are made by, a protected name; a module protects everything inside it."""
    pinned: dict[str, Pin] = {}
    for name in protect:
        found = [
            group
            for group, makers in producers.items()
            if any(item == name or item.startswith(f"{name}.") for item in (group, *makers))
        ]
        if not found:
            known = [*producers, *(maker for makers in producers.values() for maker in makers)]
            raise GraphError(
                f"nothing to protect: no group or module '{name}'.{did_you_mean(name, known)}",
                hint=f"groups: {', '.join(producers)}",
            )
        pinned.update({group: Pin("protect", name, "", 0, "protected on request") for group in found})
    return pinned
