"""A network as a LiteRT (TensorFlow Lite) file, written straight from the ONNX graph in milliseconds.

The official converter, litert-torch, takes some 12 s a network and two gigabytes of packages; a latency table needs a
hundred networks. The schema's Python classes come with the ai-edge-litert package. LiteRT's convolutions hold images
channels last: a value of ONNX shape `N x C x H x W` that such an operator makes is stored as `N x H x W x C`, and the
network takes and gives its images so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from hwprune.core.errors import DeviceError
from hwprune.runtimes._onnx.graph import Array, Graph, Node

LAST = (0, 2, 3, 1)  # from N x C x H x W to N x H x W x C
FIRST = (0, 3, 1, 2)  # and back
_FILE_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_OLD_CODES_END = 127  # codes from here on have a field of their own
_KINDS = {"float32": "FLOAT32", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}


@lru_cache(maxsize=1)
def schema() -> Any:
    """The module with the classes of the file format. Raises `DeviceError` where LiteRT is not installed."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise DeviceError("LiteRT is not installed", hint="pip install ai-edge-litert") from error
    return schema_py_generated


@dataclass(frozen=True)
class LitertModel:
    """The file, and for inputs and outputs in the order of ONNX whether they are channels last."""

    content: bytes
    kinds: tuple[str, ...]
    inputs_last: Mapping[str, bool]
    outputs_last: tuple[bool, ...]


@dataclass
class _Stored:
    """Where a value lies: the number of its tensor in either layout."""

    plain: int | None = None
    last: int | None = None


