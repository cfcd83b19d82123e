"""Profiling: what is measured, resuming, stopping, refusing foreign tables, and surviving kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hwprune.core.errors import Interrupted, RunError, TableError
from hwprune.core.events import Event, Progress
from hwprune.core.files import lock
from hwprune.core.measurement import LayerTime, Measurement, Protocol
from hwprune.latency.plan import plan_widths
from hwprune.latency.profile import BATCH, LAYER_SAMPLES, REPEATS, profile
from hwprune.latency.scores import label_noise
from hwprune.latency.table import LatencyTable
from hwprune.testing.staircase import (
    FINGERPRINT,
    StaircaseBoard,
    StaircaseGraph,
    StaircaseTemplate,
    staircase_layers_ms,
    staircase_ops,
    staircase_space,
)

SPACE = staircase_space()


def _table(root: Path) -> LatencyTable:
    return LatencyTable.obtain(
        root, model_name="net", graph=StaircaseGraph(), space=SPACE, board=StaircaseBoard(), tile=16
    )


def _profile(table: LatencyTable, board: StaircaseBoard | None = None, **options: object) -> LatencyTable:
    board = board or StaircaseBoard()
    return profile(StaircaseTemplate(), StaircaseGraph(), SPACE, board, table=table, **options)


class _NoLayers(StaircaseBoard):
    """A board whose runtime has no layer times."""

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        return ()

    def measure(self, models: Mapping[str, bytes], **options: Any) -> dict[str, Measurement]:
        return StaircaseBoard().measure(models, **options)


def test_a_runtime_without_layer_times_fills_a_table_without_them(tmp_path: Path) -> None:
    table = _profile(_table(tmp_path), _NoLayers(), samples=10)
    assert len(table.measured()) == 10
    assert table.layer_rows == ()


def test_measures_the_plan_layers_and_repeats(tmp_path: Path) -> None:
    table = _profile(_table(tmp_path), samples=40)
    plan = plan_widths(SPACE, 40)
    counts = Counter(row.widths for row in table.rows)
    assert set(counts) == {widths.values_tuple() for widths, _ in plan}
    assert [counts[widths.values_tuple()] for widths, _ in plan] == [2] * REPEATS + [1] * (40 - REPEATS)
    assert {row.kind for row in table.rows} == {"dense", "uniform", "ratio", "sweep", "corner"}
    assert [sample.values for sample in table.layer_rows] == [w.values_tuple() for w, _ in plan[:LAYER_SAMPLES]]
    noise = label_noise((row.widths, row.latency_ms, row.session) for row in table.rows)
    assert noise is not None
    assert 0.001 < noise < 0.01  # laps with 1 % noise, medians of eight


def test_rows_hold_what_the_device_said(tmp_path: Path) -> None:
    table = _profile(_table(tmp_path), StaircaseBoard(noise=0.0), samples=12)
    samples = table.samples()
    assert samples.latency_ms == pytest.approx(staircase_layers_ms(samples.values).sum(axis=1), rel=1e-9)
    assert all(len(row.ratios) == Protocol.sample().laps for row in table.rows)


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    _profile(_table(tmp_path), samples=20)
    board = StaircaseBoard()
    again = _profile(_table(tmp_path), board, samples=20)
    assert board.asked == 0
    assert len(again.rows) == 20 + REPEATS


def test_a_table_grows(tmp_path: Path) -> None:
    _profile(_table(tmp_path), samples=20)
    board = StaircaseBoard()
    grown = _profile(_table(tmp_path), board, samples=50)
    assert board.asked == 30
    assert {row.widths for row in grown.rows} == {widths.values_tuple() for widths, _ in plan_widths(SPACE, 50)}


def test_stop_keeps_what_was_measured(tmp_path: Path) -> None:
    table = _table(tmp_path)
    with pytest.raises(Interrupted, match=rf"stopped after {2 * BATCH} of ") as caught:
        _profile(table, samples=40, stop=lambda: len(table.rows) >= 2 * BATCH)
    assert caught.value.exit_code == 130
    assert len(LatencyTable.open(table.folder).rows) == 2 * BATCH


def test_progress_counts_up_with_an_estimate(tmp_path: Path) -> None:
    events: list[Event] = []
    _profile(_table(tmp_path), samples=30, on_event=events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    assert progress[-1].done == progress[-1].total == 30 + LAYER_SAMPLES + REPEATS
    assert progress[-1].remaining_s == 0.0
    assert (progress[0].done, progress[0].remaining_s) == (0, None)
    assert all(event.remaining_s is not None and event.remaining_s >= 0 for event in progress[1:])


def test_a_space_smaller_than_the_samples_is_measured_whole(tmp_path: Path) -> None:
    space = staircase_space()
    space = type(space)(space.groups, ((32,), (96,), (64,), (192,), (16, 128, 256)))
    board, events = StaircaseBoard(), list[Event]()
    table = LatencyTable.obtain(tmp_path, model_name="net", graph=StaircaseGraph(), space=space, board=board, tile=16)
    profile(StaircaseTemplate(), StaircaseGraph(), space, board, table=table, samples=50, on_event=events.append)
    assert {row.widths[-1] for row in table.rows} == {16, 128, 256}
    assert isinstance(events[-1], Progress)
    assert events[-1].done == events[-1].total == 3 + 3 + 3


class _Loaded(StaircaseBoard):
    """The first measurement of every network is disturbed by other load and 40 % too high."""

    def measure(self, models, **options):  # type: ignore[no-untyped-def]
        found = super().measure(models, **options)
        first = getattr(self, "seen", set())
        self.seen = first | set(models.values())
        return {name: m if models[name] in first else self._disturbed(m) for name, m in found.items()}

    def _disturbed(self, measurement: Measurement) -> Measurement:
        rounds = tuple(
            replace(item, laps_ms=tuple(1.4 * lap for lap in item.laps_ms), void="slow reference")
            for item in measurement.rounds
        )
        return replace(measurement, rounds=rounds)


def test_disturbed_rows_get_a_second_chance_and_are_left_out(tmp_path: Path) -> None:
    table = _profile(_table(tmp_path), _Loaded(noise=0.0), samples=20)
    assert sum(row.disturbed for row in table.rows) == 20
    samples = table.samples()
    assert len(samples.merged()) == 20
    assert samples.latency_ms == pytest.approx(staircase_layers_ms(samples.values).sum(axis=1), rel=1e-9)


def test_another_network_space_or_device_is_refused(tmp_path: Path) -> None:
    table = _table(tmp_path)
    with pytest.raises(TableError, match="another search space"):
        profile(StaircaseTemplate(), StaircaseGraph(), staircase_space(32), StaircaseBoard(), table=table)
    graph = StaircaseGraph()
    graph.op_templates = staircase_ops()[1:]
    with pytest.raises(TableError, match="another network") as caught:
        profile(StaircaseTemplate(), graph, SPACE, StaircaseBoard(), table=table)
    assert f"remove {table.folder}" in caught.value.hint
    with pytest.raises(TableError, match="threads: 1 != 2"):
        _profile(table, StaircaseBoard(fingerprint=replace(FINGERPRINT, threads=2)))


def test_two_processes_on_one_table(tmp_path: Path) -> None:
    table = _table(tmp_path)
    with lock(table.folder), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        _profile(table)


CHILD = """
import sys
from hwprune.core.measurement import Target
from hwprune.devices import connect
from hwprune.devices.reference import single_convolution
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable
from hwprune.testing.staircase import StaircaseGraph, staircase_space

