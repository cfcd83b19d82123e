"""What each ATen operator does to the labels: one file a family, one function a rule.

An operator without a rule pins every channel that reaches it, and so does a rule that fails. A new rule is a function
of a `Call`, decorated with the operators it speaks for.
"""

from __future__ import annotations

from hwprune.graph import call
from hwprune.graph.call import Rule
from hwprune.graph.rules import (
    attention,
    convolution,
    elementwise,
    guard,
    indexing,
    joining,
    linear,
    normalisation,
    reduction,
    shape,
    spatial,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "guard",
    "indexing",
    "joining",
    "linear",
    "normalisation",
    "reduction",
    "rule_of",
    "shape",
    "spatial",
]


def rule_of(operator: str) -> Rule | None:
    """The rule of an operator, if there is one, guarded against its own failure."""
    found = call.rule_of(operator)
    return guard.guarded(found) if found is not None else None
