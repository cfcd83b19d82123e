"""The reference kernel: a small convolutional network that is timed right before and after everything else.

It tells whether the machine is undisturbed, so it is made of what suffers most from disturbances: many small
depthwise and pointwise convolutions (a busy neighbour on the same core makes it 1.45 times slower, large dense
convolutions 1.15 times). It takes some 50 us and little cache, and is back at full speed after three runs. Its weights
are fixed; whoever changes anything here changes `REFERENCE_NAME`, which is part of every fingerprint.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

REFERENCE_NAME = "depthwise-1"
CHANNELS, SIZE, BLOCKS = 32, 10, 10
PROBE_CHANNELS, PROBE_SIZE, PROBE_LAYERS = 64, 16, 6
TILE_CHANNELS, TILE_SIZE = 64, 28


class ConvChain:
    """A model of convolutions with ReLU, one after the other, with fixed random weights."""

    def __init__(self, channels: int) -> None:
        import numpy as np

        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.last = "input"
        self._channels = channels
        self._rng = np.random.default_rng(0)

    def conv(self, name: str, channels: int, kernel: int, *, depthwise: bool = False) -> None:
        """Append a convolution that keeps the size."""
        import numpy as np
        from onnx import helper, numpy_helper

        per_group = 1 if depthwise else self._channels
        shape = (channels, per_group, kernel, kernel)
        values = self._rng.standard_normal(shape) / np.sqrt(per_group * kernel * kernel)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.weight"))
        self.weights.append(numpy_helper.from_array(np.full(channels, 0.1, np.float32), f"{name}.bias"))
        inputs = [self.last, f"{name}.weight", f"{name}.bias"]
        attributes = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
        groups = channels if depthwise else 1
        self.nodes.append(helper.make_node("Conv", inputs, [name], name, group=groups, **attributes))
        self.last = f"{name}.relu"
        self.nodes.append(helper.make_node("Relu", [name], [self.last], self.last))
        self._channels = channels

    def bytes(self, name: str, shape: tuple[int, int, int, int]) -> bytes:
        """The model; `shape` is the input's, the output has as many pixels."""
        from onnx import TensorProto, helper

        source = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
        out_shape = [shape[0], self._channels, *shape[2:]]
        sink = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, out_shape)
        graph = helper.make_graph(self.nodes, name, [source], [sink], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())


@lru_cache(maxsize=1)
def reference_model() -> bytes:
    """ONNX bytes of the reference kernel, batch 1."""
    builder = ConvChain(16)
    builder.conv("stem", CHANNELS, 3)
    for block in range(BLOCKS):
        builder.conv(f"depthwise{block}", CHANNELS, 3, depthwise=True)
        builder.conv(f"pointwise{block}", CHANNELS, 1)
    return builder.bytes(REFERENCE_NAME, (1, 16, SIZE, SIZE))


@lru_cache(maxsize=4)
def doctor_model(batch: int = 1) -> bytes:
    """ONNX bytes of a network of about 1 ms: what `doctor` times to tell how wide an interval to expect."""
    builder = ConvChain(PROBE_CHANNELS)
    for layer in range(PROBE_LAYERS):
        builder.conv(f"conv{layer}", PROBE_CHANNELS, 3)
    return builder.bytes("probe", (batch, PROBE_CHANNELS, PROBE_SIZE, PROBE_SIZE))


def single_convolution(out_channels: int, kernel: int = 3, batch: int = 1) -> bytes:
    """ONNX bytes of a convolution with ReLU from 64 channels at 28x28 pixels: what a target's tile is probed with."""
    builder = ConvChain(TILE_CHANNELS)
    builder.conv("conv", out_channels, kernel)
    return builder.bytes("convolution", (batch, TILE_CHANNELS, TILE_SIZE, TILE_SIZE))
