"""A network in ncnn's two files, written straight from the ONNX graph in milliseconds.

ncnn's own converter, pnnx, takes seconds a network; a latency table needs a hundred. The text file lists layers with
numbered parameters, the binary one the weights in the same order. ncnn holds one image at a time: a value of ONNX
shape `1 x C x H x W` is a block of `C x H x W` here. Format: ncnn's docs, developer-guide/param-and-model-file-
structure and operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hwprune.runtimes._onnx.graph import Array, Graph, Node

if TYPE_CHECKING:
    from typing import Union

    Parameter = Union[int, float, Sequence[int], Sequence[float]]

MAGIC = 7767517
RANKS = (2, 3, 4, 5)  # of ONNX values, the batch counted
_ARRAY_BASE = -23300
_NAME_LIMIT = 200  # ncnn reads a name into 256 bytes
_LARGEST = 3.402823e38  # what ncnn's parser of numbers takes for the largest float


@dataclass(frozen=True)
class Layer:
    """One ncnn layer. `node` is the ONNX node it stands for; `weights` come in the order of ncnn's documentation."""

    kind: str
    node: Node | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, Parameter] = field(default_factory=dict)
    weights: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class NcnnModel:
    """Both files, the layers in the order of the text file, and the blobs that hold inputs and outputs."""

    text: str
    weights: bytes
    layers: tuple[Layer, ...]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]


class Writer:
    """Collects the layers of one graph. Rules append to it; `finish` writes the files."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.done: set[int] = set()  # identities of nodes that became a part of an earlier layer
        self._layers: list[Layer] = []
        self._alias: dict[str, str] = {}
        for name, (_, shape) in graph.inputs.items():
            self._layers.append(Layer("Input", None, (), (name,), block_sizes(shape)))

    def add(
        self,
        kind: str,
        node: Node,
        inputs: Sequence[str],
        outputs: Sequence[str],
        parameters: Mapping[int, Parameter] | None = None,
        weights: Sequence[bytes] = (),
    ) -> None:
        """Append a layer that reads and makes these ONNX values."""
        sources = tuple(self.source(name) for name in inputs)
        self._layers.append(Layer(kind, node, sources, tuple(outputs), parameters or {}, tuple(weights)))

    def source(self, value: str) -> str:
        """The value that really holds what an ONNX value is called."""
        while value in self._alias:
            value = self._alias[value]
        return value

    def same(self, output: str, source: str) -> None:
        """Say that an ONNX value is the same as another one."""
        self._alias[output] = source

    def operand(self, node: Node, index: int, rank: int) -> str:
        """An input as a blob of `rank` dimensions (the batch counted); a constant becomes a layer of its own."""
        name = node.inputs[index]
        if name not in self.graph.constants:
            if len(self.graph.shape(name)) != rank:
                self.graph.refuse(node, f"its inputs have {len(self.graph.shape(name))} and {rank} dimensions")
            return name
        array = self.graph.constants[name]
        shape = (1,) * (rank - array.ndim) + array.shape
        if len(shape) != rank or shape[0] != 1:
            self.graph.refuse(node, f"its constant of shape {array.shape} is not one image's")
        blob = f"{node.outputs[0]}/constant{index}"
        self._layers.append(Layer("MemoryData", None, (), (blob,), block_sizes(shape), (raw(array),)))
        return blob

    def finish(self) -> NcnnModel:
        """The files. Where a blob is read more than once, a Split layer makes the copies that ncnn wants."""
        outputs = [self.source(name) for name in self.graph.outputs]
        layers, results = _split(self._layers, outputs)
        blobs = {name: f"b{place}" for place, name in enumerate(_made(layers))}
        lines = [str(MAGIC), f"{len(layers)} {len(blobs)}"]
        lines += [_line(layer, place, blobs) for place, layer in enumerate(layers)]
        return NcnnModel(
            "\n".join(lines) + "\n",
            b"".join(part for layer in layers for part in layer.weights),
            tuple(_renamed(layer, blobs) for layer in layers),
            {name: blobs[name] for name in self.graph.inputs},
            tuple(blobs[name] for name in results),
        )


def block_sizes(shape: Sequence[int]) -> dict[int, int]:
    """The parameters w, h, c (and d) of a blob with this ONNX shape."""
    keys = {2: (0,), 3: (1, 0), 4: (2, 1, 0), 5: (2, 11, 1, 0)}[len(shape)]
    return dict(sorted(zip(keys, shape[1:])))


def raw(array: Array) -> bytes:
    """Values as ncnn reads those that are always fp32."""
    return np.ascontiguousarray(array, dtype="<f4").tobytes()


def flagged(array: Array) -> bytes:
    """Values behind the flag that says how they are stored: 0 for fp32."""
    return bytes(4) + raw(array)


def _made(layers: Sequence[Layer]) -> list[str]:
    return [name for layer in layers for name in layer.outputs]


def _split(layers: Sequence[Layer], outputs: Sequence[str]) -> tuple[list[Layer], list[str]]:
    """The layers with Split layers between, and the blobs that hold the network's outputs."""
    readers: dict[str, int] = {}
    for name in (*outputs, *(name for layer in layers for name in layer.inputs)):
        readers[name] = readers.get(name, 0) + 1
    taken: dict[str, int] = {}

    def take(name: str) -> str:
        if readers[name] == 1:
            return name
        taken[name] = taken.get(name, 0) + 1
        return f"{name}/copy{taken[name] - 1}"

    result: list[Layer] = []
    for layer in layers:
        result.append(replace(layer, inputs=tuple(take(name) for name in layer.inputs)))
        for name in layer.outputs:
            if readers.get(name, 0) > 1:
                copies = tuple(f"{name}/copy{place}" for place in range(readers[name]))
                result.append(Layer("Split", None, (name,), copies))
    return result, [take(name) for name in outputs]


def _renamed(layer: Layer, blobs: Mapping[str, str]) -> Layer:
    return replace(
        layer,
        inputs=tuple(blobs[name] for name in layer.inputs),
        outputs=tuple(blobs[name] for name in layer.outputs),
        weights=(),
    )


def _line(layer: Layer, place: int, blobs: Mapping[str, str]) -> str:
    label = "".join("_" if letter.isspace() else letter for letter in layer.node.name) if layer.node else layer.kind
    words = [layer.kind, f"{place}:{label}"[:_NAME_LIMIT], str(len(layer.inputs)), str(len(layer.outputs))]
    words += [blobs[name] for name in (*layer.inputs, *layer.outputs)]
    return " ".join(words + [_parameter(key, value) for key, value in layer.parameters.items()])


def _parameter(key: int, value: Parameter) -> str:
    if isinstance(value, (int, float)):
        return f"{key}={_number(value)}"
    return f"{_ARRAY_BASE - key}={len(value)}," + ",".join(_number(item) for item in value)


def _number(value: int | float) -> str:
    """ncnn takes a number for a float when it has a point or an exponent."""
    return str(value) if isinstance(value, int) else f"{min(max(value, -_LARGEST), _LARGEST):.9e}"
