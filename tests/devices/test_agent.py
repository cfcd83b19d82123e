"""The agent on this machine, without SSH: what it measures, and what becomes of its workers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from remote_devices import (
    MODELS,
    REFERENCE,
    SAMPLE,
    SCRIPTED,
    Device,
    KeepingTransport,
    alive,
    children,
    eventually,
    model,
)
from scripted_runtime import ScriptedRuntime

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.events import Caution, Event, Progress
from hwprune.core.measurement import Measurement, Protocol
from hwprune.core.tensors import RawTensor
from hwprune.devices import Anchor, WorkerDied
from hwprune.devices.agent import processes, supervisor
from hwprune.devices.agent.worker import Announcing
from hwprune.devices.remote.board import RemoteBoard
from hwprune.devices.remote.transport import CommandChannel
from hwprune.runtimes._base import AbstractRuntime


class TestMeasuring:
    def test_the_same_loop_runs_over_there(self, device: Device) -> None:
        events: list[Event] = []
        with device.board() as board:
            assert board.distant
            assert board.simulated
            assert board.fingerprint.runtime == "scripted"
            assert board.reference_ms == pytest.approx(0.05, rel=0.02)
            found = board.measure(MODELS, protocol=Protocol.quick(), seed=3, on_event=events.append)
        assert list(found) == ["a", "b"]
        assert found["a"].latency_ms == pytest.approx(0.2, rel=0.01)
        assert found["b"].latency_ms == pytest.approx(0.4, rel=0.01)
        assert found["a"].simulated
        assert Measurement.from_json(found["a"].to_json()) == found["a"]
        done = [event for event in events if isinstance(event, Progress)]
        assert [event.done for event in done] == list(range(1, len(done) + 1))
        assert len(done) >= 6

    def test_layers_outputs_and_checks(self, device: Device) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        with device.board(reference_ms=0.1) as board:
            assert board.reference_ms == 0.1
            assert board.reference_drift == pytest.approx(-0.5, abs=0.02)
            layers = board.layers(model(0.7), runs=5)
            outputs = board.infer(model(), {"x": array, "y": np.array([True, False])})
            raw = board.infer_raw(model(), {"x": RawTensor("float16", (0,), b"")})
        assert [(layer.latency_ms, layer.note) for layer in layers] == [(0.7, "5 runs")]
        assert np.array_equal(outputs[0], array)
        assert outputs[1].tolist() == [True, False]
        assert raw == [RawTensor("float16", (0,), b"")]

    def test_a_tables_reference_scales_what_is_measured(self, device: Device) -> None:
        with device.board() as board:
            board.reference_ms *= 2
            assert board.measure({"a": MODELS["a"]}, protocol=SAMPLE)["a"].latency_ms == pytest.approx(0.4, rel=0.02)

    def test_an_anchor_travels_too(self, device: Device) -> None:
        with device.board() as board:
            anchor = Anchor(MODELS["b"], 10.0)
            found = board.measure({"a": MODELS["a"]}, protocol=SAMPLE, anchor=anchor)["a"]
            assert found.latency_ms == pytest.approx(5.0, rel=0.02), "0.2 ms where the anchor's 0.4 ms count as 10"
            assert found.anchored
            assert not board.measure(MODELS, protocol=SAMPLE)["a"].anchored

    def test_nonsense_is_refused_here(self, device: Device) -> None:
        with device.board() as board:
            with pytest.raises(UsageError, match="nothing to measure"):
                board.measure({}, protocol=SAMPLE)
            with pytest.raises(UsageError, match="runs must be 1 or more, not 0"):
                board.layers(model(), runs=0)
        with pytest.raises(UsageError, match="reference_ms must be a positive number, not -1"):
            device.board(reference_ms=-1)

    def test_an_error_over_there_is_the_same_here(self, device: Device) -> None:
        with device.board() as board:
            with pytest.raises(UsageError, match=r"^this model is refused$") as caught:
                board.measure({"a": model(do="refuse")}, protocol=SAMPLE)
            assert caught.value.hint == "send another one"
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0

    def test_an_option_the_runtime_refuses(self, device: Device) -> None:
        with pytest.raises(UsageError, match=r"levels \(3, 4\)"):
            RemoteBoard(SCRIPTED, ScriptedRuntime(levels=(3, 4)), device.client(), reference=REFERENCE)

    def test_a_megabyte_on_standard_output_is_harmless(self, device: Device) -> None:
        with device.board() as board:
            found = board.measure({"loud": model(0.3, do="shout")}, protocol=SAMPLE)
        assert found["loud"].latency_ms == pytest.approx(0.3, rel=0.02)

    def test_the_wall_clock_may_jump(self, device: Device) -> None:
        jumping = "import itertools, time\njumps = itertools.cycle((0.0, 4e9, 1e9))\ntime.time = lambda: next(jumps)\n"
        device.extra = {"hwprune/devices/agent/__init__.py": jumping}
        with device.board() as board:
            assert board.measure(MODELS, protocol=SAMPLE)["b"].latency_ms == pytest.approx(0.4, rel=0.02)

    def test_everything_a_runtime_can_do_reaches_it(self) -> None:
        known = {name for name, member in vars(AbstractRuntime).items() if callable(member) and name[0] != "_"}
        assert known - set(vars(Announcing)) == {"name_layers"}, "which is the host's"
        announcing = Announcing(ScriptedRuntime(), lambda message: None)
        assert announcing.simulated
        assert announcing.findings() == ()

    def test_no_file_of_the_agent_reads_the_wall_clock(self) -> None:
        folder = Path(supervisor.__file__).parent
        found = [path.name for path in folder.glob("*.py") if re.search(r"time\.time\(|datetime", path.read_text())]
        assert found == []


class TestWorker:
    @pytest.mark.parametrize("action", ["segv", "break"])
    def test_a_first_death_is_forgiven(self, device: Device, tmp_path: Path, action: str) -> None:
        events: list[Event] = []
        deadly = model(0.3, name="deadly", do=action, once=str(tmp_path / "once"))
        with device.board() as board:
            found = board.measure({"a": deadly}, protocol=SAMPLE, on_event=events.append)
        assert found["a"].latency_ms == pytest.approx(0.3, rel=0.02)
        cautions = [event.text for event in events if isinstance(event, Caution)]
        expected = {"segv": "SIGSEGV", "break": "ZeroDivisionError: broken inside"}[action]
        assert len(cautions) == 1
        assert expected in cautions[0]
        assert "tried once more" in cautions[0]

    def test_a_second_death_is_the_jobs_own(self, device: Device) -> None:
        deadly = {"deadly": model(0.3, name="deadly", do="segv")}
        with device.board() as board:
            with pytest.raises(WorkerDied, match="board, build: two workers died at it; the last one was killed by S"):
                board.measure(deadly, protocol=SAMPLE)
            with pytest.raises(WorkerDied, match="it has killed two workers in this session"):
                board.measure(deadly, protocol=SAMPLE, seed=1)
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms == pytest.approx(0.2, rel=0.02)
        assert device.builds() == ["deadly", "deadly", "a", "b"]

    def test_a_hang_ends(self, device: Device) -> None:
        with device.board(build_s=2) as board:
            what = r"board, build: nothing was heard from its worker for 2 s; for longer builds set build_s in \[conn"
            with pytest.raises(WorkerDied, match=what):
                board.measure({"a": model(do="hang", name="hang")}, protocol=SAMPLE)
            board._build_s = 0  # the usual time
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0
        assert device.builds() == ["hang", "a", "b"]

    def test_a_worker_that_cannot_be_killed(self, device: Device) -> None:
        """As one that hangs in a driver: the job fails, and the device is free for the next session."""
        source = Path(processes.__file__).read_text()
        deaf = source.replace("os.killpg(self._process.pid, signal.SIGKILL)", "pass").replace(
            "GRACE_S = 5", "GRACE_S = 0"
        )
        device.extra = {"hwprune/devices/agent/processes.py": deaf}
        with device.board(build_s=1) as board:
            with pytest.raises(DeviceError, match=r"build: its worker \(process \d+\) cannot be ended") as caught:
                board.measure({"a": model(do="hang")}, protocol=SAMPLE)
            assert caught.value.hint == "restart the device"
            with device.board() as other:
                assert other.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0

    def test_a_session_ends_in_order(self, device: Device) -> None:
        opened: list[CommandChannel] = []
        device.wrap = lambda transport: KeepingTransport(transport, opened)
        with device.board() as board:
            board.measure(MODELS, protocol=SAMPLE)
        (channel,) = opened
        assert (channel._process.returncode, channel._text()) == (0, "")

    def test_a_device_that_changed_meanwhile(self, device: Device) -> None:
        with device.board() as board:
            device.state.write_text("free")
            with pytest.raises(DeviceError, match="changed since the session began: flag clocks: locked != free"):
                board.measure({"a": model(do="kill")}, protocol=SAMPLE)

    def test_workers_are_replaced_after_many_builds(self, device: Device) -> None:
        """The reference kernel and two networks are three; further inputs for an engine that is open are none."""
        source = Path(supervisor.__file__).read_text().replace("RECYCLE_BUILDS = 200", "RECYCLE_BUILDS = 4")
        device.extra = {"hwprune/devices/agent/supervisor.py": source}
        data = RawTensor("float32", (1,), b"\0\0\0\0")
        with device.board() as board:
            assert board.client.hello is not None
            workers = [children(board.client.hello.process)]
            board.measure(MODELS, protocol=SAMPLE)
            for _ in range(12):
                board.infer_raw(MODELS["a"], {"input": data})
                workers.append(children(board.client.hello.process))
            board.measure(MODELS, protocol=SAMPLE)
            workers.append(children(board.client.hello.process))
        assert all(len(running) == 1 for running in workers)
        assert workers[:2] == [workers[0]] * 2, "three engines are below the limit, the fourth reaches it"
        assert len({tuple(running) for running in workers}) == 2

    def test_nothing_is_left_behind(self, device: Device) -> None:
        with device.board() as board:
            assert board.client.hello is not None
            there = [board.client.hello.process, *children(board.client.hello.process)]
            assert all(map(alive, there))
        assert len(there) == 2
        assert eventually(there)
        assert not list((device.cache / "spool").glob("*"))

    def test_an_interrupted_job_is_cancelled(self, device: Device) -> None:
        def interrupt(event: Event) -> None:
            raise KeyboardInterrupt

        with device.board() as board:
            assert board.client.hello is not None
            there = [board.client.hello.process, *children(board.client.hello.process)]
            with pytest.raises(KeyboardInterrupt):
                board.measure({"a": model(), "b": model(do="hang")}, protocol=SAMPLE, on_event=interrupt)
        assert eventually(there)
