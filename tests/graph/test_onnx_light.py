"""Models that travel light: their size, the range of their activations, and that they are the same network."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hwprune.core.comparison import compare
from hwprune.core.errors import UsageError
from hwprune.core.measurement import Protocol, Target
from hwprune.devices import connect
from hwprune.devices.agent.framing import pack
from hwprune.graph import OnnxTemplate, trace
from hwprune.graph.onnx.light import lightened
from hwprune.models import load_model

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@pytest.fixture(scope="module")
def mobilenet() -> bytes:
    """MobileNetV2, BatchNormalization folded."""
    return exported("mobilenetv2", (1, 3, 96, 96))


@lru_cache
def exported(name: str, shape: tuple[int, ...]) -> bytes:
    torch.manual_seed(0)
    network = load_model(name).eval()
    return OnnxTemplate.export(network, trace(network, torch.randn(shape), verify=False)).dense


def activations(model: bytes, batch: int = 1) -> list[np.ndarray]:
    """Every float tensor inside the network for a normal input."""
    import onnxruntime

    proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    floats = [item for item in proto.graph.value_info if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    proto.graph.output.extend(floats)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    values = np.random.default_rng(0).standard_normal([batch, *source.shape[1:]]).astype(np.float32)
    found = session.run(None, {source.name: values})
    assert len(found) > 10
    return found


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def test_fourteen_megabytes_become_tens_of_kilobytes(mobilenet: bytes) -> None:
    light = lightened(mobilenet)
    assert len(mobilenet) > 13e6
    assert len(pack(mobilenet)) > 12e6
    assert len(pack(light)) < 50_000
    assert abs(len(light) - len(mobilenet)) < 10_000
    assert lightened(mobilenet) == light


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mobilenetv2", (1, 3, 96, 96)),
        ("resnet20", (1, 3, 32, 32)),
        pytest.param("resnet56", (1, 3, 32, 32), marks=pytest.mark.slow),
        pytest.param("vgg", (1, 3, 32, 32), marks=pytest.mark.slow),
    ],
)
def test_activations_stay_in_the_normal_range(name: str, shape: tuple[int, ...]) -> None:
    model = exported(name, shape)
    real, light = activations(model), activations(lightened(model))
    assert len(real) == len(light)
    for before, after in zip(real, light, strict=True):
        assert before.shape == after.shape
        assert np.isfinite(after).all()
        nonzero = np.abs(after[after != 0])
        assert nonzero.size == 0 or nonzero.min() >= SMALLEST_NORMAL
        assert rms(after) < 10 * max(map(rms, real))
        assert rms(after) > rms(before) / 1000
        assert np.abs(after).max() < 6e4, "half precision holds it, too"


def test_shapes_names_nodes_and_scale_are_kept(mobilenet: bytes) -> None:
    real, light = (onnx.load_model_from_string(model).graph for model in (mobilenet, lightened(mobilenet)))
    assert [node.SerializeToString() for node in real.node] == [node.SerializeToString() for node in light.node]
    assert [item.SerializeToString() for item in real.input] == [item.SerializeToString() for item in light.input]
    for before, after in zip(real.initializer, light.initializer, strict=True):
        assert (before.name, before.dims, before.data_type) == (after.name, after.dims, after.data_type)
        old, new = numpy_helper.to_array(before), numpy_helper.to_array(after)
        if old.size >= 512:
            assert rms(new) == pytest.approx(rms(old), rel=0.02)
        else:
            assert new == pytest.approx(old, rel=0.01)
        assert not ((new != 0) & (np.abs(new) < SMALLEST_NORMAL)).any()


def _model(weight: np.ndarray, *nodes: onnx.NodeProto) -> bytes:
    shape = [1, weight.shape[1]]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    sink = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [source], [sink], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def _weight(model: bytes) -> np.ndarray:
    return numpy_helper.to_array(onnx.load_model_from_string(model).graph.initializer[0])


def test_weights_that_do_more_than_multiply_are_kept() -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    alone = _model(values, helper.make_node("MatMul", ["input", "w"], ["output"]))
    shared = _model(
        values, helper.make_node("MatMul", ["input", "w"], ["x"]), helper.make_node("Add", ["x", "w"], ["output"])
    )
    half = _model(values.astype(np.float16), helper.make_node("MatMul", ["input", "w"], ["output"]))
    assert not np.array_equal(_weight(lightened(alone)), values)
    assert np.array_equal(_weight(lightened(shared)), values)
    assert np.array_equal(_weight(lightened(half)), values.astype(np.float16))


def test_zeros_stay_zeros() -> None:
    values = np.zeros((64, 64), np.float32)
    assert not _weight(lightened(_model(values, helper.make_node("MatMul", ["input", "w"], ["output"])))).any()


def test_bytes_that_are_no_model() -> None:
    with pytest.raises(UsageError, match="4 bytes are no ONNX model"):
        lightened(b"junk")


@pytest.mark.slow
def test_the_latency_is_the_same(mobilenet: bytes) -> None:
    with connect(Target()) as board:
        found = board.measure({"real": mobilenet, "light": lightened(mobilenet)}, protocol=Protocol.default())
    verdict = compare(found["real"], found["light"])
    assert verdict.ratio == pytest.approx(1.0, abs=0.03 + (verdict.ci[1] - verdict.ci[0]) / 2)
