"""ONNX models of one operator, or of a few that belong together, batch 1: what writers of other formats are tried on.

`CASES` maps a name to ONNX bytes with one input `input`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
F32 = np.float32
IMAGE, WIDE, TOKENS, ROW = (1, 6, 8, 9), (1, 16, 8, 9), (1, 5, 6), (1, 6)
_RNG = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    """Fixed random values, a little away from zero."""
    return (_RNG.standard_normal(shape) * 0.7 + 0.1).astype(F32)


def integers(*values: int) -> Array:
    """An int64 constant."""
    return np.array(values, np.int64)


def several(nodes: Sequence[Any], shape: Sequence[int], tensors: Mapping[str, Array], outputs: str = "output") -> bytes:
    """A model of these nodes."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))],
        [helper.make_empty_tensor_value_info(name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString())


def one(kind: str, shape: Sequence[int], *constants: Any, **attributes: Any) -> bytes:
    """A model of one node called `node`, which reads the input and then the constants (None: left out)."""
    tensors = {f"c{place}": value for place, value in enumerate(constants) if value is not None}
    names = ["" if value is None else f"c{place}" for place, value in enumerate(constants)]
    return several([helper.make_node(kind, ["input", *names], ["output"], "node", **attributes)], shape, tensors)


def _chain(shape: Sequence[int], tensors: Mapping[str, Array], *steps: tuple[str, list[str], dict[str, Any]]) -> bytes:
    """Nodes one after the other; every one reads the value before it, and the named others."""
    nodes, last = [], "input"
    for place, (kind, others, attributes) in enumerate(steps):
        made = "output" if place == len(steps) - 1 else f"v{place}"
        nodes.append(helper.make_node(kind, [last, *others], [made], f"n{place}", **attributes))
        last = made
    return several(nodes, shape, tensors)


def _conv_then(kind: str, *others: Any, **attributes: Any) -> bytes:
    tensors = {"w": normal(5, 6, 3, 3), "b": normal(5), **{f"o{place}": value for place, value in enumerate(others)}}
    steps = ("Conv", ["w", "b"], {"pads": [1] * 4}), (kind, [f"o{place}" for place in range(len(others))], attributes)
    return _chain(IMAGE, tensors, *steps)


def _conv_transpose(shape: tuple[int, ...], groups: int, **attributes: Any) -> bytes:
    bias = normal(shape[1] * groups)
    return one("ConvTranspose", IMAGE, normal(*shape), bias, group=groups, strides=[2, 2], **attributes)


def _swish() -> bytes:
    nodes = [
        helper.make_node("Sigmoid", ["input"], ["gate"], "gate"),
        helper.make_node("Mul", ["gate", "input"], ["output"], "product"),
    ]
    return several(nodes, IMAGE, {})


def _squeeze_excite() -> bytes:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"], "mean"),
        helper.make_node("Conv", ["mean", "w"], ["hidden"], "conv"),
        helper.make_node("Sigmoid", ["hidden"], ["gate"], "gate"),
        helper.make_node("Mul", ["input", "gate"], ["output"], "product"),
    ]
    return several(nodes, IMAGE, {"w": normal(6, 6, 1, 1)})


def _group_norm(*, affine: bool) -> bytes:
    tensors = {
        "apart": integers(0, 3, -1),
        "ones": np.ones(3, F32),
        "zeros": np.zeros(3, F32),
        "back": integers(*IMAGE),
    }
    tensors |= {"scale": normal(6, 1, 1), "shift": normal(6, 1, 1)}
    tail = (("Mul", ["scale"], {}), ("Add", ["shift"], {})) if affine else ()
    norm = ("InstanceNormalization", ["ones", "zeros"], {"epsilon": 1e-4})
    return _chain(IMAGE, tensors, ("Reshape", ["apart"], {}), norm, ("Reshape", ["back"], {}), *tail)


def _shuffle() -> bytes:
    tensors = {"apart": integers(1, 2, 3, 8, 9), "back": integers(*IMAGE)}
    swap = ("Transpose", [], {"perm": [0, 2, 1, 3, 4]})
    return _chain(IMAGE, tensors, ("Reshape", ["apart"], {}), swap, ("Reshape", ["back"], {}))


def _gelu() -> bytes:
    nodes = [
        helper.make_node("Div", ["input", "root"], ["a"], "divide"),
        helper.make_node("Erf", ["a"], ["b"], "erf"),
        helper.make_node("Add", ["b", "one"], ["c"], "add"),
        helper.make_node("Mul", ["half", "c"], ["d"], "halve"),
        helper.make_node("Mul", ["input", "d"], ["output"], "product"),
    ]
    return several(nodes, IMAGE, {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)})


def _between_and_out() -> bytes:
    """A value that is an output of the network and is read on, twice."""
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["middle"], "conv"),
        helper.make_node("Relu", ["middle"], ["a"], "relu"),
        helper.make_node("Add", ["middle", "a"], ["output"], "add"),
    ]
    return several(nodes, IMAGE, {"w": normal(6, 6, 1, 1)}, "output middle")


