"""Convolutions of any number of spatial dims: plain, depthwise, grouped, transposed."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import Ids
from hwprune.graph.record import OpRecord, image_size


@rule("convolution", "_convolution")
def convolution(call: Call) -> None:
    """`input (n, c_in, *size)`, `weight (c_out, c_in/groups, *kernel)`; transposed `(c_in, c_out/groups, *kernel)`."""
    x, weight, groups = call.tensor("input"), call.tensor("weight"), call.integer("groups")
    transposed = bool(call.value("transposed"))
    samples = tuple(factor for factor in call.keep_only(x, {0, 1}) if factor.dims == (0,))
    call.pin_factors(samples, "it takes them for samples")
    in_ids = call.labels(x, 1)
    if groups == 1:
        out_ids = call.labels(weight, 1 if transposed else 0)
        call.contract(x, 1, weight, 0 if transposed else 1)
    elif groups == x.shape[1]:
        out_ids = _depthwise(call, in_ids, weight, transposed)
    elif transposed:
        out_ids = _grouped_transposed(call, x, weight, groups)
    else:
        out_ids = _grouped(call, x, weight, groups)
    bias = call.optional("bias")
    if bias is not None:
        call.unite(call.labels(bias, 0), out_ids)
    op = _operator(call, x, weight, in_ids, out_ids)
    call.put_vector(1, out_ids, call.note(op))


def _depthwise(call: Call, in_ids: Ids, weight: Tensor, transposed: bool) -> Ids:
    multiplier = weight.shape[1] if transposed else weight.shape[0] // in_ids.size
    out_ids = call.labels(weight, 0)
    if not transposed:
        call.unite(np.repeat(in_ids, multiplier), out_ids)
        return out_ids
    call.unite(in_ids, out_ids)
    call.pin(call.labels(weight, 1), "every input channel has its own copy of them")
    return np.repeat(out_ids, multiplier)


def _grouped(call: Call, x: Tensor, weight: Tensor, groups: int) -> Ids:
    # Every group of the convolution loses the same positions, so that the number of groups stays.
    in_rows = call.labels(x, 1).reshape(groups, -1)
    call.tie(in_rows.T)
    call.unite(in_rows[0], call.labels(weight, 1))
    call.consume(x, 1, weight, 1)
    out_ids = call.labels(weight, 0)
    call.tie(out_ids.reshape(groups, -1).T)
    return out_ids


def _grouped_transposed(call: Call, x: Tensor, weight: Tensor, groups: int) -> Ids:
    in_ids = call.labels(weight, 0)
    call.tie(in_ids.reshape(groups, -1).T)
    call.contract(x, 1, weight, 0)
    return np.tile(call.labels(weight, 1), groups)


def _operator(call: Call, x: Tensor, weight: Tensor, in_ids: Ids, out_ids: Ids) -> OpRecord:
    kind = "conv_transpose" if call.value("transposed") else "conv"
    groups = call.integer("groups")
    return OpRecord(
        call.record.op_name(kind, weight),
        kind,
        in_ids,
        out_ids,
        kernel=image_size(weight.shape[2:]),
        stride=image_size(list(call.integers("stride"))),
        groups=in_ids if groups == in_ids.size and groups > 1 else groups,
        in_size=image_size(x.shape[2:]),
        out_size=image_size(call.outputs[0].shape[2:]),
        batch=x.shape[0],
        before=call.seen(x).op,
    )
