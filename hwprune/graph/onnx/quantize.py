"""An fp32 network with quantise-dequantise pairs: what a runtime shall compute in int8, and with what scales.

This is for measuring latency, which does not depend on the values of the scales, and for accuracy only as far as the
ranges of the activations come from real inputs (`activation_ranges`). Weights are quantised from their own values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hwprune.core.errors import GraphError, UsageError
from hwprune.graph.onnx.network import Array, Network, attribute, copy_node, from_model, integer

Infer = Callable[[bytes, Mapping[str, Array]], Sequence[Array]]

DEFAULT_RANGE = 6.0  # of an activation nobody gave a range for: the bound of ReLU6, of the order of normalised images
LEVELS = 127  # symmetric int8: -127..127, zero point 0, which is all that TensorRT takes
FIRST_OPSET = 13  # scales per channel
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Weight:
    """A layer's weight: the constant it comes from, and the axis of that constant with a scale per index."""

    name: str
    axis: int | None


def to_int8(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """The same network with QuantizeLinear and DequantizeLinear around convolutions and linear layers.

    Quantised are the data input and the weight of every Conv, ConvTranspose, Gemm and MatMul whose weight is a
    constant, and the other summand where such a layer ends in an addition, so that the addition can be fused. An
    activation has one pair, shared by its readers, and one scale; a weight has a scale per output channel (one for
    all, in a transposed convolution with groups). Biases and everything else stay fp32. Weights are fp32 constants
    before a QuantizeLinear, since TensorRT 8 reads no int8 constants. A network that holds such pairs already is taken
    as it is. Raises `GraphError` below opset 13 and when
    there is nothing to quantise, `UsageError` for a range that is not a positive number.
    """
    network = _readable(model)
    if is_quantised(model):
        return model
    for name, limit in ranges.items():
        if not (np.isfinite(limit) and limit > 0):
            raise UsageError(f"the range of activation '{name}' is {limit}", hint="give a positive magnitude")
    weights = _weights(network)
    summands = _summands(network, weights)
    quantising = _Quantising(network, ranges)
    for index, node in enumerate(network.nodes):
        node = copy_node(node)
        if index in weights:
            node.input[0] = quantising.activation(node.input[0])
            quantising.weight(node, weights[index])
        elif index in summands:
            place = summands[index]
            node.input[place] = quantising.activation(node.input[place])
        quantising.nodes.append(node)
    return quantising.model(model)


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a network holds quantise-dequantise pairs already."""
    return any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def quantised_activations(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the activations that `to_int8` quantises, in the order of their first reader."""
    network = _readable(model)
    weights = _weights(network)
    summands = _summands(network, weights)
    places = {**dict.fromkeys(weights, 0), **summands}
    return tuple(dict.fromkeys(network.nodes[index].input[places[index]] for index in sorted(places)))


def activation_ranges(
    model: bytes, inputs: Sequence[Mapping[str, Array]], infer: Infer, *, share: float = 0.9999
) -> dict[str, float]:
    """The magnitude that `share` of an activation's values stay below, at its largest over `inputs`, by activation.

    `infer` runs ONNX bytes. The few values above are cut off: a bound set by one outlier would waste the levels of
    all others. Activations that are zero throughout are left out.
    """
    if not inputs:
        raise UsageError("ranges of activations need at least one input")
    parsed = onnx.load_model_from_string(model)
    names = quantised_activations(parsed)
    known = {value.name for value in parsed.graph.output}
    made = [name for name in names if name not in {value.name for value in parsed.graph.input} | known]
    watched = onnx.ModelProto()
    watched.CopyFrom(parsed)
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made)
    order = [value.name for value in watched.graph.output]
    data = bytes(watched.SerializeToString())
    found: dict[str, float] = {}
    for batch in inputs:
        values = {**dict(zip(order, infer(data, batch), strict=True)), **batch}
        for name in names:
            found[name] = max(found.get(name, 0.0), float(np.quantile(np.abs(values[name]), share)))
    return {name: limit for name, limit in found.items() if limit > 0}


def _readable(model: onnx.ModelProto) -> Network:
    network = from_model(onnx.shape_inference.infer_shapes(model), ())
    if network.opset < FIRST_OPSET:
        raise GraphError(
            f"int8 needs ONNX opset {FIRST_OPSET} or later, the model has {network.opset}", hint="export it again"
        )
    return network


def _weights(network: Network) -> dict[int, _Weight]:
    """The weight of every node that is quantised, by the node's place."""
    transposes = {node.output[0]: node for node in network.nodes if node.op_type == "Transpose"}
    found = {}
    for index, node in enumerate(network.nodes):
        if node.op_type in _LAYERS and network.types.get(node.input[0]) == TensorProto.FLOAT:
            weight = _weight_of(node, network, transposes)
            if weight is not None and node.input[0] not in network.tensors:
                found[index] = weight
    if not found:
        raise GraphError("the network has no convolution or linear layer to quantise", hint="use another precision")
    return found


