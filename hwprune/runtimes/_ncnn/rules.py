"""What each ONNX operator is in ncnn. `RULES` maps its name to a function that appends the layers.

Parameter numbers are those of ncnn's operator documentation. Activations become a part of the convolution or linear
layer before them, as ncnn's own converter does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hwprune.runtimes._ncnn import shapes
from hwprune.runtimes._ncnn.model import RANKS, NcnnModel, Writer, block_sizes, flagged, raw
from hwprune.runtimes._ncnn.patterns import swish
from hwprune.runtimes._onnx.graph import Array, Graph, Node
from hwprune.runtimes._onnx.patterns import NOTHING, RESHAPES, clip_limits, reduced_axes

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwprune.runtimes._ncnn.model import Parameter

    Rule = Callable[[Writer, Node], None]

_BINARY = {"Add": 0, "Sub": 1, "Mul": 2, "Div": 3, "Max": 4, "Min": 5}
_REVERSED = {1: 7, 3: 8}  # what takes the scalar on its left; the others are symmetric
_UNARY = {"Abs": 0, "Neg": 1, "Floor": 2, "Ceil": 3, "Sqrt": 5, "Exp": 7, "Log": 8, "Reciprocal": 15}
_POWERS = {2.0: 4, 0.5: 5}  # of UnaryOp; ncnn's general power is wrong for negative numbers
_REDUCTIONS = {"ReduceSum": 0, "ReduceMean": 3, "ReduceMax": 4, "ReduceMin": 5}
_POOLED = {"ReduceMax": 0, "ReduceMean": 1, "GlobalMaxPool": 0, "GlobalAveragePool": 1}
_ACTIVATION = 9  # the parameter of every layer with weights; its own parameters are the next


def write(graph: Graph) -> NcnnModel:
    """The graph in ncnn's format. Raises `UsageError` naming the operators that have no counterpart."""
    graph.refuse_unknown(RULES)
    writer = Writer(graph)
    for node in graph.nodes:
        if id(node) in writer.done:
            continue
        for name in (*node.inputs, *node.outputs):
            shape = graph.shape(name) if name and name not in graph.constants else (1, 1)
            if len(shape) not in RANKS or shape[0] != 1:
                graph.refuse(node, f"ncnn holds one image at a time, and '{name}' is of shape {shape}")
        RULES[node.kind](writer, node)
    return writer.finish()


def _conv(writer: Writer, node: Node) -> None:
    weight = writer.graph.constant(node, 1)
    kernel, groups = _kernel_of(writer, node, weight), node.integer("group", 1)
    parameters = {0: weight.shape[0], **_window(writer, node, kernel, groups, weight)}
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    _weighted(writer, node, kind, parameters, weight, _bias(writer, node))


def _conv_transpose(writer: Writer, node: Node) -> None:
    weight = writer.graph.constant(node, 1)
    kernel, groups = _kernel_of(writer, node, weight), node.integer("group", 1)
    if "output_shape" in node.attributes:
        writer.graph.refuse(node, "it asks for an output shape")
    bottom, right = node.ints("output_padding", (0, 0))
    parameters = {**_window(writer, node, kernel, groups, weight), 0: weight.shape[1] * groups, 18: right, 19: bottom}
    kind = "Deconvolution" if groups == 1 else "DeconvolutionDepthWise"
    by_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    _weighted(writer, node, kind, parameters, by_group.swapaxes(1, 2), _bias(writer, node))


def _kernel_of(writer: Writer, node: Node, weight: Array) -> tuple[int, int]:
    if weight.ndim != 4:
        writer.graph.refuse(node, f"only 2-D convolutions are known, its weight is of shape {weight.shape}")
    return int(weight.shape[2]), int(weight.shape[3])


def _bias(writer: Writer, node: Node) -> Array | None:
    return writer.graph.constant(node, 2) if node.has(2) else None


