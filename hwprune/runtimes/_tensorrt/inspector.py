"""What an engine is made of, from the inspector's JSON of TensorRT 8.5 to 11: layers, their ONNX nodes and types.

The document changes with every version, so it is read defensively: what is missing stays empty. Through version 10
the engine's ends are a list of names ("Bindings") and a tensor has one text for format and type ("Format/Datatype");
from 11 they are objects ("I/O Tensors"), and format and type stand apart. Without DETAILED verbosity a layer is its
name alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hwprune.core.measurement import LayerTime
from hwprune.core.target import FP32_OPS
from hwprune.runtimes._tensorrt.errors import RunFailed

TYPES = {
    "fp32": "fp32",
    "float": "fp32",
    "float32": "fp32",
    "fp16": "fp16",
    "half": "fp16",
    "float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
_FLOATS = ("fp32", "fp16", "bf16", "fp8", "int8")  # what a layer may compute in; the rest are indices and conditions
_OPERATORS = {  # TensorRT's words for layers, where no ONNX node says better
    "Convolution": "Conv",
    "Deconvolution": "ConvTranspose",
    "FullyConnected": "Gemm",
    "gemm": "Gemm",
    "MatrixMultiply": "MatMul",
    "SoftMax": "Softmax",
}
_MAIN = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # the node that a fusion is called by
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")  # those that have weights, even where the document tells none
_SMALL_CHANGE = ("QuantizeLinear", "DequantizeLinear", "Cast")  # the nodes that it is not called by
_INSERTED_KINDS = ("Reformat", "NoOp", "shape_call", "Signal", "Wait")
_INSERTED_NAMES = re.compile(r"^Reformatting CopyNode|\b(?:in|out)put reformatter \d|^dummy_shape_call")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_OPERATOR = re.compile(r"(?:^|/)([A-Z][A-Za-z0-9]*?)(?:_\d+)?$")
_SEPARATORS = re.compile(r" \+ | \|\| ")


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of a layer; `kind` is a precision or another type, "" where it is not told."""

    name: str
    shape: tuple[int, ...] = ()
    kind: str = ""
    layout: str = ""


@dataclass(frozen=True)
class EngineLayer:
    """One layer as TensorRT executes it, by the name its profiler reports.

    `nodes` are the ONNX nodes in it, `kind` the operator of the most important one. `inserted`: TensorRT put it there,
    to change a format or a type. `weights` is the type of its weights, "" without.
    """

    name: str
    kind: str = ""
    nodes: tuple[str, ...] = ()
    inputs: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    weights: str = ""
    inserted: bool = False
    tactic: str = ""

    @property
    def main_node(self) -> str:
        """The ONNX node the layer is called by: what multiplies, else the first that computes; else its own name."""
        computing = [node for node in self.nodes if operator_of(node) not in _SMALL_CHANGE]
        multiplying = [node for node in computing if operator_of(node) in _MAIN]
        return (multiplying or computing or list(self.nodes) or [self.name])[0]

    @property
    def computes_in(self) -> str:
        """The type of its weights, else the narrowest of its inputs and outputs; "" where nothing tells."""
        if self.weights in _FLOATS:
            return self.weights
        kinds = [tensor.kind for tensor in (*self.inputs, *self.outputs) if tensor.kind in _FLOATS]
        return max(kinds, key=_FLOATS.index, default="")

    def time(self, latency_ms: float = 0.0, note: str = "") -> LayerTime:
        """The layer as a row of a profile; its note begins with TensorRT's own name for it."""
        shapes = [tuple(tensor.shape for tensor in side) for side in (self.inputs, self.outputs)]
        return LayerTime(self.main_node, self.kind, latency_ms, shapes[0], shapes[1], self.name + note)


