"""LiteRT: the conformance suite, the outputs of every family of wiring, and what only this runtime does."""

from __future__ import annotations

from typing import ClassVar

import pytest

from hwprune.core.measurement import Target
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes.litert import LitertRuntime
from hwprune.testing.runtimes import RuntimeConformance, conv_net

pytest.importorskip("ai_edge_litert")

TARGET = Target(runtime="litert")


class TestLitert(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = LitertRuntime()
    target: ClassVar[Target] = TARGET

    def test_layer_times_name_the_convolutions_in_order(self) -> None:
        """There are none, rather than wrong ones."""
        assert self.runtime.layer_times(conv_net(32), self.target, runs=5) == ()
