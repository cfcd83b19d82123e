"""Small ONNX models by hand, and a way to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from hwprune.graph.onnx.network import IR_VERSION, OPSET

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


def model_of(
    nodes: Sequence[Node], tensors: Mapping[str, Array], *, inputs: Mapping[str, Sequence[int]], output: str
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred
