"""Operators that work position by position, with broadcasting: sums, products, activations, copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import Factor, Layout, renamed

_ACTIVATIONS = {
    "hardtanh": "relu6",
    "_prelu_kernel": "prelu",
    "log_sigmoid_forward": "log_sigmoid",
    "clamp": "clip",
    "clamp_min": "clip",
    "clamp_max": "clip",
}
_SAME_NAME = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "hardsigmoid",
    "hardswish", "tanh", "softplus", "threshold",
)  # fmt: skip
_ACTIVATIONS |= {name: name for name in _SAME_NAME}
_SUMS = ("add", "sub", "rsub")
_PRODUCTS = ("mul", "div")
_COPIES = ("clone", "_to_copy", "detach", "alias", "lift_fresh", "copy", "to", "contiguous", "native_dropout")
_FUSING = ("conv", "conv_transpose", "linear", "add")


@rule(
    "hardswish", "_prelu_kernel", "log_sigmoid_forward", "leaky_relu", "hardtanh", "detach", "alias", "lift_fresh",
    "_to_copy", "to", "contiguous", "dropout", "native_dropout", "copy", "masked_fill", "rrelu",
)  # fmt: skip
def elementwise(call: Call) -> None:
    """Any number of tensors, broadcast to the shape of the output. `copy` in place writes the second onto the first."""
    shapes = [(call.layout(tensor), tuple(tensor.shape)) for tensor in _activations_first(call)]
    layout = broadcast(call, shapes)
    call.put(layout)
    _note(call)


@rule(
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "zero", "fill", "bernoulli",
    "normal", "uniform",
)  # fmt: skip
def like(call: Call) -> None:
    """New values in the shape of the input: its channels follow the input's."""
    call.put(call.layout(call.inputs[0]))


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def new(call: Call) -> None:
    """New values in a shape of their own; dims as long as the input's follow its channels, which the code may count.

    Where the length is a literal instead, the self-check finds out.
    """
    x, out = call.tensor("self"), call.outputs[0]
    alike = {dim for dim in range(x.ndim) if x.ndim == out.ndim and x.shape[dim] == out.shape[dim]}
    call.put(tuple(factor for factor in call.layout(x) if alike.issuperset(factor.dims)))


def _activations_first(call: Call) -> list[Tensor]:
    return sorted(call.inputs, key=lambda tensor: not call.seen(tensor).from_input)


def broadcast(call: Call, operands: Sequence[tuple[Layout, tuple[int, ...]]]) -> Layout:
    """Unite the labels of `(layout, shape)` operands at equal positions; the layout of the result.

    A dim of size 1 puts no condition on the others; an operand of full size without labels fixes them.
    """
    shape = np.broadcast_shapes(*(shape for _, shape in operands))
    aligned = [_aligned(layout, own, len(shape)) for layout, own in operands]
    keys = {factor.dims for layout, _ in aligned for factor in layout}
    if any(len(key) > 1 and not _fits(key, aligned) for key in keys):
        aligned = [(call.plain(layout), own) for layout, own in aligned]
        keys = {factor.dims for layout, _ in aligned for factor in layout}
    return tuple(factor for key in sorted(keys) for factor in _joined(call, key, aligned))


def _aligned(layout: Layout, shape: tuple[int, ...], ndim: int) -> tuple[Layout, tuple[int, ...]]:
    shift = ndim - len(shape)
    return renamed(layout, {dim: dim + shift for dim in range(len(shape))}), (1,) * shift + shape


def _fits(key: tuple[int, ...], operands: Sequence[tuple[Layout, tuple[int, ...]]]) -> bool:
    """True if every operand either has exactly these dims as one factor or is broadcast along all of them."""
    return all(
        any(factor.dims == key for factor in layout) or all(shape[dim] == 1 for dim in key)
        for layout, shape in operands
    )


def _joined(call: Call, key: tuple[int, ...], operands: Sequence[tuple[Layout, tuple[int, ...]]]) -> Layout:
    found: list[Factor] = []
    unlabelled = False
    for layout, shape in operands:
        factor = next((factor for factor in layout if factor.dims == key), None)
        if factor is not None:
            found.append(factor)
        elif any(shape[dim] != 1 for dim in key):
            unlabelled = True
    first = found[0]
    for other in found[1:]:
        call.unite(first.ids, other.ids)
    if unlabelled:
        call.unite(first.ids, np.zeros_like(first.ids))
    return (first,)


def _note(call: Call) -> None:
    if call.name in _COPIES or not call.from_input:
        return
    source = next(
        (t for t in call.inputs if call.seen(t).from_input and t.shape == call.outputs[0].shape), call.inputs[0]
    )
    if call.name in _SUMS:
        call.note_plain("add", source)
    elif call.name in _PRODUCTS:
        call.note_plain("mul", source)
    elif call.name in _ACTIVATIONS:
        op = call.note_plain("activation", source, _ACTIVATIONS[call.name])
        before = op.before if op is not None else None
        if before is not None and before.kind == "norm":
            before = before.before
        if before is not None and before.kind in _FUSING and not before.fused:
            before.fused = _ACTIVATIONS[call.name]
    else:
        call.note_plain("other", source)
