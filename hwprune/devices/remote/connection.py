"""One connection to the agent of a device: starting it over there, then messages both ways."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hwprune.core.errors import DeviceError
from hwprune.devices.agent.framing import PROTOCOL, FrameError, decode_line, encode_frame, pack
from hwprune.devices.remote.bundle import Bundle, starter_source
from hwprune.devices.remote.transport import ENDING_S, AbstractChannel, ConnectionLost, NotAnswered

OnMessage = Callable[[Mapping[str, Any]], None]

GREETING_LINES = 200  # what login scripts may print before our first line
NO_PYTHON, OLD_PYTHON, TORN_STARTER, NOT_CONNECTED = 127, 98, 97, 255
START_S = 60  # a login, and a Python that starts from a memory card
ALIVE_S = 5.0  # the agent takes a host that it has not heard for 30 s for lost


@dataclass(frozen=True)
class Hello:
    """What the agent says of the device: `boot_id` changes when it is started again.

    `kept` are the finished jobs of the session that the host does not know of, `process` is the agent's id over there.
    """

    boot_id: str
    python: str
    machine: str
    sent_bytes: int
    kept: tuple[str, ...]
    process: int


class AgentConnection:
    """The agent at the other end of a channel. `silence_s`: how long it may say nothing at all.

    From the greeting on a thread tells it every few seconds that the host is there.
    """

    def __init__(self, channel: AbstractChannel, silence_s: int) -> None:
        self._channel = channel
        self._silence_s = silence_s
        self._sent: set[str] = set()
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._answered = False
        self.last_seq = 0

    def start(self, bundle: Bundle, python: str) -> int:
        """Have the agent started, sent first where the device has it not; the bytes that were sent.

        Raises `DeviceError` for a reason that will not go away, `ConnectionLost` otherwise.
        """
        packed = bundle.packed
        order = {"python": python, "agent": bundle.digest, "length": len(bundle.data), "packed": len(packed)}
        self._send_starter(order)
        answer = self._answer()
        if answer.get("switch"):
            with contextlib.suppress(ConnectionLost):  # it ends where there is no such interpreter, and says so
                self._send_starter({**order, "python": ""})
            answer = self._answer()
        if not answer["have"]:
            self._channel.send(packed)
        self._answer()
        return 0 if answer["have"] else len(packed)

    def _send_starter(self, order: Mapping[str, Any]) -> None:
        source = starter_source()
        digest = hashlib.sha256(source).hexdigest()
        try:
            self._channel.send(b"%d %s\n%s%s\n" % (len(source), digest.encode(), source, json.dumps(order).encode()))
        except ConnectionLost as lost:
            raise self._early(lost) from lost

    def _answer(self) -> dict[str, Any]:
        """The starter's next line; whatever login scripts print is passed over."""
        for _ in range(GREETING_LINES):
            try:
                message = json.loads(self._channel.receive(START_S))
            except ValueError:
                continue
            except ConnectionLost as lost:
                raise self._early(lost) from lost
            if isinstance(message, dict) and message.get("hwprune") == "bootstrap":
                self._answered = True
                _check_started(message)
                return message
        raise DeviceError(
            "the device printed many lines, none of them the agent's",
            hint="log in with ssh and see what is printed at login",
        )

    def _early(self, lost: ConnectionLost) -> ConnectionLost:
        """The same loss, marked where nothing of ours had been heard before it."""
        return lost if self._answered else NotAnswered(str(lost), said=lost.said, code=lost.code)

    def greet(
        self,
        session: str,
        last_seq: int,
        sent_bytes: int,
        *,
        wait_s: float = 600.0,
        on_message: OnMessage = lambda message: None,
    ) -> Hello:
        """Begin or resume a session. Raises `DeviceError` when somebody else measures on the device.

        A former connection of this session that the device still serves is waited for, `wait_s` at most.
        """
        self.last_seq = last_seq
        self.send({"type": "hello", "protocol": PROTOCOL, "session": session, "last_seq": last_seq})
        self._pulse.start()
        deadline = time.monotonic() + wait_s
        while True:
            message = self.receive()
            if message["type"] == "busy":
                raise DeviceError(
                    f"the device is in use by another hwprune session (process {message['process']} there)",
                    hint="wait until it ends, two would disturb each other; one whose host has gone ends with its job",
                )
            if message["type"] == "refused":
                raise DeviceError(
                    f"the agent refused the session: {message['message']}", hint="run the same command again"
                )
            if message["type"] == "hello":
                facts = (message["boot_id"], message["python"], message["machine"])
                return Hello(*facts, sent_bytes, tuple(message["kept"]), message["process"])
            if message["type"] == "waiting":
                on_message(message)
            if time.monotonic() > deadline:
                raise ConnectionLost(f"the device still serves a former connection after {wait_s:.0f} s")

    def send(self, message: Mapping[str, Any], blob: bytes = b"") -> None:
        """One frame. Raises `ConnectionLost`, and `DeviceError` for what is too large to be sent."""
        try:
            frame = encode_frame(message, blob)
        except FrameError as error:
            raise DeviceError(f"this cannot be sent to a device: {error}", hint="take a smaller network") from error
        with self._sending:
            self._channel.send(frame)

    def _beat(self) -> None:
        """Say that the host is there, until this is closed; whoever waits for an answer finds out about a loss."""
        with contextlib.suppress(ConnectionLost, ValueError):  # ValueError: closed meanwhile
            while not self._closing.wait(ALIVE_S):
                self.send({"type": "alive"})

    def send_blobs(self, blobs: Mapping[str, bytes], *, again: bool = False) -> None:
        """What the device has not got yet, each once; `again`: in any case."""
        for name, data in blobs.items():
            if again or name not in self._sent:
                self.send({"type": "blob", "name": name, "length": len(data)}, pack(data))
                self._sent.add(name)

    def receive(self) -> dict[str, Any]:
        """The next message. Raises `ConnectionLost` also for a line that is damaged or out of order."""
        line = self._channel.receive(self._silence_s)
        try:
            message = decode_line(line)
        except FrameError as error:
            raise ConnectionLost(str(error)) from error
        seq = message.get("seq", 0)
        if seq and seq <= self.last_seq:
            raise ConnectionLost(f"message {seq} came after message {self.last_seq}")
        self.last_seq = max(self.last_seq, seq)
        return message

    def close(self) -> None:
        """Hang up."""
        self._closing.set()
        if self._pulse.is_alive():
            self._pulse.join(ENDING_S)
        self._channel.close()


