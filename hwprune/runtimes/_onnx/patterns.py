"""What the writers of other formats look for alike in an ONNX graph.

Operators that the exporter writes as several nodes, limits and axes that moved from attributes to inputs, and groups of
operators that are one to a writer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwprune.runtimes._onnx.graph import Graph, Node

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")  # they only say how values are counted
NOTHING = ("Identity", "Dropout")  # at inference


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


def clip_limits(graph: Graph, node: Node) -> tuple[float, float]:
    """The least and the largest value that a Clip lets through."""
    if "min" in node.attributes or "max" in node.attributes:
        return node.number("min", -math.inf), node.number("max", math.inf)
    low = float(graph.constant(node, 1).ravel()[0]) if node.has(1) else -math.inf
    return low, float(graph.constant(node, 2).ravel()[0]) if node.has(2) else math.inf


def reduced_axes(graph: Graph, node: Node) -> list[int]:
    """The dimensions that a reduction runs over, rising; all of them where it names none."""
    rank = len(graph.shape(node.inputs[0]))
    given = graph.integers(node, 1, "axes")
    return sorted(axis % rank for axis in given or ()) or list(range(rank))


def _is(number: float | None, expected: float) -> bool:
    return number is not None and math.isclose(number, expected, rel_tol=1e-5)
