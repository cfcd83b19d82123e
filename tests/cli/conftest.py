"""A clean working directory and environment, and a stand-in for `hwprune.api` that checks how it is called."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

import hwprune
from hwprune.cli import main


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


@pytest.fixture(scope="session")
def real_api() -> types.ModuleType:
    return importlib.import_module("hwprune.api")


@pytest.fixture
def api(real_api: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi(real_api)
    monkeypatch.setitem(sys.modules, "hwprune.api", fake)
    monkeypatch.setattr(hwprune, "api", fake)
    return fake


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a working directory and a home of its own, and no HWPRUNE_ variable."""
    import os

    for name in [key for key in os.environ if key.startswith("HWPRUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Done:
    """How a command ended: exit code, stdout, stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The one document on stdout."""
        return json.loads(self.out)  # type: ignore[no-any-return]


@pytest.fixture
def hw(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command line in this process."""

    def run(*words: str) -> Done:
        capsys.readouterr()
        code = main(list(words))
        return Done(code, *capsys.readouterr())

    return run
