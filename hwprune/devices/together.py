"""Several runtimes of this machine in one interleaved run: one clock and one reference kernel for all of them.

Two latencies can be compared only when they were measured in turns, so the networks of all runtimes take turns. The
reference kernel runs in ONNX Runtime where that is among them, which is steady, else in the first. What one runtime
cannot do is noted; the others are measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hwprune.core.comparison import Comparison, compare
from hwprune.core.errors import DeviceError, HwpruneError, UsageError
from hwprune.core.events import OnEvent, ignore
from hwprune.core.measurement import Fingerprint, Measurement, Protocol, Target
from hwprune.devices.board import check_models, prepared_reference, rounds_done
from hwprune.devices.connect import runtime_of
from hwprune.devices.files import find_device, resolve
from hwprune.devices.prepare import UNCHECKED, check_outputs, prepare
from hwprune.devices.reference import REFERENCE_NAME
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._clocks import WallClock
from hwprune.runtimes._gauge import Reference, calibrate
from hwprune.runtimes._timing import TimingLoop, as_it_ran

if TYPE_CHECKING:
    import numpy as np

CPU_CLOCKS = {"thread_cpu", "wall"}  # where one runtime needs the wall clock, it is true for the others too
BREAKS = (HwpruneError, RuntimeError, ValueError, OSError)  # what a runtime's own library raises is no error of ours


@dataclass(frozen=True)
class Pair:
    """A network and the runtime it runs on, as `openvino` or, in another precision than fp32, `openvino:bf16`."""

    model: str
    runtime: str

    @property
    def subject(self) -> str:
        """The name of its measurement."""
        return f"{self.model} on {self.runtime}"


@dataclass(frozen=True)
class Together:
    """Measurements in the order of models and runtimes, why the others are missing, and how long building took."""

    measurements: Mapping[Pair, Measurement]
    failures: Mapping[Pair, HwpruneError]
    build_s: Mapping[Pair, float]

    def comparisons(self) -> tuple[Comparison, ...]:
        """Every runtime against the first one, network by network, then every network against the first, by runtime.

        First means the first that was measured.
        """
        pairs = list(self.measurements)
        models, runtimes = (list(dict.fromkeys(names)) for names in zip(*((p.model, p.runtime) for p in pairs)))
        rows = [[pair for pair in pairs if pair.model == model] for model in models]
        columns = [[pair for pair in pairs if pair.runtime == runtime] for runtime in runtimes]
        return tuple(self._compare(line[0], other) for line in (*rows, *columns) for other in line[1:])

    def _compare(self, baseline: Pair, subject: Pair) -> Comparison:
        """As `compare`, which asks for one fingerprint: clock, reference kernel and session were the same here."""
        first, second = self.measurements[baseline], self.measurements[subject]
        return compare(first, replace(second, fingerprint=first.fingerprint))


@dataclass
class _Lane:
    """One runtime at work: its target, what a latency on it is true for, and the sessions built so far."""

    label: str
    target: Target
    runtime: AbstractRuntime
    fingerprint: Fingerprint
    sessions: dict[str, AbstractSession] = field(default_factory=dict)
    ready: dict[str, bytes] = field(default_factory=dict)

    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of the session built last."""
        return next(reversed(self.sessions.values())).infer(inputs)

    def build(self, name: str, model: bytes) -> float:
        """Build a session, prove it and run it once; the seconds that building took."""
        self.ready[name] = prepare(model, self.target)
        begin = time.perf_counter()
        self.sessions[name] = self.runtime.open(self.ready[name], self.target)
        built = time.perf_counter() - begin
        if self.target.runtime not in UNCHECKED:
            check_outputs(self, model, name)
        self.sessions[name].run()
        return built

    def open(self, name: str) -> AbstractSession:
        """The session built before, or another one when that has been used up."""
        return self.sessions.pop(name, None) or self.runtime.open(self.ready[name], self.target)

    def close(self) -> None:
        """Free the sessions that nobody took."""
        while self.sessions:
            self.sessions.popitem()[1].close()


def split_runtimes(text: str, target: Target) -> tuple[Target, ...]:
    """The targets of a list such as `onnxruntime,openvino,openvino:bf16`, on the device of `target`.

    Raises `UsageError` for a runtime twice, and a device that does not offer one of them.
    """
    targets = [resolve(replace(target, runtime=item.strip())) for item in text.split(",")]
    if len(set(targets)) < len(targets):
        raise UsageError(f"--runtime {text} names a runtime twice", hint="name each once")
    return tuple(targets)


def label_of(target: Target) -> str:
    """`openvino`, or `openvino:bf16` in another precision than fp32."""
    return target.runtime if target.precision == "fp32" else f"{target.runtime}:{target.precision}"


