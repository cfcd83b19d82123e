"""The ONNX operators in torch: layers, element-wise functions, reductions; `RULES` maps an operator to its rule."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from hwprune.runtimes._torch.from_onnx import Operator, tensor
from hwprune.runtimes._torch.shapes import SHAPE_RULES

if TYPE_CHECKING:
    import numpy as np
    from torch import fx, nn

    from hwprune.runtimes._torch.from_onnx import Rule

# ONNX operator -> function in torch of the same meaning and as many arguments.
ELEMENTWISE = {
    "Abs": "abs", "Acos": "acos", "And": "logical_and", "Asin": "asin", "Atan": "atan", "Ceil": "ceil", "Cos": "cos",
    "Add": "add", "Equal": "eq", "Erf": "erf", "Exp": "exp", "Floor": "floor", "Greater": "gt",
    "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le", "Log": "log", "Mul": "mul",
    "Neg": "neg", "Not": "logical_not", "Or": "logical_or", "Pow": "pow", "Reciprocal": "reciprocal", "Relu": "relu",
    "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin", "Sqrt": "sqrt", "Sub": "sub", "Tan": "tan",
    "Tanh": "tanh", "Where": "where", "Xor": "logical_xor",
}  # fmt: skip
FUNCTIONAL = {"HardSwish": "hardswish", "Mish": "mish", "Selu": "selu", "Softplus": "softplus", "Softsign": "softsign"}
SCALED = {"Celu": ("celu", 1.0), "Elu": ("elu", 1.0), "LeakyRelu": ("leaky_relu", 0.01)}
RELU6 = (0.0, 6.0)
HARD_SIGMOID = (1 / 6, 0.5)  # slope and offset of torch's


def _torch() -> Any:
    import torch

    return torch


def _functional() -> Any:
    import torch.nn.functional

    return torch.nn.functional


def _elementwise(name: str, op: Operator) -> fx.Node:
    return op.call(getattr(_torch(), name), *(op.value(index) for index in range(len(op.node.input))))


def _of_functional(name: str, op: Operator) -> fx.Node:
    return op.call(getattr(_functional(), name), op.value(0))


def _scaled(name: str, alpha: float, op: Operator) -> fx.Node:
    return op.call(getattr(_functional(), name), op.value(0), op.attribute("alpha", alpha))


def _variadic(name: str, op: Operator) -> fx.Node:
    result = op.value(0)
    for index in range(1, len(op.node.input)):
        result = op.call(getattr(_torch(), name), result, op.value(index))
    return result


def _divide(op: Operator) -> fx.Node:
    if op.is_constant(1) and op.constant(1).dtype.kind in "iu":
        return op.call(_torch().div, op.value(0), op.value(1), rounding_mode="trunc")
    return op.call(_torch().div, op.value(0), op.value(1))


def _clip(op: Operator) -> fx.Node:
    low = float(op.constant(1)) if op.has(1) else op.attribute("min")
    high = float(op.constant(2)) if op.has(2) else op.attribute("max")
    if (low, high) == RELU6:
        return op.call(_functional().relu6, op.value(0))
    return op.call(_torch().clamp, op.value(0), low, high)


def _gelu(op: Operator) -> fx.Node:
    return op.call(_functional().gelu, op.value(0), approximate=op.attribute("approximate", "none"))


def _hard_sigmoid(op: Operator) -> fx.Node:
    slope, offset = op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    if math.isclose(slope, HARD_SIGMOID[0], rel_tol=1e-6) and offset == HARD_SIGMOID[1]:
        return op.call(_functional().hardsigmoid, op.value(0))
    line = op.call(_torch().add, op.call(_torch().mul, op.value(0), slope), offset)
    return op.call(_torch().clamp, line, 0.0, 1.0)


def _prelu(op: Operator) -> fx.Node:
    x, shape = op.value(0), op.shape(1)
    channels = op.shape(0)[1] if len(op.shape(0)) > 1 else 0
    if op.is_constant(1) and (math.prod(shape) == 1 or (math.prod(shape) == channels == max(shape) == shape[0])):
        name = f"{op.node.input[1]}.slope"
        op.builder.constants[name] = op.constant(1).reshape(-1)
        return op.call(_functional().prelu, x, op.builder.value(name))
    return op.call(_torch().where, op.call(_torch().lt, x, 0.0), op.call(_torch().mul, x, op.value(1)), x)


def _softmax(name: str, op: Operator) -> fx.Node:
    return op.call(getattr(_torch(), name), op.value(0), op.attribute("axis", -1))


def _cast(op: Operator) -> fx.Node:
    from onnx import helper

    kind = str(helper.tensor_dtype_to_np_dtype(op.attribute("to")))
    return op.builder.graph.call_method("to", (op.value(0), getattr(_torch(), kind)))


def _same(op: Operator) -> fx.Node:
    return op.value(0)


def _windows(op: Operator, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, padding (of the beginnings, then of the ends) and dilations."""
    if op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        op.refuse(f"auto_pad {op.attribute('auto_pad')} is not supported; write the pads out")
    return (
        op.attribute("strides", [1] * rank),
        op.attribute("pads", [0] * 2 * rank),
        op.attribute("dilations", [1] * rank),
    )


