"""The agent on this machine, without SSH: what it stores, how it starts, and what it makes of messages."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from remote_devices import (
    MODELS,
    PATIENT,
    REFERENCE,
    SAMPLE,
    SCRIPTED,
    Device,
    SpoilingTransport,
    local_transport,
    scripted_bundle,
)
from scripted_runtime import ScriptedRuntime

from hwprune.core.errors import DeviceError
from hwprune.devices.agent import bootstrap
from hwprune.devices.agent.bootstrap import STARTER
from hwprune.devices.agent.framing import PROTOCOL
from hwprune.devices.remote import transport
from hwprune.devices.remote.board import RemoteBoard
from hwprune.devices.remote.client import AgentClient
from hwprune.devices.remote.connection import AgentConnection
from hwprune.devices.remote.transport import CommandTransport, ConnectionLost


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
            {"type": "hello", "protocol": PROTOCOL, "session": "../../etc/passwd", "last_seq": 0},
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
        with pytest.raises(DeviceError, match=r"not start: no interpreter /no/such/python3 .*No such file") as caught:
            client.round_trip_ms()
        assert "[connection] python" in caught.value.hint

    def test_only_ssh_itself_says_that_a_login_is_refused(self) -> None:
        for code, text in ((255, "far does not let us in"), (1, "far cannot be reached: .*Permission denied")):
            command = ("sh", "-c", f"echo 'me@far: Permission denied (publickey).' >&2; exit {code}")
            with pytest.raises(DeviceError, match=text):
                AgentClient(CommandTransport(command, "far"), scripted_bundle(), label="far").round_trip_ms()

    @pytest.mark.parametrize(
        ("code", "reason"), [(98, "older than 3.8"), (127, "no python3"), (97, "not what was sent")]
    )
    def test_why_it_does_not_start(self, code: int, reason: str) -> None:
        client = AgentClient(CommandTransport(("sh", "-c", f"exit {code}"), "board"), scripted_bundle(), label="board")
        with pytest.raises(DeviceError, match=reason) as caught:
            client.round_trip_ms()
        assert "3.8 or later" in caught.value.hint
        assert caught.value.exit_code == 3
