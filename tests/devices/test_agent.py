"""The agent on this machine, without SSH: what it measures, and everything that can go wrong over there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from remote_devices import (
    PATIENT,
    REFERENCE,
    SCRIPTED,
    Cuts,
    CuttingTransport,
    Device,
    SpoilingTransport,
    local_transport,
    model,
    scripted_bundle,
)
from scripted_runtime import ScriptedRuntime

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.events import Caution, Event, Progress
from hwprune.core.measurement import Measurement, Protocol
from hwprune.core.tensors import RawTensor
from hwprune.devices import WorkerDied
from hwprune.devices.agent import bootstrap, supervisor
from hwprune.devices.agent.bootstrap import STARTER
from hwprune.devices.agent.worker import Announcing
from hwprune.devices.remote import board as remote_board
from hwprune.devices.remote import transport
from hwprune.devices.remote.board import RemoteBoard
from hwprune.devices.remote.client import AgentClient
from hwprune.devices.remote.connection import AgentConnection
from hwprune.devices.remote.transport import CommandTransport, ConnectionLost
from hwprune.runtimes._base import AbstractRuntime

SAMPLE = Protocol.sample()
MODELS = {"a": model(0.2, name="a"), "b": model(0.4, name="b")}


def alive(process: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(process: int) -> list[int]:
    """The processes that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
    return found


def eventually(gone: list[int]) -> bool:
    """Whether all these processes end within a minute."""
    for _ in range(600):
        if not any(map(alive, gone)):
            return True
        time.sleep(0.1)
    return False


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

    def test_a_hang_ends(self, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote_board, "BUILD_S", 2.0)
        with device.board() as board:
            with pytest.raises(WorkerDied, match="board, build: nothing was heard from its worker for 2 s"):
                board.measure({"a": model(do="hang", name="hang")}, protocol=SAMPLE)
            monkeypatch.undo()
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0
        assert device.builds() == ["hang", "a", "b"]

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


UP = ("hello", "accepted", "stage", "built", "round", "crash", "result")
DOWN = ("hello", "blob", "job")


