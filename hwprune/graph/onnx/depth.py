"""Vanished residual branches in a cut network: their nodes go, their constant goes into a bias or stays as an addend.

Where a group kept no unit, weights without elements are left. What they make is nothing; a convolution that reads
nothing gives its bias, a constant a channel; what is computed from constants is a constant. The constant ends at an
addition, and from there it moves into the bias of the convolution that made the other addend, if nothing else reads
it; behind an activation it stays as an addition of `(1, C, 1, 1)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from hwprune.core.errors import GraphError
from hwprune.graph.onnx.network import Array, Network, copy_node

_ELEMENTWISE = (
    "Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "Softplus", "PRelu", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Erf", "Exp", "Log", "Abs", "Neg",
    "Pow", "Sqrt", "Min", "Max", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where", "Cast",
)  # fmt: skip
_OF_NOTHING = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")


def without_empty_branches(network: Network) -> Network:
    """The same function without the nodes that weights of no elements leave without work; unchanged without such.

    Raises `GraphError`, naming the node, where a constant or nothing meets an operator that cannot take it.
    """
    if all(array.size for array in network.tensors.values()):
        return network
    walk = _Walk(network, dict(network.tensors))
    for node in network.nodes:
        walk.take(node)
    for name in (*walk.empty, *walk.constants):
        if name in network.outputs:
            raise GraphError(f"without its residual branch the output '{name}' of the network is a constant")
    shorter = replace(
        network, nodes=tuple(walk.nodes), tensors=walk.tensors, stateful=network.stateful | walk.new
    ).without_unused()
    for addend in walk.addends:
        shorter = _into_bias(shorter, addend)
    return shorter.without_unused()


@dataclass
class _Walk:
    """`nodes` are those that stay; `addends`: names of additions of a constant."""

    network: Network
    tensors: dict[str, Array]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    empty: set[str] = field(default_factory=set)
    constants: dict[str, Array] = field(default_factory=dict)
    addends: list[str] = field(default_factory=list)
    new: set[str] = field(default_factory=set)

    def take(self, node: onnx.NodeProto) -> None:
        """Keep a node, or note what is left of its output."""
        inputs = [name for name in node.input if name]
        if node.op_type == "Conv" and not self.tensors.get(node.input[1], np.ones(1)).size:
            self._convolve(node)
        elif any(name in self.empty or not self.tensors.get(name, np.ones(1)).size for name in inputs):
            self._empty(node)
        elif not any(name in self.constants for name in inputs):
            self.nodes.append(node)
        elif node.op_type in _ELEMENTWISE and all(name in self.constants or name in self.tensors for name in inputs):
            known = {name: self.constants.get(name, self.tensors.get(name)) for name in inputs}
            self.constants[node.output[0]] = _evaluated(self.network, node, known)
        elif node.op_type == "Add":
            self._add(node)
        else:
            _refuse(node)

    def _convolve(self, node: onnx.NodeProto) -> None:
        weight = self.tensors[node.input[1]]
        if not weight.shape[0]:
            self.empty.add(node.output[0])
        elif node.input[0] in self.empty:
            has_bias = len(node.input) > 2 and node.input[2]
            bias = self.tensors[node.input[2]] if has_bias else np.zeros(weight.shape[0], weight.dtype)
            self.constants[node.output[0]] = bias.reshape(1, -1, *(1,) * (weight.ndim - 2))
        else:
            _refuse(node)

    def _empty(self, node: onnx.NodeProto) -> None:
        if node.op_type not in (*_ELEMENTWISE, *_OF_NOTHING):
            _refuse(node)
        self.empty.update(node.output)

    def _add(self, node: onnx.NodeProto) -> None:
        """Keep the sum of a constant and something that is none, with the constant among the weights."""
        kept = copy_node(node)
        for place, name in enumerate(node.input):
            if name in self.constants:
                kept.input[place] = f"{node.name}:constant"
                self.tensors[kept.input[place]] = self.constants[name]
                self.new.add(kept.input[place])
        self.nodes.append(kept)
        self.addends.append(node.name)


def _refuse(node: onnx.NodeProto) -> NoReturn:
    raise GraphError(
        f"the residual branch before ONNX node '{node.name}' ({node.op_type}) cannot be removed",
        hint="keep at least one unit of its group: search without depth",
    )


def _evaluated(network: Network, node: onnx.NodeProto, known: Mapping[str, Array | None]) -> Array:
    """The output of one node on constants."""
    graph = onnx.helper.make_graph(
        [node], "constant", [], [onnx.helper.make_empty_tensor_value_info(node.output[0])],
        [onnx.numpy_helper.from_array(array, name) for name, array in known.items() if array is not None],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", network.opset)])
    (value,) = ReferenceEvaluator(model).run([node.output[0]], {})
    return np.asarray(value)


def _into_bias(network: Network, addition: str) -> Network:
    """The network without this addition, its constant in the bias of a convolution before it, if there is one."""
    index = next(number for number, node in enumerate(network.nodes) if node.name == addition)
    node = network.nodes[index]
    constant = next(name for name in node.input if name == f"{addition}:constant")
    value = next(name for name in node.input if name != constant)
    place = _biased(network, value)
    if place is None or node.output[0] in network.outputs:
        return network
    maker = copy_node(network.nodes[place])
    weight = network.tensors[maker.input[1]]
    has_bias = len(maker.input) > 2 and bool(maker.input[2])
    bias = network.tensors[maker.input[2]] if has_bias else np.zeros(weight.shape[0], weight.dtype)
    name = f"{maker.name}:bias"
    del maker.input[2:]
    maker.input.append(name)
    shifted = (bias.astype(np.float64) + network.tensors[constant].reshape(-1)).astype(bias.dtype)
    nodes = [*network.nodes[:index], *network.nodes[index + 1 :]]
    nodes[place] = maker
    shorter = replace(
        network,
        nodes=tuple(nodes),
        tensors={**network.tensors, name: shifted},
        stateful=network.stateful | {name},
    )
    return shorter.with_names({node.output[0]: value}).without_unused()


def _biased(network: Network, value: str) -> int | None:
    """The place of a convolution to whose bias a constant added to `value` can be added instead, through sums."""
    makers = {name: number for number, node in enumerate(network.nodes) for name in node.output}
    uses = network.uses()
    waiting = [value]
    while waiting:
        name = waiting.pop(0)
        if name not in makers or uses[name] != 1:
            continue
        node = network.nodes[makers[name]]
        if node.op_type == "Conv" and (len(node.input) < 3 or uses[node.input[2]] <= 1):
            return makers[name]
        if node.op_type == "Add":
            waiting += list(node.input)
    return None
