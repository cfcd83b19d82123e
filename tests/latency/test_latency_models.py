"""Every latency model passes the conformance suite; LPNet also keeps its own promises."""

from __future__ import annotations

from typing import ClassVar

from hwprune.testing.latency_models import LatencyModelConformance


class TestLPNet(LatencyModelConformance):
    kind = "lpnet"


class TestLPNetOnWidths(LatencyModelConformance):
    kind = "lpnet"
    options: ClassVar = {"features": "widths"}
    mape_bound = 0.10


class TestLinear(LatencyModelConformance):
    kind = "linear"


class TestForest(LatencyModelConformance):
    kind = "forest"
    options: ClassVar = {"trees": 30}
    mape_bound = 0.10


class TestTableSum(LatencyModelConformance):
    kind = "table_sum"


class TestMacs(LatencyModelConformance):
    kind = "macs"
    mape_bound = 0.10
