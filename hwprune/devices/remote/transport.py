"""A command whose standard streams lead to a device: `ssh`, or for tests an interpreter on this machine.

Lines are read by a thread, so that waiting for one can end without it. Waiting is counted in slices, not in elapsed
time: a laptop that slept has not been waiting for the device meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hwprune.core.errors import DeviceError
from hwprune.devices.agent.framing import LINE_LIMIT

SLICE_S = 1.0
ENDING_S = 10.0
WAITING_LINES = 1000  # read ahead; who prints for ever has to wait
TAIL_BYTES = 8000


class ConnectionLost(Exception):
    """The other end is gone or silent. `said` is what the command printed as errors."""

    def __init__(self, message: str, *, said: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.said = said
        self.code = code


class NotAnswered(ConnectionLost):
    """Lost before anything of ours ran over there: what was printed as errors is ssh's own, or the login's."""


class AbstractChannel(ABC):
    """One open connection."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Write everything. Raises `ConnectionLost`."""

    @abstractmethod
    def receive(self, slices: int) -> bytes:
        """The next line, with its LF. Raises `ConnectionLost` at the end, or after so many seconds of silence."""

    @abstractmethod
    def close(self) -> None:
        """Hang up."""


class AbstractTransport(ABC):
    """A way to a device. `label` is what people call it."""

    label: str

    @abstractmethod
    def open(self) -> AbstractChannel:
        """A new connection. Raises `DeviceError` when the command itself cannot be started."""


@dataclass(frozen=True)
class CommandTransport(AbstractTransport):
    """Starts `command` for every connection; `environment` is added to this process's own."""

    command: Sequence[str]
    label: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> CommandChannel:
        try:
            return CommandChannel(self.command, {**os.environ, **self.environment})
        except OSError as error:
            raise DeviceError(
                f"cannot start {Path(self.command[0]).name}: {error.strerror}", hint="install the OpenSSH client"
            ) from error


class CommandChannel(AbstractChannel):
    """The streams of one process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C is this program's to handle; the device goes on with its job
        )
        self._lines: queue.Queue[bytes] = queue.Queue(WAITING_LINES)
        self._closing = False
        self._said = b""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._lost("the connection was closed") from error

    def receive(self, slices: int) -> bytes:
        for _ in range(slices):
            try:
                line = self._lines.get(timeout=SLICE_S)
            except queue.Empty:
                continue
            if not line.endswith(b"\n"):
                raise self._lost("the connection was closed")
            return line
        raise ConnectionLost(f"nothing was heard for {slices} s", said=self._text())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._closing = True
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with what it started: a proxy, for one
            self._process.wait()
        for thread in self._threads:
            thread.join(ENDING_S)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _lost(self, message: str) -> ConnectionLost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)
        self._threads[1].join(ENDING_S)
        return ConnectionLost(message, said=self._text(), code=self._process.poll())

    def _text(self) -> str:
        return self._said.decode(errors="replace").strip()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while not self._closing:
            line = self._process.stdout.readline(LINE_LIMIT)
            self._put(line)
            if not line.endswith(b"\n"):
                return

    def _put(self, line: bytes) -> None:
        """Hand a line on, once there is room; nobody takes it when the channel is being closed."""
        while not self._closing:
            try:
                self._lines.put(line, timeout=SLICE_S)
            except queue.Full:
                continue
            return

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        source = self._process.stderr.fileno()
        for block in iter(lambda: os.read(source, 1 << 16), b""):
            self._said = (self._said + block)[-TAIL_BYTES:]
