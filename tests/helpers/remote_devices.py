"""Agents to test with: on this machine without SSH, and behind an OpenSSH server of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scripted_runtime import ScriptedRuntime

from hwprune.core.measurement import Protocol, Target
from hwprune.devices.agent.bootstrap import STARTER
from hwprune.devices.remote.board import RemoteBoard
from hwprune.devices.remote.bundle import ROOTS, Bundle, make_bundle
from hwprune.devices.remote.client import AgentClient, Patience
from hwprune.devices.remote.transport import (
    AbstractChannel,
    AbstractTransport,
    CommandChannel,
    CommandTransport,
    ConnectionLost,
)

SCRIPTED = Target("board", "scripted")
REFERENCE = json.dumps({"ms": 0.05}).encode()
PATIENT = Patience(silence_s=120, reconnect_s=300, first_pause_s=0.05, longest_pause_s=0.2)
RUNTIME_FILE = Path(__file__).with_name("scripted_runtime.py")
MODULES = (*ROOTS, "hwprune.runtimes._machine")


def scripted_bundle(extra: Mapping[str, str] | None = None) -> Bundle:
    """The agent with the scripted runtime."""
    return make_bundle(MODULES, {"hwprune/runtimes/scripted.py": RUNTIME_FILE.read_text(), **(extra or {})})


def model(ms: float = 0.2, **script: object) -> bytes:
    """A model of the scripted runtime."""
    return json.dumps({"ms": ms, **script}).encode()


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
    return within_a_minute(lambda: not any(map(alive, gone)))


def within_a_minute(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within a minute."""
    for _ in range(600):
        if holds():
            return True
        time.sleep(0.1)
    return False


def local_transport(folder: Path, **environment: str) -> CommandTransport:
    """An agent on this machine whose cache is in `folder`."""
    command = (sys.executable, "-u", "-I", "-c", STARTER)
    return CommandTransport(command, "board", {"HWPRUNE_CACHE": str(folder / "device"), **environment})


@dataclass
class Device:
    """A remote board of the scripted runtime, and what is known of its other side."""

    folder: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    patience: Patience = PATIENT
    wrap: Callable[[CommandTransport], AbstractTransport] = lambda transport: transport

    def client(self) -> AgentClient:
        transport = local_transport(
            self.folder,
            HWPRUNE_TEST_BUILDS=str(self.folder / "builds"),
            HWPRUNE_TEST_STATE=str(self.state),
        )
        if not self.state.exists():
            self.state.write_text("locked")
        return AgentClient(self.wrap(transport), scripted_bundle(self.extra), label="board", patience=self.patience)

    def board(self, **options: float) -> RemoteBoard:
        return RemoteBoard(SCRIPTED, ScriptedRuntime(), self.client(), reference=REFERENCE, **options)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def cache(self) -> Path:
        return self.folder / "device"

    def builds(self) -> list[str]:
        """The names of the models built so far."""
        path = self.folder / "builds"
        return path.read_text().split() if path.exists() else []


@dataclass
class Cuts:
    """Where to hang up: on the first `count` lines with `up` in them, and frames with `down` in them.

    `told`: whether the other side learns of it; where not, its half of the connection stays open.
    """

    up: bytes = b""
    down: bytes = b""
    count: int = 1
    told: bool = True
    done: int = 0
    left_open: list[CommandChannel] = field(default_factory=list)

    def take(self, text: bytes, data: bytes) -> bool:
        """Whether to hang up now."""
        hit = bool(text) and text in data and self.done < self.count
        self.done += hit
        return hit

    def close(self) -> None:
        """Wait for the agents that were left alone."""
        for channel in self.left_open:
            channel.close()


@dataclass(frozen=True)
class CuttingTransport(AbstractTransport):
    """Hangs up in the middle, as a network does."""

    inner: CommandTransport
    cuts: Cuts
    label: str = "board"

    def open(self) -> AbstractChannel:
        return _CuttingChannel(self.inner.open(), self.cuts)


