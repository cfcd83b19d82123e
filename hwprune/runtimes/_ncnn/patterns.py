"""Groups of ONNX nodes that are one layer in ncnn. Each function says whether it found its pattern and wrote it."""

from __future__ import annotations

import numpy as np

from hwprune.runtimes._ncnn.model import Writer, raw
from hwprune.runtimes._onnx.graph import Array, Node


def swish(writer: Writer, node: Node) -> bool:
    """`x * sigmoid(x)`, beginning at the sigmoid."""
    following = writer.graph.only_consumer(node.outputs[0])
    if following is None or following.kind != "Mul" or set(following.inputs) != {node.inputs[0], node.outputs[0]}:
        return False
    writer.add("Swish", node, node.inputs, following.outputs)
    writer.done.add(id(following))
    return True


def channel_shuffle(writer: Writer, node: Node) -> bool:
    """Reshape to `1 x G x C/G x H x W`, swap the two, reshape back."""
    before, middle = writer.graph.shape(node.inputs[0]), writer.graph.shape(node.outputs[0])
    swap = writer.graph.only_consumer(node.outputs[0])
    if swap is None or swap.kind != "Transpose" or swap.ints("perm", ()) != (0, 2, 1, 3, 4):
        return False
    back = writer.graph.only_consumer(swap.outputs[0])
    if back is None or back.kind != "Reshape" or writer.graph.shape(back.outputs[0]) != before:
        return False
    if middle[3:] != before[2:]:
        return False
    writer.add("ShuffleChannel", node, node.inputs[:1], back.outputs, {0: middle[1]})
    writer.done.update((id(swap), id(back)))
    return True


def group_norm(writer: Writer, node: Node) -> bool:
    """Reshape to `1 x G x ...`, instance normalisation, reshape back, and the scale and shift of every channel."""
    graph = writer.graph
    before, grouped = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    norm = graph.only_consumer(node.outputs[0])
    if norm is None or norm.kind != "InstanceNormalization" or len(grouped) != 3:
        return False
    back = graph.only_consumer(norm.outputs[0])
    if back is None or back.kind != "Reshape" or graph.shape(back.outputs[0]) != before:
        return False
    channels, last = before[1], back
    members = channels // grouped[1]
    scale, shift = (np.repeat(graph.constant(norm, place), members) for place in (1, 2))
    times = _by_channel(writer, last, "Mul", channels)
    if times is not None:
        last, factor = times
        scale, shift = scale * factor, shift * factor
    plus = _by_channel(writer, last, "Add", channels)
    if plus is not None:
        last, shift = plus[0], shift + plus[1]
    parameters = {0: grouped[1], 1: channels, 2: norm.number("epsilon", 1e-5), 3: 1}
    writer.add("GroupNorm", norm, node.inputs[:1], last.outputs, parameters, [raw(scale), raw(shift)])
    writer.done.update(id(found) for found in (norm, back, *(pair[0] for pair in (times, plus) if pair is not None)))
    return True


def _by_channel(writer: Writer, node: Node, kind: str, channels: int) -> tuple[Node, Array] | None:
    """The following node when it joins a constant of one number a channel: the node and the numbers."""
    following = writer.graph.only_consumer(node.outputs[0])
    if following is None or following.kind != kind:
        return None
    for name in following.inputs:
        values = writer.graph.constants.get(name)
        if values is not None and values.size == channels and values.shape[-3:] == (channels, 1, 1):
            return following, values.ravel()
    return None
