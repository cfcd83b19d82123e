"""The reference kernel: a small convolutional network that is timed right before and after everything else.

It must slow down as the networks do when the machine slows down, so it is of their kind: 3x3, depthwise and 1x1
convolutions, 0.2 to 0.5 ms in all, small enough to be back in the caches after one run. Its weights are fixed; whoever
changes them changes `REFERENCE_NAME`, which is part of every fingerprint.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

REFERENCE_NAME = "conv-1"
CHANNELS, SIZE = 32, 20


@lru_cache(maxsize=8)
def reference_model(batch: int = 1) -> bytes:
    """ONNX bytes of the reference kernel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights: list[Any] = []
    nodes: list[Any] = []

    def conv(name: str, source: str, shape: tuple[int, int, int], groups: int = 1) -> str:
        out, per_group, kernel = shape
        values = rng.standard_normal((out, per_group, kernel, kernel)) / np.sqrt(per_group * kernel * kernel)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.weight"))
        weights.append(numpy_helper.from_array(np.full(out, 0.1, np.float32), f"{name}.bias"))
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        pad = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [name], name, kernel_shape=[kernel] * 2, pads=pad, group=groups))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"], f"{name}.relu"))
        return f"{name}.relu"

    wide = 3 * CHANNELS
    last = conv("stem", "input", (CHANNELS, CHANNELS, 3))
    last = conv("expand", last, (wide, CHANNELS, 1))
    last = conv("depthwise", last, (wide, 1, 3), groups=wide)
    last = conv("project", last, (CHANNELS, wide, 1))
    last = conv("tail", last, (CHANNELS, CHANNELS, 3))
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, CHANNELS, SIZE, SIZE])
    sink = helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, CHANNELS, SIZE, SIZE])
    graph = helper.make_graph(nodes, REFERENCE_NAME, [source], [sink], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(model))