def _window(writer: Writer, node: Node, kernel: tuple[int, int], groups: int, weight: Array) -> dict[int, Parameter]:
    top, left, bottom, right = _pads(writer, node)
    dilation, stride = node.ints("dilations", (1, 1)), node.ints("strides", (1, 1))
    found: dict[int, Parameter] = {1: kernel[1], 11: kernel[0], 2: dilation[1], 12: dilation[0]}
    found.update({3: stride[1], 13: stride[0], 4: left, 14: top, 15: right, 16: bottom, 6: int(weight.size)})
    return found if groups == 1 else {**found, 7: groups}


def _pads(writer: Writer, node: Node) -> tuple[int, ...]:
    if node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        writer.graph.refuse(node, f"auto_pad={node.text('auto_pad', '')}")
    return node.ints("pads", (0, 0, 0, 0))


def _gemm(writer: Writer, node: Node) -> None:
    if node.integer("transA", 0):
        writer.graph.refuse(node, "transA")
    weight = writer.graph.constant(node, 1) * node.number("alpha", 1.0)
    weight = weight if node.integer("transB", 0) else weight.T
    bias = _bias(writer, node)
    bias = None if bias is None else np.broadcast_to(bias.ravel() * node.number("beta", 1.0), weight.shape[:1])
    parameters: dict[int, Parameter] = {0: weight.shape[0], 2: int(weight.size)}
    _weighted(writer, node, "InnerProduct", parameters, weight, bias, bias_key=1)


def _matmul(writer: Writer, node: Node) -> None:
    if node.inputs[1] in writer.graph.constants:
        weight = writer.graph.constant(node, 1)
        if weight.ndim != 2 or len(writer.graph.shape(node.inputs[0])) > 3:
            writer.graph.refuse(node, f"its weight is of shape {weight.shape}")
        parameters: dict[int, Parameter] = {0: weight.shape[1], 2: int(weight.size)}
        _weighted(writer, node, "InnerProduct", parameters, weight.T, None, bias_key=1)
        return
    rank = len(writer.graph.shape(node.outputs[0]))
    writer.add("MatMul", node, [writer.operand(node, 0, rank), writer.operand(node, 1, rank)], node.outputs)


def _weighted(
    writer: Writer,
    node: Node,
    kind: str,
    parameters: dict[int, Parameter],
    weight: Array,
    bias: Array | None,
    bias_key: int = 5,
) -> None:
    """A layer with weights, its bias, and the activation behind it when nothing else reads what is between."""
    output = node.outputs[0]
    following = writer.graph.only_consumer(output)
    activation = _activation(writer.graph, following) if following is not None else None
    if following is not None and activation is not None:
        parameters[_ACTIVATION] = activation[0]
        if activation[1]:
            parameters[_ACTIVATION + 1] = activation[1]
        output = following.outputs[0]
        writer.done.add(id(following))
    weights = [flagged(weight)] + ([] if bias is None else [raw(bias)])
    parameters[bias_key] = int(bias is not None)
    writer.add(kind, node, node.inputs[:1], [output], dict(sorted(parameters.items())), weights)


def _activation(graph: Graph, node: Node) -> tuple[int, tuple[float, ...]] | None:
    """The number and the parameters of an activation that a layer can take in."""
    if node.kind == "Relu":
        return 1, ()
    if node.kind == "LeakyRelu":
        return 2, (node.number("alpha", 0.01),)
    if node.kind == "Clip":
        return 3, clip_limits(graph, node)
    if node.kind == "Sigmoid":
        return 4, ()
    if node.kind == "HardSwish":
        return 6, (1 / 6, 0.5)
    return None


def _plain(kind: str) -> Rule:
    """A rule for an operator that is one layer without parameters."""

    def rule(writer: Writer, node: Node) -> None:
        writer.add(kind, node, node.inputs[:1], node.outputs)

    return rule


