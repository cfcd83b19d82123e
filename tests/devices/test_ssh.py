"""Devices behind SSH: how ssh is called, and a real OpenSSH server on this machine."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_devices import SshServer

from hwprune import api
from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Protocol, Target
from hwprune.core.statistics import median, t_interval
from hwprune.devices import connect
from hwprune.devices.files import Connection, read_device
from hwprune.devices.remote.ssh import OPTIONS, REMOTE_COMMAND, ssh_arguments, ssh_transport
from hwprune.testing.runtimes import conv_net

HOSTILE = (
    "-oProxyCommand=touch x", "-V", "--", "-", "a b", "a;b", "a|b", "a&b", "a&&b", "$(id)", "`id`", "${HOME}", "$HOME",
    "a\nb", "a\rb", "a\tb", "a\x00b", "a\x1bb", "a'b", 'a"b', "a\\b", "a<b", "a>b", "a*b", "a?b", "a[b]", "a{b}", "~",
    "~root", "#a", "a#b", "a!b", "!a", "a%b", "%h", "a,b", "a=b", "a(b)", "a^b", "ä", "host\u202ename", "\uff0dV", "🙂",
    " ", " a", "a ", ".", "..", ".a", "/", "//", "a/b", "../a", "_a", ":", "::1", "@", "@a", "a@", "user@-a", "-u@a",
    "us er@a", "u;r@a", "$(id)@a", "u@a@b", "u\n@a", "a" * 300, "[::1]", "a@[::1]", "ssh://a", "a:22;id",
    "a..b", "a-", "a-oProxyCommand", "a:b", "A_b", "u-o@a",
)  # fmt: skip
HOSTILE_PATHS = (
    "-F/dev/null", "a b", "a\nb", "$(id)", "`id`", "a;b", "%d/key", "a'b", 'a"b', "~root/key", "~", "a\x00b",
)  # fmt: skip
TURNS, MOST_TURNS = 5, 25
NEARLY = 0.03  # of a latency: what two processes may differ by for good, in the placement of their memory


def equal(log_ratios: list[float]) -> bool:
    """Whether the interval of the ratio holds 1, or nearly, and its median is near 1."""
    ratio = t_interval(log_ratios)
    return ratio.low - NEARLY < 0 < ratio.high + NEARLY and abs(median(log_ratios)) < 0.1


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called ssh that writes down its arguments; returns the file."""
    log, folder = tmp_path / "argv", tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit(255)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def write_device(**connection: object) -> None:
    """`./devices/board.toml` with this connection."""
    Path("devices").mkdir(exist_ok=True)
    lines = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in connection.items())
    text = f'schema = 1\nname = "board"\n[connection]\nkind = "ssh"\n{lines}\n[runtimes.simulated]\n'
    Path("devices/board.toml").write_text(text, "utf-8")


