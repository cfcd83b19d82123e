"""The board of another machine: the same measuring loop, run over there by the agent."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hwprune.core.errors import DeviceError
from hwprune.core.events import Caution, Note, OnEvent, Progress, ignore
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Target
from hwprune.core.tensors import RawTensor
from hwprune.core.units import format_bytes, percent
from hwprune.devices.agent.framing import blob_name
from hwprune.devices.board import (
    AbstractBoard,
    Anchor,
    Prepare,
    check_models,
    check_reference,
    check_runs,
    prepared_reference,
    unprepared,
)
from hwprune.devices.reference import doctor_model
from hwprune.devices.remote.client import AgentClient
from hwprune.runtimes._base import AbstractRuntime, Check

if TYPE_CHECKING:
    import numpy as np

BUILD_S = 600.0
ROUND_S, LAP_S = 60.0, 4.0
DRIFT = 0.03  # of the reference kernel after a lost connection: more is worth a word


class RemoteBoard(AbstractBoard):
    """What `connect` gives for a device behind a connection.

    `runtime` is this machine's copy of the plugin: it names options and layers, it runs nothing. `reference` are the
    prepared bytes of the reference kernel where they are not the usual ones. `build_s` is how long a build
    may take, 0 for what is usual.
    """

    distant = True

    def __init__(
        self,
        target: Target,
        runtime: AbstractRuntime,
        client: AgentClient,
        *,
        reference_ms: float | None = None,
        prepare: Prepare = unprepared,
        reference: bytes = b"",
        build_s: float = 0.0,
    ) -> None:
        check_reference(reference_ms)
        self._build_s = build_s
        self.target = target
        self.client = client
        self._runtime = runtime
        self._prepare = prepare
        kernel = reference or prepared_reference(prepare, target)
        arguments = {
            "target": asdict(target),
            "options": asdict(runtime),
            "reference": blob_name(kernel),
            "reference_ms": reference_ms,
        }
        with ExitStack() as undo:
            undo.callback(client.close)
            opened = self._call("open", arguments, [kernel])
            self.fingerprint = Fingerprint.from_json(opened["fingerprint"])
            self.session_reference_ms = float(opened["session_reference_ms"])
            self.reference_ms = float(opened["reference_ms"])
            self.simulated = bool(opened["simulated"])
            undo.pop_all()

    def close(self) -> None:
        """End the session over there."""
        self.client.close()

    def measure(
        self,
        models: Mapping[str, bytes],
        *,
        protocol: Protocol,
        seed: int = 0,
        anchor: Anchor | None = None,
        on_event: OnEvent = ignore,
    ) -> dict[str, Measurement]:
        check_models(models)
        ready = {name: self._prepare(model, self.target) for name, model in models.items()}
        arguments = {
            "models": {name: blob_name(model) for name, model in ready.items()},
            "protocol": protocol.to_json(),
            "seed": seed,
            "reference_ms": self.reference_ms,
        }
        blobs = list(ready.values())
        if anchor is not None:
            beside = self._prepare(anchor.model, self.target)
            arguments["anchor"] = {"model": blob_name(beside), "latency_ms": anchor.latency_ms}
            blobs.append(beside)
        value = self._call("measure", arguments, blobs, laps=protocol.laps, on_event=on_event)
        try:
            return {name: Measurement.from_json(value[name]) for name in models}
        except (KeyError, TypeError, ValueError) as error:
            raise self._nonsense("measurement", error) from error

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        check_runs(runs)
        ready = self._prepare(model, self.target)
        arguments = {"model": blob_name(ready), "runs": runs, "reference_ms": self.reference_ms}
        value = self._call("layers", arguments, [ready])
        try:
            found = tuple(LayerTime.from_json(item) for item in value)
        except (KeyError, TypeError, ValueError) as error:
            raise self._nonsense("list of layer times", error) from error
        return self._runtime.name_layers(found, ready)

    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [tensor.array() for tensor in self.infer_raw(model, {k: RawTensor.of(v) for k, v in inputs.items()})]

    def infer_raw(self, model: bytes, inputs: Mapping[str, RawTensor]) -> list[RawTensor]:
        """`infer` on bytes."""
        ready = self._prepare(model, self.target)
        sent = {
            name: {"dtype": item.dtype, "shape": list(item.shape), "blob": blob_name(item.data)}
            for name, item in inputs.items()
        }
        arguments = {"model": blob_name(ready), "inputs": sent, "reference_ms": self.reference_ms}
        value = self._call("infer", arguments, [ready, *(item.data for item in inputs.values())])
        try:
            return [
                RawTensor(item["dtype"], tuple(item["shape"]), zlib.decompress(base64.b64decode(item["data"])))
                for item in value
            ]
        except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
            raise self._nonsense("list of tensors", error) from error

    def checks(self) -> tuple[Check, ...]:
        probe = self._prepare(doctor_model(self.target.batch), self.target)
        arguments = {"probe": blob_name(probe), "reference_ms": self.reference_ms}
        value = self._call("checks", arguments, [probe])
        try:
            return (*self._own_checks(), *(Check(**item) for item in value))
        except TypeError as error:
            raise self._nonsense("list of checks", error) from error

    def _own_checks(self) -> tuple[Check, ...]:
        hello = self.client.hello
        if hello is None:
            return ()
        sent = f"{format_bytes(hello.sent_bytes)} sent" if hello.sent_bytes else "in the device's cache"
        return (
            Check("connection", "pass", f"{self.client.round_trip_ms():.1f} ms round trip"),
            Check("agent", "pass", f"Python {hello.python} on {hello.machine}, agent {sent}"),
        )

    def _call(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        blobs: list[bytes],
        *,
        laps: int = 30,
        on_event: OnEvent = ignore,
    ) -> Any:
        limits = {"build_s": self._build_s or BUILD_S, "round_s": ROUND_S + LAP_S * laps}
        named = {blob_name(data): data for data in blobs}
        return self.client.call(
            kind, arguments, named, limits=limits, on_message=lambda message: self._tell(message, on_event)
        )

    def _tell(self, message: Mapping[str, Any], on_event: OnEvent) -> None:
        kind, label = message["type"], self.client.label
        if kind == "round":
            on_event(Progress("measure", message["done"], message["total"], detail=message["detail"]))
        elif kind == "crash":
            on_event(Caution(f"{label}: {message['message']}; it is tried once more"))
        elif kind == "waiting":
            on_event(Note(f"{label} still serves a connection of ours that was cut: waiting until it has done with it"))
        elif kind == "reconnected":
            how = "; it was started again meanwhile" if message["rebooted"] else ""
            on_event(Caution(f"the connection to {label} was lost ({message['message']}) and is back{how}"))
        elif kind == "reopened":
            self.session_reference_ms = float(message["session_reference_ms"])
            if abs(self.reference_drift) > DRIFT:
                pace = "longer" if self.reference_drift > 0 else "less"
                text = f"the reference kernel takes {percent(abs(self.reference_drift))} {pace} than before"
                on_event(Caution(f"{label}: {text}", "look at its clocks: hwprune doctor"))

    def _nonsense(self, what: str, error: Exception) -> DeviceError:
        return DeviceError(f"{self.client.label} sent something that is no {what}: {error!r}", hint="update hwprune")
