"""Operators that the exporter writes as several ONNX nodes, made one again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwprune.runtimes._onnx.graph import Graph, Node


def gelu(graph: Graph, node: Node) -> tuple[Node, ...] | None:
    """The nodes of `x / sqrt(2)`, `erf`, `+ 1`, `* 0.5`, `* x`, when `node` is the division they begin with."""
    if node.kind != "Div" or not _is(graph.scalar(node, 1), math.sqrt(2)):
        return None
    found, source = [node], node.inputs[0]
    for kind, number in (("Erf", None), ("Add", 1.0), ("Mul", 0.5), ("Mul", None)):
        following = graph.only_consumer(found[-1].outputs[0])
        if following is None or following.kind != kind:
            return None
        if number is not None and not any(_is(graph.scalar(following, side), number) for side in (0, 1)):
            return None
        found.append(following)
    return tuple(found) if source in found[-1].inputs else None


def _is(number: float | None, expected: float) -> bool:
    return number is not None and math.isclose(number, expected, rel_tol=1e-5)
