"""The layers that the scripted TensorRT makes of a model, and what its inspector says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from fake_trt_base import Script, shape_of

from hwprune.core.measurement import Target
from hwprune.runtimes.simulated import FREE, SimulatedRuntime


@dataclass
class Layer:
    name: str
    nodes: list[str]
    kind: str
    ms: float
    ins: tuple[tuple[int, ...], ...]
    outs: tuple[tuple[int, ...], ...]
    types: tuple[str, str]


def layers_of(proto: onnx.ModelProto, script: Script) -> list[Layer]:
    """The operators with what is fused into them, timed as the simulated runtime does; a reformat before the first."""
    first = proto.graph.input[0]
    timed = SimulatedRuntime().layer_times(proto.SerializeToString(), Target(batch=shape_of(first)[0]), runs=1)
    costs = iter(timed)
    graph = proto.graph
    halves = {
        item.name
        for item in (*graph.value_info, *graph.input, *graph.output)
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    found: list[Layer] = []
    for node in graph.node:
        if node.op_type in FREE:
            if found:
                found[-1].nodes.append(node.name)
            continue
        cost = next(costs)
        ends = (node.input[0], node.output[0])
        types_ = tuple("FP16" if end in halves and node.name not in script.fp32_layers else "FP32" for end in ends)
        found.append(Layer("", [node.name], node.op_type, cost.latency_ms, cost.in_shapes, cost.out_shapes, types_))
    for layer in found:
        layer.name = " + ".join(layer.nodes)
    if found:
        shape = (shape_of(first),)
        name = f"Reformatting CopyNode for Input Tensor 0 to {found[0].name}"
        found.insert(0, Layer(name, [], "Reformat", 0.002, shape, shape, found[0].types))
    return found


def described(layer: Layer, major: int) -> dict[str, Any]:
    """A layer as the inspector of that major version writes it."""
    kinds = {"Conv": ("CaskConvolution", "Convolution"), "Reformat": ("Reformat", "Reformat")}
    layer_type, parameter_type = kinds.get(layer.kind, (layer.kind, layer.kind))

    def tensor(name: str, shape: tuple[int, ...], kind: str) -> dict[str, Any]:
        found: dict[str, Any] = {"Name": name, "Location": "Device", "Dimensions": list(shape)}
        if major >= 11:
            return {**found, "Format": "Row major linear format", "Datatype": kind}
        return {**found, "Format/Datatype": f"Row major linear {kind} format"}

    described = {
        "Name": layer.name,
        "LayerType": layer_type,
        "Inputs": [tensor("in", shape, layer.types[0]) for shape in layer.ins[:1]],
        "Outputs": [tensor("out", shape, layer.types[1]) for shape in layer.outs],
        "ParameterType": parameter_type,
        "Metadata": "\x1e".join(f"[ONNX Layer: {name}]" for name in layer.nodes),
    }
    if layer.kind == "Conv":
        described["Weights"] = {"Type": {"FP32": "Float", "FP16": "Half"}[layer.types[1]], "Count": 1}
    if layer.kind == "Reformat":
        described["Origin"] = "REFORMAT"
    if major < 10:
        del described["Metadata"]
    return described