def _split() -> bytes:
    nodes = [
        helper.make_node("Split", ["input", "sizes"], ["a", "b"], "first", axis=1),
        helper.make_node("Split", ["a"], ["c", "d"], "second", axis=1, num_outputs=2),
        helper.make_node("Concat", ["d", "b", "c"], ["output"], "concat", axis=1),
    ]
    return several(nodes, IMAGE, {"sizes": integers(4, 2)})


def _attention() -> bytes:
    nodes = [
        helper.make_node("MatMul", ["input", "wq"], ["q"], "query"),
        helper.make_node("Transpose", ["input"], ["k"], "keys", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], "softmax", axis=-1),
        helper.make_node("MatMul", ["shares", "input"], ["output"], "mix"),
    ]
    return several(nodes, TOKENS, {"wq": normal(6, 6)})


def _filled() -> bytes:
    """A weight that travels as a filler node."""
    value = numpy_helper.from_array(np.full(1, 0.1, F32))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["weight"], "fill", value=value),
        helper.make_node("Conv", ["input", "weight"], ["output"], "conv"),
    ]
    return several(nodes, IMAGE, {"shape": integers(4, 6, 1, 1)})


_UNARY = "Abs Ceil Elu Exp Floor HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Sigmoid Softplus Tanh Gelu"
_JOINS = ("Add", "Sub", "Mul", "Div", "Max", "Min")
_LINEAR = {"mode": "linear"}

