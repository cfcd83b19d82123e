"""A scripted TensorRT: the names of one real version and no others, engines on the fake CUDA runtime's virtual clock.

Whatever the real bindings of that version do not have raises `AttributeError` here, on instances and on classes, read
or set. What they have and this fake does not imitate raises `NotImplementedError`.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from typing import Any

from fake_trt_base import Fake, Names, Number, Script
from fake_trt_build import (
    Builder,
    IBuilderConfig,
    ILogger,
    INetworkDefinition,
    IProfiler,
    ITensor,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from fake_trt_engine import EngineInspector, ICudaEngine, IExecutionContext, Runtime

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_long)
IMITATED: tuple[type, ...] = (
    ILogger,
    IProfiler,
    Builder,
    INetworkDefinition,
    ITensor,
    IBuilderConfig,
    ITimingCache,
    OnnxParser,
    ParserError,
    Runtime,
    ICudaEngine,
    IExecutionContext,
    EngineInspector,
)


class FakeTensorRt(types.ModuleType):
    """The module: `script` says what goes wrong, `cudart` is the fake CUDA runtime's library."""

    def __init__(self, names: Names, script: Script, cudart: ctypes.CDLL) -> None:
        super().__init__("tensorrt")
        self.__version__ = names.version
        self.names, self.script, self.cudart = names, script, cudart
        self._callbacks: list[Any] = []
        self._numbers: dict[Callable[[], None], int] = {}
        for name, members in names.enums.items():
            setattr(self, name, Number(name, dict(members)) if members else type(name, (), {}))
        for kind in IMITATED:
            setattr(self, kind.__name__, _limited(kind, names.classes[kind.__name__], self))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"TensorRT {self.__dict__['names'].version} has no '{name}', or the fake does not")

    def make(self, name: str, *arguments: Any) -> Any:
        """A new fake object."""
        return getattr(self, name)(*arguments)

    def enqueue(self, compute: Callable[[], None]) -> None:
        """Put a Python function on the stream, or into the graph that is captured."""
        if compute not in self._numbers:
            self._numbers[compute] = len(self._callbacks)
            self._callbacks.append(CALLBACK(lambda number, run=compute: run()))
        self.cudart.fake_call(self._callbacks[self._numbers[compute]], ctypes.c_long(0))


def _limited(kind: type, allowed: frozenset[str], module: FakeTensorRt) -> type:
    """The class with the names that this version has."""

    def missing(name: str) -> property:
        def refuse(self: object) -> None:
            raise NotImplementedError(f"the fake TensorRT does not imitate {kind.__name__}.{name}")

        return property(refuse)

    members = {name: value for name, value in vars(kind).items() if name.startswith("_") or name in allowed}
    extra = {name: missing(name) for name in allowed if name not in members}
    members.pop("__dict__", None)
    members.pop("__weakref__", None)
    base = (Fake,) if issubclass(kind, Fake) else ()
    return type(kind.__name__, base, {**extra, **members, "_allowed": allowed, "_module": module})