def _padded(op: Operator, x: fx.Node, pads: list[int], value: float) -> tuple[fx.Node, list[int]]:
    """Symmetric padding, which layers do themselves; any other kind is done before the layer."""
    rank = len(pads) // 2
    before, after = pads[:rank], pads[rank:]
    if before == after:
        return x, before
    amounts = [size for pair in zip(reversed(before), reversed(after)) for size in pair]
    return op.call(_functional().pad, x, amounts, "constant", value), [0] * rank


def _filled(layer: nn.Module, weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    """The layer with these weights, which are not trained here."""
    parameter = _torch().nn.Parameter
    layer.register_parameter("weight", parameter(tensor(weight), requires_grad=False))
    layer.register_parameter("bias", None if bias is None else parameter(tensor(bias), requires_grad=False))
    return layer


def _convolution(op: Operator) -> fx.Node:
    torch, shape = _torch(), op.shape(1)
    rank, groups = len(shape) - 2, op.attribute("group", 1)
    strides, pads, dilations = _windows(op, rank)
    x, padding = _padded(op, op.value(0), pads, 0.0)
    if not op.is_constant(1) or (op.has(2) and not op.is_constant(2)):
        function = getattr(_functional(), f"conv{rank}d")
        bias = op.value(2) if op.has(2) else None
        return op.call(function, x, op.value(1), bias, strides, padding, dilations, groups)
    layer = getattr(torch.nn, f"Conv{rank}d")(
        shape[1] * groups, shape[0], shape[2:], strides, padding, dilations, groups, device="meta"
    )
    return op.layer(_filled(layer, op.constant(1), op.constant(2) if op.has(2) else None), x)


def _transposed_convolution(op: Operator) -> fx.Node:
    torch, shape = _torch(), op.shape(1)
    rank, groups = len(shape) - 2, op.attribute("group", 1)
    strides, pads, dilations = _windows(op, rank)
    if pads[:rank] != pads[rank:] or op.attribute("output_shape") is not None:
        op.refuse("its padding differs between the sides")
    extra = op.attribute("output_padding", [0] * rank)
    if not op.is_constant(1) or (op.has(2) and not op.is_constant(2)):
        function = getattr(_functional(), f"conv_transpose{rank}d")
        bias = op.value(2) if op.has(2) else None
        return op.call(function, op.value(0), op.value(1), bias, strides, pads[:rank], extra, groups, dilations)
    kind = getattr(torch.nn, f"ConvTranspose{rank}d")
    sizes = (shape[0], shape[1] * groups, shape[2:], strides, pads[:rank], extra, groups, True, dilations)
    layer = kind(*sizes, device="meta")
    return op.layer(_filled(layer, op.constant(1), op.constant(2) if op.has(2) else None), op.value(0))


def _general_matrix_product(op: Operator) -> fx.Node:
    torch = _torch()
    plain = op.attribute("alpha", 1.0) == op.attribute("beta", 1.0) == 1.0 and not op.attribute("transA", 0)
    bias = op.has(2)
    if plain and op.is_constant(1) and (not bias or (op.is_constant(2) and len(op.shape(2)) == 1)):
        weight = op.constant(1) if op.attribute("transB", 0) else op.constant(1).T
        if not bias or op.shape(2)[0] == weight.shape[0]:
            return op.layer(_linear(weight, op.constant(2) if bias else None), op.value(0))
    left = op.call(torch.t, op.value(0)) if op.attribute("transA", 0) else op.value(0)
    right = op.call(torch.t, op.value(1)) if op.attribute("transB", 0) else op.value(1)
    product = op.call(torch.mul, op.call(torch.matmul, left, right), op.attribute("alpha", 1.0))
    return op.call(torch.add, product, op.value(2), alpha=op.attribute("beta", 1.0)) if bias else product


def _matrix_product(op: Operator) -> fx.Node:
    if op.is_constant(1) and len(op.shape(1)) == 2:
        return op.layer(_linear(op.constant(1).T, None), op.value(0))
    return _elementwise("matmul", op)


def _linear(weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    return _filled(_torch().nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


def _batch_normalization(op: Operator) -> fx.Node:
    if op.attribute("training_mode", 0):
        op.refuse("it is in training mode")
    mean, variance, weight, bias = op.value(3), op.value(4), op.value(1), op.value(2)
    epsilon = op.attribute("epsilon", 1e-5)
    return op.call(_functional().batch_norm, op.value(0), mean, variance, weight, bias, False, 0.0, epsilon)


def _instance_normalization(op: Operator) -> fx.Node:
    options = {"weight": op.value(1), "bias": op.value(2), "eps": op.attribute("epsilon", 1e-5)}
    return op.call(_functional().instance_norm, op.value(0), use_input_stats=True, **options)


def _layer_normalization(op: Operator) -> fx.Node:
    axis = op.attribute("axis", -1) % len(op.shape(0))
    bias = op.value(2) if op.has(2) else None
    sizes = list(op.shape(0)[axis:])
    return op.call(_functional().layer_norm, op.value(0), sizes, op.value(1), bias, op.attribute("epsilon", 1e-5))


def _average_pool(op: Operator) -> fx.Node:
    kernel = op.attribute("kernel_shape")
    strides, pads, dilations = _windows(op, len(kernel))
    counted = bool(op.attribute("count_include_pad", 0))
    if any(step != 1 for step in dilations) or (pads[: len(kernel)] != pads[len(kernel) :] and not counted):
        op.refuse("its windows are dilated or padded on one side")
    x, padding = _padded(op, op.value(0), pads, 0.0)
    function = getattr(_functional(), f"avg_pool{len(kernel)}d")
    return op.call(function, x, kernel, strides, padding, bool(op.attribute("ceil_mode", 0)), counted)


def _max_pool(op: Operator) -> fx.Node:
    kernel = op.attribute("kernel_shape")
    strides, pads, dilations = _windows(op, len(kernel))
    x, padding = _padded(op, op.value(0), pads, -math.inf)
    function = getattr(_functional(), f"max_pool{len(kernel)}d")
    return op.call(function, x, kernel, strides, padding, dilations, bool(op.attribute("ceil_mode", 0)))


def _global_pool(name: str, op: Operator) -> fx.Node:
    return op.call(getattr(_functional(), f"adaptive_{name}_pool{len(op.shape(0)) - 2}d"), op.value(0), 1)


def _reduce(name: str, op: Operator) -> fx.Node:
    axes = op.integers(1, "axes")
    if not axes and op.attribute("noop_with_empty_axes", 0):
        return op.value(0)
    axes = axes or list(range(len(op.shape(0))))
    return op.call(getattr(_torch(), name), op.value(0), axes, keepdim=bool(op.attribute("keepdims", 1)))


def _reduce_norm(order: int, op: Operator) -> fx.Node:
    axes = op.integers(1, "axes") or list(range(len(op.shape(0))))
    keep = bool(op.attribute("keepdims", 1))
    return op.call(_torch().linalg.vector_norm, op.value(0), order, axes, keep)


RULES: dict[str, Rule] = {
    **{kind: partial(_elementwise, name) for kind, name in ELEMENTWISE.items()},
    **{kind: partial(_of_functional, name) for kind, name in FUNCTIONAL.items()},
    **{kind: partial(_scaled, *values) for kind, values in SCALED.items()},
    **{f"Reduce{kind}": partial(_reduce, name) for kind, name in
       (("Max", "amax"), ("Mean", "mean"), ("Min", "amin"), ("Sum", "sum"))},
    "ReduceL1": partial(_reduce_norm, 1),
    "ReduceL2": partial(_reduce_norm, 2),
    "Max": partial(_variadic, "maximum"),
    "Min": partial(_variadic, "minimum"),
    "Sum": partial(_variadic, "add"),
    "Div": _divide,
    "Clip": _clip,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "PRelu": _prelu,
    "Softmax": partial(_softmax, "softmax"),
    "LogSoftmax": partial(_softmax, "log_softmax"),
    "Cast": _cast,
    "Identity": _same,
    "Dropout": _same,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _general_matrix_product,
    "MatMul": _matrix_product,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": partial(_global_pool, "avg"),
    "GlobalMaxPool": partial(_global_pool, "max"),
    **SHAPE_RULES,
}  # fmt: skip
