"""A stand-in for `hwprune.api` that checks how it is called, and what a command line left behind."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.report.run_data import Result


class FakeApi(types.ModuleType):
    """Answers every verb with what `answers` holds and keeps the call.

    Each call must bind to the real function's signature, so that the command line cannot drift away from the API.
    """

    def __init__(self, real: types.ModuleType) -> None:
        super().__init__("hwprune.api")
        self.real = real
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        signature = inspect.signature(getattr(self.real, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
            self.calls.append((name, args, kwargs))
            answer = self.answers[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args, **kwargs) if callable(answer) else answer

        return call

    @property
    def last(self) -> dict[str, Any]:
        """The keyword arguments of the latest call."""
        return self.calls[-1][2]


class Done:
    """How a command ended: exit code, stdout, stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The one document on stdout."""
        return json.loads(self.out)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FakeRun:
    folder: Path
    result: Result
