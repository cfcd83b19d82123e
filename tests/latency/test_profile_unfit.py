"""Networks whose outputs are wrong make no rows, and do not keep the others from being measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from hwprune.core.events import Caution, Event, OnEvent, ignore
from hwprune.core.measurement import Measurement, Protocol
from hwprune.devices.prepare import WrongOutputs
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable
from hwprune.testing.staircase import StaircaseBoard, StaircaseGraph, StaircaseTemplate, staircase_space


class WrongBoard(StaircaseBoard):
    """Computes networks with a stem of these widths wrong."""

    wrong: frozenset[int] = frozenset()

    def measure(
        self, models: Mapping[str, bytes], *, protocol: Protocol, seed: int = 0, on_event: OnEvent = ignore
    ) -> dict[str, Measurement]:
        if any(json.loads(data)["stem"] in self.wrong for data in models.values()):
            raise WrongOutputs("the outputs are off by 1")
        return super().measure(models, protocol=protocol, seed=seed, on_event=on_event)


def _profiled(folder: Path, board: WrongBoard, events: list[Event]) -> LatencyTable:
    graph, space = StaircaseGraph(), staircase_space()
    table = LatencyTable.obtain(folder, model_name="net", graph=graph, space=space, board=board, tile=16)  # type: ignore[arg-type]
    return profile(
        StaircaseTemplate(),  # type: ignore[arg-type]
        graph,  # type: ignore[arg-type]
        space,
        board,  # type: ignore[arg-type]
        table=table,
        samples=30,
        on_event=events.append,
    )


def test_a_wrong_network_is_left_out(tmp_path: Path) -> None:
    space = staircase_space()
    place = space.names.index("stem")
    stems = space.widths[place]
    board, events = WrongBoard(), list[Event]()
    board.wrong = frozenset(stems[:1])
    table = _profiled(tmp_path, board, events)
    measured = {row.widths[place] for row in table.rows}
    assert stems[0] not in measured
    assert len(table.rows) >= 10
    assert any(isinstance(event, Caution) and "left out of the table: the outputs" in event.text for event in events)


def test_where_the_first_network_is_wrong_nothing_is_measured(tmp_path: Path) -> None:
    board, events = WrongBoard(), list[Event]()
    board.wrong = frozenset(range(1000))
    with pytest.raises(WrongOutputs):
        _profiled(tmp_path, board, events)
    assert not any(isinstance(event, Caution) for event in events)
