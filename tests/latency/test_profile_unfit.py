"""Networks whose outputs are wrong make no rows, and do not keep the others from being measured."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from hwprune.core.events import Caution, Event, OnEvent, ignore
from hwprune.core.measurement import Measurement, Protocol
from hwprune.devices.prepare import WrongOutputs
from hwprune.latency.plan import plan_widths
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable
from hwprune.runtimes._tensorrt.errors import DeviceLost
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


def _profiled(folder: Path, board: StaircaseBoard, events: list[Event]) -> LatencyTable:
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


class DeadlyBoard(StaircaseBoard):
    """Is lost to this process at one network, and from then on."""

    deadly: tuple[int, ...] = ()

    def measure(
        self, models: Mapping[str, bytes], *, protocol: Protocol, seed: int = 0, on_event: OnEvent = ignore
    ) -> dict[str, Measurement]:
        for data in models.values():
            self._die(data)
        return super().measure(models, protocol=protocol, seed=seed, on_event=on_event)

    def _die(self, data: bytes) -> None:
        if tuple(json.loads(data).values()) == self.deadly:
            raise DeviceLost("the GPU is lost to this process", code=700)


def _runs(folder: Path, deadly: tuple[int, ...]) -> tuple[list[bool], list[Event], LatencyTable]:
    """Whether each run of the same command ended by the error, until one does not; the events of the last."""
    died: list[bool] = []
    while True:
        board, events = DeadlyBoard(), list[Event]()
        board.deadly = deadly
        try:
            return [*died, False], events, _profiled(folder, board, events)
        except DeviceLost:
            died.append(True)
            assert len(died) < 5


def test_a_network_that_costs_a_process_its_gpu_is_left_out_after_the_second(tmp_path: Path) -> None:
    planned = [widths.values_tuple() for widths, _ in plan_widths(staircase_space(), 30)]
    died, events, table = _runs(tmp_path, planned[12])
    assert died == [True, True, False]
    assert {row.widths for row in table.rows} == set(planned) - {planned[12]}
    (told,) = [event for event in events if isinstance(event, Caution)]
    assert told.text == "1 networks are left out: two processes ended at each"
    assert (table.folder / "deaths.jsonl").exists()
    assert str(table.folder / "deaths.jsonl") in told.hint


def test_one_lost_gpu_leaves_no_network_out(tmp_path: Path) -> None:
    planned = [widths.values_tuple() for widths, _ in plan_widths(staircase_space(), 30)]
    board = DeadlyBoard()
    board.deadly = planned[12]
    with pytest.raises(DeviceLost):
        _profiled(tmp_path, board, [])
    table = _profiled(tmp_path, DeadlyBoard(), [])
    assert {row.widths for row in table.rows} == set(planned)


def test_where_the_first_network_is_wrong_nothing_is_measured(tmp_path: Path) -> None:
    board, events = WrongBoard(), list[Event]()
    board.wrong = frozenset(range(1000))
    with pytest.raises(WrongOutputs):
        _profiled(tmp_path, board, events)
    assert not any(isinstance(event, Caution) for event in events)


class CrashingBoard(DeadlyBoard):
    """At one network the runtime's own code reads where nothing is."""

    def _die(self, data: bytes) -> None:
        if tuple(json.loads(data).values()) == self.deadly:
            os.kill(os.getpid(), signal.SIGSEGV)


class KilledBoard(DeadlyBoard):
    """Somebody ends the process at one network."""

    def _die(self, data: bytes) -> None:
        if tuple(json.loads(data).values()) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)


def _in_a_process(folder: Path, kind: type[DeadlyBoard], deadly: tuple[int, ...]) -> int:
    """The exit code of a process that profiles."""

    def work() -> None:
        board = kind()
        board.deadly = deadly
        _profiled(folder, board, [])

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(120)
    return child.exitcode or 0


def test_a_network_that_crashes_the_process_is_left_out_after_the_second_crash(tmp_path: Path) -> None:
    planned = [widths.values_tuple() for widths, _ in plan_widths(staircase_space(), 30)]
    codes = [_in_a_process(tmp_path, CrashingBoard, planned[12]) for _ in range(2)]
    assert codes == [-signal.SIGSEGV, -signal.SIGSEGV]
    events: list[Event] = []
    table = _profiled(tmp_path, StaircaseBoard(), events)
    assert {row.widths for row in table.rows} == set(planned) - {planned[12]}
    crashed, left_out = [event for event in events if isinstance(event, Caution)]
    assert "crashed while it measured (Fatal Python error: Segmentation fault)" in crashed.text
    assert left_out.text.startswith("1 networks are left out")
    assert not (table.folder / "crash.txt").exists()
    assert not (table.folder / "in_hand.json").exists()


def test_a_process_that_was_killed_counts_nothing(tmp_path: Path) -> None:
    planned = [widths.values_tuple() for widths, _ in plan_widths(staircase_space(), 30)]
    codes = [_in_a_process(tmp_path, KilledBoard, planned[12]) for _ in range(2)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL]
    events: list[Event] = []
    table = _profiled(tmp_path, StaircaseBoard(), events)
    assert {row.widths for row in table.rows} == set(planned)
    assert not [event for event in events if isinstance(event, Caution)]