class TestCall:
    def test_the_exact_arguments(self) -> None:
        connection = Connection("ssh", "nvidia@orin.local", port=2222, identity_file="/k", known_hosts="/h")
        arguments = ssh_arguments(connection)
        options = [arguments[place + 1] for place, word in enumerate(arguments) if word == "-o"]
        assert options[: len(OPTIONS)] == list(OPTIONS)
        assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no"} <= set(options)
        assert {"ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"} <= set(options)
        own = ['UserKnownHostsFile="/h"', "GlobalKnownHostsFile=/dev/null", "IdentitiesOnly=yes"]
        assert options[len(OPTIONS) :] == own
        assert arguments[-7:] == ("-i", "/k", "-p", "2222", "--", "nvidia@orin.local", REMOTE_COMMAND)

    def test_a_remote_command_in_the_users_configuration_gives_way(self, tmp_path: Path) -> None:
        program = shutil.which("ssh")
        if program is None:
            pytest.skip("needs the OpenSSH client")
        config = tmp_path / "config"
        config.write_text("Host alias\n  HostName 127.0.0.1\n  RemoteCommand tmux\n")
        arguments = ("-F", str(config), "-G", *ssh_arguments(Connection("ssh", "alias")))
        done = subprocess.run((program, *arguments), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "hostname 127.0.0.1" in done.stdout.splitlines()

    def test_without_options_ssh_decides(self) -> None:
        arguments = ssh_arguments(Connection("ssh", "orin"))
        assert arguments[-3:] == ("--", "orin", REMOTE_COMMAND)
        assert not {"-i", "-p"} & set(arguments)

    def test_the_remote_command_is_constant(self) -> None:
        first = ssh_arguments(Connection("ssh", "a@b", python="/opt/x/bin/python3"))[-1]
        assert first == ssh_arguments(Connection("ssh", "c"))[-1] == REMOTE_COMMAND
        assert REMOTE_COMMAND.startswith("exec python3 -u -I -c '")
        assert REMOTE_COMMAND.count("'") == 2

    @pytest.mark.parametrize("host", HOSTILE)
    def test_a_hostile_host_is_refused_or_one_inert_argument(self, fake_ssh: Path, host: str) -> None:
        before = sorted(Path.cwd().rglob("*"))
        write_device(host=host)
        with pytest.raises((UsageError, DeviceError)) as caught:
            connect(Target("board"))
        if not fake_ssh.exists():
            assert isinstance(caught.value, UsageError)
            assert "board.toml: " in caught.value.message
        else:
            (argv,) = map(json.loads, fake_ssh.read_text().splitlines())
            assert argv == [*ssh_arguments(Connection("ssh", host))]
            assert argv[-3:] == ["--", host, REMOTE_COMMAND]
            assert not host.startswith("-")
        after = {path for path in Path.cwd().rglob("*") if path != fake_ssh}
        assert after - set(before) == {Path.cwd() / "devices", Path.cwd() / "devices/board.toml"}

    def test_there_are_sixty(self) -> None:
        assert len(set(HOSTILE)) == len(HOSTILE) >= 60

    @pytest.mark.parametrize("host", HOSTILE[-6:])
    def test_what_is_only_odd_is_passed_on_as_it_is(self, host: str) -> None:
        assert ssh_arguments(Connection("ssh", host))[-2] == host

    @pytest.mark.parametrize("key", ["identity_file", "known_hosts", "python", "user"])
    @pytest.mark.parametrize("value", HOSTILE_PATHS)
    def test_hostile_paths_and_users_are_refused(self, key: str, value: str) -> None:
        with pytest.raises(UsageError, match=f"{key} = .* cannot be used for a connection"):
            Connection("ssh", "orin", **{key: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("port", [-1, 65536, 10**9])
    def test_ports(self, port: int) -> None:
        with pytest.raises(UsageError, match="is no port"):
            Connection("ssh", "orin", port=port)

    @pytest.mark.parametrize("name", ["../x", "a/b", "-a", "", "a b", "a\n", "ä", ".a", "a" * 64])
    def test_hostile_names_are_refused(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(f"schema = 1\nname = {json.dumps(name)}\n[runtimes.simulated]\n")
        with pytest.raises(UsageError, match="cannot be a device's name"):
            read_device(path)

    def test_a_user_is_named_once(self) -> None:
        assert Connection("ssh", "ann@orin").address == "ann@orin"
        assert Connection("ssh", "orin", user="ann").address == "ann@orin"
        with pytest.raises(UsageError, match="names another user than user = 'bob'"):
            Connection("ssh", "ann@orin", user="bob")

    def test_a_local_device_has_no_host(self) -> None:
        with pytest.raises(UsageError, match="a local connection has no host"):
            Connection("local", "orin")

    def test_without_ssh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write_device(host="orin")
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(DeviceError, match="reached by ssh, which is missing here"):
            ssh_transport(read_device(Path("devices/board.toml")))

    @pytest.mark.parametrize("device", ["jetson-orin-nano", "jetson-thor", "raspberry-pi-5"])
    def test_a_template_says_how_to_make_a_device(self, device: str) -> None:
        with pytest.raises(UsageError, match=f"'{device}' describes a kind of board; no host is named") as caught:
            connect(Target(device))
        assert caught.value.hint == f"hwprune devices new NAME --from {device} --host user@host"


class TestServer:
    @pytest.fixture
    def add(self, server: SshServer) -> Callable[..., None]:
        def add(name: str = "far", runtime: str = "onnxruntime", **connection: object) -> None:
            Path("devices").mkdir(exist_ok=True)
            Path(f"devices/{name}.toml").write_text(server.device_file(name, runtime, **connection))

        return add

    @pytest.mark.timed
    def test_latencies_through_ssh_are_those_of_here(self, add: Callable[..., None]) -> None:
        """Sessions here and there in turns on one reference time, until a busy machine shows that the two are equal."""
        add()
        models = {"wide": conv_net(64), "narrow": conv_net(16)}
        ratios: dict[str, list[float]] = {name: [] for name in models}
        with connect(Target("cpu")) as here, connect(Target("far"), reference_ms=here.reference_ms) as far:
            assert far.fingerprint.differences(here.fingerprint) == ("device: far != cpu",)
            for turn in range(MOST_TURNS):
                boards = (here, far) if turn % 2 else (far, here)
                found = {board: board.measure(models, protocol=Protocol.quick(), seed=turn) for board in boards}
                for name in models:
                    ratios[name].append(math.log(found[far][name].latency_ms / found[here][name].latency_ms))
                if turn + 1 >= TURNS and all(equal(values) for values in ratios.values()):
                    break
        assert all(equal(values) for values in ratios.values()), ratios

    @pytest.mark.timed
    def test_bench_through_ssh(self, add: Callable[..., None], tmp_path: Path) -> None:
        add()
        files = {name: tmp_path / f"{name}.onnx" for name in ("wide", "narrow")}
        for name, channels in {"wide": 64, "narrow": 16}.items():
            files[name].write_bytes(conv_net(channels))
        found = api.bench(*files.values(), device="far", protocol="quick")
        assert {item.fingerprint.device for item in found.measurements.values()} == {"far"}
        assert not any(item.simulated for item in found.measurements.values())
        (narrow,) = found.comparisons
        assert narrow.verdict == "faster"
        assert narrow.ratio < 0.8

    def test_doctor_tells_of_the_connection(self, add: Callable[..., None]) -> None:
        add(runtime="simulated")
        with connect(Target("far")) as board:
            checks = board.checks()
        assert [check.name for check in checks[:2]] == ["connection", "agent"]
        assert "round trip" in checks[0].detail

    @pytest.mark.parametrize("key", ["", "[127.0.0.1]:{port} ssh-ed25519 {other}\n"])
    def test_a_host_key_that_is_unknown_or_changed(
        self, add: Callable[..., None], server: SshServer, tmp_path: Path, key: str
    ) -> None:
        other = (server.folder / "user_key.pub").read_text().split()[1]
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(key.format(port=server.port, other=other))
        before = known_hosts.read_bytes(), known_hosts.stat().st_mtime_ns
        add(runtime="simulated", known_hosts=str(known_hosts))
        with pytest.raises(DeviceError, match="the host key of far is unknown or has changed") as caught:
            connect(Target("far"))
        assert caught.value.exit_code == 3
        assert "Host key verification failed" in caught.value.message
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in caught.value.message or not key
        assert (known_hosts.read_bytes(), known_hosts.stat().st_mtime_ns) == before

    def test_a_key_that_opens_nothing(self, add: Callable[..., None], server: SshServer) -> None:
        add(runtime="simulated", identity_file=str(server.folder / "host_key"))
        with pytest.raises(DeviceError, match="far does not let us in") as caught:
            connect(Target("far"))
        assert "Permission denied" in caught.value.message
        assert "ssh-copy-id" in caught.value.hint

    def test_a_port_where_nobody_listens(self, add: Callable[..., None]) -> None:
        add(runtime="simulated", port=1)
        with pytest.raises(DeviceError, match="far cannot be reached: ssh: connect to host") as caught:
            connect(Target("far"))
        assert caught.value.hint == "check host, port and network"

    def test_a_runtime_that_is_missing_over_there(self, add: Callable[..., None], tmp_path: Path) -> None:
        venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
        add(python=str(tmp_path / "bare" / "bin" / "python3"))
        with pytest.raises(DeviceError, match=r"^far, .*onnxruntime") as caught:
            connect(Target("far"))
        assert "pip install" in caught.value.hint
