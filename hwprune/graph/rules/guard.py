"""A rule that fails pins the channels it saw: a bug of ours must neither stop the trace nor look like the user's."""

from __future__ import annotations

from functools import partial

from hwprune.graph.call import Call, Rule
from hwprune.graph.layout import Layout


def guarded(rule: Rule) -> Rule:
    """The rule, made safe: where it raises, or labels an output in another shape, it pins like an unknown operator."""
    return partial(_apply, rule)


def _apply(rule: Rule, call: Call) -> None:
    try:
        rule(call)
        fault = "" if _fits(call) else "its labels do not fit the output"
    except Exception as error:  # noqa: BLE001 - whatever a rule raises is a bug of the rule, not of the model
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
    if not fault:
        return
    for tensor in call.inputs:
        call.pin_factors(call.layout(tensor), f"hwprune's rule for the operator '{call.name}' failed ({fault})")
    for number in range(len(call.outputs)):
        call.put(output=number)


def _fits(call: Call) -> bool:
    return all(_has_shape(call.record.get(output).layout, tuple(output.shape)) for output in call.outputs)


def _has_shape(layout: Layout, shape: tuple[int, ...]) -> bool:
    dims = [dim for factor in layout for dim in factor.dims]
    return len(set(dims)) == len(dims) and all(
        max(factor.dims) < len(shape) and factor.ids.shape == tuple(shape[dim] for dim in factor.dims)
        for factor in layout
    )