def _with_parameters(kind: str, parameters: Callable[[Writer, Node], Mapping[int, Parameter]]) -> Rule:
    """A rule for an operator that is one layer of one input."""

    def rule(writer: Writer, node: Node) -> None:
        writer.add(kind, node, node.inputs[:1], node.outputs, parameters(writer, node))

    return rule


def _clip(writer: Writer, node: Node) -> Mapping[int, Parameter]:
    low, high = clip_limits(writer.graph, node)
    return {0: low, 1: high}


def _sigmoid(writer: Writer, node: Node) -> None:
    if not swish(writer, node):
        writer.add("Sigmoid", node, node.inputs, node.outputs)


def _prelu(writer: Writer, node: Node) -> None:
    slope = writer.graph.constant(node, 1)
    writer.add("PReLU", node, node.inputs[:1], node.outputs, {0: int(slope.size)}, [raw(slope)])


def _binary(writer: Writer, node: Node) -> None:
    if len(node.inputs) != 2:
        writer.graph.refuse(node, f"it has {len(node.inputs)} inputs")
    code = _BINARY[node.kind]
    for scalar, value, operation in ((1, 0, code), (0, 1, _REVERSED.get(code, code))):
        number = writer.graph.scalar(node, scalar)
        if number is not None:
            writer.add("BinaryOp", node, [node.inputs[value]], node.outputs, {0: operation, 1: 1, 2: number})
            return
    rank = len(writer.graph.shape(node.outputs[0]))
    writer.add("BinaryOp", node, [writer.operand(node, side, rank) for side in (0, 1)], node.outputs, {0: code})


def _power(writer: Writer, node: Node) -> None:
    exponent = writer.graph.scalar(node, 1)
    if exponent not in _POWERS:
        writer.graph.refuse(node, "only squares and square roots are known")
    writer.add("UnaryOp", node, node.inputs[:1], node.outputs, {0: _POWERS[exponent]})


def _pool(kind: int) -> Rule:
    def rule(writer: Writer, node: Node) -> None:
        kernel, stride = node.ints("kernel_shape", ()), node.ints("strides", (1, 1))
        if len(kernel) != 2 or set(node.ints("dilations", (1, 1))) != {1} or len(node.outputs) > 1:
            writer.graph.refuse(node, "only plain 2-D pooling is known")
        top, left, bottom, right = _pads(writer, node)
        parameters: dict[int, Parameter] = {0: kind, 1: kernel[1], 11: kernel[0], 2: stride[1], 12: stride[0]}
        parameters.update({3: left, 13: top, 14: right, 15: bottom, 5: 0 if node.integer("ceil_mode", 0) else 1})
        parameters[6] = node.integer("count_include_pad", 0)
        writer.add("Pooling", node, node.inputs, node.outputs, dict(sorted(parameters.items())))

    return rule


def _reduce(writer: Writer, node: Node) -> None:
    shape, output = writer.graph.shape(node.inputs[0]), node.outputs[0]
    axes = reduced_axes(writer.graph, node)
    keep = bool(node.integer("keepdims", 1))
    if 0 in axes:
        writer.graph.refuse(node, "it reduces over the batch")
    if axes == [2, 3] and len(shape) == 4 and node.kind in _POOLED:
        _global_pool(writer, node, keep=keep)
        return
    parameters: dict[int, Parameter] = {0: _REDUCTIONS[node.kind], 1: 0, 3: [axis - 1 for axis in axes]}
    writer.add("Reduction", node, node.inputs[:1], [output], {**parameters, 4: int(keep), 5: 1})


