"""Scaled dot-product attention, seen as one operator whatever kernel runs it."""

from __future__ import annotations

from hwprune.graph.call import Call, rule
from hwprune.graph.record import OpRecord, channel_view


@rule("scaled_dot_product_attention")
def attention(call: Call) -> None:
    """`query (..., n, d)`, `key (..., m, d)`, `value (..., m, e)`: d is contracted, the values' e comes out."""
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    last = query.ndim - 1
    call.contract(query, last, key, last)
    if call.value("scale") is None:
        rows = [factor.ids.ravel() for factor in call.layout(query) if last in factor.dims]
        call.record.attention_queries.extend(rows)
    for tensor in (query, key):
        rest = tuple(factor for factor in call.layout(tensor) if last not in factor.dims)
        call.pin_factors(rest, "they are the heads or positions of an attention")
    mask = call.optional("attn_mask")
    if mask is not None:
        call.pin_factors(call.layout(mask), "it is added to the attention scores")
    call.put(call.keep_only(value, set(range(value.ndim)) - {last - 1}))
    in_ids = channel_view(call.record, query)[0]
    out_ids, batch, size = channel_view(call.record, call.outputs[0])
    name = call.record.op_name("matmul", None)
    op = OpRecord(name, "matmul", in_ids, out_ids, in_size=size, out_size=size, batch=batch)
    call.record.get(call.outputs[0]).op = call.note(op)