def measure_together(
    models: Mapping[str, bytes],
    targets: Sequence[Target],
    *,
    protocol: Protocol,
    seed: int = 0,
    on_event: OnEvent = ignore,
) -> Together:
    """Time every model (name -> ONNX bytes) on every runtime, all in turns.

    Raises the first error when nothing can be measured, and `UsageError` where the runtimes have no clock in common.
    """
    check_models(models)
    for target in targets:
        if find_device(target.device).connection.kind != "local":
            raise UsageError(
                f"runtimes are compared on the machine hwprune runs on, and {target.device} is another one",
                hint="bench one runtime at a time there",
            )
    failures: dict[Pair, HwpruneError] = {}
    build_s: dict[Pair, float] = {}
    with ExitStack() as stack:
        lanes = [lane for target in targets if (lane := _lane(target, models, failures)) is not None]
        clock = _common_clock(lanes)
        for lane in lanes:
            stack.callback(lane.close)
        for lane in lanes:
            stack.enter_context(lane.runtime.measuring(lane.target))
            build_s.update(_build(lane, models, failures))
        lanes = [lane for lane in lanes if lane.sessions]
        if not lanes:
            raise next(iter(failures.values()))
        measured = _Run(lanes, clock, protocol, seed, on_event).measure(models)
    return Together(measured, failures, build_s)


def _lane(target: Target, models: Mapping[str, bytes], failures: dict[Pair, HwpruneError]) -> _Lane | None:
    label = label_of(target)
    try:
        runtime = runtime_of(target)
        runtime.check(target)
        return _Lane(label, target, runtime, runtime.fingerprint(target))
    except BREAKS as error:
        failures.update((Pair(name, label), _as_ours(error, label)) for name in models)
        return None


def _build(lane: _Lane, models: Mapping[str, bytes], failures: dict[Pair, HwpruneError]) -> dict[Pair, float]:
    """Seconds by pair; what cannot be built, computes something else or does not run goes to `failures`."""
    found = {}
    for name, model in models.items():
        pair = Pair(name, lane.label)
        try:
            found[pair] = lane.build(name, model)
        except BREAKS as error:
            failures[pair] = _as_ours(error, lane.label)
            broken = lane.sessions.pop(name, None)
            if broken is not None:
                broken.close()
    return found


def _as_ours(error: Exception, label: str) -> HwpruneError:
    if isinstance(error, HwpruneError):
        return error
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return DeviceError(f"{label} failed: {first}", hint="leave it out of --runtime")


def _common_clock(lanes: Sequence[_Lane]) -> AbstractClock:
    clocks = {lane.label: lane.runtime.clock(lane.target) for lane in lanes}
    names = {clock.name for clock in clocks.values()}
    if len(names) > 1 and not names <= CPU_CLOCKS:
        told = ", ".join(f"{label} by {clock.name}" for label, clock in clocks.items())
        raise UsageError(f"these runtimes are not timed by one clock: {told}", hint="bench them one by one")
    return WallClock() if len(names) > 1 else next(iter(clocks.values()), WallClock())


@dataclass(frozen=True)
class _Run:
    """The interleaved run of what was built."""

    lanes: Sequence[_Lane]
    clock: AbstractClock
    protocol: Protocol
    seed: int
    on_event: OnEvent

    def measure(self, models: Mapping[str, bytes]) -> dict[Pair, Measurement]:
        """By pair, in the order of the models and then of the runtimes."""
        pairs = {Pair(name, lane.label): lane for name in models for lane in self.lanes if name in lane.sessions}
        openers = {pair.subject: self._opener(lane, pair.model) for pair, lane in pairs.items()}
        lane = self._gauge
        session = lane.runtime.open_reference(prepared_reference(prepare, lane.target), replace(lane.target, batch=1))
        try:
            calibration = calibrate(session, self.clock)
            loop = TimingLoop(
                Reference(session, self.clock, calibration),
                self.clock,
                reference_ms=calibration.typical_ms,
                fingerprint=self._fingerprint(lane),
                simulated=lane.runtime.simulated,
            )
            on_round = rounds_done(len(openers), self.protocol, self.on_event)
            timed = loop.measure(openers, self.protocol, seed=self.seed, on_round=on_round)
        finally:
            session.close()
        return {pair: self._of(timed[pair.subject], lane) for pair, lane in pairs.items()}

    @property
    def _gauge(self) -> _Lane:
        """Whose reference kernel it is."""
        return next((lane for lane in self.lanes if lane.target.runtime == Target.runtime), self.lanes[0])

    def _opener(self, lane: _Lane, name: str) -> Callable[[], AbstractSession]:
        return lambda: lane.open(name)

    def _of(self, measured: Measurement, lane: _Lane) -> Measurement:
        return replace(measured, fingerprint=as_it_ran(self._fingerprint(lane), dict(measured.facts)))

    def _fingerprint(self, lane: _Lane) -> Fingerprint:
        """The runtime's own, with the clock and the reference kernel of this run."""
        common = {"clock": self.clock.name, "reference": f"{REFERENCE_NAME} in {self._gauge.label}"}
        flags = {**dict(lane.fingerprint.flags), **common}
        return replace(lane.fingerprint, flags=tuple(flags.items()))