class TestLostConnection:
    def expected(self, tmp_path: Path) -> dict[str, Measurement]:
        (tmp_path / "whole").mkdir()
        with Device(tmp_path / "whole").board() as board:
            return board.measure(MODELS, protocol=SAMPLE)

    @pytest.mark.parametrize("way", [*((b"up", kind) for kind in UP), *((b"down", kind) for kind in DOWN)])
    def test_cut_at_every_message(self, device: Device, cuts: Cuts, way: tuple[bytes, str], tmp_path: Path) -> None:
        direction, kind = way
        text = f'"type":"{kind}"'.encode()
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        models = dict(MODELS)
        if kind == "crash":
            models["a"] = model(0.2, name="a", do="kill", once=str(tmp_path / "once"))
        with device.board() as board:
            cuts.up, cuts.down = (text, b"") if direction == b"up" else (b"", text)
            if kind == "hello":  # is said at connecting only, and that is after a loss
                cuts.up, cuts.down, cuts.count = (b'"accepted"', b"", 1) if direction == b"up" else (b"", b'"job"', 1)
                first = cuts.take

                def take(where: bytes, data: bytes) -> bool:
                    hit = first(where, data)
                    if hit and cuts.count == 1:
                        cuts.count = 2
                        cuts.up, cuts.down = (text, b"") if direction == b"up" else (b"", text)
                    return hit

                cuts.take = take  # type: ignore[method-assign]
            events: list[Event] = []
            found = board.measure(models, protocol=SAMPLE, on_event=events.append)
            again = board.measure({"c": model(0.1, name="c")}, protocol=SAMPLE)
        assert cuts.done == cuts.count
        assert {name: item.latency_ms for name, item in found.items()} == pytest.approx({"a": 0.2, "b": 0.4}, rel=0.02)
        assert again["c"].latency_ms == pytest.approx(0.1, rel=0.02)
        times = {name: device.builds().count(name) for name in "abc"}
        assert max(times.values()) <= 2
        if kind in ("stage", "built", "round", "result"):
            assert times == {"a": 1, "b": 1, "c": 1}, "a job in hand is finished, and not done again"
        back = [event.text for event in events if isinstance(event, Caution) and "is back" in event.text]
        assert len(back) == 1
        assert not list((device.cache / "spool").glob("*"))

    def test_cut_at_goodbye(self, device: Device, cuts: Cuts) -> None:
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        with device.board() as board:
            assert board.client.hello is not None
            there = [board.client.hello.process]
            cuts.down = b'"type":"bye"'
        assert cuts.done == 1
        assert eventually(there)

    def test_a_supervisor_that_is_killed(self, device: Device) -> None:
        events: list[Event] = []
        with device.board() as board:
            assert board.client.hello is not None
            there = [board.client.hello.process, *children(board.client.hello.process)]
            os.kill(there[0], signal.SIGKILL)
            assert eventually(there), "the worker ends with its supervisor"
            found = board.measure(MODELS, protocol=SAMPLE, on_event=events.append)
        assert found["a"].latency_ms == pytest.approx(0.2, rel=0.02)
        assert any("is back" in event.text for event in events if isinstance(event, Caution))

    def test_a_device_that_was_started_again(self, device: Device, cuts: Cuts, tmp_path: Path) -> None:
        boot = tmp_path / "boot_id"
        boot.write_text("one")
        source = Path(supervisor.__file__).read_text().replace("/proc/sys/kernel/random/boot_id", str(boot))
        device.extra = {"hwprune/devices/agent/supervisor.py": source}
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        events: list[Event] = []
        with device.board() as board:
            cuts.up = b'"accepted"'
            boot.write_text("two")
            board.measure(MODELS, protocol=SAMPLE, on_event=events.append)
            assert any("it was started again" in event.text for event in events if isinstance(event, Caution))
            cuts.count = 2
            device.state.write_text("free")
            with pytest.raises(DeviceError, match=r"not as it was before .* clocks: locked != free") as caught:
                board.measure({"c": model(name="c", do="kill")}, protocol=SAMPLE)
            assert "hwprune doctor --device board" in caught.value.hint

    def test_a_damaged_line_is_a_lost_connection(self, device: Device) -> None:
        state = {"damaged": 0}

        def damage(line: bytes) -> bytes:
            if b'"result"' in line and b'"measure"' not in line and b'"value":{"a"' in line and not state["damaged"]:
                state["damaged"] = 1
                return line.replace(b'"subject":"a"', b'"subject":"A"')
            return line

        device.wrap = lambda transport: SpoilingTransport(transport, up=damage)
        with device.board() as board:
            found = board.measure({"a": MODELS["a"]}, protocol=SAMPLE)
        assert state["damaged"] == 1
        assert found["a"].subject == "a"
        assert device.builds() == ["a"]

    def test_it_gives_up_in_the_end(self, device: Device) -> None:
        device.patience = type(PATIENT)(silence_s=120, reconnect_s=0.2, first_pause_s=0.05)
        with device.board() as board:
            assert board.client.hello is not None
            process = board.client.hello.process
            board.client._transport = CommandTransport(("false",), "board")
            os.kill(process, signal.SIGKILL)
            with pytest.raises(DeviceError, match="did not come back") as caught:
                board.measure(MODELS, protocol=SAMPLE)
        assert "same command goes on" in caught.value.hint