def operator_of(node: str) -> str:
    """The operator that a node's name ends with, as our exporter and torch's write it; "" for another name."""
    found = _OPERATOR.search(node)
    return found.group(1) if found else ""


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers of an engine in order of execution. Raises `RunFailed` for text that is no such document."""
    try:
        document = json.loads(text)
        items = document["Layers"]
    except (ValueError, TypeError, KeyError) as error:
        raise RunFailed(
            f"TensorRT's inspector wrote something that is no list of layers: {text[:60]!r}",
            hint="report it with the version of TensorRT; latencies without layer times still count",
        ) from error
    return tuple(_layer(item) if isinstance(item, dict) else _named(str(item)) for item in items)


def _layer(item: Mapping[str, Any]) -> EngineLayer:
    plain = _named(str(item.get("Name", "")))
    told = tuple(_NODE.findall(str(item.get("Metadata", ""))))
    word = str(item.get("ParameterType") or item.get("LayerType") or "")
    kinds = {str(item.get(key, "")) for key in ("ParameterType", "LayerType")}
    weights = item.get("Weights")
    layer = replace(
        plain,
        nodes=told or (() if plain.inserted else plain.nodes),
        inputs=tuple(_tensors(item.get("Inputs"))),
        outputs=tuple(_tensors(item.get("Outputs"))),
        weights=type_in(str(weights.get("Type", ""))) if isinstance(weights, dict) and weights.get("Count") else "",
        inserted=plain.inserted or bool(kinds & set(_INSERTED_KINDS)),
        tactic=str(item.get("TacticName", "")),
    )
    return replace(layer, kind=_kind(layer, word))


def _named(name: str) -> EngineLayer:
    """What the name alone tells: fused nodes joined by ` + `, side by side ones by ` || `."""
    inserted = bool(_INSERTED_NAMES.search(name))
    nodes = () if inserted else tuple(part for part in _SEPARATORS.split(name) if part)
    layer = EngineLayer(name, nodes=nodes, inserted=inserted)
    return replace(layer, kind=_kind(layer, ""))


def _kind(layer: EngineLayer, word: str) -> str:
    if layer.inserted and not layer.nodes:
        return word or "Reformat"
    return operator_of(layer.main_node) or _OPERATORS.get(word, word)


def _tensors(items: object) -> Iterator[EngineTensor]:
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            yield EngineTensor(str(item))
            continue
        lowered = {str(key).lower(): value for key, value in item.items()}
        layout = str(lowered.get("format") or lowered.get("format/datatype") or "")
        kind = str(lowered.get("datatype") or lowered.get("type") or layout)
        sizes = lowered.get("dimensions")
        shape = tuple(int(size) for size in sizes) if isinstance(sizes, list) else ()
        yield EngineTensor(str(item.get("Name", "")), shape, type_in(kind) or type_in(layout), layout)


def type_in(text: str) -> str:
    """The type that a text such as "Row major linear FP32 format" or "Half" names, "" where it names none."""
    return next((TYPES[word] for word in re.findall(r"[a-z0-9]+", text.lower()) if word in TYPES), "")


def fp32_layers(text: str, precision: str) -> tuple[str, ...]:
    """The layers that compute in fp32, by their ONNX node: what weak typing has left of it in a narrower engine.

    Formats and types that are changed at the ends of the network are no such layers, nor is what the ONNX file keeps
    in fp32 on purpose: in fp16 some operators, in int8 all layers without weights.
    """
    layers = [layer for layer in read_layers(text) if not layer.inserted and layer.computes_in == "fp32"]
    return tuple(layer.main_node for layer in layers if not _kept_on_purpose(layer, precision))


def _kept_on_purpose(layer: EngineLayer, precision: str) -> bool:
    computing = [word for word in map(operator_of, layer.nodes) if word not in _SMALL_CHANGE]
    if precision == "int8":
        return not layer.weights and not any(word in _WEIGHTED for word in computing)
    return bool(computing) and all(word in FP32_OPS for word in computing)


def layer_times(text: str, times: Iterable[tuple[str, float]] = ()) -> tuple[LayerTime, ...]:
    """The layers with the ms that the profiler reported by their names, what TensorRT inserted merged into its reader.

    A layer's note begins with TensorRT's own name for it; inserted layers are counted there with their time. Names that
    the document lacks keep a row of their own. The sum of all rows is the sum of `times`.
    """
    layers = list(read_layers(text))
    known = {layer.name for layer in layers}
    taken: dict[str, float] = {}
    for name, latency_ms in times:
        taken[name] = taken.get(name, 0.0) + latency_ms
        if name not in known:
            layers.append(_named(name))
            known.add(name)
    hosts = _hosts(layers)
    merged: dict[int, list[float]] = {}
    for place, host in hosts.items():
        merged.setdefault(host, []).append(taken.get(layers[place].name, 0.0))
    return tuple(
        layer.time(taken.get(layer.name, 0.0) + sum(merged.get(place, ())), _merged_note(merged.get(place, [])))
        for place, layer in enumerate(layers)
        if place not in hosts
    )


def _merged_note(times_ms: Sequence[float]) -> str:
    if not times_ms:
        return ""
    return f"; {len(times_ms)} inserted by TensorRT, {sum(times_ms):.4f} ms"


def _hosts(layers: Sequence[EngineLayer]) -> dict[int, int]:
    """For the place of every inserted layer that of the layer it is counted with: its reader, else its neighbour."""
    readers = {tensor.name: place for place, layer in reversed(list(enumerate(layers))) for tensor in layer.inputs}
    names = {layer.name: place for place, layer in enumerate(layers)}
    following = {}
    for place, layer in enumerate(layers):
        if layer.inserted:
            read = [readers[tensor.name] for tensor in layer.outputs if readers.get(tensor.name, place) != place]
            told = names.get(layer.name.partition(" to ")[2])
            following[place] = read[0] if read else told
    real = [place for place, layer in enumerate(layers) if not layer.inserted]
    found = {}
    for place in following if real else ():
        host, seen = following[place], {place}
        while host in following and host not in seen:
            seen.add(host)
            host = following[host]
        if host is None or host in following:
            host = next((other for other in real if other > place), real[-1])
        found[place] = host
    return found


def with_node_names(layers: tuple[LayerTime, ...], nodes: Iterable[str]) -> tuple[LayerTime, ...]:
    """The rows under the names of ONNX nodes, for engines whose document tells none (Myelin, versions before 8.6).

    A row that is already called by a node keeps it. Else the longest node name that its own name holds is taken,
    `conv10/Conv` before `conv1/Conv`; Myelin writes other characters than letters and digits as `_`.
    """
    known = frozenset(nodes)
    ordered = sorted(known, key=lambda node: (operator_of(node) in _SMALL_CHANGE, -len(node), node))
    return tuple(layer if layer.name in known else _called(layer, ordered) for layer in layers)


def _called(layer: LayerTime, ordered: Sequence[str]) -> LayerTime:
    whole = layer.note.partition("; ")[0]
    for text, form in ((whole, str), (_mangled(whole), _mangled)):
        found = [node for node in ordered if _holds(text, form(node))]
        main = [node for node in found if operator_of(node) in _MAIN]
        if found:
            name = (main or found)[0]
            return replace(layer, name=name, kind=operator_of(name) or layer.kind)
    return layer


def _mangled(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", text)


def _holds(text: str, part: str) -> bool:
    """Whether `part` stands in `text` with no letter or digit of a longer name right before or behind it."""
    begin = text.find(part)
    while begin >= 0:
        end = begin + len(part)
        before, behind = text[begin - 1 : begin], text[end : end + 1]
        if not before.isalnum() and not behind.isalnum():
            return True
        begin = text.find(part, begin + 1)
    return False