CASES: dict[str, bytes] = {
    **{kind.lower(): one(kind, IMAGE) for kind in _UNARY.split()},
    **{f"{kind.lower()} by channel": one(kind, IMAGE, normal(6, 1, 1)) for kind in _JOINS},
    **{f"{kind.lower()} scalar": one(kind, IMAGE, np.float32(1.7)) for kind in _JOINS},
    "scalar minus": several([helper.make_node("Sub", ["c", "input"], ["output"], "n")], IMAGE, {"c": np.float32(2)}),
    "scalar over": _chain(IMAGE, {}, ("Exp", [], {}), ("Reciprocal", [], {})),
    "power": _chain(IMAGE, {"p": np.float32(2)}, ("Pow", ["p"], {})),
    "root": _chain(IMAGE, {}, ("Abs", [], {}), ("Sqrt", [], {})),
    "hard sigmoid of torch": one("HardSigmoid", IMAGE, alpha=1 / 6, beta=0.5),
    "prelu by channel": one("PRelu", IMAGE, normal(6, 1, 1)),
    "prelu single": one("PRelu", IMAGE, normal(1)),
    "clip 0 6": one("Clip", IMAGE, np.float32(0), np.float32(6)),
    "clip both": one("Clip", IMAGE, np.float32(-0.3), np.float32(0.4)),
    "clip low": one("Clip", IMAGE, np.float32(-0.5)),
    "clip high": one("Clip", IMAGE, None, np.float32(0.25)),
    "softmax channels": one("Softmax", IMAGE, axis=1),
    "softmax row": one("Softmax", ROW, axis=1),
    "softmax columns": one("Softmax", IMAGE, axis=-1),
    "conv": one("Conv", IMAGE, normal(4, 6, 3, 3), normal(4), pads=[1, 1, 1, 1]),
    "conv no bias": one("Conv", IMAGE, normal(4, 6, 3, 3)),
    "conv stride even": one("Conv", IMAGE, normal(4, 6, 3, 3), normal(4), pads=[1] * 4, strides=[2, 2]),
    "conv dilated": one("Conv", IMAGE, normal(4, 6, 3, 3), strides=[2, 1], dilations=[1, 2], pads=[1, 2, 1, 2]),
    "conv one-sided": one("Conv", IMAGE, normal(4, 6, 3, 3), pads=[0, 1, 2, 0]),
    "conv flat kernel": one("Conv", IMAGE, normal(4, 6, 1, 5), pads=[0, 2, 0, 2]),
    "conv groups": one("Conv", IMAGE, normal(4, 3, 3, 3), normal(4), group=2, pads=[1] * 4),
    "conv depthwise": one("Conv", WIDE, normal(16, 1, 3, 3), normal(16), group=16, pads=[1] * 4, strides=[2, 2]),
    "conv multiplied": one("Conv", IMAGE, normal(12, 1, 3, 3), normal(12), group=6, pads=[1] * 4),
    "conv packed": one("Conv", WIDE, normal(32, 16, 3, 3), normal(32), pads=[1] * 4),
    "conv pointwise": one("Conv", WIDE, normal(24, 16, 1, 1), normal(24)),
    "conv relu": _conv_then("Relu"),
    "conv leaky": _conv_then("LeakyRelu", alpha=0.2),
    "conv clip": _conv_then("Clip", np.float32(0), np.float32(6)),
    "conv clip odd": _conv_then("Clip", np.float32(-0.3), np.float32(0.4)),
    "conv sigmoid": _conv_then("Sigmoid"),
    "conv hard swish": _conv_then("HardSwish"),
    "deconv": _conv_transpose((6, 4, 2, 2), 1),
    "deconv cropped": _conv_transpose((6, 4, 3, 3), 1, pads=[1] * 4),
    "deconv padded": _conv_transpose((6, 4, 3, 3), 1, pads=[1] * 4, output_padding=[1, 1]),
    "deconv groups": _conv_transpose((6, 2, 2, 2), 3),
    "gemm transposed": one("Gemm", ROW, normal(5, 6), normal(5), transB=1),
    "gemm scaled": one("Gemm", ROW, normal(6, 5), normal(1, 5), alpha=0.5, beta=2.0),
    "gemm relu": _chain(ROW, {"w": normal(6, 5)}, ("Gemm", ["w"], {}), ("Relu", [], {})),
    "linear tokens": one("MatMul", TOKENS, normal(6, 4)),
    "attention": _attention(),
    "batch norm": one("BatchNormalization", IMAGE, normal(6), normal(6), normal(6), np.abs(normal(6)), epsilon=1e-3),
    "instance norm": one("InstanceNormalization", IMAGE, normal(6), normal(6)),
    "group norm": _group_norm(affine=True),
    "group norm plain": _group_norm(affine=False),
    "layer norm": one("LayerNormalization", TOKENS, normal(6), normal(6), axis=-1),
    "max pool": one("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    "max pool padded": one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "max pool ceil": one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average pool": one("AveragePool", IMAGE, kernel_shape=[2, 3], strides=[2, 2]),
    "average pool counted": one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "average pool uncounted": one("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "global average": one("GlobalAveragePool", IMAGE),
    "global max": one("GlobalMaxPool", IMAGE),
    "global average flat": _chain(IMAGE, {}, ("GlobalAveragePool", [], {}), ("Flatten", [], {})),
    "squeeze and excite": _squeeze_excite(),
    "mean of image": one("ReduceMean", IMAGE, integers(2, 3), keepdims=0),
    "mean of image kept": one("ReduceMean", IMAGE, integers(-1, -2), keepdims=1),
    "max of image": one("ReduceMax", IMAGE, integers(2, 3), keepdims=0),
    "sum of channels": one("ReduceSum", IMAGE, integers(1), keepdims=1),
    "min of rows": one("ReduceMin", IMAGE, integers(2), keepdims=1),
    "mean of tokens": one("ReduceMean", TOKENS, integers(1), keepdims=0),
    "reshape": one("Reshape", IMAGE, integers(1, 3, -1, 9)),
    "flatten": one("Flatten", IMAGE),
    "unsqueeze": one("Unsqueeze", ROW, integers(-1)),
    "squeeze": one("Squeeze", (1, 6, 1, 5), integers(2)),
    "transpose image": one("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    "transpose rows": one("Transpose", IMAGE, perm=[0, 1, 3, 2]),
    "transpose tokens": one("Transpose", TOKENS, perm=[0, 2, 1]),
    "shuffle": _shuffle(),
    "swish": _swish(),
    "gelu in pieces": _gelu(),
    "split": _split(),
    "output between": _between_and_out(),
    "concat constant": one("Concat", IMAGE, normal(1, 3, 8, 9), axis=1),
    "concat rows": several(
        [helper.make_node("Concat", ["input", "input"], ["output"], "concat", axis=2)], IMAGE, {}
    ),
    "slice channels": one("Slice", IMAGE, integers(1), integers(5), integers(1)),
    "slice image": one("Slice", IMAGE, integers(1, -5), integers(9999, -1), integers(2, 3)),
    "slice stride": one("Slice", IMAGE, integers(0, 0), integers(9999, 9999), integers(2, 3), integers(2, 2)),
    "slice stride off": one("Slice", IMAGE, integers(1), integers(9999), integers(2), integers(2)),
    "pad channels": one("Pad", IMAGE, integers(0, 2, 0, 0, 0, 3, 0, 0), np.float32(0)),
    "pad image": one("Pad", IMAGE, integers(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)),
    "pad reflect": one("Pad", IMAGE, integers(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    "pad edge": one("Pad", IMAGE, integers(0, 0, 1, 2, 0, 0, 2, 1), mode="edge"),
    "pixel shuffle": one("DepthToSpace", (1, 8, 3, 5), blocksize=2, mode="CRD"),
    "depth to space": one("DepthToSpace", (1, 8, 3, 5), blocksize=2, mode="DCR"),
    "nearest": one(
        "Resize", IMAGE, None, np.array([1, 1, 2, 2], F32), mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "nearest rounded": one("Resize", IMAGE, None, np.array([1, 1, 2, 2], F32), mode="nearest"),
    "bilinear": one("Resize", IMAGE, None, None, integers(1, 6, 16, 18), **_LINEAR),
    "bilinear aligned": one(
        "Resize", IMAGE, None, None, integers(1, 6, 15, 17), coordinate_transformation_mode="align_corners", **_LINEAR
    ),
    "weight as filler": _filled(),
}  # fmt: skip