def _global_pool(writer: Writer, node: Node, *, keep: bool = True) -> None:
    """ncnn's global pooling makes a vector: it gets its two sizes of 1 back where somebody reads them."""
    output = node.outputs[0]
    parameters = {0: _POOLED[node.kind], 4: 1}
    if not keep:
        writer.add("Pooling", node, node.inputs[:1], [output], parameters)
        return
    vector = f"{output}/vector"
    writer.add("Pooling", node, node.inputs[:1], [vector], parameters)
    readers = writer.graph.consumers(output)
    flat = [reader for reader in readers if len(writer.graph.shape(reader.outputs[0])) == 2 and shapes.reshapes(reader)]
    for reader in flat:
        writer.same(reader.outputs[0], vector)
        writer.done.add(id(reader))
    if len(flat) < len(readers) or output in writer.graph.outputs:
        writer.add("Reshape", node, [vector], [output], block_sizes(writer.graph.shape(output)))


def _batch_norm(writer: Writer, node: Node) -> None:
    scale, bias, mean, variance = (writer.graph.constant(node, place) for place in (1, 2, 3, 4))
    weights = [raw(scale), raw(mean), raw(variance), raw(bias)]
    parameters: dict[int, Parameter] = {0: int(scale.size), 1: node.number("epsilon", 1e-5)}
    writer.add("BatchNorm", node, node.inputs[:1], node.outputs, parameters, weights)


def _instance_norm(writer: Writer, node: Node) -> None:
    scale, bias = writer.graph.constant(node, 1), writer.graph.constant(node, 2)
    parameters: dict[int, Parameter] = {0: int(scale.size), 1: node.number("epsilon", 1e-5), 2: 1}
    writer.add("InstanceNorm", node, node.inputs[:1], node.outputs, parameters, [raw(scale), raw(bias)])


def _layer_norm(writer: Writer, node: Node) -> None:
    shape = writer.graph.shape(node.inputs[0])
    if node.integer("axis", -1) % len(shape) != len(shape) - 1:
        writer.graph.refuse(node, "only the last dimension can be normalised")
    scale = writer.graph.constant(node, 1)
    bias = writer.graph.constant(node, 2) if node.has(2) else np.zeros_like(scale)
    parameters: dict[int, Parameter] = {0: int(scale.size), 1: node.number("epsilon", 1e-5), 2: 1}
    writer.add("LayerNorm", node, node.inputs[:1], node.outputs, parameters, [raw(scale), raw(bias)])


RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pow": _power,
    "Relu": _plain("ReLU"),
    "LeakyRelu": _with_parameters("ReLU", lambda _, node: {0: node.number("alpha", 0.01)}),
    "PRelu": _prelu,
    "Clip": _with_parameters("Clip", _clip),
    "Sigmoid": _sigmoid,
    "Tanh": _plain("TanH"),
    "Elu": _with_parameters("ELU", lambda _, node: {0: node.number("alpha", 1.0)}),
    "Gelu": _with_parameters("GELU", lambda _, node: {0: int(node.text("approximate", "none") == "tanh")}),
    "Mish": _plain("Mish"),
    "Softplus": _plain("Softplus"),
    "HardSwish": _with_parameters("HardSwish", lambda _, node: {0: 1 / 6, 1: 0.5}),
    "HardSigmoid": _with_parameters(
        "HardSigmoid", lambda _, node: {0: node.number("alpha", 0.2), 1: node.number("beta", 0.5)}
    ),
    "Softmax": _with_parameters("Softmax", lambda writer, node: {0: shapes.axis_of(writer, node, -1), 1: 1}),
    "MaxPool": _pool(0),
    "AveragePool": _pool(1),
    "GlobalMaxPool": _global_pool,
    "GlobalAveragePool": _global_pool,
    **dict.fromkeys(RESHAPES, shapes.reshape),
    **dict.fromkeys(NOTHING, shapes.identity),
    "Transpose": shapes.transpose,
    "Concat": shapes.concat,
    "Split": shapes.split,
    "Slice": shapes.cut,
    "Pad": shapes.pad,
    "Resize": shapes.resize,
    "DepthToSpace": _with_parameters("PixelShuffle", shapes.depth_to_space),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **{name: _with_parameters("UnaryOp", lambda _, node: {0: _UNARY[node.kind]}) for name in _UNARY},
}
