"""A real Jetson behind SSH, as docs/jetson.md sets it up. Never run yet: no board was at hand.

Needs the name of a device out of `hwprune devices` whose file says how to reach it and which offers TensorRT:
`HWPRUNE_JETSON=desk-orin pytest -m jetson tests/devices/test_jetson_device.py`, clocks locked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwprune import api
from hwprune.core.comparison import compare
from hwprune.core.measurement import Protocol, Target
from hwprune.devices import AbstractBoard, connect
from hwprune.testing.runtimes import conv_net

DEVICE = os.environ.get("HWPRUNE_JETSON", "")
RUNTIME = "tensorrt:fp16"
NEEDS = "needs a Jetson behind SSH: HWPRUNE_JETSON=DEVICE, a name out of `hwprune devices`"
pytestmark = [pytest.mark.jetson, pytest.mark.skipif(not DEVICE, reason=NEEDS)]
NETWORK = conv_net(256, layers=6, size=28)
SHAPE = (1, 3, 32, 32)


@pytest.fixture
def board() -> Iterator[AbstractBoard]:
    with connect(Target(DEVICE, RUNTIME)) as opened:
        yield opened


@pytest.mark.timeout(1200)
def test_doctor_finds_nothing_that_keeps_it_from_measuring() -> None:
    found = {check.name: check for check in api.doctor(DEVICE, runtime=RUNTIME)}
    clocks = {"GPU clock", "CPU clock"}
    assert {"connection", "agent", "board", "power mode", "temperature", "throttling", *clocks} <= set(found)
    assert not [check for check in found.values() if check.status == "fail"]
    assert all(check.fix for check in found.values() if check.status != "pass")


@pytest.mark.timeout(1200)
def test_measures_a_network_whose_outputs_are_right(board: AbstractBoard) -> None:
    """The board compares outputs with ONNX Runtime's before it times anything; wrong ones would raise."""
    found = board.measure({"wide": NETWORK, "narrow": conv_net(64, layers=6, size=28)}, protocol=Protocol.quick())
    wide = found["wide"]
    assert wide.clock == "device"
    assert 0.005 < wide.latency_ms < wide.wall_ms < 1000
    assert compare(wide, found["narrow"]).ratio < 1
    flags, facts = dict(wide.fingerprint.flags), dict(wide.facts)
    assert {"board", "l4t", "power_mode", "gpu_clock", "cpu_clock", "compute_capability"} <= set(flags)
    assert facts["clocks_locked"] in ("yes", "no")
    assert int(facts["kernels"]) >= 6


@pytest.mark.timeout(1200)
def test_layers_add_up_to_the_network(board: AbstractBoard) -> None:
    layers = board.layers(NETWORK, runs=30)
    assert [layer.name for layer in layers if layer.kind == "Conv"] == [f"conv{number}" for number in range(6)]
    whole = board.measure({"net": NETWORK}, protocol=Protocol.quick())["net"].latency_ms
    assert sum(layer.latency_ms for layer in layers) == pytest.approx(whole, rel=0.15)


@pytest.mark.timeout(2400)
def test_profiles_and_goes_on_where_it_was(tmp_path: Path) -> None:
    tables = [
        api.profile("resnet20", SHAPE, device=DEVICE, runtime=RUNTIME, samples=10, tables=tmp_path) for _ in range(2)
    ]
    first, again = tables
    assert len(first.measured()) == 10
    assert first.layer_rows
    assert again.rows == first.rows, "nothing was left to do"
