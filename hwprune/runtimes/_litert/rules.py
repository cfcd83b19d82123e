"""What each ONNX operator is in LiteRT. `RULES` maps its name to a function that appends the operators.

Images lie channels last (`model.py`). Padding that is neither LiteRT's "same" nor none becomes an operator of
its own, which XNNPACK takes into the convolution again. ReLU and ReLU6 become a part of what comes before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwprune.runtimes._litert import shapes
from hwprune.runtimes._litert.model import LitertModel, Writer, schema
from hwprune.runtimes._onnx.graph import Array, Graph, Node
from hwprune.runtimes._onnx.patterns import NOTHING, RESHAPES, clip_limits, reduced_axes

if TYPE_CHECKING:
    from collections.abc import Callable

    Rule = Callable[[Writer, Node], None]

_BINARY = ("Add", "Sub", "Mul", "Div")
_PLAIN_BINARY = {"Max": "MAXIMUM", "Min": "MINIMUM", "Pow": "POW"}
_UNARY = {
    "Relu": "RELU",
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "HardSwish": "HARD_SWISH",
    "Elu": "ELU",
    "Abs": "ABS",
    "Neg": "NEG",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Sqrt": "SQRT",
    "Exp": "EXP",
    "Log": "LOG",
}
_REDUCTIONS = {"ReduceMean": "MEAN", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN", "ReduceSum": "SUM"}
_CLIPS = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, np.inf): "RELU"}
_LOWEST = float(np.finfo(np.float32).min)


def write(graph: Graph) -> LitertModel:
    """The graph as a LiteRT file. Raises `UsageError` naming the operators that have no counterpart."""
    graph.refuse_unknown(RULES)
    writer = Writer(graph)
    for node in graph.nodes:
        if id(node) not in writer.done:
            RULES[node.kind](writer, node)
    return writer.finish()


def _conv(writer: Writer, node: Node) -> None:
    graph, weight = writer.graph, writer.graph.constant(node, 1)
    if weight.ndim != 4:
        graph.refuse(node, f"only 2-D convolutions are known, its weight is of shape {weight.shape}")
    groups, channels = node.integer("group", 1), graph.shape(node.inputs[0])[1]
    source, padding = _window(writer, node, weight.shape[2:], 0.0)
    stride, dilation = node.ints("strides", (1, 1)), node.ints("dilations", (1, 1))
    output, activation = _with_activation(writer, node)
    settings = {
        "padding": padding,
        "strideH": stride[0],
        "strideW": stride[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
        "fusedActivationFunction": activation,
    }
    result, bias = writer.new(output, last=True), _bias(writer, node, weight.shape[0])
    if groups == channels and groups > 1:
        inputs = [source, writer.constant(weight.transpose(1, 2, 3, 0)), bias]
        settings["depthMultiplier"] = weight.shape[0] // channels
        writer.add("DEPTHWISE_CONV_2D", inputs, [result], "DepthwiseConv2DOptions", **settings)
    else:
        inputs = [source, writer.constant(weight.transpose(0, 2, 3, 1)), bias]
        writer.add("CONV_2D", inputs, [result], "Conv2DOptions", **settings)


def _bias(writer: Writer, node: Node, channels: int) -> int:
    return writer.constant(writer.graph.constant(node, 2) if node.has(2) else np.zeros(channels, np.float32))


def _window(writer: Writer, node: Node, kernel: Sequence[int], value: float) -> tuple[int, int]:
    """The source of a sliding window, padded where it has to be, and the padding that LiteRT is told."""
    graph, padding = writer.graph, schema().Padding
    if node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        graph.refuse(node, f"auto_pad={node.text('auto_pad', '')}")
    before, after = graph.shape(node.inputs[0])[2:], graph.shape(node.outputs[0])[2:]
    stride, dilation = node.ints("strides", (1, 1)), node.ints("dilations", (1, 1))
    begin = node.ints("pads", (0, 0, 0, 0))[:2]
    reach = [(after[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 for d in (0, 1)]
    end = [max(reach[d] - before[d] - begin[d], 0) for d in (0, 1)]
    if not any(begin) and not any(end):
        return writer.last(node.inputs[0]), padding.VALID
    if all(_is_same(before[d], after[d], stride[d], reach[d], begin[d]) for d in (0, 1)):
        return writer.last(node.inputs[0]), padding.SAME
    pads = [(0, 0), (begin[0], end[0]), (begin[1], end[1]), (0, 0)]
    return shapes.padded(writer, writer.last(node.inputs[0]), graph.shape(node.inputs[0]), pads, value), padding.VALID


def _is_same(before: int, after: int, stride: int, reach: int, begin: int) -> bool:
    """Whether "same" padding, which gives the odd row to the end, is what a window of this reach has."""
    return after == -(-before // stride) and begin == max(reach - before, 0) // 2


def _with_activation(writer: Writer, node: Node) -> tuple[str, int]:
    """The value that an operator really makes, and the activation it does itself."""
    following = writer.graph.only_consumer(node.outputs[0])
    name = _clip_kind(writer.graph, following) if following is not None else None
    if following is None or name is None:
        return node.outputs[0], schema().ActivationFunctionType.NONE
    writer.done.add(id(following))
    return following.outputs[0], getattr(schema().ActivationFunctionType, name)


def _clip_kind(graph: Graph, node: Node) -> str | None:
    if node.kind == "Relu":
        return "RELU"
    return _CLIPS.get(clip_limits(graph, node)) if node.kind == "Clip" else None


def _conv_transpose(writer: Writer, node: Node) -> None:
    graph, weight = writer.graph, writer.graph.constant(node, 1)
    if weight.ndim != 4 or set(node.ints("dilations", (1, 1))) != {1} or "output_shape" in node.attributes:
        graph.refuse(node, "only plain 2-D transposed convolutions are known")
    groups, shape, after = node.integer("group", 1), graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    stride, begin = node.ints("strides", (1, 1)), node.ints("pads", (0, 0, 0, 0))[:2]
    full = [(shape[2 + d] - 1) * stride[d] + weight.shape[2 + d] for d in (0, 1)]
    if any(full[d] < begin[d] + after[2 + d] for d in (0, 1)):
        graph.refuse(node, "its output padding reaches beyond what it computes")
    bias = graph.constant(node, 2) if node.has(2) else np.zeros(after[1], np.float32)
    members, made = shape[1] // groups, after[1] // groups
    source, parts = writer.last(node.inputs[0]), []
    for group, part in enumerate(shapes.split_channels(writer, source, shape, groups)):
        kernel = writer.constant(weight[group * members : (group + 1) * members].transpose(1, 2, 3, 0))
        out_shape = [shape[0], *full, made]
        parts.append(writer.temporary(out_shape))
        inputs = [writer.integers(out_shape), kernel, part, writer.constant(bias[group * made : (group + 1) * made])]
        settings = {"padding": schema().Padding.VALID, "strideH": stride[0], "strideW": stride[1]}
        writer.add("TRANSPOSE_CONV", inputs, parts[-1:], "TransposeConvOptions", **settings)
    if groups > 1:
        parts = [shapes.joined(writer, parts, [shape[0], *full, after[1]], 3)]
    whole = list(full) == list(after[2:])
    result = parts[0] if whole else writer.new(node.outputs[0], last=True)
    if whole:
        writer.keep(node.outputs[0], result)
    else:
        begins = [0, *begin, 0]
        ends = [shape[0], begin[0] + after[2], begin[1] + after[3], after[1]]
        shapes.strided_slice(writer, parts[0], result, begins, ends, [1] * 4)


def _gemm(writer: Writer, node: Node) -> None:
    if node.integer("transA", 0):
        writer.graph.refuse(node, "transA")
    weight = writer.graph.constant(node, 1) * node.number("alpha", 1.0)
    weight = weight if node.integer("transB", 0) else weight.T
    bias = writer.graph.constant(node, 2).ravel() * node.number("beta", 1.0) if node.has(2) else np.zeros(1)
    _linear(writer, node, weight, np.broadcast_to(bias, weight.shape[:1]))


def _matmul(writer: Writer, node: Node) -> None:
    weight = writer.graph.constants.get(node.inputs[1])
    if weight is not None and weight.ndim == 2:
        _linear(writer, node, weight.T, np.zeros(weight.shape[1]))
        return
    inputs = [writer.plain(name) for name in node.inputs]
    writer.add("BATCH_MATMUL", inputs, [writer.new(node.outputs[0], last=False)], "BatchMatMulOptions")


def _linear(writer: Writer, node: Node, weight: Array, bias: Array) -> None:
    source = writer.plain(node.inputs[0])
    output, activation = _with_activation(writer, node)
    result = writer.new(output, last=False)
    inputs = [source, writer.constant(weight), writer.constant(np.asarray(bias, np.float32))]
    settings = {"fusedActivationFunction": activation, "keepNumDims": len(writer.graph.shape(output)) > 2}
    writer.add("FULLY_CONNECTED", inputs, [result], "FullyConnectedOptions", **settings)


def _unary(writer: Writer, node: Node) -> None:
    shapes.elementwise(writer, node, _UNARY[node.kind])


def _clip(writer: Writer, node: Node) -> None:
    limits = clip_limits(writer.graph, node)
    if limits in _CLIPS:
        shapes.elementwise(writer, node, _CLIPS[limits])
        return
    steps = [(kind, limit) for kind, limit in zip(("MAXIMUM", "MINIMUM"), limits) if np.isfinite(limit)]
    shapes.scalar_steps(writer, node, [(kind, limit, "MaximumMinimumOptions") for kind, limit in steps])


def _hard_sigmoid(writer: Writer, node: Node) -> None:
    steps = [("MUL", node.number("alpha", 0.2), "MulOptions"), ("ADD", node.number("beta", 0.5), "AddOptions")]
    limits = [("MAXIMUM", 0.0, "MaximumMinimumOptions"), ("MINIMUM", 1.0, "MaximumMinimumOptions")]
    shapes.scalar_steps(writer, node, [*steps, *limits])


def _leaky_relu(writer: Writer, node: Node) -> None:
    shapes.elementwise(writer, node, "LEAKY_RELU", "LeakyReluOptions", alpha=node.number("alpha", 0.01))


def _gelu(writer: Writer, node: Node) -> None:
    approximate = node.text("approximate", "none") == "tanh"
    shapes.elementwise(writer, node, "GELU", "GeluOptions", approximate=approximate)


def _prelu(writer: Writer, node: Node) -> None:
    slope = writer.graph.constant(node, 1)
    last = writer.is_last(node.inputs[0])
    source = writer.last(node.inputs[0]) if last else writer.plain(node.inputs[0])
    by_channel = slope.ravel() if slope.size > 1 else np.full(writer.graph.shape(node.inputs[0])[1], slope.ravel()[0])
    alpha = by_channel.reshape(1, 1, -1) if last else slope
    writer.add("PRELU", [source, writer.constant(alpha)], [writer.new(node.outputs[0], last=last)])


def _softmax(writer: Writer, node: Node) -> None:
    shape = writer.graph.shape(node.inputs[0])
    axis = node.integer("axis", -1) % len(shape)
    last = writer.is_last(node.inputs[0]) and axis == 1
    if not last and axis != len(shape) - 1:
        writer.graph.refuse(node, f"it runs over dimension {axis} of {len(shape)}")
    source = writer.last(node.inputs[0]) if last else writer.plain(node.inputs[0])
    writer.add("SOFTMAX", [source], [writer.new(node.outputs[0], last=last)], "SoftmaxOptions", beta=1.0)


def _binary(writer: Writer, node: Node) -> None:
    if len(node.inputs) != 2:
        writer.graph.refuse(node, f"it has {len(node.inputs)} inputs")
    rank = len(writer.graph.shape(node.outputs[0]))
    last = any(writer.is_last(name) for name in node.inputs)
    inputs = [writer.operand(node, side, rank, last=last) for side in (0, 1)]
    if node.kind in _PLAIN_BINARY:
        options = "PowOptions" if node.kind == "Pow" else "MaximumMinimumOptions"
        writer.add(_PLAIN_BINARY[node.kind], inputs, [writer.new(node.outputs[0], last=last)], options)
        return
    output, activation = _with_activation(writer, node)
    settings = {"fusedActivationFunction": activation}
    writer.add(node.kind.upper(), inputs, [writer.new(output, last=last)], f"{node.kind}Options", **settings)


def _max_pool(writer: Writer, node: Node) -> None:
    _pool(writer, node, "MAX_POOL_2D", _LOWEST)


def _average_pool(writer: Writer, node: Node) -> None:
    before, after = writer.graph.shape(node.inputs[0])[2:], writer.graph.shape(node.outputs[0])[2:]
    kernel, stride, pads = node.ints("kernel_shape", ()), node.ints("strides", (1, 1)), node.ints("pads", (0,) * 4)
    beyond = any((after[d] - 1) * stride[d] + kernel[d] > before[d] + pads[d] + pads[2 + d] for d in (0, 1))
    if beyond or (any(pads) and not node.integer("count_include_pad", 0)):
        writer.graph.refuse(node, "it averages over windows of different sizes")
    _pool(writer, node, "AVERAGE_POOL_2D", 0.0)


def _pool(writer: Writer, node: Node, kind: str, value: float) -> None:
    kernel, stride = node.ints("kernel_shape", ()), node.ints("strides", (1, 1))
    if len(kernel) != 2 or set(node.ints("dilations", (1, 1))) != {1} or len(node.outputs) > 1:
        writer.graph.refuse(node, "only plain 2-D pooling is known")
    source, padding = _window(writer, node, kernel, value)
    if kind == "AVERAGE_POOL_2D" and padding == schema().Padding.SAME:  # LiteRT does not count the padding
        begin, end = node.ints("pads", (0,) * 4)[:2], node.ints("pads", (0,) * 4)[2:]
        pads = [(0, 0), (begin[0], end[0]), (begin[1], end[1]), (0, 0)]
        source = shapes.padded(writer, source, writer.graph.shape(node.inputs[0]), pads, value)
        padding = schema().Padding.VALID
    settings = {"padding": padding, "filterHeight": kernel[0], "filterWidth": kernel[1]}
    settings.update({"strideH": stride[0], "strideW": stride[1]})
    writer.add(kind, [source], [writer.new(node.outputs[0], last=True)], "Pool2DOptions", **settings)


def _reduce(writer: Writer, node: Node) -> None:
    axes = reduced_axes(writer.graph, node)
    shapes.reduce(writer, node, _REDUCTIONS[node.kind], axes, keep=bool(node.integer("keepdims", 1)))


def _global_average(writer: Writer, node: Node) -> None:
    shapes.reduce(writer, node, "MEAN", [2, 3], keep=True)


def _global_max(writer: Writer, node: Node) -> None:
    shapes.reduce(writer, node, "REDUCE_MAX", [2, 3], keep=True)


def _batch_norm(writer: Writer, node: Node) -> None:
    scale, bias, mean, variance = (writer.graph.constant(node, place) for place in (1, 2, 3, 4))
    factor = scale / np.sqrt(variance + node.number("epsilon", 1e-5))
    shapes.scale_and_shift(writer, node, factor, bias - mean * factor)


RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _softmax,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": shapes.instance_norm,
    "LayerNormalization": shapes.layer_norm,
    **dict.fromkeys(RESHAPES, shapes.reshape),
    **dict.fromkeys(NOTHING, shapes.identity),
    "Transpose": shapes.transpose,
    "Concat": shapes.concat,
    "Split": shapes.split,
    "Slice": shapes.cut,
    "Pad": shapes.pad,
    "Resize": shapes.resize,
    "DepthToSpace": shapes.depth_to_space,
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys((*_BINARY, *_PLAIN_BINARY), _binary),
}
