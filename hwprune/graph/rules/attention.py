"""Scaled dot-product attention, seen as one operator whatever kernel runs it."""

from __future__ import annotations

from hwprune.graph.call import Call, rule
from hwprune.graph.layout import Factor, Layout
from hwprune.graph.record import OpRecord, channel_view


@rule("scaled_dot_product_attention")
def attention(call: Call) -> None:
    """`query (..., n, d)`, `key (..., m, d)`, `value (..., m, e)`: d is contracted, e comes out, the rest corresponds."""
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    last = query.ndim - 1
    call.contract(query, last, key, last)
    if call.value("scale") is None:
        ids = [factor.ids.ravel() for factor in call.layout(query) if last in factor.dims]
        call.record.attention_queries.extend(ids)
    heads = [(_outer(call, tensor.ndim, call.layout(tensor)), tuple(tensor.shape[:-2]) + (1, 1))
             for tensor in (query, key)]  # fmt: skip
    if any(layout for layout, _ in heads):
        for layout, _ in heads:
            call.pin_factors(layout, "its heads share one layout")
    mask = call.optional("attn_mask")
    if mask is not None:
        call.pin_factors(call.layout(mask), "it is added to the attention scores")
    out = [factor for factor in call.layout(value) if last - 1 not in factor.dims]
    call.keep_only(value, set(range(value.ndim)) - {last - 1})
    call.put(tuple(out))
    ids, batch, size = channel_view(call.record, call.outputs[0])
    in_ids = channel_view(call.record, query)[0]
    op = OpRecord(call.record.op_name("matmul", None), "matmul", in_ids, ids, in_size=size, out_size=size, batch=batch)
    call.record.get(call.outputs[0]).op = call.note(op)


def _outer(call: Call, ndim: int, layout: Layout) -> Layout:
    result: list[Factor] = []
    for factor in layout:
        if ndim - 1 not in factor.dims:
            result.append(factor)
    return tuple(result)
