"""An ONNX graph as a torch module computes what ONNX Runtime computes: all families, and operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported_families import exported, random_keep
from onnx import TensorProto, helper, numpy_helper
from onnx_tools import Array, run

from hwprune.core.errors import UsageError
from hwprune.runtimes._torch.from_onnx import ONNX_NAME, convert, load_onnx
from hwprune.testing.networks import FAMILIES

TOLERANCE = 1e-5
F32 = np.float32
RNG = np.random.default_rng(5)


def module_of(model: bytes) -> torch.nn.Module:
    return convert(load_onnx(model))


def outputs_of(module: Any, inputs: Mapping[str, Array]) -> list[Array]:
    with torch.no_grad():
        found = module(*(torch.from_numpy(np.asarray(value)) for value in inputs.values()))
    return [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]


def worst(found: Sequence[Array], expected: Sequence[Array]) -> float:
    assert [value.shape for value in found] == [value.shape for value in expected]
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    scale = [max(1.0, float(np.abs(value).max(initial=0.0))) for value in expected]
    pairs = zip(found, expected, scale, strict=True)
    return max(float(np.abs(a.astype(float) - b.astype(float)).max(initial=0.0)) / size for a, b, size in pairs)


families = pytest.mark.parametrize(
    "family", ["together", *(pytest.param(family, marks=pytest.mark.slow) for family in sorted(FAMILIES))]
)


@families
def test_every_family_dense_and_cut(family: str) -> None:
    _, graph, template = exported(family)
    for model in (template.dense, *(template.at(random_keep(graph, seed)) for seed in range(3))):
        rng = np.random.default_rng(1)
        shapes = {item.name: [size.dim_value for size in item.type.tensor_type.shape.dim] for item in inputs_of(model)}
        inputs = {name: rng.standard_normal(shape).astype(F32) for name, shape in shapes.items()}
        assert worst(outputs_of(module_of(model), inputs), run(model, inputs)) < TOLERANCE


def inputs_of(model: bytes) -> Any:
    return onnx.load_from_string(model).graph.input


@families
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_module_can_be_traced_and_exported(family: str) -> None:
    _, graph, template = exported(family)
    module = module_of(template.at_widths(dict(graph.space(min_keep=0.5).smallest())))
    example = tuple(graph.example)
    with torch.no_grad():
        expected = module(*example)
        traced = torch.jit.trace(module, example)(*example)
        program = torch.export.export(module, example).module()(*example)
    for found in (traced, program):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_calls_know_the_node_they_came_from() -> None:
    _, _, template = exported("together")
    module = module_of(template.dense)
    names = {node.meta.get(ONNX_NAME) for node in module.graph.nodes}
    nodes = onnx.load_from_string(template.dense).graph.node
    assert {node.name for node in nodes if node.op_type == "Conv"} <= names
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


IMAGE, ROW = (2, 6, 8, 8), (2, 6)
Case = tuple[str, tuple[int, ...], dict[str, Array], dict[str, Any]]


def case(kind: str, shape: tuple[int, ...] = IMAGE, /, *constants: Any, **attributes: Any) -> Any:
    """A node that reads the input, and then the constants."""
    arrays = {f"c{place}": np.asarray(value) for place, value in enumerate(constants) if value is not None}
    names = [f"c{place}" if value is not None else "" for place, value in enumerate(constants)]
    words = [kind, *(f"{key}={value}" for key, value in attributes.items()), *(str(a.shape) for a in arrays.values())]
    return pytest.param((kind, shape, arrays, names, attributes), id=" ".join(words).replace(" ", "_")[:80])


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(F32)


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


ONE_INPUT = (
    "Abs Atan Ceil Celu Cos Dropout Elu Erf Exp Floor GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity",
    "LeakyRelu LogSoftmax Mish Neg Reciprocal Relu Round Selu Sigmoid Sign Sin Softmax Softplus Softsign Tan Tanh",
)
CASES = [
    *(case(kind) for kind in " ".join(ONE_INPUT).split()),
    *(case(kind, IMAGE, normal(6, 1, 1)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "PRelu")),
    case("PRelu", IMAGE, normal(1)),
    case("PRelu", IMAGE, normal(8)),
    case("Pow", IMAGE, np.float32(2)),
    case("HardSigmoid", IMAGE, alpha=1 / 6, beta=0.5),
    case("Clip", IMAGE, np.float32(0), np.float32(6)),
    case("Clip", IMAGE, np.float32(-0.5)),
    case("Clip", IMAGE, None, np.float32(0.25)),
    case("Softmax", ROW, axis=1),
    case("Cast", IMAGE, to=TensorProto.DOUBLE),
    case("Conv", IMAGE, normal(4, 6, 3, 3), pads=[1, 1, 1, 1]),
    case("Conv", IMAGE, normal(4, 3, 3, 3), normal(4), group=2, strides=[2, 1], dilations=[1, 2]),
    case("Conv", IMAGE, normal(6, 1, 3, 3), normal(6), group=6, pads=[0, 1, 2, 1]),
    case("Conv", (2, 6, 9), normal(4, 6, 3), pads=[1, 1]),
    case("Conv", (1, 6, 4, 4, 4), normal(4, 6, 3, 3, 3)),
    case("ConvTranspose", IMAGE, normal(6, 4, 2, 2), normal(4), strides=[2, 2]),
    case("ConvTranspose", IMAGE, normal(6, 2, 3, 3), group=3, strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]),
    case("Gemm", ROW, normal(5, 6), normal(5), transB=1),
    case("Gemm", ROW, normal(6, 5), normal(5)),
    case("Gemm", ROW, normal(6, 5), normal(2, 5), alpha=0.5, beta=2.0),
    case("Gemm", (6, 2), normal(6, 5), transA=1),
    case("MatMul", IMAGE, normal(8, 3)),
    case("MatMul", IMAGE, normal(6, 8, 3)),
    case("BatchNormalization", IMAGE, normal(6), normal(6), normal(6), np.abs(normal(6)), epsilon=1e-3),
    case("InstanceNormalization", IMAGE, normal(6), normal(6)),
    case("LayerNormalization", IMAGE, normal(8), normal(8), axis=-1),
    case("LayerNormalization", IMAGE, normal(8, 8), axis=2),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 0, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, dilations=[1, 2]),
    *(case(f"Reduce{kind}", IMAGE, axes=[2, 3], keepdims=0) for kind in ("Mean", "Max", "Min", "L1", "L2")),
    case("ReduceMean", IMAGE),
    case("ReduceSum", IMAGE, integers(1), keepdims=1),
    case("ReduceSum", IMAGE, noop_with_empty_axes=1),
    case("Reshape", IMAGE, integers(0, 3, -1, 8)),
    case("Flatten", IMAGE),
    case("Flatten", IMAGE, axis=2),
    case("Squeeze", (2, 1, 6, 1), integers(-1, 1)),
    case("Squeeze", (2, 1, 6, 1)),
    case("Unsqueeze", ROW, integers(0, -1)),
    case("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    case("Transpose", IMAGE),
    case("Slice", IMAGE, integers(1, -5), integers(9999, -1), integers(1, -1), integers(2, 1)),
    case("Slice", IMAGE, integers(1, 2), integers(2, 5)),
    case("Gather", IMAGE, integers(5, 0, -1), axis=1),
    case("Gather", IMAGE, np.int64(-2), axis=2),
    case("Gather", IMAGE, np.array([[0, 1], [2, 5]]), axis=1),
    case("Expand", (2, 6, 1, 8), integers(3, 1, 1, 8, 1)),
    case("Tile", IMAGE, integers(1, 2, 1, 3)),
    case("Pad", IMAGE, integers(0, 1, 0, 2, 0, 3, 1, 0), np.float32(0.5)),
    case("Pad", IMAGE, integers(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    case("Pad", IMAGE, integers(0, 0, 1, 2, 0, 0, 2, 1), mode="edge"),
    case("DepthToSpace", (2, 8, 3, 3), blocksize=2, mode="DCR"),
    case("DepthToSpace", (2, 8, 3, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", IMAGE, blocksize=2),
    case("Concat", IMAGE, normal(2, 3, 8, 8), axis=1),
    case(
        "Resize", IMAGE, None, np.array([1, 1, 2, 2], F32), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    case("Resize", IMAGE, None, None, integers(2, 6, 12, 4), mode="linear"),
    case(
        "Resize", IMAGE, None, None, integers(2, 6, 15, 15), mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    case("Resize", IMAGE, None, None, integers(2, 6, 16, 16), mode="cubic"),
]  # fmt: skip


def one_node(kind: str, shape: Sequence[int], tensors: dict[str, Array], names: list[str], attributes: Any) -> bytes:
    nodes = [helper.make_node(kind, ["input", *names], ["output"], "node", **attributes)]
    return model_bytes(nodes, shape, tensors)


def model_bytes(nodes: list[Any], shape: Sequence[int], tensors: Mapping[str, Array]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))],
        [helper.make_empty_tensor_value_info("output")],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if any(node.op_type == "Mish" for node in nodes):
        model.opset_import[0].version = 18
    return bytes(onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString())


@pytest.mark.parametrize("what", CASES)
def test_every_operator(what: Any) -> None:
    model = one_node(*what)
    inputs = {"input": np.random.default_rng(2).standard_normal(what[1]).astype(F32)}
    assert worst(outputs_of(module_of(model), inputs), run(model, inputs)) < TOLERANCE


def test_comparisons_and_choices() -> None:
    nodes = [
        helper.make_node("Greater", ["input", "zero"], ["up"]),
        helper.make_node("Less", ["input", "one"], ["down"]),
        helper.make_node("And", ["up", "down"], ["between"]),
        helper.make_node("Not", ["between"], ["outside"]),
        helper.make_node("Where", ["outside", "zero", "input"], ["output"]),
    ]
    model = model_bytes(nodes, IMAGE, {"zero": np.float32(0), "one": np.float32(1)})
    inputs = {"input": normal(*IMAGE)}
    assert worst(outputs_of(module_of(model), inputs), run(model, inputs)) == 0


def test_split_with_and_without_sizes() -> None:
    nodes = [
        helper.make_node("Split", ["input", "sizes"], ["a", "b"], axis=1),
        helper.make_node("Split", ["a"], ["c", "d"], axis=1),
        helper.make_node("Concat", ["d", "b", "c"], ["output"], axis=1),
    ]
    model = model_bytes(nodes, IMAGE, {"sizes": integers(4, 2)})
    inputs = {"input": normal(*IMAGE)}
    assert worst(outputs_of(module_of(model), inputs), run(model, inputs)) == 0


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    """Weights that travel as a filler node, and shapes as small programs."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["weight"], value=numpy_helper.from_array(np.full(1, 0.1, F32))),
        helper.make_node("Conv", ["input", "weight"], ["output"], "conv"),
    ]
    model = model_bytes(nodes, IMAGE, {"shape": integers(4, 6, 1, 1)})
    module = module_of(model)
    inputs = {"input": normal(*IMAGE)}
    assert worst(outputs_of(module, inputs), run(model, inputs)) < TOLERANCE
    assert [node.op for node in module.graph.nodes] == ["placeholder", "call_module", "output"]