@dataclass
class Writer:
    """Collects tensors and operators of one graph. Rules append to it; `finish` writes the file."""

    graph: Graph
    done: set[int] = field(default_factory=set)  # identities of nodes that became a part of an earlier operator

    def __post_init__(self) -> None:
        self._stored: dict[str, _Stored] = {}
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema().BufferT()]
        self._operators: list[Any] = []
        self._kinds: list[str] = []
        self._inputs = []
        for name, (kind, shape) in self.graph.inputs.items():
            number = self.new(name, last=len(shape) == 4, kind=kind.name)
            self._inputs.append(number)

    def new(self, value: str, *, last: bool, kind: str = "float32") -> int:
        """A tensor for an ONNX value that an operator is going to make, channels last or as ONNX has it."""
        shape = self.graph.shape(value)
        number = self.temporary(_moved(shape, LAST) if last else shape, value, kind)
        self._stored[value] = _Stored(last=number) if last else _Stored(plain=number)
        return number

    def keep(self, value: str, number: int) -> None:
        """Say that a tensor made already, channels last, is this ONNX value."""
        self._stored[value] = _Stored(last=number)

    def temporary(self, shape: Sequence[int], name: str = "", kind: str = "float32") -> int:
        """A tensor between two operators of one ONNX node."""
        item = schema().TensorT()
        item.shape, item.hasRank, item.buffer = np.array(shape, np.int32), True, 0
        item.type = getattr(schema().TensorType, _KINDS[kind])
        item.name = f"t{len(self._tensors)}:{re.sub(chr(0), '', name)}".encode()
        self._tensors.append(item)
        return len(self._tensors) - 1

    def constant(self, array: Array) -> int:
        """A tensor with fixed values; fp32, or int32 for whole numbers."""
        kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32
        values = np.ascontiguousarray(array, kind)
        number = self.temporary(values.shape, "constant", np.dtype(kind).name)
        buffer = schema().BufferT()
        buffer.data = values.view(np.uint8).ravel() if values.ndim else np.frombuffer(values.tobytes(), np.uint8)
        self._tensors[number].buffer = len(self._buffers)
        self._buffers.append(buffer)
        return number

    def integers(self, values: Sequence[int]) -> int:
        """A constant of whole numbers: sizes, axes."""
        return self.constant(np.array(values, np.int32))

    def add(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **settings: object
    ) -> None:
        """Append an operator; `options` names the class of its settings, such as `Conv2DOptions`."""
        item = schema().OperatorT()
        item.inputs, item.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if kind not in self._kinds:
            self._kinds.append(kind)
        item.opcodeIndex = self._kinds.index(kind)
        if options:
            item.builtinOptionsType = getattr(schema().BuiltinOptions, options)
            item.builtinOptions = getattr(schema(), f"{options}T")()
            for name, value in settings.items():
                setattr(item.builtinOptions, name, value)
        self._operators.append(item)

    def same(self, output: str, source: str) -> None:
        """Say that an ONNX value is the same as another one."""
        self._stored[output] = self._value(source)

    def is_last(self, value: str) -> bool:
        """Whether a value lies channels last and nowhere else."""
        return value not in self.graph.constants and self._value(value).plain is None

    def plain(self, value: str) -> int:
        """The tensor of a value as ONNX has it, brought there where it lies channels last."""
        stored = self._value(value)
        if stored.plain is None:
            stored.plain = self._moved(stored.last, self.graph.shape(value), FIRST)
        return stored.plain

    def last(self, value: str) -> int:
        """The tensor of a four-dimensional value channels last, brought there where it lies otherwise."""
        stored = self._value(value)
        if stored.last is None:
            stored.last = self._moved(stored.plain, _moved(self.graph.shape(value), LAST), LAST)
        return stored.last

    def operand(self, node: Node, index: int, rank: int, *, last: bool) -> int:
        """An input of an operator that joins values element by element; constants become of `rank` dimensions."""
        name = node.inputs[index]
        if name not in self.graph.constants:
            if last and len(self.graph.shape(name)) != 4:
                self.graph.refuse(node, f"it joins values of {len(self.graph.shape(name))} and 4 dimensions")
            return self.last(name) if last else self.plain(name)
        array = self.graph.constants[name]
        if not last:
            return self.constant(array)
        return self.constant(array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(LAST))

    def finish(self) -> LitertModel:
        """The file."""
        outputs_last = tuple(self.is_last(name) for name in self.graph.outputs)
        outputs = [
            self.last(name) if last else self.plain(name) for name, last in zip(self.graph.outputs, outputs_last)
        ]
        used = {number for item in self._operators for number in item.inputs}
        names = [name for name, number in zip(self.graph.inputs, self._inputs) if number in used or number in outputs]
        inputs = [number for number in self._inputs if number in used or number in outputs]
        subgraph = schema().SubGraphT()
        subgraph.tensors, subgraph.operators = self._tensors, self._operators
        subgraph.inputs, subgraph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        content = _packed(subgraph, self._kinds, self._buffers)
        inputs_last = {name: len(self.graph.inputs[name][1]) == 4 for name in names}
        return LitertModel(
            content, tuple(self._kinds[item.opcodeIndex] for item in self._operators), inputs_last, outputs_last
        )

    def _value(self, name: str) -> _Stored:
        if name not in self._stored:
            self._stored[name] = _Stored(plain=self.constant(self.graph.constants[name]))
        return self._stored[name]

    def _moved(self, source: int | None, shape: Sequence[int], order: Sequence[int]) -> int:
        """A copy of a tensor with its dimensions in another order; nothing moves where one row and column is all."""
        result = self.temporary(shape)
        if sum(size > 1 for size in shape[1:]) <= 1:
            self.add("RESHAPE", [int(source or 0), self.integers(shape)], [result], "ReshapeOptions", newShape=shape)
        else:
            self.add("TRANSPOSE", [int(source or 0), self.integers(order)], [result], "TransposeOptions")
        return result


def _moved(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[place] for place in order)


def _packed(subgraph: Any, kinds: Sequence[str], buffers: list[Any]) -> bytes:
    import flatbuffers

    model = schema().ModelT()
    model.version, model.subgraphs, model.buffers = _SCHEMA_VERSION, [subgraph], buffers
    model.operatorCodes = []
    for kind in kinds:
        code = schema().OperatorCodeT()
        code.builtinCode = getattr(schema().BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, _OLD_CODES_END)
        code.version = 3 if kind == "TRANSPOSE_CONV" else 1  # 3: with a bias
        model.operatorCodes.append(code)
    builder = flatbuffers.Builder(sum(len(item.data) for item in buffers if item.data is not None) + (1 << 16))
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())
