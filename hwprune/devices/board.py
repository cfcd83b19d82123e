"""A board is a device with its runtime open and its reference kernel calibrated, ready to measure.

`AbstractBoard` is what profile, bench, search and doctor work with; `Board` is the device this process runs on. A
remote device runs the same `Board`, with models and kernels that were prepared here: it needs the standard library
and its runtime, no `onnx` and no NumPy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Callable, TypeVar

from hwprune.core.comparison import Comparison, compare_anchored
from hwprune.core.errors import NetworkUnfit, UsageError
from hwprune.core.events import OnEvent, Progress, ignore
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Round, Target
from hwprune.devices.reference import REFERENCE_NAME, doctor_model, reference_model
from hwprune.runtimes._base import AbstractRuntime, AbstractSession
from hwprune.runtimes._gauge import AbstractGauge, AnchorGauge, Reference, calibrate
from hwprune.runtimes._timing import TimingLoop, as_it_ran

if TYPE_CHECKING:
    import numpy as np

    from hwprune.core.tensors import RawTensor
    from hwprune.runtimes._base import Check

Self = TypeVar("Self", bound="AbstractBoard")
Prepare = Callable[[bytes, Target], bytes]


class WorkerDied(NetworkUnfit):
    """A network ends the process that is to measure it, every time; other networks can still be measured."""


@dataclass(frozen=True)
class Anchor:
    """A network that takes the reference kernel's place: latencies are in milliseconds in which it takes `latency_ms`.

    Raises `UsageError` for a latency that is none.
    """

    model: bytes
    latency_ms: float

    def __post_init__(self) -> None:
        check_reference(self.latency_ms)


class AbstractBoard(ABC):
    """An open device; a context manager. `reference_ms` is what every latency rests on and may be set to a table's.

    `session_reference_ms` is what this session found for it; the two differ by `reference_drift` when a table's value
    was given. `distant`: models travel to another machine, and small ones are there sooner.
    """

    target: Target
    fingerprint: Fingerprint
    reference_ms: float
    session_reference_ms: float
    simulated: bool
    distant: bool = False

    @property
    def reference_drift(self) -> float:
        """How much slower the reference kernel ran at opening than `reference_ms` says; 0 for a fresh calibration."""
        return self.session_reference_ms / self.reference_ms - 1

    def label(self) -> str:
        """The target's label; begins with `SIMULATED` where no hardware is timed."""
        return self.target.label()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Free the device. It is not used afterwards."""

    @abstractmethod
    def measure(
        self,
        models: Mapping[str, bytes],
        *,
        protocol: Protocol,
        seed: int = 0,
        anchor: Anchor | None = None,
        on_event: OnEvent = ignore,
    ) -> dict[str, Measurement]:
        """Time the models (name -> ONNX bytes) in random order, every lap paired with the reference kernel or `anchor`.

        One session is alive at a time when the protocol has one round or rebuilds them, else one a model: give few.
        Raises `UsageError` for no models and for bytes that are no model.
        """

    def compare(
        self, models: Mapping[str, bytes], *, protocol: Protocol, seed: int = 0, on_event: OnEvent = ignore
    ) -> tuple[Comparison, ...]:
        """Each network but the first against the first, beside it every few laps, so that what slows one slows both.

        Rounds of 50 laps in turn scatter several times as much where others use the machine (`benchmarks/LOG.md`).
        """
        (baseline, model), *others = models.items()
        if not others:
            return ()
        timed = self.measure(dict(others), protocol=protocol, seed=seed, anchor=Anchor(model, 1.0), on_event=on_event)
        return tuple(compare_anchored(baseline, timed[name]) for name, _ in others)

    @abstractmethod
    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        """The time of every operator inside the whole network as the runtime executes it, the mean of `runs` runs."""

    @abstractmethod
    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The model's outputs for these inputs, by input name."""

    @abstractmethod
    def checks(self) -> tuple[Check, ...]:
        """Whether the device is fit to measure, and how wide an interval to expect."""


def unprepared(model: bytes, target: Target) -> bytes:
    """The model as it is: what `prepare` does where nothing is to be done."""
    return model


def prepared_reference(prepare: Prepare, target: Target) -> bytes:
    """The reference kernel in the target's precision; it has batch 1 whatever the target's is."""
    return prepare(reference_model(), replace(target, batch=1))


def check_reference(reference_ms: float | None) -> None:
    """Raise `UsageError` unless it is a time, or None."""
    if reference_ms is not None and not reference_ms > 0:
        raise UsageError(
            f"reference_ms must be a positive number, not {reference_ms}",
            hint="leave it out: it is measured then",
        )