def test_a_free_batch_is_filled_in() -> None:
    model = onnx.load_from_string(one_node("Flatten", IMAGE, {}, [], {"axis": 2}))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    module = convert(load_onnx(model.SerializeToString(), batch=3))
    assert outputs_of(module, {"input": normal(3, 6, 8, 8)})[0].shape == (18, 64)


class TestErrors:
    def test_all_unknown_operators_are_named(self) -> None:
        nodes = [
            helper.make_node("LpPool", ["input"], ["a"], "first", kernel_shape=[2, 2]),
            helper.make_node("Hardmax", ["a"], ["output"], "second"),
        ]
        with pytest.raises(UsageError, match=r"Hardmax \(node 'second'\), LpPool \(node 'first'\)"):
            module_of(model_bytes(nodes, IMAGE, {}))

    def test_an_operator_of_another_domain_is_named_with_it(self) -> None:
        nodes = [helper.make_node("Gelu", ["input"], ["output"], "odd", domain="com.example")]
        model = onnx.load_from_string(model_bytes([helper.make_node("Relu", ["input"], ["output"])], IMAGE, {}))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        with pytest.raises(UsageError, match=r"com.example.Gelu \(node 'odd'\)"):
            module_of(model.SerializeToString())

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            (("Conv", IMAGE, {"w": normal(4, 6, 3, 3)}, ["w"], {"auto_pad": "SAME_UPPER"}), "auto_pad SAME_UPPER"),
            (
                ("ConvTranspose", IMAGE, {"w": normal(6, 4, 3, 3)}, ["w"], {"pads": [0, 0, 1, 1]}),
                "padding differs between the sides",
            ),
            (("AveragePool", IMAGE, {}, [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}), "padded on one side"),
            (
                (
                    "Slice",
                    IMAGE,
                    {"s": integers(5), "e": integers(0), "a": integers(1), "t": integers(-1)},
                    list("seat"),
                    {},
                ),
                "steps backwards",
            ),
            (
                ("Resize", IMAGE, {"n": integers(2, 6, 16, 16)}, ["", "", "n"], {"mode": "nearest"}),
                "mode nearest with half_pixel",
            ),
        ],
    )
    def test_what_torch_cannot_do_is_said(self, what: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            module_of(one_node(*what))
        assert "'node'" in caught.value.message
        assert "onnxruntime" in caught.value.hint
