"""What each ATen operator does to the labels: one file a family, one function a rule.

An operator without a rule pins every channel that reaches it. A new rule is a function of a `Call`, decorated with
the operators it speaks for.
"""

from __future__ import annotations

from hwprune.graph.call import rule_of
from hwprune.graph.rules import (
    attention,
    convolution,
    elementwise,
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
    "indexing",
    "joining",
    "linear",
    "normalisation",
    "reduction",
    "rule_of",
    "shape",
    "spatial",
]
