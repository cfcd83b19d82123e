"""ExecuTorch: the conformance suite, the outputs of several families of wiring, and what only this runtime does."""

from __future__ import annotations

from typing import ClassVar

import pytest

from hwprune.core.measurement import Target
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes.executorch import ExecutorchRuntime
from hwprune.testing.runtimes import RuntimeConformance

pytest.importorskip("executorch", reason="pip install executorch")

TARGET = Target(runtime="executorch")


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class TestExecutorch(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = ExecutorchRuntime()
    target: ClassVar[Target] = TARGET
