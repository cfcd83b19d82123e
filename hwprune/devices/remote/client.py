"""Jobs for a device, answered exactly once whatever happens to the connection.

A job has a name of its own. When the connection is lost, the device finishes the job in hand and keeps the result;
after reconnecting, the host says up to where it has heard, gets what it missed, and asks again under the same name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwprune.core.errors import DeviceError, HwpruneError, NetworkUnfit, TableError, UsageError
from hwprune.core.target import Fingerprint
from hwprune.devices.board import WorkerDied
from hwprune.devices.remote.bundle import Bundle
from hwprune.devices.remote.connection import AgentConnection, Hello, OnMessage, lasting
from hwprune.devices.remote.transport import AbstractTransport, ConnectionLost

ERRORS: dict[str, type[HwpruneError]] = {
    kind.__name__: kind for kind in (UsageError, TableError, NetworkUnfit, WorkerDied)
}
RESENDS = 3
LOCK = "lock them as before: sudo nvidia-smi -pm 1 && sudo nvidia-smi -lgc MHZ,MHZ && sudo nvidia-smi -lmc MHZ,MHZ"


class Refused(ConnectionLost):
    """The agent hung up since what arrived was not what was sent."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a device: `silence_s` for any sign of life, `reconnect_s` for a lost one to come back."""

    silence_s: int = 15
    reconnect_s: float = 600.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0


@dataclass(frozen=True)
class Order:
    """What is asked of a device. `content` is the same for the same work, `name` is this asking of it."""

    name: str
    content: str
    kind: str
    arguments: Mapping[str, Any]
    blobs: Mapping[str, bytes]
    limits: Mapping[str, float]