def _check_started(message: Mapping[str, Any]) -> None:
    """Raise the `DeviceError` that the starter reports, where it reports one."""
    if "python" in message and "error" in message:
        raise DeviceError(
            f"the agent does not start: no interpreter {message['python']} over there ({message['error']})",
            hint="[connection] python in the device file names it: write the path that it has on the device",
        )
    if "error" in message:
        raise DeviceError(
            f"the agent does not start: {message['error']}",
            hint="look at the free space and the rights of ~/.cache/hwprune over there",
        )


def lasting(lost: ConnectionLost, label: str) -> DeviceError | None:
    """The error behind a lost connection that trying again does not cure, with what ssh said; else None."""
    said = lost.said if isinstance(lost, NotAnswered) and lost.code == NOT_CONNECTED else ""
    if "Host key verification failed" in said or "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return DeviceError(
            f"the host key of {label} is unknown or has changed, so nothing was sent to it. ssh says:\n{said}",
            hint="compare the fingerprint with the one the device itself shows, then log in once with ssh to accept it",
        )
    if "Permission denied" in said:
        return DeviceError(
            f"{label} does not let us in. ssh says:\n{said}",
            hint="hwprune asks for no password: set up a key (ssh-copy-id), and an agent where it has a passphrase",
        )
    reasons = {
        NO_PYTHON: "it has no python3 in the path of its non-interactive shell",
        OLD_PYTHON: "its python3 is older than 3.8",
        TORN_STARTER: "what arrived was not what was sent",
    }
    if lost.code in reasons:
        return DeviceError(
            f"the agent does not start on {label}: {reasons[lost.code]}",
            hint="install python3 there, 3.8 or later; [connection] python names another one for the runtime",
        )
    return None
