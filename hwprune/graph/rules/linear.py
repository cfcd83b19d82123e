"""Matrix products. A linear layer arrives here as `t` of its weight and `addmm` or `mm` of flattened rows."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import Factor, Layout, factor_on
from hwprune.graph.record import OpRecord, channel_view
from hwprune.graph.rules.elementwise import broadcast


@rule("mm")
def mm(call: Call) -> None:
    """`self (n, k)` times `mat2 (k, m)`."""
    _product(call, call.tensor("self"), call.tensor("mat2"))


@rule("addmm")
def addmm(call: Call) -> None:
    """`self (m)` or `(n, m)` plus `mat1 (n, k)` times `mat2 (k, m)`."""
    _product(call, call.tensor("mat1"), call.tensor("mat2"))
    _add(call, call.tensor("self"))


@rule("bmm")
def bmm(call: Call) -> None:
    """`self (b, n, k)` times `mat2 (b, k, m)`."""
    _product(call, call.tensor("self"), call.tensor("mat2"))


@rule("baddbmm")
def baddbmm(call: Call) -> None:
    """`self` plus `batch1 (b, n, k)` times `batch2 (b, k, m)`."""
    _product(call, call.tensor("batch1"), call.tensor("batch2"))
    _add(call, call.tensor("self"))


@rule("mv", "dot", "vdot")
def mv(call: Call) -> None:
    """`self (n, k)` or `(k)` times a vector `(k)`."""
    left = call.tensor("self")
    right = call.tensor({"mv": "vec", "dot": "tensor", "vdot": "other"}[call.name])
    call.contract(left, left.ndim - 1, right, 0)
    call.put(_outer(call, left, left.ndim - 1, left.ndim - 1))


def _product(call: Call, left: Tensor, right: Tensor) -> None:
    last = left.ndim - 1
    call.contract(left, last, right, last - 1)
    layout = _outer(call, left, last, last) + _outer(call, right, last - 1, last)
    if left.ndim == 3:
        layout = _with_batch(call, left, right, layout)
    call.put(layout)
    _note(call, left, right)


def _outer(call: Call, tensor: Tensor, contracted: int, last: int) -> Layout:
    """The labels of an operand that survive: those of its own outer dim. A joint factor gives up the contracted dim."""
    own = last - 1 if contracted == last else last
    mine = [factor for factor in call.layout(tensor) if own in factor.dims]
    # Heads in the batch dim that carry labels together with the outer dim stay joint; any other joint factor is tied.
    return tuple(factor if factor.dims == (0, own) else call.reduced(factor, own) for factor in mine)


def _with_batch(call: Call, left: Tensor, right: Tensor, layout: Layout) -> Layout:
    """Batch positions of both operands correspond; joint factors over batch and an outer dim are carried on."""
    joint = [factor for factor in layout if 0 in factor.dims]
    left_batch, right_batch = (factor_on(call.layout(tensor), 0) for tensor in (left, right))
    plain = [factor for factor in (left_batch, right_batch) if factor is not None and factor.dims == (0,)]
    if plain and not joint:
        call.unite(call.labels(left, 0), call.labels(right, 0))
        return (*layout, Factor((0,), plain[0].ids, 0))
    if plain or len(joint) > 1:
        return tuple(call.reduced(factor, factor.dims[-1]) if 0 in factor.dims else factor for factor in layout)
    return layout


def _add(call: Call, bias: Tensor) -> None:
    out = call.outputs[0]
    record = call.record.get(out)
    # The product's own labels come first: they belong to the weight, which a gate or a rescaling can reach.
    record.layout = broadcast(call, [(record.layout, tuple(out.shape)), (call.layout(bias), tuple(bias.shape))])


def _note(call: Call, left: Tensor, right: Tensor) -> None:
    if not call.from_input:
        return
    is_linear = not call.seen(right).from_input
    rows_total = int(np.prod(left.shape[:-1]))
    batch = call.record.batch if rows_total % call.record.batch == 0 else 1
    size = (rows_total // batch, 1)
    in_ids = call.labels(left, left.ndim - 1)
    out_ids = call.labels(right, right.ndim - 1) if is_linear else channel_view(call.record, call.outputs[0])[0]
    kind = "linear" if is_linear else "matmul"
    name = call.record.op_name(kind, right if is_linear else None)
    op = OpRecord(name, kind, in_ids, out_ids, in_size=size, out_size=size, batch=batch, before=call.seen(left).op)
    call.record.ops.append(op)
    call.record.get(call.outputs[0]).op = op