class TestCache:
    def test_the_agent_is_sent_once_and_is_private(self, device: Device) -> None:
        sent = []
        for _ in range(2):
            with device.board() as board:
                assert board.client.hello is not None
                sent.append(board.client.hello.sent_bytes)
        assert sent[0] > 1000
        assert sent[1] == 0
        (agent,) = device.cache.glob("agent-*")
        assert stat.S_IMODE(agent.stat().st_mode) == 0o600
        assert stat.S_IMODE(device.cache.stat().st_mode) == 0o700

    def test_a_changed_agent_is_sent_again(self, device: Device) -> None:
        with device.board():
            pass
        (agent,) = device.cache.glob("agent-*")
        good = agent.read_bytes()
        agent.write_bytes(good.replace(b"Measurement", b"Neasurement", 1))
        with device.board() as board:
            assert board.client.hello is not None
            assert board.client.hello.sent_bytes > 1000
        assert agent.read_bytes() == good
        assert stat.S_IMODE(agent.stat().st_mode) == 0o600

    def test_what_counts_as_changed(self, tmp_path: Path) -> None:
        agent, digest = tmp_path / "agent-x.zip", hashlib.sha256(b"agent").hexdigest()
        assert not bootstrap.intact(str(agent), digest), "not there"
        bootstrap.store(str(agent), b"agent")
        assert stat.S_IMODE(agent.stat().st_mode) == 0o600
        assert bootstrap.intact(str(agent), digest)
        agent.chmod(0o620)
        assert not bootstrap.intact(str(agent), digest), "another user could have written it"
        agent.write_bytes(b"agenT")
        agent.chmod(0o600)
        assert not bootstrap.intact(str(agent), digest)
        (tmp_path / "elsewhere").write_bytes(b"agent")
        agent.unlink()
        agent.symlink_to(tmp_path / "elsewhere")
        assert not bootstrap.intact(str(agent), digest), "a link may change its target"
        bootstrap.store(str(agent), b"agent")
        assert not agent.is_symlink()

    def test_a_cache_that_is_somebody_elses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "link"))
        with pytest.raises(OSError, match="is not a folder of this user"):
            bootstrap.cache_folder()
        monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "real"))
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(OSError, match="is not a folder of this user"):
            bootstrap.cache_folder()

    def test_an_open_folder_is_closed(self, device: Device) -> None:
        device.cache.mkdir(mode=0o755)
        with device.board():
            assert stat.S_IMODE(device.cache.stat().st_mode) == 0o700

    def test_an_agent_that_arrives_changed_is_not_run(self, device: Device) -> None:
        def swap(data: bytes) -> bytes:
            return data if b"HWP1" in data[:4] or b"import" in data else data[:-1] + bytes([data[-1] ^ 1])

        device.wrap = lambda transport: SpoilingTransport(transport, down=swap)
        with pytest.raises(DeviceError, match="the agent does not start: the agent"):
            device.board()
        assert not list(device.cache.glob("agent-*"))

    def test_old_agents_go(self, tmp_path: Path) -> None:
        for number in range(6):
            path = tmp_path / f"agent-{number}.zip"
            path.write_bytes(b"")
            os.utime(path, (number, number))
        bootstrap.forget_others(str(tmp_path), str(tmp_path / "agent-0.zip"))
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"agent-{n}.zip" for n in (0, 3, 4, 5)]


