"""What TensorRT says: its logger is the only place where it tells why a build failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from hwprune.runtimes._tensorrt.api import Module
from hwprune.runtimes._tensorrt.errors import EngineRefused

KEPT = 50
SHOWN = 3  # messages in an error


class Log:
    """The last warnings and errors. `logger` is what TensorRT writes into; it must outlive all that was given it."""

    def __init__(self, trt: Module) -> None:
        self._said: deque[tuple[bool, str]] = deque(maxlen=KEPT)
        self.logger: Any = _collector(trt, self._said)

    def take(self) -> tuple[str, ...]:
        """What was said since the last time, errors first."""
        errors = [text for is_error, text in self._said if is_error]
        others = [text for is_error, text in self._said if not is_error]
        self._said.clear()
        return tuple(dict.fromkeys(errors + others))

    def take_text(self, otherwise: str = "it does not say why") -> str:
        """`take` as one line for an error message: the first few, and how many more there are."""
        return shown(self.take()) or otherwise

    def make(self, what: str, kind: Callable[..., Any], *arguments: Any) -> Any:
        """One of TensorRT's objects that write into this log. Raises `EngineRefused` when it cannot be made.

        The bindings raise `TypeError` for a factory that returned nothing, as it does without a working GPU.
        """
        try:
            return kind(*arguments, self.logger)
        except TypeError as error:
            raise EngineRefused(
                f"TensorRT could not make its {what}: {self.take_text(str(error))}",
                hint="check nvidia-smi: TensorRT needs a GPU and a driver that serves its CUDA version",
            ) from error


def shown(said: tuple[str, ...]) -> str:
    """The first messages on one line."""
    rest = f" (and {len(said) - SHOWN} more)" if len(said) > SHOWN else ""
    return "; ".join(text.replace("\n", " ") for text in said[:SHOWN]) + rest


def _collector(trt: Module, said: deque[tuple[bool, str]]) -> Any:
    errors = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
    kept = (*errors, trt.ILogger.WARNING)

    class Collector(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding's base class must be initialised by name

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                said.append((severity in errors, msg.strip()))

    return Collector()