class Template:
    def at_widths(self, widths):
        return single_convolution(widths["stem"] + widths["head"])

with connect(Target("simulated", "simulated"), reference_ms=1.0) as board:
    table = LatencyTable.obtain(
        sys.argv[1], model_name="net", graph=StaircaseGraph(), space=staircase_space(), board=board, tile=16
    )
    acknowledge = lambda event: print(len(table.rows), len(table.layer_rows), flush=True)
    profile(Template(), StaircaseGraph(), staircase_space(), board, table=table, samples=int(sys.argv[2]),
            on_event=acknowledge)
"""
SAMPLES = 400


def _acknowledged_at_kill(root: Path, delay_s: float) -> tuple[int, int, bool]:
    """Rows and layer rows acknowledged before a kill `delay_s` after the first acknowledgement; whether it ended."""
    command = [sys.executable, "-c", CHILD, str(root), str(SAMPLES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
    whole = [line.split() for line in lines if len(line.split()) == 2]
    rows, layers = (int(number) for number in whole[-1]) if whole else (0, 0)
    return rows, layers, child.returncode == 0


def test_kill_at_random_instants_loses_nothing_acknowledged(tmp_path: Path) -> None:
    rng = Random(20)
    for _ in range(20):
        rows, layers, ended = _acknowledged_at_kill(tmp_path, rng.uniform(0.0, 0.05))
        (folder,) = (path.parent for path in tmp_path.rglob("table.json"))
        table = LatencyTable.open(folder)
        assert len(table.rows) >= rows
        assert len(table.layer_rows) >= layers
        assert table.damaged_lines == 0
        if ended:
            break
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(SAMPLES)], check=True, capture_output=True)
    table = LatencyTable.open(folder)
    counts = Counter(row.widths for row in table.rows)
    plan = [widths.values_tuple() for widths, _ in plan_widths(SPACE, SAMPLES)]
    assert [counts[widths] for widths in plan] == [2] * REPEATS + [1] * (SAMPLES - REPEATS)
