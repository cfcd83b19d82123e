"""The process with the runtime in it: opens a board, times what it is given, and may die without harm.

It reads frames from its supervisor and writes lines to it. An error of the user's making becomes an `error` line;
anything else ends the process, and the supervisor says how.
"""

from __future__ import annotations

import base64
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable

from hwprune.core import plugins
from hwprune.core.errors import DeviceError, HwpruneError, public_class
from hwprune.core.events import Event, Progress
from hwprune.core.measurement import Fingerprint, LayerTime, Protocol, Target
from hwprune.core.tensors import RawTensor
from hwprune.devices.agent.framing import FrameError, blob_name, encode_line, read_frame, unpack
from hwprune.devices.agent.processes import die_with_parent, private_stdout, write_all
from hwprune.devices.board import Anchor, Board
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession, Check


@dataclass(frozen=True)
class Announcing(AbstractRuntime):
    """A runtime that says when a build begins and how long it took: a build may take minutes, a lap may not."""

    inner: AbstractRuntime
    say: Callable[[Mapping[str, Any]], None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "simulated", self.inner.simulated)

    def check(self, target: Target) -> None:
        self.inner.check(target)

    def fingerprint(self, target: Target) -> Fingerprint:
        return self.inner.fingerprint(target)

    def clock(self, target: Target) -> AbstractClock:
        return self.inner.clock(target)

    def open(self, model: bytes, target: Target) -> AbstractSession:
        return self._announced(self.inner.open, model, target)

    def open_reference(self, model: bytes, target: Target) -> AbstractSession:
        return self._announced(self.inner.open_reference, model, target)

    def _announced(
        self, open_: Callable[[bytes, Target], AbstractSession], model: bytes, target: Target
    ) -> AbstractSession:
        self.say({"type": "stage", "stage": "build", "bytes": len(model)})
        begin = time.monotonic()
        session = open_(model, target)
        self.say({"type": "built", "ms": round(1e3 * (time.monotonic() - begin), 3), "bytes": len(model)})
        return session

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        self.say({"type": "stage", "stage": "build", "bytes": len(model)})
        return self.inner.layer_times(model, target, runs=runs)

    def findings(self) -> tuple[Check, ...]:
        return self.inner.findings()

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return self.inner.measuring(target)


class Worker:
    """Serves jobs one after the other. A blob is kept until the job after it is done."""

    def __init__(self, source: BinaryIO, out: int) -> None:
        self._source = source
        self._out = out
        self._blobs: dict[str, bytes] = {}
        self._board: Board | None = None

    def serve(self) -> None:
        """Until the supervisor closes the pipe."""
        while True:
            frame = read_frame(self._source)
            if frame is None:
                return
            message, blob = frame
            if message["type"] == "blob":
                self._keep(message, blob)
            else:
                self._answer(message)
                self._blobs.clear()

    def _keep(self, message: Mapping[str, Any], packed: bytes) -> None:
        data = unpack(packed, message["length"])
        if blob_name(data) != message["name"]:
            raise FrameError(f"blob {message['name'][:12]} has another content")
        self._blobs[message["name"]] = data

    def _answer(self, message: Mapping[str, Any]) -> None:
        kinds = {
            "open": self._open,
            "measure": self._measure,
            "layers": self._layers,
            "infer": self._infer,
            "checks": self._checks,
        }
        try:
            value = kinds[message["kind"]](message["arguments"])
        except HwpruneError as error:
            if isinstance(error, DeviceError) and error.ends_process:
                raise  # the supervisor starts another process, and leaves a network out that ends two of them
            failed = {"class": public_class(error), "message": error.message, "hint": error.hint}
            self._say({"type": "error", **failed})
        else:
            self._say({"type": "result", "value": value})

    def _say(self, message: Mapping[str, Any]) -> None:
        write_all(self._out, encode_line(message))

    def _open(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._board is not None:
            self._board.close()
            self._board = None
        target = Target(**arguments["target"])
        kind = plugins.load("hwprune.runtimes", target.runtime, AbstractRuntime)  # type: ignore[type-abstract]
        options = {
            name: tuple(value) if isinstance(value, list) else value for name, value in arguments["options"].items()
        }
        runtime = kind(**options)
        runtime.check(target)
        reference = self._blobs[arguments["reference"]]
        self._board = Board(
            target, Announcing(runtime, self._say), reference=reference, reference_ms=arguments["reference_ms"]
        )
        return {
            "fingerprint": self._board.fingerprint.to_json(),
            "reference_ms": self._board.reference_ms,
            "session_reference_ms": self._board.session_reference_ms,
            "simulated": self._board.simulated,
        }

    def _opened(self, arguments: Mapping[str, Any]) -> Board:
        assert self._board is not None, "the supervisor opens the board before anything else"
        self._board.reference_ms = arguments["reference_ms"]
        return self._board

    def _measure(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        models = {name: self._blobs[blob] for name, blob in arguments["models"].items()}
        protocol = Protocol.from_json(arguments["protocol"])
        board = self._opened(arguments)
        beside = arguments.get("anchor")
        anchor = Anchor(self._blobs[beside["model"]], beside["latency_ms"]) if beside else None
        measured = board.measure(models, protocol=protocol, seed=arguments["seed"], anchor=anchor, on_event=self._tell)
        return {name: item.to_json() for name, item in measured.items()}

    def _tell(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._say({"type": "round", "done": event.done, "total": event.total, "detail": event.detail})

    def _layers(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = self._opened(arguments).layers(self._blobs[arguments["model"]], runs=arguments["runs"])
        return [layer.to_json() for layer in found]

    def _infer(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        inputs = {
            name: RawTensor(item["dtype"], tuple(item["shape"]), self._blobs[item["blob"]])
            for name, item in arguments["inputs"].items()
        }
        outputs = self._opened(arguments).infer_raw(self._blobs[arguments["model"]], inputs)
        return [
            {
                "dtype": item.dtype,
                "shape": list(item.shape),
                "data": base64.b64encode(zlib.compress(item.data)).decode(),
            }
            for item in outputs
        ]

    def _checks(self, arguments: Mapping[str, Any]) -> list[dict[str, str]]:
        found = self._opened(arguments).checks(probe=self._blobs[arguments["probe"]])
        return [check.to_json() for check in found]


def main() -> None:
    """Serve the supervisor this process belongs to."""
    die_with_parent()
    Worker(sys.stdin.buffer, private_stdout()).serve()