class TestProtocol:
    def test_a_blob_damaged_on_the_way_is_sent_again(self, device: Device) -> None:
        state = {"damaged": 0}

        def damage(data: bytes) -> bytes:
            if b'"type":"blob"' in data and state["damaged"] < 2:
                state["damaged"] += 1
                return data[:-1] + bytes([data[-1] ^ 1])
            return data

        device.wrap = lambda transport: SpoilingTransport(transport, down=damage)
        with device.board() as board:
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0
        assert state["damaged"] == 2

    def test_blobs_that_never_arrive_whole(self, device: Device) -> None:
        def damage(data: bytes) -> bytes:
            return data[:-1] + bytes([data[-1] ^ 1]) if b'"type":"blob"' in data else data

        device.wrap = lambda transport: SpoilingTransport(transport, down=damage)
        with pytest.raises(DeviceError, match="board refuses what it is sent: the hash of a frame is wrong"):
            device.board()

    @pytest.mark.parametrize("start", [b"HWP1 0 0 ", b"HWP1 9223372036854775808 0 ", b"GET / HTTP/1.1 "])
    def test_lengths_that_lie_end_the_connection(self, tmp_path: Path, start: bytes) -> None:
        channel = local_transport(tmp_path).open()
        connection = AgentConnection(channel, 120)
        connection.start(scripted_bundle(), "")
        channel.send(start + b"0" * 64 + b"\n")
        message = connection.receive()
        assert message["type"] == "refused"
        with pytest.raises(ConnectionLost):
            connection.receive()
        connection.close()

    @pytest.mark.parametrize(
        "message",
        [
            {"type": "job", "job": "x"},
            {"type": "hello", "protocol": 99, "session": "0" * 32, "last_seq": 0},
            {"type": "hello", "protocol": 1, "session": "../../etc/passwd", "last_seq": 0},
            {"type": "blob"},
            {"kind": "nothing"},
        ],
    )
    def test_a_message_that_is_none(self, tmp_path: Path, message: dict[str, object]) -> None:
        connection = AgentConnection(local_transport(tmp_path).open(), 120)
        connection.start(scripted_bundle(), "")
        connection.send(message)
        assert connection.receive()["type"] == "refused"
        connection.close()

    def test_an_unknown_type_is_passed_over(self, tmp_path: Path) -> None:
        connection = AgentConnection(local_transport(tmp_path).open(), 120)
        connection.start(scripted_bundle(), "")
        connection.send({"type": "of the future"})
        assert connection.greet("0" * 32, 0, 0).kept == ()
        connection.close()

    def test_one_session_at_a_time(self, device: Device) -> None:
        busy = r"in use by another hwprune session \(process \d+ there\)"
        with device.board(), pytest.raises(DeviceError, match=busy):
            device.board()
        with device.board() as board:
            assert board.fingerprint.runtime == "scripted"

    def test_what_a_login_prints_is_passed_over(self, tmp_path: Path) -> None:
        script = 'echo "Welcome to board"; echo "{}"; echo; exec "$0" "$@"'
        command = ("sh", "-c", script, sys.executable, "-u", "-I", "-c", STARTER)
        transport = CommandTransport(command, "board", {"HWPRUNE_CACHE": str(tmp_path / "device")})
        client = AgentClient(transport, scripted_bundle(), label="board", patience=PATIENT)
        with RemoteBoard(SCRIPTED, ScriptedRuntime(), client, reference=REFERENCE) as board:
            assert board.client.round_trip_ms() > 0

    def test_a_chatterbox_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "ENDING_S", 0.5)
        client = AgentClient(
            CommandTransport(("sh", "-c", "cat >/dev/null & yes"), "board"), scripted_bundle(), label="board"
        )
        with pytest.raises(DeviceError, match="printed many lines"):
            client.round_trip_ms()

    def test_another_interpreter_goes_on(self, tmp_path: Path) -> None:
        client = AgentClient(
            local_transport(tmp_path), scripted_bundle(), label="board", python=sys.executable, patience=PATIENT
        )
        with RemoteBoard(SCRIPTED, ScriptedRuntime(), client, reference=REFERENCE) as board:
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0

    def test_the_oldest_interpreter_runs_all_of_it(self, tmp_path: Path) -> None:
        old = shutil.which("python3.8")
        asked = [old or "false", "-c", "import sys; print(*sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split() != ["3", "8"]:
            pytest.skip("no python3.8 in the path")
        client = AgentClient(
            local_transport(tmp_path), scripted_bundle(), label="board", python=str(old), patience=PATIENT
        )
        with RemoteBoard(SCRIPTED, ScriptedRuntime(), client, reference=REFERENCE) as board:
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0
            assert board.layers(MODELS["a"])

    def test_an_interpreter_that_is_not_there(self, tmp_path: Path) -> None:
        client = AgentClient(local_transport(tmp_path), scripted_bundle(), label="board", python="/no/such/python3")
        with pytest.raises(DeviceError, match=r"the agent does not start: .*No such file"):
            client.round_trip_ms()

    @pytest.mark.parametrize(
        ("code", "reason"), [(98, "older than 3.8"), (127, "no python3"), (97, "not what was sent")]
    )
    def test_why_it_does_not_start(self, code: int, reason: str) -> None:
        client = AgentClient(CommandTransport(("sh", "-c", f"exit {code}"), "board"), scripted_bundle(), label="board")
        with pytest.raises(DeviceError, match=reason) as caught:
            client.round_trip_ms()
        assert "3.8 or later" in caught.value.hint
        assert caught.value.exit_code == 3
