"""From any `nn.Module` to coupled channel groups, operators as functions of the widths, and exact surgery."""

from __future__ import annotations

from hwprune.graph.channel_graph import AttributeEdit, ChannelGraph, ConsumerSlice, QueryScale
from hwprune.graph.gates import gate_parameters
from hwprune.graph.labels import Pin
from hwprune.graph.onnx.template import OnnxTemplate
from hwprune.graph.recipe import Recipe
from hwprune.graph.surgery import apply_recipe, cut, mask
from hwprune.graph.trace import trace

__all__ = [
    "AttributeEdit",
    "ChannelGraph",
    "ConsumerSlice",
    "OnnxTemplate",
    "Pin",
    "QueryScale",
    "Recipe",
    "apply_recipe",
    "cut",
    "gate_parameters",
    "mask",
    "trace",
]
