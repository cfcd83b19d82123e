"""Connections of which one side does not know that they are cut, and devices that somebody else has meanwhile."""

from __future__ import annotations

import io
import os
import signal
import threading
from pathlib import Path

import pytest
from remote_devices import (
    MODELS,
    SAMPLE,
    Cuts,
    CuttingTransport,
    Device,
    eventually,
    local_transport,
    scripted_bundle,
    within_a_minute,
)

from hwprune.core.errors import DeviceError
from hwprune.core.events import Caution, Event, Note
from hwprune.devices.agent import link, processes
from hwprune.devices.agent.framing import encode_frame, encode_line, read_frame
from hwprune.devices.agent.link import HostLink
from hwprune.devices.agent.spool import Lease
from hwprune.devices.remote import connection as remote_connection
from hwprune.devices.remote.board import RemoteBoard
from hwprune.devices.remote.connection import AgentConnection
from hwprune.devices.remote.transport import AbstractChannel, ConnectionLost

SESSION = "0" * 32


def impatient() -> dict[str, str]:
    """An agent that takes a host it has not heard for three seconds for gone."""
    return {"hwprune/devices/agent/link.py": Path(link.__file__).read_text().replace("HOST_S = 30", "HOST_S = 3")}


def kill_supervisor(board: RemoteBoard) -> None:
    """End it; its worker, which holds the lease too, ends soon after."""
    assert board.client.hello is not None
    os.kill(board.client.hello.process, signal.SIGKILL)
    assert eventually([board.client.hello.process])


class TestHostThatIsGone:
    @pytest.mark.parametrize("when", [b'"type":"round"', b'"type":"result"'])
    def test_a_half_open_connection(
        self, device: Device, cuts: Cuts, monkeypatch: pytest.MonkeyPatch, when: bytes
    ) -> None:
        monkeypatch.setattr(remote_connection, "ALIVE_S", 0.2)
        device.extra = impatient()
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        cuts.told = False
        events: list[Event] = []
        with device.board() as board:
            cuts.up = when
            found = board.measure(MODELS, protocol=SAMPLE, on_event=events.append)
        assert found["b"].latency_ms == pytest.approx(0.4, rel=0.02)
        assert device.builds() == ["a", "b"], "the result was kept, nothing was done again"
        assert sum("is back" in event.text for event in events if isinstance(event, Caution)) == 1

    def test_another_session_need_not_wait_for_it(
        self, device: Device, cuts: Cuts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_connection, "ALIVE_S", 0.2)
        device.extra = impatient()
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        board = device.board()
        assert board.client.hello is not None
        cuts.told, cuts.down = False, b'"alive"'
        assert eventually([board.client.hello.process])
        with device.board() as other:
            assert other.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0
        board.close()

    def test_silence_is_counted_while_nothing_arrives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link, "HOST_S", 2.5)
        host = HostLink(io.BytesIO(encode_frame({"type": "alive"})), 1)
        assert [host.silent(1) for _ in range(3)] == [False, False, True]
        assert read_frame(host) == ({"type": "alive"}, b"")
        assert [host.silent(1) for _ in range(4)] == [False, False, False, True]

    def test_a_large_frame_on_a_slow_line_is_no_silence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link, "HOST_S", 1.5)
        host: HostLink
        silent = []

        class Slow(io.BytesIO):
            def read1(self, size: int | None = -1, /) -> bytes:
                silent.append(host.silent(1))
                return super().read1(min(100, size or 100))

        host = HostLink(Slow(encode_frame({"type": "blob"}, b"x" * 1000)), 1)
        assert read_frame(host) == ({"type": "blob"}, b"x" * 1000)
        assert len(silent) > 10
        assert not any(silent)

    def test_a_host_that_takes_nothing_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link, "SLICE_S", 0.01)
        monkeypatch.setattr(link, "HOST_S", 0.05)
        reader, writer = os.pipe()
        message = {"type": "result", "value": "x" * (1 << 20)}
        with pytest.raises(OSError, match="takes nothing any more"):
            HostLink(io.BytesIO(), writer).send(message)
        os.close(reader)
        os.close(writer)

    def test_what_a_worker_prints_waits_for_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else a worker that prints a lot would stand still where the host is gone."""
        monkeypatch.setattr(processes, "PRINT_S", 0.01)
        (reader, writer), errors = os.pipe(), os.dup(2)
        os.dup2(writer, 2)
        try:
            processes._pass_on(b"x" * (1 << 20))
        finally:
            os.dup2(errors, 2)
        os.close(writer)
        with os.fdopen(reader, "rb") as source:
            assert 0 < len(source.read()) < 1 << 20
        os.close(errors)

    def test_a_slow_host_gets_it_all(self) -> None:
        reader, writer = os.pipe()
        message = {"type": "result", "value": "x" * (1 << 20)}
        got: list[bytes] = []

        def read() -> None:
            with os.fdopen(reader, "rb") as source:
                got.append(source.read())

        thread = threading.Thread(target=read)
        thread.start()
        HostLink(io.BytesIO(), writer).send(message)
        os.close(writer)
        thread.join()
        assert got == [encode_line(message)]


class FakeChannel(AbstractChannel):
    """Gives these lines, notes how long each was waited for, and what was sent."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = list(lines)
        self.waits: list[int] = []
        self.sent: list[bytes] = []
        self.beats = threading.Semaphore(0)

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        if b'"alive"' in data:
            self.beats.release()

    def receive(self, slices: int) -> bytes:
        self.waits.append(slices)
        return self._lines.pop(0)

    def close(self) -> None:
        self.sent.append(b"closed")


