"""A single convolution as a model: what the tile of a target is probed with."""

from __future__ import annotations

from typing import Any

import numpy as np

IN_CHANNELS, SIZE = 64, 28


def probe_model(out_channels: int, kernel: int = 3, batch: int = 1) -> bytes:
    """ONNX bytes of a convolution with ReLU from 64 to `out_channels` channels at 28x28 pixels."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape = (out_channels, IN_CHANNELS, kernel, kernel)
    values = np.random.default_rng(0).standard_normal(shape) / np.sqrt(IN_CHANNELS * kernel * kernel)
    weights: list[Any] = [
        numpy_helper.from_array(values.astype(np.float32), "weight"),
        numpy_helper.from_array(np.full(out_channels, 0.1, np.float32), "bias"),
    ]
    pads = [kernel // 2] * 4
    nodes: list[Any] = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["conv"], "conv", kernel_shape=[kernel] * 2, pads=pads),
        helper.make_node("Relu", ["conv"], ["output"], "relu"),
    ]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, IN_CHANNELS, SIZE, SIZE])
    sink = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, out_channels, SIZE, SIZE])
    graph = helper.make_graph(nodes, "probe", [source], [sink], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(model))
