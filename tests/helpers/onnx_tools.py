"""Small ONNX models by hand, and a way to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from hwprune.graph.onnx.cut import Cutter
from hwprune.graph.onnx.labels import FIXED, plan_cuts
from hwprune.graph.onnx.network import IR_VERSION, OPSET, Network, from_model, to_model, with_inferred_shapes

Array = npt.NDArray[np.generic]
Node = tuple[str, list[str], list[str], dict[str, object]]


def run(model: onnx.ModelProto | bytes, inputs: Mapping[str, Array]) -> list[Array]:
    """The outputs of a model in ONNX Runtime on one thread."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, dict(inputs))]


def cut_model(model: onnx.ModelProto, kept: Mapping[str, Mapping[int, Sequence[int]]]) -> onnx.ModelProto:
    """A smaller model: of each named initialiser and dimension only the `kept` indices stay.

    What an operator combines with them is cut index by index. Raises `GraphError` where that cannot be followed.
    """
    network = with_inferred_shapes(from_model(model, kept))
    labels = {
        name: {dim: _removed(network, name, dim, ids) for dim, ids in dims.items()} for name, dims in kept.items()
    }
    return to_model(Cutter(plan_cuts(network, labels)).network(np.array([False, True])))


def _removed(network: Network, name: str, dim: int, kept: Sequence[int]) -> npt.NDArray[np.int32]:
    labels = np.zeros(network.tensors[name].shape[dim], np.int32)
    labels[list(kept)] = FIXED
    return labels


def random_inputs(model: bytes, seed: int = 1) -> dict[str, Array]:
    """Standard normal float inputs of a model."""
    rng = np.random.default_rng(seed)
    shapes = {
        item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]
        for item in onnx.load_from_string(model).graph.input
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def worst_error(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference, relative to the largest value of its tensor or to 1; shapes must agree."""
    assert [value.shape for value in found] == [value.shape for value in expected]
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in zip(found, expected, strict=True)]
    return max(float(np.abs(a - b).max(initial=0.0)) / max(1.0, float(np.abs(b).max(initial=0.0))) for a, b in pairs)


def model_of(
    nodes: Sequence[Node],
    tensors: Mapping[str, Array],
    *,
    inputs: Mapping[str, Sequence[int]],
    output: str,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A checked model with float inputs of the given shapes and one output of unknown shape."""
    made = [
        helper.make_node(kind, reads, writes, name=f"n{index}/{kind}", **attributes)
        for index, (kind, reads, writes, attributes) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = IR_VERSION
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred
