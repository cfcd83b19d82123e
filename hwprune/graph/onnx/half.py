"""An fp32 network as a network of FLOAT16 tensors, with a Cast wherever one type meets the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hwprune.core.errors import GraphError
from hwprune.core.target import FP32_OPS
from hwprune.graph.onnx.network import Array, Network, attribute, copy_node, from_model

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)

# Where a constant beyond the range of half precision means "no bound" or "minus infinity": it becomes the last number.
_CLAMPED_OPS = ("Add", "Clip", "Max", "Min", "Pad", "Sub", "Where")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with weights and activations in FLOAT16.

    Inputs and outputs of the network keep their types, with a Cast at each: the caller's data fit all precisions.
    Operators of `FP32_OPS`, and those that the ONNX standard does not define for FLOAT16, stay in fp32 between two
    Casts. A BatchNormalization keeps its place, its statistics folded into scale and bias in double precision.
    A network that holds FLOAT16 already is taken as it is. Raises `GraphError` for a weight that FLOAT16 cannot hold.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    network = from_model(inferred, ())
    if HALF in network.types.values():
        return model
    halving = _Halving(network, {name: FLOAT for name in network.inputs if network.types.get(name) == FLOAT})
    for node in network.nodes:
        halving.add(node)
    halving.finish()
    return halving.model(model)


@dataclass
class _Halving:
    """The new network as it grows. `kinds` is the type that each float value has in it by now."""

    network: Network
    kinds: dict[str, int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, node: onnx.NodeProto) -> None:
        """Append a node, in half precision where it may be, reading each input in the type it needs."""
        node = copy_node(node)
        if node.op_type == "BatchNormalization":
            _settle_statistics(node, self.network, self.tensors)
        half = _takes_half(node, self.network)
        reads = list(node.input)
        for index, name in enumerate(reads):
            if name and self._is_float(name):
                kind = HALF if half and _allows_half(node, index, self.network.opset) else FLOAT
                node.input[index] = self._as(name, kind, node)
            elif name in self.network.tensors:
                self.tensors[name] = self.network.tensors[name]
        if half and node.op_type == "Cast":
            _set_cast(node)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if self.network.types.get(name) == FLOAT:
                made_half = half and _gives_half(node, index, self.network.opset)
                self.kinds[name] = HALF if made_half else FLOAT

    def finish(self) -> None:
        """Give the outputs of the network back their own type."""
        makers = {name: node for node in self.nodes for name in node.output}
        for name in self.network.outputs:
            if self.kinds.get(name) != HALF:
                continue
            inner = f"{name}:fp16"
            maker = makers[name]
            maker.output[:] = [inner if value == name else value for value in maker.output]
            for node in self.nodes:
                node.input[:] = [inner if value == name else value for value in node.input]
            self.nodes.append(onnx.helper.make_node("Cast", [inner], [name], name=f"{name}/Cast", to=FLOAT))

    def model(self, original: onnx.ModelProto) -> onnx.ModelProto:
        """The new model: interface and metadata of the original."""
        made = onnx.ModelProto()
        made.CopyFrom(original)
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.tensors.items())
        return made

    def _is_float(self, name: str) -> bool:
        if name not in self.network.types:  # made by a rewrite
            return bool(self.tensors[name].dtype == np.float32)
        return bool(self.network.types[name] == FLOAT)

    def _as(self, name: str, kind: int, node: onnx.NodeProto) -> str:
        """The name under which `node` reads a float value in a type."""
        array = self.network.tensors.get(name, self.tensors.get(name))
        if array is not None:
            return self._constant_as(name, array, kind, node)
        if self.kinds[name] == kind:
            return name
        if (name, kind) not in self.casts:
            made = f"{name}/Cast" if kind == HALF else f"{name}/Cast:fp32"
            self.nodes.append(onnx.helper.make_node("Cast", [name], [made], name=made, to=kind))
            self.casts[name, kind] = made
        return self.casts[name, kind]

    def _constant_as(self, name: str, array: Array, kind: int, node: onnx.NodeProto) -> str:
        """The name of a constant in a type; a second form of it, for an operator that needs another, gets its own."""
        wanted = array if kind == FLOAT else _half_array(name, array, node)
        known = self.tensors.get(name)
        same = known is None or known is array or (known.dtype == wanted.dtype and np.array_equal(known, wanted))
        made = name if same else f"{name}:{node.name}"
        self.tensors[made] = wanted
        return made


def _half_array(name: str, array: Array, node: onnx.NodeProto) -> Array:
    """The constant in FLOAT16; never an infinity or, outside weights, a zero that was none."""
    beyond = np.isfinite(array) & (np.abs(array) > LARGEST)
    if beyond.any() and node.op_type not in _CLAMPED_OPS:
        raise GraphError(
            f"'{name}' of ONNX node '{node.name}' ({node.op_type}) holds {float(np.abs(array[beyond]).max()):g},"
            f" more than FLOAT16 can ({LARGEST:g})",
            hint="use precision fp32, or train with weight decay",
        )
    bounded = np.clip(array, -LARGEST, LARGEST) if beyond.any() else array
    half = bounded.astype(np.float16)
    if node.op_type not in _LAYERS:
        lost = (half == 0) & (array != 0)
        half = np.where(lost, np.copysign(SMALLEST, array), half).astype(np.float16)
    return half


def _settle_statistics(node: onnx.NodeProto, network: Network, tensors: dict[str, Array]) -> None:
    """Fold mean and variance into scale and bias: a variance may exceed the range of FLOAT16, a scale does not."""
    names = list(node.input[1:5])
    if any(name not in network.tensors for name in names):
        return
    gamma, beta, mean, variance = (network.tensors[name].astype(np.float64) for name in names)
    epsilon = attribute(node, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    scale = gamma / np.sqrt(variance + epsilon)
    settled = (scale, beta - mean * scale, np.zeros_like(scale), np.ones_like(scale))
    for index, array in enumerate(settled, start=1):
        made = f"{node.name}:{index}"
        tensors[made] = array.astype(np.float32)
        node.input[index] = made
    kept = [item for item in node.attribute if item.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", 0.0)])


def _set_cast(node: onnx.NodeProto) -> None:
    for item in node.attribute:
        if item.name == "to" and item.i == FLOAT:
            item.i = HALF


def _takes_half(node: onnx.NodeProto, network: Network) -> bool:
    """Whether the node may compute in FLOAT16: it reads or makes a float, the standard allows it, and so do we."""
    if node.op_type in FP32_OPS:
        return False
    if node.op_type == "Cast":
        return bool(attribute(node, "to") == FLOAT)
    floats = [index for index, name in enumerate(node.input) if network.types.get(name) == FLOAT]
    return any(_allows_half(node, index, network.opset) for index in floats)


def _allows_half(node: onnx.NodeProto, index: int, opset: int) -> bool:
    """Whether the standard lets this input be FLOAT16."""
    return "tensor(float16)" in _types_of(node, index, opset, inputs=True)


def _gives_half(node: onnx.NodeProto, index: int, opset: int) -> bool:
    return "tensor(float16)" in _types_of(node, index, opset, inputs=False)


def _types_of(node: onnx.NodeProto, index: int, opset: int, *, inputs: bool) -> frozenset[str]:
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    formals = schema.inputs if inputs else schema.outputs
    formal = formals[min(index, len(formals) - 1)]  # the last one may be variadic
    return frozenset(_constraint(schema, formal.type_str))


def _constraint(schema: onnx.defs.OpSchema, name: str) -> Iterator[str]:
    """The types a type variable stands for; a fixed type stands for itself."""
    found = [item.allowed_type_strs for item in schema.type_constraints if item.type_param_str == name]
    yield from found[0] if found else (name,)
