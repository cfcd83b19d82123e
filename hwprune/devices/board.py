"""A board is a device with its runtime open and its reference kernel calibrated, ready to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from hwprune.core import plugins
from hwprune.core.config import from_mapping
from hwprune.core.errors import UsageError
from hwprune.core.events import OnEvent, Progress, ignore
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Round, Target
from hwprune.devices.files import find_device, resolve
from hwprune.devices.reference import REFERENCE_NAME, reference_model
from hwprune.runtimes._base import AbstractRuntime, AbstractSession
from hwprune.runtimes._timing import Reference, TimingLoop, calibrate

if TYPE_CHECKING:
    import numpy as np

    from hwprune.devices.checks import Check


class Board:
    """A context manager. `reference_ms` is the reference kernel's undisturbed time that every latency rests on.

    `session_reference_ms` is what this session found for it; the two differ by `reference_drift` when a table's value
    was given.
    """

    def __init__(self, target: Target, runtime: AbstractRuntime, *, reference_ms: float | None = None) -> None:
        if reference_ms is not None and not reference_ms > 0:
            raise UsageError(f"reference_ms must be a positive number, not {reference_ms}")
        self.target = target
        self.runtime = runtime
        plain = runtime.fingerprint(target)
        self.fingerprint: Fingerprint = replace(plain, flags=(*plain.flags, ("reference", REFERENCE_NAME)))
        self._clock = runtime.clock(target)
        self._session: AbstractSession = runtime.open(reference_model(), replace(target, batch=1))
        with runtime.measuring(target):
            calibration = calibrate(self._session, self._clock)
        self._reference = Reference(self._session, self._clock, calibration)
        self.session_reference_ms = calibration.typical_ms
        self.reference_ms = reference_ms if reference_ms is not None else calibration.typical_ms

    @property
    def reference_drift(self) -> float:
        """How much slower the reference kernel ran at opening than `reference_ms` says; 0 for a fresh calibration."""
        return self.session_reference_ms / self.reference_ms - 1

    @property
    def simulated(self) -> bool:
        """Whether no hardware is timed at all."""
        return self.runtime.simulated

    def label(self) -> str:
        """The target's label; begins with `SIMULATED` where no hardware is timed."""
        return self.target.label()

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the reference session."""
        self._session.close()

    def measure(
        self, models: Mapping[str, bytes], *, protocol: Protocol, seed: int = 0, on_event: OnEvent = ignore
    ) -> dict[str, Measurement]:
        """Time the models (name -> ONNX bytes) in random order, every lap paired with the reference kernel.

        One session is alive at a time when the protocol has one round or rebuilds them, else one a model: give few.
        Raises `UsageError` for no models and for bytes that are no model.
        """
        if not models:
            raise UsageError("there is nothing to measure: no models were given")
        openers = {name: partial(self.runtime.open, model, self.target) for name, model in models.items()}
        with self.runtime.measuring(self.target):
            return self._loop().measure(
                openers, protocol, seed=seed, on_round=_progress(len(models), protocol, on_event)
            )

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        """The time of every operator inside the whole network as the runtime executes it, the mean of `runs` runs."""
        if runs < 1:
            raise UsageError(f"runs must be 1 or more, not {runs}")
        with self.runtime.measuring(self.target):
            return self.runtime.layer_times(model, self.target, runs=runs)

    def infer(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The model's outputs for these inputs, by input name."""
        session = self.runtime.open(model, self.target)
        try:
            return session.infer(inputs)
        finally:
            session.close()

    def checks(self) -> tuple[Check, ...]:
        """Whether this machine is fit to measure, and how wide an interval to expect."""
        from hwprune.devices.checks import run_checks

        return run_checks(self)

    def _loop(self) -> TimingLoop:
        return TimingLoop(
            self._reference,
            self._clock,
            reference_ms=self.reference_ms,
            fingerprint=self.fingerprint,
            simulated=self.simulated,
        )


def _progress(models: int, protocol: Protocol, on_event: OnEvent) -> Callable[[str, Round], None]:
    """A listener of rounds that reports how many of the fewest possible are done."""
    done = 0

    def report(name: str, finished: Round) -> None:
        nonlocal done
        done += 1
        total = max(models * protocol.rounds_min, done)
        on_event(Progress("measure", done, total, detail=f"{name}: {finished.void}" if finished.void else name))

    return report


def connect(target: Target, *, reference_ms: float | None = None) -> Board:
    """Open the board of a target; use it in a `with` statement.

    `reference_ms` is the value of the table that new measurements are to be compared with; without it the reference
    kernel is calibrated now. Raises `UsageError` for an unknown device, runtime or precision, `DeviceError` when
    the runtime is not installed.
    """
    known = resolve(target)
    info = find_device(known.device)
    kind = plugins.load("hwprune.runtimes", known.runtime, AbstractRuntime)  # type: ignore[type-abstract]
    where = f"{info.source}: runtimes.{known.runtime}.options"
    runtime = from_mapping(kind, info.runtimes[known.runtime].options, where=where)
    runtime.check(known)
    return Board(known, runtime, reference_ms=reference_ms)
