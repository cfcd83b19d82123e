"""`hwprune inspect`: which channels of a network can be cut, which must go together, and what stays whole, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, example_shape, register
from hwprune.core.events import Caution, Event
from hwprune.core.units import format_count
from hwprune.report.text import facts, table

if TYPE_CHECKING:
    from hwprune.core.widths import ChannelGroup
    from hwprune.graph import ChannelGraph

EXAMPLE = "hwprune inspect mobilenetv2 --input 1x3x96x96"
MOST_LAYERS = 2  # of a group, by name; --json has them all


def inspect(
    call: Call,
    model: flags.Model = None,
    data: flags.Data = None,
    input: flags.Input = None,
    protect: flags.Protect = None,
) -> Outcome:
    """List the channel groups of a network: what a search may cut, and what stays whole, and why.

    Layers of one group keep and lose the same channels. The names are those that `predict --widths` and `--protect`
    take. Every group that can be cut was proved: the cut network and the masked one agree.
    """
    from hwprune import api

    with call.watch() as tell:

        def cautions(event: Event) -> None:  # what the notes say is the answer of this verb
            if isinstance(event, Caution):
                tell(event)

        graph = api.inspect(model, example_shape(input), data=data, protect=protect, on_event=cautions)
    return Outcome(_text(graph), _document(graph))


def _text(graph: ChannelGraph) -> str:
    dense = graph.dense()
    rows = [(group.name, _units(group), _layers(group), _remark(group)) for group in graph.groups]
    units = f"{sum(group.units for group in graph.removable)} of {sum(group.units for group in graph.groups)} units"
    lines = [
        ("input", ", ".join("x".join(map(str, item.shape)) for item in graph.example)),
        ("size", f"{format_count(graph.params(dense))} params, {format_count(graph.macs(dense))} MACs"),
        ("groups", f"{len(graph.removable)} of {len(graph.groups)} can be cut, {units}"),
    ]
    parts = [facts(lines), table(("CHANNEL GROUP", "UNITS", "LAYERS", ""), rows, left=(0, 2, 3))]
    pins = [pin for pin in graph.pins if not pin.expected]
    if pins:
        told = [f"  {pin.channels} channels, {pin.place}: {pin.reason}" for pin in pins]
        parts.append("\n".join(["channels that stay whole:", *told]))
    return "\n\n".join(parts)


def _units(group: ChannelGroup) -> str:
    return str(group.units) if group.unit_channels == 1 else f"{group.units} x {group.unit_channels}"


def _layers(group: ChannelGroup) -> str:
    more = len(group.producers) - MOST_LAYERS
    named = ", ".join(group.producers[:MOST_LAYERS])
    return f"{named}, {more} more" if more > 0 else named


def _remark(group: ChannelGroup) -> str:
    if not group.removable:
        return f"stays whole: {group.reason}"
    return "--depth: may go with its branch" if group.skippable else ""


def _document(graph: ChannelGraph) -> dict[str, Any]:
    dense = graph.dense()
    return {
        "input_shapes": [list(item.shape) for item in graph.example],
        "params": graph.params(dense),
        "macs": graph.macs(dense),
        "groups": [asdict(group) for group in graph.groups],
        "pins": [asdict(pin) for pin in graph.pins],
    }


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, inspect, example=EXAMPLE)
