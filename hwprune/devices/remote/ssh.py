"""The system's `ssh` as a transport: strict host keys, no questions, and one remote command that is always the same."""

from __future__ import annotations

import shutil
from pathlib import Path

from hwprune.core.errors import DeviceError, UsageError
from hwprune.devices.agent.bootstrap import STARTER
from hwprune.devices.files import Connection, DeviceInfo
from hwprune.devices.remote.transport import CommandTransport

REMOTE_COMMAND = f"exec python3 -u -I -c '{STARTER}'"
OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",  # known_hosts stays as its owner left it
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "ControlPath=none",  # a shared connection would outlive ours, or end with somebody else's
    "RemoteCommand=none",  # one in ssh's own configuration would stand against ours
    "LogLevel=ERROR",
)


def ssh_transport(info: DeviceInfo) -> CommandTransport:
    """The transport of a device file. Raises `UsageError` for a template and `DeviceError` where ssh is missing."""
    if info.is_template:
        raise UsageError(
            f"'{info.name}' describes a kind of board; no host is named",
            hint=f"hwprune devices new NAME --from {info.name} --host user@host",
        )
    program = shutil.which("ssh")
    if program is None:
        raise DeviceError(f"'{info.name}' is reached by ssh, which is missing here", hint="install the OpenSSH client")
    return CommandTransport((program, *ssh_arguments(info.connection)), info.name)


def ssh_arguments(connection: Connection) -> tuple[str, ...]:
    """The arguments of ssh. What comes from the device file stands in words of its own, checked by `Connection`."""
    arguments = ["-T", "-e", "none"]
    for option in OPTIONS:
        arguments += ["-o", option]
    if connection.known_hosts:
        known_hosts = Path(connection.known_hosts).expanduser().absolute()
        arguments += ["-o", f'UserKnownHostsFile="{known_hosts}"', "-o", "GlobalKnownHostsFile=/dev/null"]
    if connection.identity_file:
        arguments += ["-o", "IdentitiesOnly=yes", "-i", str(Path(connection.identity_file).expanduser().absolute())]
    if connection.port:
        arguments += ["-p", str(connection.port)]
    return (*arguments, "--", connection.address, REMOTE_COMMAND)
