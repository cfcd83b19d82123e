"""Batch, layer and group normalisation (instance normalisation arrives as batch normalisation of repeated channels)."""

from __future__ import annotations

import numpy as np

from hwprune.graph.call import Call, rule
from hwprune.graph.labels import Pin
from hwprune.graph.layout import Factor, Ids, Layout
from hwprune.graph.record import user_line

_STATISTICS = "its mean and variance are taken over these channels, so the rest would change with each removal"


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm", "batch_norm_elemt",
)  # fmt: skip
def batch_norm(call: Call) -> None:
    """`input (n, c, ...)`: channel by channel."""
    x = call.tensor("input")
    kept = call.plain(call.keep_only(x, {1}))
    ids = next((factor.ids for factor in kept), np.zeros(x.shape[1], np.int64))
    ids = _affine(call, ids, "weight", "bias", "running_mean", "running_var")
    call.put_vector(1, ids)
    call.note_plain("norm", x, weight=call.optional("weight"))


def _affine(call: Call, ids: Ids, *names: str) -> Ids:
    """Unite with the norm's own vectors; the weight's labels come out, because a gate or rescaling can reach them."""
    result = ids
    for name in names:
        tensor = call.optional(name)
        if tensor is not None and tensor.ndim == 1:
            own = call.labels(tensor, 0)
            call.unite(ids, own)
            if name == "weight":
                result = own
    return result


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> None:
    """`input (..., *normalized_shape)`: statistics over the last dims, so labels there change the result."""
    x = call.tensor("input")
    first = x.ndim - len(call.integers("normalized_shape"))
    result: list[Factor] = []
    for factor in call.layout(x):
        if max(factor.dims) < first:
            result.append(factor)
            continue
        _mark(call, factor.ids)
        result.extend(_normalised(call, factor, first))
    if not any(max(factor.dims) >= first for factor in call.layout(x)):
        for name in ("weight", "bias"):
            tensor = call.optional(name)
            if tensor is not None:
                call.pin_factors(call.layout(tensor), _STATISTICS)
    call.put(tuple(result))
    call.note_plain("norm", x, weight=call.optional("weight"))


def _normalised(call: Call, factor: Factor, first: int) -> Layout:
    dim = factor.preferred if factor.preferred >= first else max(factor.dims)
    ids = call.reduced(factor, dim).ids
    for name in ("bias", "weight"):
        tensor = call.optional(name)
        if tensor is not None:
            own = call.labels(tensor, dim - first)
            call.unite(ids, own)
            ids = own
    return (Factor((dim,), ids, dim),)


@rule("native_group_norm")
def group_norm(call: Call) -> None:
    """`input (n, c, ...)` in `group` groups: a whole group goes at once, so that the statistics of the others stay."""
    x, groups = call.tensor("input"), call.integer("group")
    kept = call.plain(call.keep_only(x, {1}))
    ids = next((factor.ids for factor in kept), np.zeros(x.shape[1], np.int64))
    if groups == 1:
        _mark(call, ids)
    else:
        call.tie(ids.reshape(groups, -1))
    ids = _affine(call, ids, "weight", "bias")
    call.put_vector(1, ids)
    call.note_plain("norm", x, weight=call.optional("weight"))


def _mark(call: Call, ids: Ids) -> None:
    record = call.record
    place = record.places[-1].path if record.places else ""
    channels = int(np.unique(ids[ids != 0]).size)
    record.inexact.append((ids.ravel(), Pin(call.name, place, user_line(), channels, _STATISTICS)))
