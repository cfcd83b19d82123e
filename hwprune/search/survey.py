"""A network on a device, ready to be measured at any width: what `profile`, `predict` and `search` begin with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from hwprune.core.errors import UsageError
from hwprune.core.events import Caution, Note, OnEvent, ignore
from hwprune.core.measurement import Target
from hwprune.core.widths import SearchSpace
from hwprune.devices import AbstractBoard, check, connect
from hwprune.graph import ChannelGraph, OnnxTemplate, trace
from hwprune.graph.labels import Pin
from hwprune.graph.onnx.labels import CannotCut
from hwprune.latency.table import LatencyTable
from hwprune.search.drift import use_reference
from hwprune.search.tile import model_step, target_space

PINS_TOLD = 5  # places that keep channels whole are told one by one, up to so many


@dataclass(frozen=True)
class Survey:
    """The traced network, its ONNX template, the search space on the device's tile, the open device, and the table."""

    graph: ChannelGraph
    template: OnnxTemplate
    space: SearchSpace
    board: AbstractBoard
    table: LatencyTable


@contextlib.contextmanager
def survey(
    model: nn.Module,
    example: Tensor,
    *,
    name: str,
    target: Target,
    tables: Path,
    min_keep: float,
    depth: bool = False,
    protect: Sequence[str] = (),
    tile: int = 0,
    seed: int = 0,
    on_event: OnEvent = ignore,
) -> Iterator[Survey]:
    """Trace, export once, open the device, find the tile (0: by a probe), and find or create the table.

    With `depth` whole residual branches may go: width 0 is in the space of the groups inside them. `protect`: layers
    whose channels all stay.
    Raises `GraphError` for a model that cannot be traced, `UsageError` when nothing can be cut and `DeviceError` for
    a device that cannot be measured.
    """
    check(target)
    graph, template = traced_and_exported(model, example, on_event, protect=protect)
    with connect(target) as board:
        space, tile = target_space(
            graph, board, tables, tile=tile, min_keep=min_keep, depth=depth, seed=seed, on_event=on_event
        )
        if depth:
            on_event(Note(f"{sum(group.skippable for group in space.groups)} residual branches may go as a whole"))
        if space.size == 1:
            raise UsageError(
                f"no channel group of {name} has two widths at a tile of {tile} channels",
                hint="choose a wider network, or --tile 1 --min-keep 0.1",
            )
        step = model_step(board, tables, tile, seed, on_event)
        table = LatencyTable.obtain(
            tables, model_name=name, graph=graph, space=space, board=board, tile=tile, step=step
        )
        use_reference(board, table, template, seed=seed, on_event=on_event)
        yield Survey(graph, template, space, board, table)


def traced_and_exported(
    model: nn.Module, example: Tensor, on_event: OnEvent = ignore, *, protect: Sequence[str] = ()
) -> tuple[ChannelGraph, OnnxTemplate]:
    """The channel graph and the network as ONNX at any width of it; layers to `protect` keep all channels.

    Groups that torch can cut but that reach an ONNX operator which cannot be cut are traced again as protected.
    """
    protected = (protect,) if isinstance(protect, str) else tuple(protect)
    while True:
        graph = traced(model, example, on_event, protect=protected)
        try:
            return graph, OnnxTemplate.export(model, graph)
        except CannotCut as error:
            if not error.groups:
                raise
            protected += error.groups
            on_event(Caution(f"{error.message}; kept whole: {', '.join(error.groups)}"))


def traced(
    model: nn.Module, example: Tensor, on_event: OnEvent = ignore, *, protect: Sequence[str] = ()
) -> ChannelGraph:
    """The channel graph; `UsageError` with the reasons when no group can be cut."""
    graph = trace(model, example, protect=protect)
    removable = [group for group in graph.groups if group.removable]
    units = sum(group.units for group in removable)
    text = f"{len(removable)} of {len(graph.groups)} channel groups can be cut, {units} units"
    on_event(Note(text))
    _tell_pins(graph.pins, on_event)
    if not removable:
        reasons = "; ".join(dict.fromkeys(group.reason for group in graph.groups if group.reason))
        raise UsageError(
            f"no channel group of this network can be cut: {reasons or 'it has no channels'}",
            hint="give convolutions or linear layers whose outputs are not the network's own outputs",
        )
    return graph


def _tell_pins(pins: Sequence[Pin], on_event: OnEvent) -> None:
    """What of the network stays whole, and why; that its outputs do, or what was asked for, goes without saying."""
    told = [pin for pin in pins if not pin.expected]
    for pin in told[:PINS_TOLD]:
        on_event(Note(f"{pin.channels} channels stay whole, {pin.place}: {pin.reason}"))
    if len(told) > PINS_TOLD:
        more = len(told) - PINS_TOLD
        on_event(Note(f"{more} more place(s) keep channels whole; hwprune.trace(model, x).pins lists all"))