class Board(AbstractBoard):
    """The device of this process.

    `prepare` gives a model the target's precision; `reference` are the prepared bytes of the reference kernel, where
    they cannot be made here.
    """

    def __init__(
        self,
        target: Target,
        runtime: AbstractRuntime,
        *,
        reference_ms: float | None = None,
        prepare: Prepare = unprepared,
        reference: bytes = b"",
    ) -> None:
        check_reference(reference_ms)
        self.target = target
        self.runtime = runtime
        self.simulated = runtime.simulated
        self._prepare = prepare
        self._latest: tuple[bytes, AbstractSession] | None = None
        plain = runtime.fingerprint(target)
        promised = replace(plain, flags=(*plain.flags, ("reference", REFERENCE_NAME)))
        self._clock = runtime.clock(target)
        kernel = reference or prepared_reference(prepare, target)
        self._session: AbstractSession = runtime.open_reference(kernel, replace(target, batch=1))
        self.fingerprint = as_it_ran(promised, self._session.facts)  # as engines run here, not as was asked for
        try:
            with runtime.measuring(target):
                calibration = calibrate(self._session, self._clock)
        except BaseException:
            self._session.close()
            raise
        self._reference = Reference(self._session, self._clock, calibration)
        self.session_reference_ms = calibration.typical_ms
        self.reference_ms = reference_ms if reference_ms is not None else calibration.typical_ms

    def close(self) -> None:
        """Free the sessions."""
        self._stop_computing()
        self._session.close()

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
        self._stop_computing()
        ready = {name: self._prepare(model, self.target) for name, model in models.items()}
        openers = {name: partial(self.runtime.open, model, self.target) for name, model in ready.items()}
        on_round = rounds_done(len(models), protocol, on_event)
        with self.runtime.measuring(self.target):
            if anchor is None:
                return self._loop(self._reference, self.reference_ms).measure(
                    openers, protocol, seed=seed, on_round=on_round
                )
            beside = self.runtime.open(self._prepare(anchor.model, self.target), self.target)
            try:
                loop = self._loop(AnchorGauge(beside, self._clock), anchor.latency_ms)
                return loop.measure(openers, protocol, seed=seed, on_round=on_round)
            finally:
                beside.close()

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        check_runs(runs)
        self._stop_computing()
        ready = self._prepare(model, self.target)
        with self.runtime.measuring(self.target):
            found = self.runtime.layer_times(ready, self.target, runs=runs)
        return self.runtime.name_layers(found, ready)

    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._computing(model).infer(inputs)

    def infer_raw(self, model: bytes, inputs: Mapping[str, RawTensor]) -> list[RawTensor]:
        """`infer` on bytes: what an agent calls, where NumPy may be absent."""
        return self._computing(model).infer_raw(inputs)

    def _computing(self, model: bytes) -> AbstractSession:
        """A session for outputs; kept for the next inputs, since some runtimes take seconds to build one."""
        if self._latest is None or self._latest[0] != model:
            self._stop_computing()
            self._latest = model, self.runtime.open(self._prepare(model, self.target), self.target)
        return self._latest[1]

    def _stop_computing(self) -> None:
        if self._latest is not None:
            self._latest[1].close()
            self._latest = None

    def checks(self, *, probe: bytes = b"") -> tuple[Check, ...]:
        """`probe`: prepared bytes of the network to time, where they cannot be made here."""
        from hwprune.devices.checks import run_checks

        return run_checks(self, probe or doctor_model(self.target.batch))

    def _loop(self, gauge: AbstractGauge, reference_ms: float) -> TimingLoop:
        return TimingLoop(
            gauge,
            self._clock,
            reference_ms=reference_ms,
            fingerprint=self.fingerprint,
            simulated=self.simulated,
        )


def check_runs(runs: int) -> None:
    """Raise `UsageError` unless there is something to take the mean of."""
    if runs < 1:
        raise UsageError(f"runs must be 1 or more, not {runs}", hint="30 is the standard")


def check_models(models: Mapping[str, bytes]) -> None:
    """Raise `UsageError` unless there is something to measure."""
    if not models:
        raise UsageError("there is nothing to measure: no models were given", hint="give at least one, by name")


def rounds_done(models: int, protocol: Protocol, on_event: OnEvent) -> Callable[[str, Round], None]:
    """A listener of rounds that reports how many of the fewest possible are done."""
    done = 0

    def report(name: str, finished: Round) -> None:
        nonlocal done
        done += 1
        total = max(models * protocol.rounds_min, done)
        on_event(Progress("measure", done, total, detail=f"{name}: {finished.void}" if finished.void else name))

    return report
