"""Whole profiles on devices behind SSH, and on several devices at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from remote_devices import SshServer
from torch import nn

from hwprune import api
from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.events import Caution, Event, Note, OnEvent, ignore
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Target
from hwprune.devices import AbstractBoard, WorkerDied, connect, resolve
from hwprune.latency.crew import share_out
from hwprune.latency.plan import plan_widths
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable
from hwprune.search import fleet
from hwprune.testing.staircase import StaircaseBoard, StaircaseGraph, StaircaseTemplate, staircase_space

SHAPE = (1, 3, 12, 12)
NETWORK = nn.Sequential(
    nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6400, 10)
).eval()
SAMPLES = 10


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices").mkdir()


def write_simulated(name: str, text: str = "") -> None:
    """A simulated device of this machine."""
    Path(f"devices/{name}.toml").write_text(f'schema = 1\nname = "{name}"\n{text}\n[runtimes.simulated]\n')


class Watch:
    """Counts the boards that measure at one moment; each waits for `crowd` of them, but not for long."""

    def __init__(self, crowd: int) -> None:
        self.most = self._now = 0
        self._crowd = crowd
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._now += 1
            self.most = max(self.most, self._now)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self._crowd, timeout=0.25)

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._now -= 1


def watched(board: AbstractBoard, watch: Watch) -> AbstractBoard:
    """The same board under a watch."""
    measure = board.measure

    def watching(*models: object, **options: object) -> dict[str, Measurement]:
        with watch:
            return measure(*models, **options)  # type: ignore[arg-type]

    board.measure = watching  # type: ignore[method-assign,assignment]
    return board


def rows(table: LatencyTable) -> list[tuple[tuple[int, ...], float]]:
    """Widths and latency of every row."""
    return [(row.widths, row.latency_ms) for row in table.rows]


class TestThroughSsh:
    def test_a_simulated_profile_is_the_same_to_the_last_digit(self, server: SshServer, tmp_path: Path) -> None:
        Path("devices/far.toml").write_text(server.device_file("far", "simulated"))
        far, here = (
            api.profile(NETWORK, SHAPE, device=device, samples=SAMPLES, tables=tmp_path / device)
            for device in ("far", "simulated")
        )
        assert rows(far) == rows(here)
        assert far.layer_rows == here.layer_rows
        assert far.tile == here.tile == 8, "the device's step is 16; so small a network is searched in halves of it"
        assert far.fingerprint.differences(here.fingerprint) == ("device: far != simulated",)
        again = api.profile(NETWORK, SHAPE, device="far", samples=SAMPLES, tables=tmp_path / "far")
        assert rows(again) == rows(far), "nothing was left to do"

    @pytest.mark.slow
    @pytest.mark.timed
    def test_an_onnx_runtime_profile_agrees_within_its_intervals(self, server: SshServer, tmp_path: Path) -> None:
        Path("devices/far.toml").write_text(server.device_file("far", "onnxruntime"))
        far, here = (
            api.profile(NETWORK, SHAPE, device=device, samples=20, tile=8, tables=tmp_path / device)
            for device in ("far", "cpu")
        )
        assert {row.widths for row in far.rows} == {row.widths for row in here.rows}
        assert far.fingerprint.differences(here.fingerprint) == ("device: far != cpu",)
        local = {row.widths: row for row in here.good_rows()}
        scale = here.reference_ms / far.reference_ms  # rows are ratios to a reference that each session calibrated
        pairs = [(row, local[row.widths]) for row in far.good_rows() if row.widths in local]
        errors = [abs(a.latency_ms * scale / b.latency_ms - 1) for a, b in pairs]
        widths = [(a.ci_ms[1] - a.ci_ms[0]) / a.latency_ms + (b.ci_ms[1] - b.ci_ms[0]) / b.latency_ms for a, b in pairs]
        inside = sum(error <= width / 2 + 0.02 for error, width in zip(errors, widths, strict=True))
        assert len(pairs) >= 0.8 * len({row.widths for row in here.rows})
        assert median(errors) < 0.04
        assert inside >= 0.8 * len(pairs), "intervals of one round each, in two processes that place memory differently"


class TestSeveral:
    def test_two_devices_two_tables(self, tmp_path: Path) -> None:
        write_simulated("one")
        Path("devices/two.toml").write_text('schema = 1\nname = "two"\n[runtimes.simulated]\noptions = {tile = 8}\n')
        events: list[Event] = []
        tables = api.profile_devices(
            NETWORK,
            SHAPE,
            devices=("one", "two"),
            samples=SAMPLES,
            tables=tmp_path / "t",
            tile=16,
            on_event=events.append,
        )
        assert [table.fingerprint.device for table in tables] == ["one", "two"]
        assert [dict(table.fingerprint.flags)["tile"] for table in tables] == ["16", "8"]
        assert all(len(table.measured()) == SAMPLES for table in tables)
        assert sum("fill" in event.text for event in events if isinstance(event, Note)) == 2

    def test_devices_of_one_pool_share_a_table(self, tmp_path: Path) -> None:
        for name in ("left", "right"):
            write_simulated(name, 'pool = "desk"')
        (table,) = api.profile_devices(
            NETWORK, SHAPE, devices=("left", "right"), samples=SAMPLES, tables=tmp_path / "t", tile=16
        )
        assert table.fingerprint.device == "desk"
        assert len(table.measured()) == SAMPLES
        assert len(table.layer_rows) == 10
        ends = {row.session.rpartition(" ")[2] for row in table.rows}
        assert ends <= {"0", "1"}

    def test_a_device_is_named_once(self) -> None:
        with pytest.raises(UsageError, match="device 'simulated' is named twice"):
            api.profile_devices(NETWORK, SHAPE, devices=("sim", "simulated"))
        with pytest.raises(UsageError, match="no device was named"):
            api.profile_devices(NETWORK, SHAPE, devices=())

    def test_one_that_cannot_be_opened_ends_it_at_once(self, tmp_path: Path) -> None:
        nowhere = '[connection]\nkind = "ssh"\nhost = "127.0.0.1"\nport = 1'
        write_simulated("gone", nowhere)
        write_simulated("one")
        with pytest.raises(DeviceError, match="gone cannot be reached"):
            api.profile_devices(NETWORK, SHAPE, devices=("one", "gone"), tables=tmp_path / "t")
        assert not list((tmp_path / "t").rglob("rows.jsonl"))

    def test_devices_of_this_machine_take_turns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        most = {True: 0, False: 0}
        for alone in (True, False):
            watch = Watch(2)
            monkeypatch.setattr(fleet, "connect", lambda target, watch=watch: watched(connect(target), watch))
            monkeypatch.setattr(fleet, "_is_here", lambda target, alone=alone: alone)
            monkeypatch.setattr(fleet, "_is_alone", lambda board, alone=alone: alone)
            for name in ("one", "two"):
                write_simulated(name)
            tables = api.profile_devices(
                NETWORK, SHAPE, devices=("one", "two"), samples=SAMPLES, tables=tmp_path / str(alone), tile=16
            )
            assert [table.fingerprint.device for table in tables] == ["one", "two"]
            assert [len(table.measured()) for table in tables] == [SAMPLES] * 2
            most[alone] = watch.most
        assert most == {True: 1, False: 2}

    def test_which_devices_are_this_machine(self, tmp_path: Path) -> None:
        write_simulated("far", '[connection]\nkind = "ssh"\nhost = "far"')
        assert fleet._is_here(resolve(Target("cpu")))
        assert fleet._is_here(resolve(Target("cuda", "tensorrt")))
        assert not fleet._is_here(resolve(Target("simulated")))
        assert not fleet._is_here(resolve(Target("far")))

    def test_two_names_of_this_machine_in_one_pool_are_one_device(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[Event] = []
        for name in ("left", "right"):
            write_simulated(name, 'pool = "desk"')
        monkeypatch.setattr(fleet, "_is_alone", lambda board: True)
        (table,) = api.profile_devices(
            NETWORK,
            SHAPE,
            devices=("left", "right"),
            samples=SAMPLES,
            tables=tmp_path / "t",
            tile=16,
            on_event=events.append,
        )
        assert len(table.measured()) == SAMPLES
        (told,) = [event.text for event in events if isinstance(event, Caution)]
        assert told.startswith("2 of the devices are this machine (SIMULATED desk")

    def test_a_probe_that_fails_on_one_device_does_not_end_the_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probe = fleet.target_space

        def fail_on_one(graph: object, board: AbstractBoard, *rest: object, **options: object) -> object:
            if board.fingerprint.device == "one":
                raise DeviceError("one is lost while it is probed")
            return probe(graph, board, *rest, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(fleet, "target_space", fail_on_one)
        for name in ("one", "two"):
            write_simulated(name)
        with pytest.raises(DeviceError, match="one is lost while it is probed"):
            api.profile_devices(NETWORK, SHAPE, devices=("one", "two"), samples=SAMPLES, tables=tmp_path / "t", tile=16)
        (finished,) = (tmp_path / "t").rglob("table.json")
        table = LatencyTable.open(finished.parent)
        assert table.fingerprint.device == "two"
        assert len(table.measured()) == SAMPLES

    def test_listeners_hear_one_event_at_a_time(self) -> None:
        inside, most = 0, 0

        def listen(event: Event) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.001)
            inside -= 1

        told = fleet.one_at_a_time(listen)
        threads = [threading.Thread(target=told, args=(Note("x"),)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1


class FlakyBoard(StaircaseBoard):
    """Is lost after `calls` batches, or dies of networks as wide as `deadly`."""

    calls = 10**9
    deadly = 0

    def label(self) -> str:
        return "flaky"

    def measure(
        self, models: Mapping[str, bytes], *, protocol: Protocol, seed: int = 0, on_event: OnEvent = ignore
    ) -> dict[str, Measurement]:
        self.calls -= 1
        if self.calls < 0:
            raise DeviceError("the connection was lost")
        for data in models.values():
            self._die(data)
        return super().measure(models, protocol=protocol, seed=seed, on_event=on_event)

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        self._die(model)
        return super().layers(model, runs=runs)

    def _die(self, data: bytes) -> None:
        if self.deadly and json.loads(data)["stem"] == self.deadly:
            raise WorkerDied("two workers died at it")


def obtain(tmp_path: Path, board: AbstractBoard) -> LatencyTable:
    return LatencyTable.obtain(
        tmp_path, model_name="net", graph=StaircaseGraph(), space=staircase_space(), board=board, tile=16
    )


def run(table: LatencyTable, *boards: StaircaseBoard, events: list[Event] | None = None) -> LatencyTable:
    listener = ignore if events is None else events.append
    return profile(
        StaircaseTemplate(),  # type: ignore[arg-type]
        StaircaseGraph(),  # type: ignore[arg-type]
        staircase_space(),
        boards[0],  # type: ignore[arg-type]
        others=boards[1:],  # type: ignore[arg-type]
        table=table,
        samples=30,
        on_event=listener,
    )


class TestQueue:
    def test_what_a_lost_device_had_in_hand_goes_to_the_others(self, tmp_path: Path) -> None:
        events: list[Event] = []
        weak, strong = FlakyBoard(), FlakyBoard()
        weak.calls = 1
        table = run(obtain(tmp_path, strong), weak, strong, events=events)
        assert len(table.measured()) == 30
        cautions = [event for event in events if isinstance(event, Caution)]
        assert [event.text for event in cautions] == ["flaky is lost: the connection was lost"] * len(cautions)
        assert cautions

    def test_when_all_are_lost_the_error_is_theirs(self, tmp_path: Path) -> None:
        boards = FlakyBoard(), FlakyBoard()
        for board in boards:
            board.calls = 2
        table = obtain(tmp_path, boards[0])
        with pytest.raises(DeviceError, match="the connection was lost"):
            run(table, *boards)
        assert len(table.rows) == 20
        for board in boards:
            board.calls = 10**9
        assert len(run(table, *boards).measured()) == 30

    def test_a_deadly_network_is_left_out_and_its_neighbours_are_not(self, tmp_path: Path) -> None:
        events: list[Event] = []
        board = FlakyBoard()
        space = staircase_space()
        board.deadly = space.widths[space.names.index("stem")][-2]
        table = run(obtain(tmp_path, board), board, events=events)
        place = table.space.names.index("stem")
        assert all(row.widths[place] != board.deadly for row in table.rows)
        planned = {widths for widths, _ in plan_widths(table.space, 30, 0)}
        assert table.measured() == {widths for widths in planned if widths["stem"] != board.deadly}
        assert 0 < len(table.measured()) < 30
        cautions = [event.text for event in events if isinstance(event, Caution)]
        assert cautions
        assert set(cautions) == {"a network is left out of the table: two workers died at it"}

    def test_every_item_is_worked_on_once(self) -> None:
        boards = [FlakyBoard() for _ in range(4)]
        done: list[int] = []
        share_out(list(range(200)), boards, lambda board, item: done.append(item), ignore)  # type: ignore[arg-type]
        assert sorted(done) == list(range(200))

    def test_another_error_ends_the_work(self) -> None:
        done: list[int] = []

        def work(board: object, item: int) -> None:
            if item == 5:
                raise UsageError("wrong")
            done.append(item)

        with pytest.raises(UsageError, match="wrong"):
            share_out(list(range(1000)), [FlakyBoard(), FlakyBoard()], work, ignore)  # type: ignore[list-item]
        assert len(done) < 999

    def test_a_foreign_fingerprint_does_not_fill_the_table(self, tmp_path: Path) -> None:
        board = FlakyBoard()
        other = FlakyBoard(fingerprint=Fingerprint("other", "none", 1, "simulated", "1", "fp32", 1, 1, "none"))
        with pytest.raises(UsageError, match="another fingerprint: device: staircase != other"):
            run(obtain(tmp_path, board), board, other)
        assert np.isfinite(board.reference_ms)
