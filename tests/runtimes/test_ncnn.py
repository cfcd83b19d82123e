"""ncnn: the conformance suite, the outputs of every family of wiring, and what only this runtime does."""

from __future__ import annotations

from typing import ClassVar

import pytest

from hwprune.core.measurement import Target
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes.ncnn import NcnnRuntime
from hwprune.testing.runtimes import RuntimeConformance

pytest.importorskip("ncnn")

TARGET = Target(runtime="ncnn")


class TestNcnn(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = NcnnRuntime()
    target: ClassVar[Target] = TARGET
