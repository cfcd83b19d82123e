"""The contract of a runtime: build a session from ONNX bytes, run it, say what it computed on and with.

A new runtime is one file here with one subclass of `AbstractRuntime`; `hwprune.testing.runtimes.RuntimeConformance`
holds the tests it inherits. The measuring itself is in `_timing.py`, the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hwprune.core.measurement import Explains
from hwprune.core.tensors import RawTensor

if TYPE_CHECKING:
    import numpy as np

    from hwprune.core.measurement import Fingerprint, LayerTime, Target

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of `hwprune doctor`; `fix` says what to do, "" where nothing is to be done."""

    name: str
    status: Status
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """A JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Lap:
    """One timed run: by the clock that counts and by the wall clock, in ms."""

    time_ms: float
    wall_ms: float


class AbstractClock(ABC):
    """What a lap is timed with. `name` is one of thread_cpu, wall, virtual, device."""

    name: ClassVar[str]

    @abstractmethod
    def time(self, run: Callable[[], None]) -> Lap:
        """Run once and wait until the result is there."""

    @abstractmethod
    def now_s(self) -> float:
        """Seconds from an arbitrary start; bounds the warm-up."""

    def waited_s(self) -> float:
        """Seconds so far in which this process could have run and did not; 0 where the system does not tell."""
        return 0.0

    def elsewhere(self) -> None:
        """Go on on another core, where there is one: its neighbours may be quieter."""
        return

    def counters(self) -> Mapping[str, int]:
        """Counters whose change during a round voids it, such as a device's throttle events."""
        return {}


class AbstractSession(ABC):
    """One network, built and ready to run on fixed inputs in the normal range of floats."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What one should know about a latency of this engine: names out of the runtime's `own_warnings`.

        A name may be followed by a colon and a detail, such as the layers it is about.
        """
        return ()

    @property
    def facts(self) -> Mapping[str, str]:
        """What is known of this engine besides its time, in words.

        A fact with the name of a fingerprint flag replaces that flag: those of the reference kernel's engine in the
        board's fingerprint, those of another engine in its measurement's. An engine that ran in another way than the
        reference kernel is not taken into a table.
        """
        return {}

    @abstractmethod
    def run(self) -> None:
        """One inference, finished when this returns (or when the runtime's own clock says so)."""

    @abstractmethod
    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs for these inputs, by input name. Raises `UsageError` for a wrong name or shape."""

    def infer_raw(self, inputs: Mapping[str, RawTensor]) -> list[RawTensor]:
        """`infer` on bytes: what an agent calls. Here through NumPy; a runtime that needs no NumPy overrides it."""
        return [RawTensor.of(array) for array in self.infer({name: item.array() for name, item in inputs.items()})]

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds; it is not used afterwards."""


@dataclass(frozen=True)
class AbstractRuntime(Explains, ABC):
    """Software that executes a network on a device. The dataclass fields of a subclass are its options.

    Where its engines have something to warn of, `own_warnings` says it in words.
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    precisions_in_model: ClassVar[tuple[str, ...]] = ("int8",)  # those that the ONNX file brings along
    simulated: ClassVar[bool] = False

    @abstractmethod
    def check(self, target: Target) -> None:
        """Raise `DeviceError` where the runtime is missing, `UsageError` for a target it cannot serve."""

    @abstractmethod
    def fingerprint(self, target: Target) -> Fingerprint:
        """What a latency measured now is true for."""

    @abstractmethod
    def clock(self, target: Target) -> AbstractClock:
        """The clock of this target."""

    @abstractmethod
    def open(self, model: bytes, target: Target) -> AbstractSession:
        """Build a session. Raises `UsageError` when the bytes are no model this runtime can run."""

    def open_reference(self, model: bytes, target: Target) -> AbstractSession:
        """`open` for the reference kernel, which is timed beside everything else.

        It is only a gauge, so a runtime does not refuse it for anything it would merely warn about.
        """
        return self.open(model, target)

    @abstractmethod
    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        """The time of each operator inside the whole network, the mean of `runs` runs, in order of execution."""

    def name_layers(self, layers: tuple[LayerTime, ...], model: bytes) -> tuple[LayerTime, ...]:
        """The layer times under the names of the ONNX nodes, where that takes the onnx package: called on the host."""
        return layers

    def findings(self) -> tuple[Check, ...]:
        """What `hwprune doctor` is to say about the hardware that this runtime computes on."""
        return ()

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        """Held while timing and only then: pins a thread, reserves a device."""
        return nullcontext()
