"""Constant folding: what depends on no input and on no weight becomes one constant.

The exporter writes shapes and scalars as little programs of Constant, Shape, Cast, Reshape and Concat nodes. Folded,
each of them is one array that a cut can rewrite. Weights are never folded: training changes them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from hwprune.core.errors import GraphError
from hwprune.graph.onnx.network import Array, Network, integer

FOLDED_ELEMENTS = 1 << 24  # a larger constant would make the file bigger than the network


def fold_constants(network: Network) -> Network:
    """The same network with every node that depends on constants and shapes alone evaluated once."""
    known: dict[str, Array] = {name: array for name, array in network.tensors.items() if name not in network.stateful}
    sources = dict(known)
    program: list[onnx.NodeProto] = []
    rest: list[onnx.NodeProto] = []
    constant = set(known)
    for node in network.nodes:
        shape = _static_shape(network, node)
        if shape is not None:
            sources[node.output[0]] = shape
            constant.add(node.output[0])
        elif all(name in constant for name in node.input if name) and _is_pure(node):
            program.append(node)
            constant.update(node.output)
        else:
            rest.append(node)
    wanted = {name for node in rest for name in node.input} | set(network.outputs)
    values = _evaluate(program, sources, wanted & constant, network.opset)
    tensors = {name: array for name, array in network.tensors.items() if name in network.stateful} | values
    return replace(network, nodes=tuple(rest), tensors=tensors).without_unused()


def _is_pure(node: onnx.NodeProto) -> bool:
    return not node.op_type.startswith(("Random", "Sequence", "Split", "Bernoulli", "Multinomial"))


def _static_shape(network: Network, node: onnx.NodeProto) -> Array | None:
    if node.op_type not in ("Shape", "Size"):
        return None
    name = node.input[0]
    if name not in network.shapes and name not in network.tensors:
        return None
    shape = network.shape(name)
    if node.op_type == "Size":
        return np.array(np.prod(shape, dtype=np.int64))
    last = integer(node, "end", len(shape))
    return np.array(shape[integer(node, "start", 0) : last], np.int64)


def _evaluate(
    program: list[onnx.NodeProto], sources: dict[str, Array], wanted: set[str], opset: int
) -> dict[str, Array]:
    """The values of `wanted` after running the nodes of `program` on the constants in `sources`."""
    values = {name: sources[name] for name in sorted(wanted) if name in sources}
    computed = sorted(wanted - values.keys())
    if not computed:
        return values
    needed = {name for node in program for name in node.input if name in sources}
    graph = onnx.helper.make_graph(
        program,
        "constants",
        [],
        [onnx.helper.make_empty_tensor_value_info(name) for name in computed],
        [onnx.numpy_helper.from_array(sources[name], name) for name in sorted(needed)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    for name, array in zip(computed, ReferenceEvaluator(model).run(None, {}), strict=True):
        if array.size > FOLDED_ELEMENTS:
            raise GraphError(f"the ONNX constant '{name}' has {array.size} elements", hint="use a smaller example")
        values[name] = np.asarray(array)
    return values
