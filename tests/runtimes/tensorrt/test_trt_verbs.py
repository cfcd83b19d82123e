"""The verbs on a TensorRT device, over the fakes: profile, fit, bench and doctor as on any other device."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from pathlib import Path

import onnxruntime
import pytest
from fake_gpu import Gpu
from fake_jetson import MODEL, FakeJetson

from hwprune import api
from hwprune.core.measurement import Protocol, Target
from hwprune.devices import connect
from hwprune.devices.prepare import CheckedBoard, WrongOutputs, prepare
from hwprune.runtimes import _nvidia, tensorrt
from hwprune.search.precision import TOLERANCES
from hwprune.testing.runtimes import conv_net
from hwprune.training import load_data

DEVICE = """
schema = 1
name = "desk-gpu"

[connection]
kind = "local"

[runtimes.tensorrt]
precisions = ["fp32", "tf32", "fp16", "int8"]

[runtimes.tensorrt.options]
cudart = {cudart}
cache = {cache}
"""


@pytest.fixture
def desk(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    folder = tmp_path / "work" / "devices"
    folder.mkdir(parents=True)
    text = DEVICE.format(cudart=json.dumps(str(gpu.path)), cache=json.dumps(str(gpu.cache)))
    (folder / "desk-gpu.toml").write_text(text)
    monkeypatch.chdir(folder.parent)
    module = sys.modules["tensorrt"]
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # torch's exporter looks for it
    return gpu


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_bench(desk: Gpu, precision: str) -> None:
    for channels in (16, 128):
        Path(f"c{channels}.onnx").write_bytes(conv_net(channels))
    result = api.bench("c16.onnx", "c128.onnx", device="desk-gpu", runtime=f"tensorrt:{precision}", protocol="quick")
    narrow, wide = result.measurements.values()
    assert narrow.fingerprint.precision == precision
    assert narrow.clock == "device"
    assert narrow.latency_ms < wide.latency_ms
    assert result.comparisons[0].verdict == "slower"


def test_wrong_outputs_make_no_latency(desk: Gpu) -> None:
    desk.script.wrong_outputs = True
    Path("net.onnx").write_bytes(conv_net(16))
    with pytest.raises(WrongOutputs, match=r"'net\.onnx': the outputs of tensorrt on desk-gpu in fp16 are off by"):
        api.bench("net.onnx", device="desk-gpu", runtime="tensorrt:fp16", protocol="quick")


def test_the_file_that_is_built_carries_the_precision(desk: Gpu) -> None:
    with connect(Target("desk-gpu", "tensorrt:fp16")) as board:
        assert isinstance(board, CheckedBoard)
        rows = board.layers(conv_net(32), runs=3)
    convolutions = [row for row in rows if row.kind == "Conv"]
    assert [row.name for row in convolutions] == ["conv0", "conv1", "conv2"]


def test_doctor(desk: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeJetson(tmp_path / "jetson")
    monkeypatch.setattr(tensorrt, "findings", lambda gpu: _nvidia.findings(gpu, root=board.root))
    monkeypatch.setattr(tensorrt, "facts", lambda gpu: _nvidia.facts(gpu, root=board.root))
    found = {check.name: check for check in api.doctor("desk-gpu", runtime="tensorrt:fp16")}
    assert (found["outputs"].status, found["precision"].detail) == ("pass", "computes in fp16")
    assert found["board"].detail.startswith(MODEL)
    assert found["GPU clock"].status == "warn"
    assert found["GPU clock"].fix.startswith("sudo jetson_clocks --store && sudo jetson_clocks")
    assert found["processor"].detail.startswith(MODEL)


def test_profile(desk: Gpu) -> None:
    table = api.profile("digits_resnet", device="desk-gpu", runtime=":fp16", samples=10, tile=8)
    assert len(table.rows) >= 10
    print_ = table.fingerprint
    assert (print_.device, print_.runtime, print_.precision) == ("desk-gpu", "tensorrt", "fp16")
    assert dict(print_.flags)["typing"] == "strong"
    assert all(row.latency_ms > 0 and not row.disturbed for row in table.rows)
    assert "fp16" in str(table.folder)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_search_ships_and_scores_what_it_measures(desk: Gpu, precision: str) -> None:
    run = api.search(
        "digits_resnet",
        "digits",
        latency="60%",
        device="desk-gpu",
        runtime=f"tensorrt:{precision}",
        method="greedy",
        samples=16,
        tile=16,
        dense_epochs=0.5,
        finetune_epochs=0.2,
    )
    assert run.verdict == "pass"
    assert run.measured.fingerprint.precision == precision
    shipped, plain = ((run.folder / name).read_bytes() for name in ("model.onnx", "model_fp32.onnx"))
    assert shipped == prepare(shipped, run.result.target) != plain
    assert run.result.score == run.result.scores["shipped"] == score_in_onnxruntime(shipped)
    assert api.export(run.folder, path="own.onnx").tolerance == TOLERANCES[precision]
    assert Path("own.onnx").read_bytes() == shipped
    api.export(run.folder, path="plain.onnx", precision="fp32")
    assert Path("plain.onnx").read_bytes() == plain
    names = run.folder / "dense.onnx", "own.onnx"
    timed = api.bench(*names, device="desk-gpu", runtime=f"tensorrt:{precision}", protocol="quick")
    assert timed.comparisons[0].ratio == pytest.approx(run.result.measured_ms / run.result.dense_ms, rel=0.01)
    assert {"conv1", "layer1.0.conv1"} <= {row.name for row in api.explain(run.folder).rows}


def score_in_onnxruntime(model: bytes) -> float:
    """Top-1 on the test split of digits, image by image, by ONNX Runtime as it is."""
    data = load_data("digits", seed=0)
    session = onnxruntime.InferenceSession(model)
    right = 0
    for images, targets in data.batches("test", 1):
        (outputs,) = session.run(None, {"input": images.numpy()})
        right += int(outputs.argmax() == targets.item())
    return pytest.approx(right / len(data.test), abs=2 / len(data.test))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_a_real_gpu_computes_our_files(precision: str) -> None:
    """Needs an NVIDIA GPU, its driver, and the package tensorrt: outputs are checked before anything is timed."""
    with connect(Target("cuda", f"tensorrt:{precision}")) as board:
        found = board.measure({"net": conv_net(64)}, protocol=Protocol.quick())["net"]
        rows = board.layers(conv_net(64), runs=5)
    assert found.fingerprint.precision == precision
    assert found.latency_ms > 0
    assert {"conv0", "conv1", "conv2"} <= {row.name for row in rows}