class _CuttingChannel(AbstractChannel):
    def __init__(self, inner: CommandChannel, cuts: Cuts) -> None:
        self._inner = inner
        self._cuts = cuts
        self._cut = False

    def send(self, data: bytes) -> None:
        self._require()
        if self._cuts.take(self._cuts.down, data):
            self._inner.send(data[: len(data) // 2])
            self._hang_up()
        self._inner.send(data)

    def receive(self, slices: int) -> bytes:
        self._require()
        line = self._inner.receive(slices)
        if self._cuts.take(self._cuts.up, line):
            self._hang_up()
        return line

    def _hang_up(self) -> None:
        self._cut = True
        self._cuts.left_open.append(self._inner)
        assert self._inner._process.stdin is not None
        if self._cuts.told:
            self._inner._process.stdin.close()
        self._require()

    def _require(self) -> None:
        if self._cut:
            raise ConnectionLost("the test cut the connection")

    def close(self) -> None:
        if not self._cut:  # else the other side goes on by itself, and nobody waits for it
            self._inner.close()


@dataclass(frozen=True)
class KeepingTransport(AbstractTransport):
    """Keeps what it opened, to look at it afterwards."""

    inner: CommandTransport
    opened: list[CommandChannel] = field(default_factory=list)
    label: str = "board"

    def open(self) -> AbstractChannel:
        self.opened.append(self.inner.open())
        return self.opened[-1]


@dataclass(frozen=True)
class SpoilingTransport(AbstractTransport):
    """Changes what passes: `down` and `up` get each frame or line and give what arrives."""

    inner: CommandTransport
    down: Callable[[bytes], bytes] = lambda data: data
    up: Callable[[bytes], bytes] = lambda line: line
    label: str = "board"

    def open(self) -> AbstractChannel:
        return _SpoilingChannel(self.inner.open(), self)


class _SpoilingChannel(AbstractChannel):
    def __init__(self, inner: CommandChannel, how: SpoilingTransport) -> None:
        self._inner = inner
        self._how = how

    def send(self, data: bytes) -> None:
        self._inner.send(self._how.down(data))

    def receive(self, slices: int) -> bytes:
        return self._how.up(self._inner.receive(slices))

    def close(self) -> None:
        self._inner.close()


@dataclass(frozen=True)
class SshServer:
    """An OpenSSH server on this machine with keys of its own."""

    folder: Path
    port: int

    @property
    def identity(self) -> Path:
        return self.folder / "user_key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def device_file(self, name: str, runtime: str, **connection: object) -> str:
        """The TOML of a device behind this server."""
        values = {
            "kind": "ssh",
            "host": "127.0.0.1",
            "port": self.port,
            "identity_file": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "python": sys.executable,
            **connection,
        }
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        return f'schema = 1\nname = "{name}"\n[connection]\n{lines}\n[runtimes.{runtime}]\nprecisions = ["fp32"]\n'


def sshd_path() -> str | None:
    """The server's program; it insists on being called by its full path."""
    return shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Start it; skips the test where there is none, or it cannot run."""
    program, keygen = sshd_path(), shutil.which("ssh-keygen")
    if program is None or keygen is None or shutil.which("ssh") is None:
        pytest.skip("needs an OpenSSH server and client (apt-get install openssh-server)")
    for name in ("host_key", "user_key"):
        _run((keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)))
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} ssh-ed25519 {key}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host_key'}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nStrictModes no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSetEnv HWPRUNE_CACHE={folder / 'device'}\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation insists on it
    command = (program, "-D", "-e", "-f", str(folder / "sshd_config"))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            _await(port, server)
            yield SshServer(folder, port)
        finally:
            server.terminate()


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if server.poll() is not None:
            pytest.skip(f"the OpenSSH server does not run here (code {server.returncode})")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.fail("the OpenSSH server does not answer")


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
