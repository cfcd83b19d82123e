"""BatchNormalization folded into the convolution or linear layer before it, in double precision.

Folding scales each output channel of a weight and shifts its bias: it works channel by channel, so that folding and
cutting commute, and folded dense weights can be cut like any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from hwprune.graph.onnx.clean import name_values
from hwprune.graph.onnx.labels import Labels
from hwprune.graph.onnx.network import Array, Network, attribute, copy_node, integer

TensorLabels = Mapping[str, Mapping[int, Labels]]
_STATISTICS = (1, 2, 3, 4)  # the inputs scale, bias, mean and variance of a BatchNormalization


@dataclass
class _Folding:
    network: Network
    labels: dict[str, Mapping[int, Labels]]
    tensors: dict[str, Array]
    new: set[str]


def fold_batch_norms(network: Network, labels: TensorLabels) -> tuple[Network, TensorLabels]:
    """The network with every foldable BatchNormalization gone, and the labels of its weights and new biases.

    One is foldable when a Conv, ConvTranspose or Gemm with a weight of its own is the only thing before it and nothing
    else reads what lies between. The others stay.
    """
    folding = _Folding(network, dict(labels), dict(network.tensors), set())
    uses = network.uses()
    makers = {name: index for index, node in enumerate(network.nodes) for name in node.output}
    nodes: list[onnx.NodeProto | None] = list(network.nodes)
    for index, norm in enumerate(network.nodes):
        if norm.op_type != "BatchNormalization" or uses[norm.input[0]] != 1:
            continue
        maker = nodes[makers[norm.input[0]]] if norm.input[0] in makers else None
        if maker is not None and _can_take(folding, maker, norm):
            nodes[makers[norm.input[0]]] = _fold(folding, maker, norm, shared=uses[maker.input[1]] > 1)
            nodes[index] = None
    folded = replace(
        network,
        nodes=tuple(node for node in nodes if node is not None),
        tensors=folding.tensors,
        stateful=network.stateful | folding.new,
    ).without_unused()
    folded = name_values(folded)
    return folded, {name: dims for name, dims in folding.labels.items() if name in folded.tensors}


def _can_take(folding: _Folding, maker: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
    inputs = [*maker.input[1:], *norm.input[1:]]
    if any(name and name not in folding.tensors for name in inputs) or len(norm.output) > 1:
        return False
    if maker.op_type == "Gemm":
        plain_product = attribute(maker, "alpha", 1.0) == 1.0 and attribute(maker, "beta", 1.0) == 1.0
        bias = maker.input[2:] and folding.tensors[maker.input[2]].ndim != 1
        return plain_product and not bias
    return maker.op_type in ("Conv", "ConvTranspose")


def _fold(folding: _Folding, maker: onnx.NodeProto, norm: onnx.NodeProto, *, shared: bool) -> onnx.NodeProto:
    weight_name = maker.input[1]
    weight = folding.tensors[weight_name]
    gamma, beta, mean, variance = (folding.tensors[norm.input[index]].astype(np.float64) for index in _STATISTICS)
    epsilon = attribute(norm, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    scale = gamma / np.sqrt(variance + epsilon)
    old_bias = folding.tensors[maker.input[2]].astype(np.float64) if len(maker.input) > 2 and maker.input[2] else 0.0
    node = copy_node(maker)
    if shared:
        node.input[1] = f"{weight_name}:{norm.name}"
    bias_name = f"{node.input[1].removesuffix('.weight')}.bias" if not shared else f"{node.input[1]}.bias"
    if bias_name in folding.tensors and bias_name not in maker.input:
        bias_name = f"{node.input[1]}.bias"
    _set_bias_input(node, bias_name)
    node.output[0] = norm.output[0]
    folding.tensors[node.input[1]] = (weight * _spread(scale, maker, weight)).astype(weight.dtype)
    folding.tensors[bias_name] = ((old_bias - mean) * scale + beta).astype(weight.dtype)
    folding.new.update((node.input[1], bias_name))
    folding.labels[node.input[1]] = folding.labels.get(weight_name, {})
    folding.labels[bias_name] = next(
        (folding.labels[norm.input[i]] for i in _STATISTICS if norm.input[i] in folding.labels), {}
    )
    return node


def _set_bias_input(node: onnx.NodeProto, name: str) -> None:
    del node.input[2:]
    node.input.append(name)


def _spread(scale: Array, maker: onnx.NodeProto, weight: Array) -> Array:
    """The scale of each output channel, shaped to multiply the weight of `maker`."""
    rest = (1,) * (weight.ndim - 2)
    if maker.op_type == "Conv" or (maker.op_type == "Gemm" and integer(maker, "transB", 0)):
        return scale.reshape(-1, 1, *rest)
    if maker.op_type == "Gemm":
        return scale.reshape(1, -1)
    groups = integer(maker, "group", 1)
    by_group = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return by_group.reshape(weight.shape[0], -1, *rest)