class AgentClient:
    """The session with one device; `label` is what people call it. Not for several threads at once."""

    def __init__(
        self,
        transport: AbstractTransport,
        bundle: Bundle,
        *,
        label: str,
        python: str = "",
        patience: Patience | None = None,
    ) -> None:
        self.label = label
        self._transport = transport
        self._bundle = bundle
        self._python = python
        self._patience = patience or Patience()
        self._session = secrets.token_hex(16)
        self._count = 0
        self._last_seq = 0
        self._answered_seq = 0
        self._kept: dict[str, Mapping[str, Any]] = {}
        self._connection: AgentConnection | None = None
        self._pending: Order | None = None
        self._opening: Order | None = None
        self._opened: Mapping[str, Any] | None = None
        self._opened_boot = ""
        self._fresh = True
        self.hello: Hello | None = None

    def call(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        blobs: Mapping[str, bytes],
        *,
        limits: Mapping[str, float],
        on_message: OnMessage = lambda message: None,
    ) -> Any:
        """The value of a job. What was answered before counts as safely kept by the caller from now on.

        Raises what the job raised over there, `WorkerDied` when it ended two workers, and `DeviceError` when the
        device does not come back.
        """
        order = self._order(kind, arguments, blobs, limits)
        if kind == "open":
            self._opening, self._opened = order, None
        self._pending = order
        refusals = 0
        while True:
            try:
                value = self._exchange(self._connected(on_message), order, on_message)
            except ConnectionLost as lost:
                refusals += isinstance(lost, Refused)
                if refusals > RESENDS:
                    raise DeviceError(
                        f"{self.label} refuses what it is sent: {lost}",
                        hint="run the same command again; if it happens again, report it",
                    ) from lost
                self._reconnect(lost, on_message)
                continue
            self._pending = None
            return value

    def round_trip_ms(self) -> float:
        """How long a message to the device and its answer take."""
        connection = self._connected()
        begin = time.perf_counter()
        try:
            connection.send({"type": "ping"})
            while connection.receive()["type"] != "pong":
                continue
        except ConnectionLost as lost:
            raise DeviceError(
                f"the connection to {self.label} was lost: {lost}",
                hint="look whether ssh reaches it, then run the same command again",
            ) from lost
        return 1e3 * (time.perf_counter() - begin)

    def close(self) -> None:
        """End the session: a job in hand is cancelled, and nothing of it is kept on the device."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(ConnectionLost):
            if self._pending is not None:
                connection.send({"type": "cancel", "job": self._pending.name})
            connection.send({"type": "bye", "acknowledged": self._answered_seq})
            while connection.receive()["type"] != "bye":
                continue
        connection.close()

    def _order(
        self, kind: str, arguments: Mapping[str, Any], blobs: Mapping[str, bytes], limits: Mapping[str, float]
    ) -> Order:
        self._count += 1
        content = _digest(kind, sorted(blobs))
        return Order(_digest(self._session, self._count, content), content, kind, arguments, blobs, limits)

    def _connected(self, on_message: OnMessage = lambda message: None) -> AgentConnection:
        """The open connection, made at the first use."""
        if self._connection is None:
            try:
                self._connection = self._connect(on_message)
            except ConnectionLost as lost:
                raise lasting(lost, self.label) or DeviceError(
                    f"{self.label} cannot be reached: {lost.said or lost}", hint="check host, port and network"
                ) from lost
        return self._connection

    def _connect(self, on_message: OnMessage) -> AgentConnection:
        connection = AgentConnection(self._transport.open(), self._patience.silence_s)
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            sent_bytes = connection.start(self._bundle, self._python)
            self.hello = connection.greet(
                self._session, self._last_seq, sent_bytes, wait_s=self._longest_wait_s(), on_message=on_message
            )
            for _ in self.hello.kept:
                result = connection.receive()
                self._kept[result["job"]] = result
            undo.pop_all()
        self._fresh = True
        return connection

    def _longest_wait_s(self) -> float:
        """For a former connection to end: its job in hand may be building for as long as it is allowed to."""
        building_s = self._pending.limits["build_s"] if self._pending is not None else 0.0
        return self._patience.reconnect_s + building_s

    def _exchange(self, connection: AgentConnection, order: Order, on_message: OnMessage) -> Any:
        """Have one job done over a connection."""
        try:
            known = self._kept.pop(order.name, None)
            if known is not None:
                return self._value(known)
            if self._fresh and self._opening is not None and order.kind != "open":
                self._open_again(connection, self._opening, on_message)
            value = self._ask(connection, order, on_message)
            if order.kind == "open":
                self._opened, self._fresh, self._opened_boot = value, False, self._boot_id()
            return value
        finally:
            self._last_seq = connection.last_seq

    def _open_again(self, connection: AgentConnection, opening: Order, on_message: OnMessage) -> None:
        """The board of before on a new connection. Raises `DeviceError` when the device is not the same any more."""
        value = self._ask(connection, opening, on_message)
        if self._opened is not None:
            self._check_same(self._opened, value)
            on_message({"type": "reopened", **value})
        self._fresh = False

    def _check_same(self, opened: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Raise `DeviceError` where a board is not the one that was opened before, or may not be."""
        before, now = (Fingerprint.from_json(item["fingerprint"]) for item in (opened, value))
        changed = before.differences(now)
        if changed:
            raise DeviceError(
                f"{self.label} is not as it was before the connection was lost: {'; '.join(changed)}",
                hint=f"set it as it was (hwprune doctor --device {self.label}), then run the same command again",
            )
        restarted = self._boot_id() != self._opened_boot
        if restarted and lock_unknown(now):
            raise DeviceError(
                f"{self.label} was started again: its clocks may not be locked any more, and they cannot be asked",
                hint=f"{LOCK} (hwprune doctor --device {self.label} has the numbers), then run the same command again",
            )

    def _boot_id(self) -> str:
        return self.hello.boot_id if self.hello is not None else ""

    def _ask(self, connection: AgentConnection, order: Order, on_message: OnMessage) -> Any:
        self._submit(connection, order)
        while True:
            message = connection.receive()
            kind = message["type"]
            if kind in ("result", "error") and message["job"] == order.name:
                return self._value(message)
            if kind == "refused":
                raise Refused(message["message"])
            if kind == "need":
                self._submit(connection, order, again=True)
            elif message.get("job") == order.name:
                on_message(message)

    def _submit(self, connection: AgentConnection, order: Order, *, again: bool = False) -> None:
        connection.send_blobs(order.blobs, again=again)
        connection.send(
            {
                "type": "job",
                "job": order.name,
                "content": order.content,
                "kind": order.kind,
                "arguments": order.arguments,
                "blobs": list(order.blobs),
                "limits": order.limits,
                "acknowledged": self._answered_seq,
            }
        )

    def _value(self, message: Mapping[str, Any]) -> Any:
        self._answered_seq = message["seq"]
        if message["type"] == "result":
            return message["value"]
        kind = ERRORS.get(message["class"], DeviceError)
        text, hint = message["message"], message.get("hint", "")
        if issubclass(kind, UsageError):
            raise kind(text, hint=hint)
        raise kind(f"{self.label}, {message['stage']}: {text}", hint=hint)

    def _reconnect(self, lost: ConnectionLost, on_message: OnMessage) -> None:
        """Come back to a device that was there before: pauses from 1 to 60 s. Raises `DeviceError` at the end."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        boot_id = self._boot_id()
        deadline = time.monotonic() + self._patience.reconnect_s
        pause_s = self._patience.first_pause_s
        while True:
            final = lasting(lost, self.label)
            if final is not None:
                raise final from lost
            if time.monotonic() + pause_s > deadline:
                raise DeviceError(
                    f"the connection to {self.label} was lost and did not come back: {lost.said or lost}",
                    hint="everything up to there is kept; the same command goes on when the device is back",
                ) from lost
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, self._patience.longest_pause_s)
            try:
                self._connection = self._connect(on_message)
            except ConnectionLost as again:
                lost = again
                continue
            rebooted = bool(boot_id) and self._boot_id() != boot_id
            on_message({"type": "reconnected", "rebooted": rebooted, "message": str(lost)})
            return


def lock_unknown(fingerprint: Fingerprint) -> bool:
    """Whether this is of an NVIDIA GPU whose fingerprint does not show if its clocks are locked: NVML does not tell."""
    flags = dict(fingerprint.flags)
    return "gpu" in flags and "gpu_clock" not in flags


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
