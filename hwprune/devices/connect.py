"""From a target to an open board: the device file says whether it is this machine or one behind SSH."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hwprune.core import plugins
from hwprune.core.config import from_mapping
from hwprune.core.measurement import Target
from hwprune.devices.board import AbstractBoard, Board
from hwprune.devices.files import DeviceInfo, find_device, measured_as, resolve
from hwprune.devices.prepare import UNCHECKED, CheckedBoard, prepare
from hwprune.runtimes._base import AbstractRuntime

if TYPE_CHECKING:
    from hwprune.devices.remote.transport import CommandTransport


def connect(target: Target, *, reference_ms: float | None = None) -> AbstractBoard:
    """Open the board of a target; use it in a `with` statement.

    `reference_ms` is the value of the table that new measurements are to be compared with; without it the reference
    kernel is calibrated now. Raises `UsageError` for an unknown device, runtime or precision and for a template that
    names no host, `DeviceError` when the runtime is not installed or the device cannot be reached.
    """
    known = resolve(target)
    info = find_device(known.device)
    runtime = _runtime(info, known, info.runtimes[known.runtime].options)
    known = measured_as(known)
    board: AbstractBoard
    if info.connection.kind == "local":
        runtime.check(known)
        board = Board(known, runtime, reference_ms=reference_ms, prepare=prepare)
    else:
        board = _remote(info, known, runtime, reference_ms)
    return board if known.runtime in UNCHECKED else CheckedBoard(board)


def check(target: Target) -> None:
    """Raise at once what `connect` would raise for a target that cannot be reached or run; nothing is opened."""
    known = resolve(target)
    info = find_device(known.device)
    runtime = _runtime(info, known, info.runtimes[known.runtime].options)
    if info.connection.kind == "local":
        runtime.check(measured_as(known))
    else:
        _transport(info)


def _transport(info: DeviceInfo) -> CommandTransport:
    from hwprune.devices.remote.ssh import ssh_transport

    return ssh_transport(info)


def _remote(info: DeviceInfo, target: Target, runtime: AbstractRuntime, reference_ms: float | None) -> AbstractBoard:
    from hwprune.devices.remote.board import RemoteBoard
    from hwprune.devices.remote.bundle import bundle_for
    from hwprune.devices.remote.client import AgentClient

    client = AgentClient(_transport(info), bundle_for(target.runtime), label=info.name, python=info.connection.python)
    build_s = info.connection.build_s
    return RemoteBoard(target, runtime, client, reference_ms=reference_ms, prepare=prepare, build_s=build_s)


def runtime_of(target: Target) -> AbstractRuntime:
    """The runtime of a resolved target with the options of its device file; not checked, nothing is opened."""
    info = find_device(target.device)
    return _runtime(info, target, info.runtimes[target.runtime].options)


def _runtime(info: DeviceInfo, target: Target, options: Mapping[str, Any]) -> AbstractRuntime:
    kind = plugins.load("hwprune.runtimes", target.runtime, AbstractRuntime)  # type: ignore[type-abstract]
    return from_mapping(kind, options, where=f"{info.source}: runtimes.{target.runtime}.options")
