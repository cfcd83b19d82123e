"""A network in half precision and in int8: the same function within rounding, and types that a strict reader takes."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_tools import model_of, run
from traced_families import traced

from hwprune.core.errors import GraphError, UsageError
from hwprune.core.target import FP32_OPS
from hwprune.graph import OnnxTemplate
from hwprune.graph.onnx.precision import to_precision
from hwprune.graph.onnx.quantize import LEVELS, activation_ranges, quantised_activations
from hwprune.testing.networks import FAMILIES

# depthwise, residual, squeeze and excite, linear with a turned weight, concatenation and transposed convolution
DEFAULT = ("mobilenetv2", "resnet18", "squeeze_excite", "transformer", "unet")
families = pytest.mark.parametrize(
    "family",
    [*DEFAULT, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(FAMILIES) if name not in DEFAULT)],
)

Inputs = dict[str, npt.NDArray[np.generic]]


@cache
def _dense(family: str) -> bytes:
    model, _, graph = traced(family)
    return OnnxTemplate.export(model, graph).dense


def _inputs(model: bytes, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    values = onnx.load_from_string(model).graph.input
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _error(model: bytes, changed: bytes, inputs: Inputs) -> float:
    """The root mean square difference of the outputs, relative to their own size; the largest over the outputs."""
    pairs = zip(run(model, inputs), run(changed, inputs), strict=True)
    return max(float(np.sqrt(np.mean((a - b) ** 2.0) / np.mean(a**2.0))) for a, b in pairs)


def _types(model: bytes) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True, data_prop=True)
    graph = inferred.graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _kinds(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


@families
def test_half_precision_is_the_same_function_within_rounding(family: str) -> None:
    dense = _dense(family)
    half = to_precision(dense, "fp16")
    error = _error(dense, half, _inputs(dense))
    assert 0 < error < 3e-3
    assert len(half) < len(dense)


@families
def test_everything_that_may_be_half_is_half(family: str) -> None:
    half = to_precision(_dense(family), "fp16")
    types = _types(half)
    model = onnx.load_from_string(half)
    interface = {value.name for value in (*model.graph.input, *model.graph.output)}
    single = {name for name, kind in types.items() if kind == TensorProto.FLOAT} - interface
    for node in model.graph.node:
        if single & {*node.input, *node.output}:
            assert node.op_type in (*FP32_OPS, "Cast", "Resize"), node.name
    assert all(types[value.name] == TensorProto.FLOAT for value in (*model.graph.input, *model.graph.output))


@families
def test_int8_is_the_same_function_within_its_levels(family: str) -> None:
    dense = _dense(family)
    ranges = activation_ranges(dense, [_inputs(dense, seed) for seed in range(3)], run)
    assert set(ranges) <= set(quantised_activations(onnx.load_from_string(dense)))
    error = _error(dense, to_precision(dense, "int8", ranges=ranges), _inputs(dense))
    assert 1e-4 < error < 0.06


@families
def test_every_layer_reads_int8_on_both_sides(family: str) -> None:
    before = onnx.load_from_string(_dense(family))
    model = onnx.load_from_string(to_precision(_dense(family), "int8"))
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in before.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert layers
    for node in layers:
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert makers[makers[node.input[1]].input[0]].input[0] in constants
    kept = {node.name.removesuffix(":int8") for node in model.graph.node}  # a Transpose of a weight is marked
    assert {node.name for node in before.graph.node} <= kept
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = [array for name, array in tensors.items() if name.endswith(":zero")]
    assert zeros
    assert not any(array.any() or array.dtype != np.int8 for array in zeros)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_has_the_precision_already_stays_as_it_is(precision: str) -> None:
    once = to_precision(_dense("resnet18"), precision)
    assert to_precision(once, precision) == once


def test_fp32_and_tf32_are_the_file_itself() -> None:
    model = _dense("resnet18")
    assert to_precision(model, "fp32") is model
    assert to_precision(model, "tf32") is model


def test_a_weight_has_a_scale_for_each_output_channel() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    weight[2] = 0
    turned = rng.standard_normal((4, 2, 2, 2)).astype(np.float32)
    model = model_of(
        [
            ("Conv", ["x", "w"], ["a"], {"kernel_shape": [1, 1]}),
            ("ConvTranspose", ["a", "t"], ["b"], {"kernel_shape": [2, 2], "strides": [2, 2], "group": 1}),
            ("ConvTranspose", ["a", "t"], ["c"], {"kernel_shape": [2, 2], "strides": [2, 2], "group": 2}),
            ("Concat", ["b", "c"], ["y"], {"axis": 1}),
        ],
        {"w": weight, "t": turned},
        inputs={"x": (1, 3, 4, 4)},
        output="y",
    )
    made = onnx.load_from_string(to_precision(model.SerializeToString(), "int8"))
    scales = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer if t.name.endswith(":scale")}
    expected = np.abs(weight).max(axis=(1, 2, 3)) / LEVELS
    expected[2] = 1 / LEVELS  # a channel of zeros: any positive scale
    np.testing.assert_allclose(scales["w:scale"], expected, rtol=1e-6)
    np.testing.assert_allclose(scales["t:1:scale"], np.abs(turned).max(axis=(0, 2, 3)) / LEVELS, rtol=1e-6)
    np.testing.assert_allclose(scales["t:scale"], np.abs(turned).max() / LEVELS, rtol=1e-6)  # groups: one for all


def test_a_residual_summand_is_quantised_once_for_all_its_readers() -> None:
    weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    model = model_of(
        [
            ("Relu", ["x"], ["r"], {}),
            ("Conv", ["r", "w"], ["a"], {"kernel_shape": [1, 1]}),
            ("Add", ["r", "a"], ["s"], {}),
            ("Conv", ["s", "w"], ["b"], {"kernel_shape": [1, 1]}),
            ("Conv", ["r", "w"], ["c"], {"kernel_shape": [1, 1]}),
            ("Add", ["b", "c"], ["y"], {}),
        ],
        {"w": weight},
        inputs={"x": (1, 3, 4, 4)},
        output="y",
    )
    assert quantised_activations(model) == ("r", "s", "b")
    made = onnx.load_from_string(to_precision(model.SerializeToString(), "int8", ranges={"r": 3.0, "s": 4.0}))
    adds = [list(node.input) for node in made.graph.node if node.op_type == "Add"]
    assert adds == [["r/DequantizeLinear", "a"], ["b/DequantizeLinear", "c"]]
    assert _kinds(made.SerializeToString())["QuantizeLinear"] == 4
    scales = {
        t.name: float(numpy_helper.to_array(t)) for t in made.graph.initializer if t.name in ("r:scale", "b:scale")
    }
    assert scales["r:scale"] == pytest.approx(3.0 / LEVELS)
    assert scales["b:scale"] == pytest.approx(6.0 / LEVELS)


def test_ranges_are_the_largest_magnitudes_without_outliers() -> None:
    weight = np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)
    nodes = [("Relu", ["x"], ["r"], {}), ("Conv", ["r", "w"], ["y"], {"kernel_shape": [1, 1]})]
    model = model_of(nodes, {"w": weight}, inputs={"x": (1, 2, 100, 100)}, output="y").SerializeToString()
    image = np.linspace(-1, 2, 20000, dtype=np.float32).reshape(1, 2, 100, 100)
    wild = image.copy()
    wild[0, 0, 0, 0] = 1000.0
    assert activation_ranges(model, [{"x": wild}, {"x": image / 2}], run)["r"] == pytest.approx(2.0, rel=1e-3)
    assert activation_ranges(model, [{"x": wild}], run, share=1.0) == {"r": 1000.0}
    assert activation_ranges(model, [{"x": -np.abs(image)}], run) == {}
    with pytest.raises(UsageError, match="at least one input"):
        activation_ranges(model, [], run)


def test_operators_that_add_up_squares_stay_in_fp32() -> None:
    nodes = [
        ("Mul", ["x", "k"], ["a"], {}),
        ("ReduceSumSquare", ["a"], ["b"], {"axes": [1], "keepdims": 1}),
        ("Sqrt", ["b"], ["c"], {}),
        ("Div", ["a", "c"], ["y"], {}),
    ]
    model = model_of(nodes, {"k": np.array(300, np.float32)}, inputs={"x": (1, 64)}, output="y").SerializeToString()
    half = to_precision(model, "fp16")
    types = _types(half)
    assert (types["a"], types["b"], types["c"]) == (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT16)
    assert _error(model, half, _inputs(model)) < 2e-3  # the sum of squares is about 6e6: infinite in half precision


def test_a_large_variance_does_not_overflow() -> None:
    statistics = {"g": 2.0, "b": 0.5, "m": 400.0, "v": 2e5}
    tensors = {name: np.full(3, value, np.float32) for name, value in statistics.items()}
    nodes = [("Relu", ["x"], ["r"], {}), ("BatchNormalization", ["r", "g", "b", "m", "v"], ["y"], {})]
    model = model_of(nodes, tensors, inputs={"x": (1, 3, 4, 4)}, output="y").SerializeToString()
    half = to_precision(model, "fp16")
    assert _error(model, half, {"x": np.full((1, 3, 4, 4), 900, np.float32)}) < 2e-3


def test_constants_that_mean_no_bound_are_clamped_and_weights_are_not() -> None:
    bound = np.array(3.4e38, np.float32)
    nodes = [("Clip", ["x", "low", "high"], ["a"], {}), ("Add", ["a", "tiny"], ["y"], {})]
    tensors = {"low": -bound, "high": bound, "tiny": np.array(1e-12, np.float32)}
    half = to_precision(model_of(nodes, tensors, inputs={"x": (2, 3)}, output="y").SerializeToString(), "fp16")
    found = {t.name: float(numpy_helper.to_array(t)) for t in onnx.load_from_string(half).graph.initializer}
    assert (found["low"], found["high"]) == (-65504.0, 65504.0)
    assert 0 < found["tiny"] < 1e-7
    heavy = model_of([("MatMul", ["x", "w"], ["y"], {})], {"w": bound.reshape(1, 1)}, inputs={"x": (2, 1)}, output="y")
    with pytest.raises(GraphError, match=r"'w' of ONNX node 'n0/MatMul' .* holds 3.4e\+38, more than FLOAT16 can"):
        to_precision(heavy.SerializeToString(), "fp16")


def test_a_constant_read_in_both_types_has_two_forms() -> None:
    nodes = [("Mul", ["x", "k"], ["a"], {}), ("Pow", ["a", "k"], ["b"], {}), ("Add", ["b", "k"], ["y"], {})]
    model = model_of(nodes, {"k": np.array(2.5, np.float32)}, inputs={"x": (2, 3)}, output="y").SerializeToString()
    half = to_precision(model, "fp16")
    assert _types(half)["k"] == TensorProto.FLOAT16
    assert _types(half)["k:n1/Pow"] == TensorProto.FLOAT
    inputs = {"x": np.array([[1, 2, 3], [0.1, 0.2, 4]], np.float32)}
    assert _error(model, half, inputs) < 2e-3


def test_an_output_that_is_read_inside_the_network_keeps_its_type() -> None:
    nodes = [("Relu", ["x"], ["y"], {}), ("Neg", ["y"], ["z"], {})]
    model = model_of(nodes, {}, inputs={"x": (2, 3)}, output="z")
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3]))
    half = to_precision(model.SerializeToString(), "fp16")
    found = run(half, {"x": np.array([[1, -1, 0], [2, -2, 3]], np.float32)})
    np.testing.assert_array_equal(found[1], [[1, 0, 0], [2, 0, 3]])
    np.testing.assert_array_equal(found[0], -found[1])
    assert all(array.dtype == np.float32 for array in found)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_refuses_what_is_no_model(precision: str) -> None:
    for data in (b"", b"not a model"):
        with pytest.raises(GraphError, match=f"not an ONNX model \\({len(data)} bytes\\)"):
            to_precision(data, precision)


def test_refuses_what_it_cannot_write() -> None:
    relu = model_of([("Relu", ["x"], ["y"], {})], {}, inputs={"x": (1, 3)}, output="y")
    with pytest.raises(UsageError, match="bf16") as caught:
        to_precision(relu.SerializeToString(), "bf16")
    assert "fp32, tf32, fp16, int8" in caught.value.hint
    with pytest.raises(GraphError, match="no convolution or linear layer"):
        to_precision(relu.SerializeToString(), "int8")
    layer = model_of(
        [("MatMul", ["x", "w"], ["y"], {})], {"w": np.eye(3, dtype=np.float32)}, inputs={"x": (1, 3)}, output="y"
    )
    with pytest.raises(UsageError, match="range of activation 'x' is -1"):
        to_precision(layer.SerializeToString(), "int8", ranges={"x": -1.0})
    layer.opset_import[0].version = 12
    with pytest.raises(GraphError, match="opset 13 or later, the model has 12"):
        to_precision(layer.SerializeToString(), "int8")
