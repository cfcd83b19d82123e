"""An ONNX graph, as the exporter of this package writes it, as a torch module: where runtimes begin that take torch.

The module is a `torch.fx.GraphModule` of plain torch functions and layers, one call an ONNX node, so that
`torch.jit.trace`, `torch.export` and `torch.compile` take it. Shapes are static; what depends on constants alone is
computed here. Torch is imported when a model is converted, not before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hwprune.core.errors import DeviceError, UsageError
from hwprune.runtimes._refusals import cannot_load

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from torch import Tensor, fx, nn

    Result = fx.Node | tuple[fx.Node, ...]
    Rule = Callable[["Operator"], Result]

ONNX_NAME = "onnx_name"  # in the `meta` of every fx node: the name of the ONNX node it came from
ONNX_KIND = "onnx_kind"  # and its operator
_DOMAINS = ("", "ai.onnx")


def load_onnx(model: bytes, *, batch: int | None = None, reader: str = "torch") -> onnx.ModelProto:
    """The model with the shapes of its values; a free batch becomes `batch`. Raises `UsageError` for other bytes.

    `reader` is the name of the runtime the error speaks of.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise DeviceError("the onnx package is not installed", hint="pip install onnx") from error
    try:
        proto = onnx.load_from_string(model)
        for item in proto.graph.input if batch is not None else ():
            sizes = item.type.tensor_type.shape.dim
            if sizes and not sizes[0].HasField("dim_value"):
                sizes[0].dim_value = batch
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except (DecodeError, onnx.shape_inference.InferenceError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise cannot_load(reader, model, reason) from error
    if not inferred.graph.node:
        raise cannot_load(reader, model, "it has no operators")
    return inferred


def convert(model: onnx.ModelProto) -> fx.GraphModule:
    """A model that `load_onnx` read, in eval mode; `forward(*inputs)` gives a tensor, or a tuple of several outputs.

    Raises `UsageError` for operators without a rule, all of them named.
    """
    from hwprune.runtimes._torch.rules import RULES

    builder = Builder(model)
    unknown = {
        node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}": node.name
        for node in reversed(model.graph.node)
        if (node.op_type not in RULES or node.domain not in _DOMAINS) and not builder.is_constant(node)
    }
    if unknown:
        named = ", ".join(f"{kind} (node '{name}')" for kind, name in sorted(unknown.items()))
        raise UsageError(f"torch cannot run these ONNX operators here: {named}", hint="use --runtime onnxruntime")
    for node in model.graph.node:
        builder.add(node, RULES)
    return builder.finish()


