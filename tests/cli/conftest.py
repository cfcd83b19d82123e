"""A clean working directory and environment for every test, and ways to run a command line in this process."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import Done, FakeApi

import hwprune
from hwprune.cli import main


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
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hw(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command line in this process."""

    def run(*words: str) -> Done:
        capsys.readouterr()
        code = main(list(words))
        return Done(code, *capsys.readouterr())

    return run
