"""The TensorRT runtime keeps the contract, on every version whose names are known; what only it does."""

from __future__ import annotations

from typing import ClassVar

import pytest
from fake_gpu import Gpu

from hwprune.core.measurement import Target
from hwprune.runtimes.tensorrt import TensorRt
from hwprune.testing.runtimes import RuntimeConformance

TARGET = Target(device="cuda", runtime="tensorrt")


class TestTensorRt(RuntimeConformance):
    runtime: ClassVar[TensorRt]
    target: ClassVar[Target] = TARGET

    @pytest.fixture(autouse=True)
    def _over_the_fakes(self, gpu: Gpu) -> None:
        type(self).runtime = gpu.runtime()