@dataclass
class Builder:
    """The torch module while it grows: a graph of calls, the layers and tensors they use, and values known already."""

    model: onnx.ModelProto
    values: dict[str, fx.Node] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch
        from onnx import numpy_helper

        graph = self.model.graph
        self.root = torch.nn.Module()
        self.graph = torch.fx.Graph()
        self.opset = max((item.version for item in self.model.opset_import if item.domain in _DOMAINS), default=1)
        for item in graph.initializer:
            self.constants[item.name] = numpy_helper.to_array(item)
        for item in graph.input:
            if item.name not in self.constants:
                self.values[item.name] = self.graph.placeholder(_identifier(item.name))
        known = (*graph.value_info, *graph.input, *graph.output)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for value in known:
            sizes = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
                self.shapes[value.name] = tuple(size.dim_value for size in sizes)
        self._constant_names = self._find_constants()

    def _find_constants(self) -> frozenset[str]:
        found = set(self.constants)
        for node in self.model.graph.node:
            pure = not node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
            if pure and node.domain in _DOMAINS and all(name in found for name in node.input if name):
                found.update(name for name in node.output if name)
        return frozenset(found)

    def is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether the node computes a constant from constants."""
        return all(name in self._constant_names for name in node.output if name)

    def add(self, node: onnx.NodeProto, rules: Mapping[str, Rule]) -> None:
        """Append the calls of one node, or compute it now where its inputs are constant."""
        if self.is_constant(node):
            self._fold(node)
            return
        before = len(self.graph.nodes)
        made = rules[node.op_type](Operator(node, self))
        results = made if isinstance(made, tuple) else (made,)
        used = [name for name in node.output if name]
        if len(results) < len(used):
            Operator(node, self).refuse(f"only its first {len(results)} of {len(used)} outputs can be computed")
        for name, value in zip(used, results):
            self.values[name] = value
        for call in list(self.graph.nodes)[before:]:
            call.meta[ONNX_NAME], call.meta[ONNX_KIND] = node.name or used[0], node.op_type

    def _fold(self, node: onnx.NodeProto) -> None:
        from onnx import helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        inputs = [name for name in dict.fromkeys(node.input) if name]
        outputs = [name for name in node.output if name]
        graph = helper.make_graph(
            [node],
            "constant",
            [],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(self.constants[name], name) for name in inputs],
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import)
        for name, value in zip(outputs, ReferenceEvaluator(model).run(None, {})):
            self.constants[name] = np.asarray(value)

    def value(self, name: str) -> fx.Node:
        """A value as a node; a constant becomes a buffer of the module when it is first read."""
        if name not in self.values:
            target = self._unique(_identifier(name))
            self.root.register_buffer(target, tensor(self.constants[name]), persistent=True)
            self.values[name] = self.graph.get_attr(target)
        return self.values[name]

    def layer(self, name: str, layer: nn.Module, source: fx.Node) -> fx.Node:
        """Call a layer that becomes a part of the module."""
        target = self._unique(_identifier(name))
        self.root.add_module(target, layer)
        return self.graph.call_module(target, (source,))

    def finish(self) -> fx.GraphModule:
        """The module, in eval mode."""
        from torch import fx

        outputs = tuple(self.value(item.name) for item in self.model.graph.output)
        self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        module = fx.GraphModule(self.root, self.graph, "OnnxModule")
        module.eval()
        return module

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while hasattr(self.root, unique):
            count += 1
            unique = f"{name}_{count}"
        return unique


@dataclass(frozen=True)
class Operator:
    """One ONNX node under conversion: its inputs, attributes and what is known of their shapes."""

    node: onnx.NodeProto
    builder: Builder

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; text as `str`."""
        from onnx import helper

        for item in self.node.attribute:
            if item.name == name:
                value = helper.get_attribute_value(item)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def has(self, index: int) -> bool:
        """Whether the node has this input."""
        return len(self.node.input) > index and bool(self.node.input[index])

    def value(self, index: int) -> fx.Node:
        """An input as a value of the torch graph."""
        return self.builder.value(self.node.input[index])

    def is_constant(self, index: int) -> bool:
        """Whether an input is a constant."""
        return self.has(index) and self.node.input[index] in self.builder.constants

    def constant(self, index: int) -> np.ndarray:
        """An input that must be a constant."""
        if not self.is_constant(index):
            self.refuse(f"its input {index} is known only at run time")
        return self.builder.constants[self.node.input[index]]

    def integers(self, index: int, attribute: str = "") -> list[int] | None:
        """Integers out of a constant input, or where it has none out of the attribute of older opsets."""
        if self.has(index):
            return [int(value) for value in self.constant(index).ravel()]
        found = self.attribute(attribute) if attribute else None
        return None if found is None else [int(value) for value in found]

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an input."""
        name = self.node.input[index]
        if name in self.builder.constants:
            return tuple(self.builder.constants[name].shape)
        return self._known(name)

    def out_shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self._known(self.node.output[0])

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> fx.Node:
        """Call a torch function in the graph."""
        return self.builder.graph.call_function(function, arguments, options)

    def layer(self, layer: nn.Module, source: fx.Node) -> fx.Node:
        """Call a layer in the graph, named after the node."""
        return self.builder.layer(self.node.name or self.node.output[0], layer, source)

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error for a node that has no counterpart in torch."""
        raise UsageError(
            f"torch cannot run ONNX node '{self.node.name}' ({self.node.op_type}): {reason}",
            hint="use --runtime onnxruntime",
        )

    def _known(self, name: str) -> tuple[int, ...]:
        if name not in self.builder.shapes:
            self.refuse(f"the shape of '{name}' is not fixed")
        return self.builder.shapes[name]


def tensor(array: np.ndarray) -> Tensor:
    """A torch tensor with a copy of the values."""
    import torch

    return torch.from_numpy(np.array(array, copy=True, order="C"))


def _identifier(name: str) -> str:
    """A name that Python takes: `layer1.0.conv1/Conv` becomes `layer1_0_conv1_Conv`."""
    plain = re.sub(r"\W", "_", name)
    return plain if plain and not plain[0].isdigit() else f"_{plain}"
