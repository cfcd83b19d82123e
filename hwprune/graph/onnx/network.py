"""An ONNX graph as data: nodes, initialisers as arrays, inputs and outputs; from and to a `ModelProto`.

`Network` is what the passes over a graph hand to one another. It knows which initialisers belong to the module's
state: their values change when the network is trained, so that no pass may compute with them ahead of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from hwprune.core.errors import GraphError

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

# ONNX Runtime >= 1.20 reads opset 17 and 18 alike. TensorRT 8.6 documents opset 17 as its newest, and reads the axes
# of a reduction only from the attribute (an input since opset 18): before version 10 it reduced over all axes without
# a word (NVIDIA/TensorRT issue 3467).
OPSET = 17
IR_VERSION = 8  # the format of opset 17; a newer one is refused by older readers
PRODUCER = "hwprune"
# protobuf cannot hold 2 GiB; the rest is room for the nodes and what a runtime adds
SIZE_LIMIT_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class Network:
    """A graph of ONNX nodes in topological order, with constants and weights as arrays.

    `stateful` names the tensors of the module's state; `shapes` and `types` (ONNX element types) hold what is known
    about any value.
    """

    nodes: tuple[onnx.NodeProto, ...]
    tensors: Mapping[str, Array]
    stateful: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    opset: int = OPSET

    def constant(self, name: str) -> Array | None:
        """The value of a constant that is not part of the module's state, or None."""
        return None if name in self.stateful else self.tensors.get(name)

    def uses(self) -> Counter[str]:
        """How often each value is read, the graph's outputs included."""
        return Counter([name for node in self.nodes for name in node.input if name] + list(self.outputs))

    def shape(self, name: str) -> tuple[int, ...]:
        """The dense shape of a value; `GraphError` when the exporter left it open."""
        if name in self.tensors:
            return self.tensors[name].shape
        if name not in self.shapes:
            raise GraphError(f"the ONNX value '{name}' has no fixed shape", hint="use an example input of fixed size")
        return self.shapes[name]

    def without_unused(self) -> Network:
        """The same network without nodes and tensors that no output needs."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(node.input)
        tensors = {name: array for name, array in self.tensors.items() if name in needed}
        return replace(self, nodes=tuple(reversed(kept)), tensors=tensors)

    def with_names(self, names: Mapping[str, str]) -> Network:
        """The same network with values renamed wherever they are written or read."""
        nodes = []
        for node in self.nodes:
            node = copy_node(node)
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
            nodes.append(node)
        return replace(
            self,
            nodes=tuple(nodes),
            tensors={names.get(name, name): array for name, array in self.tensors.items()},
            stateful=frozenset(names.get(name, name) for name in self.stateful),
            inputs=tuple(names.get(name, name) for name in self.inputs),
            outputs=tuple(names.get(name, name) for name in self.outputs),
            shapes={names.get(name, name): shape for name, shape in self.shapes.items()},
            types={names.get(name, name): kind for name, kind in self.types.items()},
        )


def copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that can be changed without changing the original."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute, or `default`."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    value = attribute(node, name, default)
    if not isinstance(value, int):
        raise GraphError(f"attribute {name} of ONNX node '{node.name}' ({node.op_type}) is {value!r}, not an integer")
    return value


def from_model(model: onnx.ModelProto, stateful: Iterable[str]) -> Network:
    """A `Network` from a `ModelProto` whose weights are inside the file."""
    graph = model.graph
    _refuse(model)
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, int] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return Network(
        nodes=tuple(copy_node(node) for node in graph.node),
        tensors=tensors,
        stateful=frozenset(stateful) & tensors.keys(),
        inputs=tuple(value.name for value in graph.input if value.name not in tensors),
        outputs=tuple(value.name for value in graph.output),
        shapes=shapes,
        types=types,
        opset=next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), OPSET),
    )


def _refuse(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise GraphError(f"the ONNX initialiser '{tensor.name}' lies in another file", hint="store weights inside")
    if model.functions or model.graph.sparse_initializer:
        raise GraphError("the ONNX file holds local functions or sparse initialisers, which cannot be cut")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise GraphError(f"ONNX node '{node.name}' ({node.domain}::{node.op_type}) is not a standard operator")
        if any(item.t.external_data or item.t.data_location == onnx.TensorProto.EXTERNAL for item in node.attribute):
            raise GraphError(f"a constant of ONNX node '{node.name}' lies in another file", hint="store weights inside")
        if any(item.HasField("g") or item.graphs for item in node.attribute):
            raise GraphError(
                f"ONNX node '{node.name}' ({node.op_type}) holds a subgraph: control flow cannot be cut",
                hint="choose the branch in Python, before the network is built",
            )


def with_inferred_shapes(network: Network) -> Network:
    """The same network with the shape and type of every value, by ONNX shape inference."""
    model = onnx.shape_inference.infer_shapes(to_model(network), data_prop=True)
    inferred = from_model(model, network.stateful)
    return replace(network, shapes={**network.shapes, **inferred.shapes}, types={**network.types, **inferred.types})


def value_info(network: Network, name: str) -> onnx.ValueInfoProto:
    """The declaration of an input or output."""
    return onnx.helper.make_tensor_value_info(name, network.types[name], network.shapes.get(name))


def skeleton(network: Network) -> onnx.ModelProto:
    """The model without its initialisers, and without anything that names the machine it was made on."""
    graph = onnx.helper.make_graph(
        network.nodes,
        "network",
        [value_info(network, name) for name in network.inputs],
        [value_info(network, name) for name in network.outputs],
    )
    model = onnx.helper.make_model(
        graph, producer_name=PRODUCER, opset_imports=[onnx.helper.make_opsetid("", network.opset)]
    )
    model.ir_version = IR_VERSION
    return model


def to_model(network: Network) -> onnx.ModelProto:
    """The complete `ModelProto`; `GraphError` when it would not fit into one file."""
    check_size(network.tensors.values())
    model = skeleton(network)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in network.tensors.items())
    return model


def check_size(tensors: Iterable[Array]) -> None:
    """Raise `GraphError` when weights are too large for one file."""
    size = sum(array.nbytes for array in tensors)
    if size > SIZE_LIMIT_BYTES:
        raise GraphError(
            f"the network is too large for one ONNX file: its weights take {size / 2**30:.2f} GiB of at most 2 GiB",
            hint="prune a smaller network, or store it in half precision",
        )
