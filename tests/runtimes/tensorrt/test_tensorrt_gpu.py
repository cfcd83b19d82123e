"""On a real GPU: an NVIDIA driver, CUDA's runtime library and the package `tensorrt` (8.5.2 or later). Run: -m gpu.

Nothing here runs without them, and nothing is imitated: engines are built, run, checked against ONNX Runtime, timed,
compared with trtexec where it is installed, profiled and searched. On a Jetson lock the clocks before:
`sudo jetson_clocks`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from hwprune import api
from hwprune.core.comparison import compare
from hwprune.core.errors import UsageError
from hwprune.core.measurement import Protocol, Target
from hwprune.devices import connect
from hwprune.devices.board import AbstractBoard
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes.tensorrt import TensorRt
from hwprune.testing.runtimes import RuntimeConformance, conv_net

pytestmark = pytest.mark.gpu
PRECISIONS = ("fp32", "tf32", "fp16", "int8")
NETWORK = conv_net(256, layers=6, size=28)


@pytest.fixture
def board(request: pytest.FixtureRequest) -> Iterator[AbstractBoard]:
    precision = getattr(request, "param", "fp32")
    with connect(Target(device="cuda", runtime="tensorrt", precision=precision)) as opened:
        yield opened


class TestOnAGpu(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = TensorRt()
    target: ClassVar[Target] = Target(device="cuda", runtime="tensorrt")


@pytest.mark.parametrize("board", PRECISIONS, indirect=True)
def test_builds_runs_and_agrees_with_onnx_runtime(board: AbstractBoard) -> None:
    """The board compares outputs on three inputs before it times anything; wrong ones would raise."""
    found = board.measure({"net": NETWORK}, protocol=Protocol.quick())["net"]
    assert found.clock == "device"
    assert not found.simulated
    assert found.fingerprint.precision == board.target.precision
    assert 0.005 < found.latency_ms < found.wall_ms < 1000
    facts = dict(found.facts)
    assert facts["graph"] == "captured"
    assert int(facts["kernels"]) >= 6


def test_half_precision_is_not_slower(board: AbstractBoard) -> None:
    wide = conv_net(512, layers=4, size=56)
    full = board.measure({"net": wide}, protocol=Protocol.default())["net"]
    with connect(Target(device="cuda", runtime="tensorrt", precision="fp16")) as half:
        assert half.measure({"net": wide}, protocol=Protocol.default())["net"].latency_ms < 1.02 * full.latency_ms


def test_the_same_network_twice_is_no_difference(board: AbstractBoard) -> None:
    again = board.measure({"a": NETWORK, "b": NETWORK}, protocol=Protocol.default())
    assert 0.98 < compare(again["a"], again["b"]).ratio < 1.02
    assert not again["a"].bimodal


def test_layers_add_up_to_the_network(board: AbstractBoard) -> None:
    layers = board.layers(NETWORK, runs=30)
    assert [layer.name for layer in layers if layer.kind == "Conv"] == [f"conv{number}" for number in range(6)]
    whole = board.measure({"net": NETWORK}, protocol=Protocol.quick())["net"].latency_ms
    assert sum(layer.latency_ms for layer in layers) == pytest.approx(whole, rel=0.1)


def test_the_time_is_trtexecs(board: AbstractBoard, tmp_path: Path) -> None:
    """The median GPU compute time of trtexec with a CUDA graph, within 5 %; the clocks must stand still for it."""
    trtexec = shutil.which("trtexec") or shutil.which("trtexec", path="/usr/src/tensorrt/bin")
    if trtexec is None:
        pytest.skip("trtexec is not installed")
    (tmp_path / "net.onnx").write_bytes(NETWORK)
    known = subprocess.run([trtexec, "--help"], capture_output=True, text=True).stdout
    flags = [flag for flag in ("--useCudaGraph", "--noDataTransfers", "--noTF32") if flag in known]
    command = [trtexec, f"--onnx={tmp_path / 'net.onnx'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (median,) = re.findall(r"GPU Compute Time: .*?median = ([0-9.]+) ms", done.stdout)
    found = board.measure({"net": NETWORK}, protocol=Protocol.default())["net"]
    assert found.latency_ms == pytest.approx(float(median), rel=0.05)


def test_a_second_process_finds_the_timing_cache(board: AbstractBoard, tmp_path: Path) -> None:
    files = list((tmp_path / "hwprune" / "tensorrt").glob("*.timing"))
    assert files
    assert json.loads(files[0].read_bytes().partition(b"\n")[0])["schema"] == "hwprune.timing_cache/1"


def test_bytes_that_are_no_model_do_not_harm_the_next(board: AbstractBoard) -> None:
    with pytest.raises(UsageError):
        board.infer(b"not a model", {})
    found = board.infer(conv_net(16), {"input": np.ones((1, 8, 14, 14), np.float32)})
    assert np.isfinite(found[0]).all()


@pytest.mark.timeout(1200)
def test_profiles_and_searches_within_a_measured_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = api.profile("digits_resnet", device="cuda", samples=30)
    assert len(table.rows) >= 30
    epochs = {"dense_epochs": 0.2, "epochs": 0.2, "finetune_epochs": 0.2}
    run = api.search("digits_resnet", "digits", latency="90%", device="cuda", method="uniform", samples=30, **epochs)
    assert run.verdict in ("pass", "miss", "infeasible")
    if run.verdict == "pass":
        assert run.measured is not None
        assert run.measured.clock == "device"
        assert run.measured.ci_ms[1] <= run.result.budget_ms
