"""An ONNX model as plain nodes, constants and shapes: what the writers of other formats (ncnn, LiteRT) read.

What depends on constants alone is computed here, so a writer meets only what a runtime has to compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hwprune.core.errors import UsageError
from hwprune.runtimes._inputs import fixed_inputs, onnx_inputs
from hwprune.runtimes._onnx.patterns import gelu
from hwprune.runtimes._torch.from_onnx import load_onnx

if TYPE_CHECKING:
    import onnx

Array = np.ndarray
_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Node:
    """One operator. An optional input that is left out is called ""."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def ints(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute of whole numbers."""
        return tuple(int(value) for value in self.attributes.get(name, default))

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def has(self, index: int) -> bool:
        """Whether this input is there."""
        return len(self.inputs) > index and bool(self.inputs[index])


@dataclass(frozen=True)
class Graph:
    """A network of batch and sizes fixed: nodes in order of execution, constants, the shape of every value.

    `reader` is the name of the runtime the errors speak of.
    """

    reader: str
    inputs: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                consumers.setdefault(name, []).append(node)
        object.__setattr__(self, "_consumers", {name: tuple(found) for name, found in consumers.items()})

    def consumers(self, value: str) -> tuple[Node, ...]:
        """The nodes that read a value."""
        found: dict[str, tuple[Node, ...]] = self.__dict__["_consumers"]
        return found.get(value, ())

    def only_consumer(self, value: str) -> Node | None:
        """The one node that reads a value, when nothing else does: not even the caller of the network."""
        found = self.consumers(value)
        return found[0] if len(found) == 1 and value not in self.outputs else None

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value. Raises `UsageError` where it is not fixed."""
        if value in self.constants:
            return tuple(self.constants[value].shape)
        if value not in self.shapes:
            raise UsageError(
                f"{self.reader} cannot run the model: the shape of '{value}' is not fixed",
                hint="export it with fixed sizes",
            )
        return self.shapes[value]

    def constant(self, node: Node, index: int) -> Array:
        """An input that must be a constant."""
        if not node.has(index) or node.inputs[index] not in self.constants:
            self.refuse(node, f"its input {index} is known only at run time")
        return self.constants[node.inputs[index]]

    def integers(self, node: Node, index: int, attribute: str = "") -> tuple[int, ...] | None:
        """Whole numbers out of a constant input, or where it is left out from the attribute of older opsets."""
        if node.has(index):
            return tuple(int(value) for value in self.constant(node, index).ravel())
        found = node.attributes.get(attribute)
        return None if found is None else tuple(int(value) for value in found)

    def scalar(self, node: Node, index: int) -> float | None:
        """An input that is a constant of one element, as a number; None for anything else."""
        found = self.constants.get(node.inputs[index]) if node.has(index) else None
        return float(found.ravel()[0]) if found is not None and found.size == 1 else None

    def refuse(self, node: Node, reason: str) -> NoReturn:
        """Raise the error for a node that the format has no counterpart for."""
        raise UsageError(
            f"{self.reader} cannot run ONNX node '{node.name}' ({node.kind}): {reason}",
            hint="use --runtime onnxruntime",
        )

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Raise `UsageError` naming every operator that is not known, each with a node it occurs in."""
        unknown = {node.kind: node.name for node in reversed(self.nodes) if node.kind not in frozenset(known)}
        if unknown:
            named = ", ".join(f"{kind} (node '{name}')" for kind, name in sorted(unknown.items()))
            raise UsageError(
                f"{self.reader} cannot run these ONNX operators here: {named}", hint="use --runtime onnxruntime"
            )


def read_graph(model: bytes, *, batch: int, reader: str) -> Graph:
    """The graph of an ONNX model, a free batch taken as `batch`.

    Raises `UsageError` for bytes that are no ONNX model, another batch and sizes that are not fixed; `DeviceError`
    where the onnx package is missing.
    """
    from onnx import helper, numpy_helper

    proto = load_onnx(model, batch=batch, reader=reader)
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    nodes = []
    for place, node in enumerate(proto.graph.node):
        if all(name in constants for name in node.input if name) and node.domain in _DOMAINS:
            constants.update(_computed(node, constants, proto))
            continue
        kind = node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}"
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        name = node.name or f"{kind}_{place}"
        nodes.append(Node(name, kind, tuple(node.input), tuple(node.output), attributes))
    graph = Graph(
        reader,
        fixed_inputs(onnx_inputs(proto), batch),
        tuple(item.name for item in proto.graph.output),
        tuple(nodes),
        constants,
        dict(_shapes(proto)),
    )
    return replace(graph, nodes=tuple(_with_gelu(graph)))


def _with_gelu(graph: Graph) -> Iterable[Node]:
    """The nodes, with Gelu where it was written in pieces."""
    pieces: set[int] = set()
    for node in graph.nodes:
        found = gelu(graph, node)
        if found is not None:
            pieces.update(id(piece) for piece in found)
            yield Node(node.name, "Gelu", node.inputs[:1], found[-1].outputs, {})
        elif id(node) not in pieces:
            yield node


def _computed(node: onnx.NodeProto, constants: Mapping[str, Array], model: onnx.ModelProto) -> dict[str, Array]:
    """The outputs of a node whose inputs are constants."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    outputs = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "constant",
        [],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(constants[name], name) for name in dict.fromkeys(node.input) if name],
    )
    found = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})
    return {name: np.asarray(value) for name, value in zip(outputs, found)}


def _shapes(model: onnx.ModelProto) -> Iterable[tuple[str, tuple[int, ...]]]:
    graph = model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            yield value.name, tuple(size.dim_value for size in sizes)
