"""Models for a latency alone, made small for the way to a distant device."""

from __future__ import annotations


def light(model: bytes) -> bytes:
    """`hwprune.graph.onnx.light.lightened`; its packages are loaded only where a model travels."""
    from hwprune.graph.onnx.light import lightened

    return lightened(model)