HELLO = {"type": "hello", "boot_id": "", "python": "3.8", "machine": "m", "kept": [], "process": 1}


class TestHost:
    def test_it_says_that_it_is_there_until_it_hangs_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote_connection, "ALIVE_S", 0.001)
        channel = FakeChannel(encode_line(HELLO))
        connection = AgentConnection(channel, 15)
        connection.greet(SESSION, 0, 0)
        assert all(channel.beats.acquire(timeout=60) for _ in range(3))
        connection.close()
        assert not connection._pulse.is_alive()
        assert channel.sent[-1] == b"closed"

    def test_a_login_may_take_longer_than_a_silence(self) -> None:
        said = (b'{"hwprune": "bootstrap", "have": true}\n', b'{"hwprune": "bootstrap", "ready": true}\n')
        channel = FakeChannel(b"Welcome\n", *said, encode_line(HELLO))
        connection = AgentConnection(channel, 15)
        connection.start(scripted_bundle(), "")
        connection.greet(SESSION, 0, 0)
        connection.close()
        assert channel.waits == [60, 60, 60, 15]

    def test_a_former_connection_is_waited_for(self, device: Device) -> None:
        events: list[Event] = []
        device.cache.mkdir(mode=0o700)
        lease = Lease(device.cache)

        def listen(event: Event) -> None:
            events.append(event)
            if isinstance(event, Note):
                os.close(lease._descriptor)

        with device.board() as board:
            kill_supervisor(board)
            assert within_a_minute(lambda: lease.take(board.client._session))
            assert board.measure(MODELS, protocol=SAMPLE, on_event=listen)["a"].latency_ms > 0
        (told,) = [event.text for event in events if isinstance(event, Note)]
        assert told == "board still serves a connection of ours that was cut: waiting until it has done with it"

    def test_but_not_for_ever(self, tmp_path: Path) -> None:
        connection = AgentConnection(local_transport(tmp_path).open(), 120)
        connection.start(scripted_bundle(), "")
        lease = Lease(tmp_path / "device")
        assert lease.take(SESSION)
        with pytest.raises(ConnectionLost, match="still serves a former connection after 0 s"):
            connection.greet(SESSION, 0, 0, wait_s=0)
        connection.close()
        os.close(lease._descriptor)

    def test_a_device_that_another_session_took_meanwhile(self, device: Device) -> None:
        """It is an error with the holder's process, at once: no lost connection to be tried again for minutes."""
        with device.board() as board:
            board.measure(MODELS, protocol=SAMPLE)
            lease = Lease(device.cache)
            kill_supervisor(board)
            assert within_a_minute(lambda: lease.take("f" * 32))
            with pytest.raises(DeviceError, match=rf"in use by another hwprune session \(process {os.getpid()} there"):
                board.measure({"c": MODELS["a"]}, protocol=SAMPLE)
        os.close(lease._descriptor)
