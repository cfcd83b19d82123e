"""In-network layer times of the dense and the pruned network, for the waterfall that says what pruning brought where.

The two are profiled in many short sessions in turn. Profiled once each, one after the other, they may be a quarter
apart on a machine that others use, which would read as layers that became faster without having been pruned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hwprune.core.errors import DeviceError
from hwprune.core.events import Note
from hwprune.core.measurement import LayerTime
from hwprune.core.statistics import median
from hwprune.devices import AbstractBoard
from hwprune.methods._base import Answer
from hwprune.report.run_data import LayerProfile, NamedOp
from hwprune.search.tile import padding_step
from hwprune.search.workshop import Workshop

RUNS = 20  # of a network in a session
TURNS = 16  # even, so that a machine which slows steadily favours none of two
LIMIT_S = 10.0  # no further turn begins after so long: some runtimes take that to open one session

Layers = tuple[LayerTime, ...]


def layer_profile(shop: Workshop, shipped: bytes, answer: Answer) -> LayerProfile | None:
    """In-network layer times of both networks with their operators; None where the runtime gives none."""
    try:
        found = layers_in_turn(shop.board, {"dense": shop.template.dense, "pruned": shipped})
    except DeviceError as error:
        shop.folder.emit(Note(f"no layer times: {error.message}"))
        return None
    if not all(found.values()):
        shop.folder.emit(Note(f"no layer times: {shop.board.target.runtime} gives none"))
        return None
    return LayerProfile(
        padding_step(shop.board, shop.table, shop.settings.seed),
        found["dense"],
        found["pruned"],
        _ops(shop, shop.table.space.dense()),
        _ops(shop, answer.widths),
    )


def layers_in_turn(board: AbstractBoard, models: Mapping[str, bytes]) -> dict[str, Layers]:
    """Layer times of several networks: of each layer the median over sessions of which all networks had as many.

    The order turns round from turn to turn.
    """
    sessions: dict[str, list[Layers]] = {name: [] for name in models}
    begin = time.monotonic()
    for turn in range(TURNS):
        for name in list(models)[:: 1 if turn % 2 == 0 else -1]:
            sessions[name].append(board.layers(models[name], runs=RUNS))
        if time.monotonic() - begin > LIMIT_S:
            break
    return {name: _medians(found) for name, found in sessions.items()}


def _medians(sessions: Sequence[Layers]) -> Layers:
    """The median time of each layer over the sessions that have the layers of the first one."""
    names = [layer.name for layer in sessions[0]]
    alike = [found for found in sessions if [layer.name for layer in found] == names]
    columns = zip(*alike, strict=True)
    return tuple(replace(column[0], latency_ms=median([layer.latency_ms for layer in column])) for column in columns)


def _ops(shop: Workshop, widths: Mapping[str, int]) -> tuple[NamedOp, ...]:
    templates = shop.graph.op_templates
    return tuple(NamedOp(t.name, op) for t, op in zip(templates, shop.graph.ops(widths), strict=True))