def _weight_of(node: onnx.NodeProto, network: Network, transposes: Mapping[str, onnx.NodeProto]) -> _Weight | None:
    name = node.input[1]
    axis = _output_axis(node, network, name)
    if name in transposes:  # a linear layer: the weight is kept as the state has it, and turned in the graph
        order = attribute(transposes[name], "perm")
        name = transposes[name].input[0]
        dims = network.tensors[name].ndim if name in network.tensors else 0
        turned = order if isinstance(order, list) else list(range(dims))[::-1]
        axis = turned[axis] if axis is not None and dims else None
    array = network.tensors.get(name)
    return _Weight(name, axis) if array is not None and array.dtype == np.float32 else None


def _output_axis(node: onnx.NodeProto, network: Network, weight: str) -> int | None:
    """The axis of the output channels in a layer's weight; None where there is no single one."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if integer(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if integer(node, "transB", 0) else 1
    shape = network.tensors[weight].shape if weight in network.tensors else network.shapes.get(weight, ())
    return 1 if len(shape) == 2 else None


def _summands(network: Network, weights: Mapping[int, _Weight]) -> dict[int, int]:
    """The place of the input to quantise in every addition that a quantised layer can take in, by the node's place."""
    uses = network.uses()
    layer = {network.nodes[index].output[0]: index for index in weights}
    found: dict[int, int] = {}
    for index, node in enumerate(network.nodes):
        if node.op_type != "Add" or any(name in network.tensors for name in node.input):
            continue
        first, second = node.input
        if network.shapes.get(first) != network.shapes.get(second) or first == second:
            continue
        made = [(layer[name], place) for place, name in enumerate(node.input) if name in layer and uses[name] == 1]
        if made:
            found[index] = 1 - max(made)[1]  # the layer that comes last can take the other, which is there by then
    return found


@dataclass
class _Quantising:
    """The new network as it grows."""

    network: Network
    ranges: Mapping[str, float]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    pairs: dict[_Weight, str] = field(default_factory=dict)
    turned: dict[_Weight, str] = field(default_factory=dict)

    def activation(self, name: str) -> str:
        """The name of an activation after its pair."""
        return self._pair(_Weight(name, None), np.float32(self.ranges.get(name, DEFAULT_RANGE) / LEVELS))

    def weight(self, node: onnx.NodeProto, weight: _Weight) -> None:
        """Let a layer read its weight through a pair, before the Transpose where there is one."""
        array = self.network.tensors[weight.name]
        others = tuple(axis for axis in range(array.ndim) if axis != weight.axis)
        largest = np.abs(array).max(axis=others if weight.axis is not None else None, initial=0.0)
        scale = np.where(largest > 0, largest, 1.0) / LEVELS
        made = self._pair(weight, scale.astype(np.float32))
        if node.input[1] == weight.name:
            node.input[1] = made
            return
        if weight not in self.turned:
            turning = copy_node(next(item for item in self.network.nodes if node.input[1] in item.output))
            turning.name += ":int8"
            turning.input[0], turning.output[0] = made, f"{turning.output[0]}:int8"
            self.nodes.append(turning)
            self.turned[weight] = turning.output[0]
        node.input[1] = self.turned[weight]

    def _pair(self, key: _Weight, scale: Array | np.float32) -> str:
        if key in self.pairs:
            return self.pairs[key]
        name = key.name if key.axis in (None, 0) else f"{key.name}:{key.axis}"
        self.tensors[f"{name}:scale"] = np.asarray(scale, np.float32)
        self.tensors[f"{name}:zero"] = np.zeros(np.shape(scale), np.int8)
        quantised = name
        for kind in ("QuantizeLinear", "DequantizeLinear"):
            source = key.name if kind == "QuantizeLinear" else quantised
            quantised = f"{name}/{kind}"
            parameters = [source, f"{name}:scale", f"{name}:zero"]
            axis = {} if key.axis is None else {"axis": key.axis}
            self.nodes.append(onnx.helper.make_node(kind, parameters, [quantised], name=quantised, **axis))
        self.pairs[key] = quantised
        return quantised

    def model(self, original: onnx.ModelProto) -> onnx.ModelProto:
        """The new model: interface and metadata of the original, without what nothing reads any more."""
        tensors = {**self.network.tensors, **self.tensors}
        kept = replace(self.network, nodes=tuple(self.nodes), tensors=tensors).without_unused()
        made = onnx.ModelProto()
        made.CopyFrom(original)
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
        made.graph.node.extend(kept.nodes)
        made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in kept.tensors.items())
        return made
