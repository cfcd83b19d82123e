"""A scripted TensorRT: the names of one real version and no others, engines on the fake CUDA runtime's virtual clock.

Whatever the real bindings of that version do not have raises `AttributeError` here, on instances and on classes, read
or set. What they have and this fake does not imitate raises `NotImplementedError`.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwprune.core.measurement import Target
from hwprune.runtimes.simulated import FREE, SimulatedRuntime

NAMES_FILE = "tensorrt_api_names.json"
VERSIONS = ("8.5.2", "8.6.1", "10.0.1", "10.3.0", "10.13.3.9", "11.0.0.114", "11.4.0.106")
MAGIC = b"PLAN"
DATA_TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.BOOL: "BOOL",
}
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_long)
PROFILER_OVERHEAD_MS = 0.004  # what the profiler's events add to every layer


@dataclass
class Script:
    """What is to go wrong, and what was asked of the builder."""

    parser_errors: tuple[str, ...] = ()
    build_error: str | None = None
    plan_refused: bool = False
    context_refused: bool = False
    enqueue_refused: bool = False
    fp32_layers: tuple[str, ...] = ()
    wrong_outputs: bool = False
    foreign_timing_cache: bool = False
    compute: bool = True
    builders: int = 0
    builds: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Names:
    """What one version of the bindings has."""

    version: str
    classes: Mapping[str, frozenset[str]]
    enums: Mapping[str, Mapping[str, int]]
    top_level: frozenset[str]

    @classmethod
    def read(cls, path: Path, version: str) -> Names:
        """The names of a version; for 8.5.2, of which only a flat list is known, those of 8.6.1 that are in it."""
        document = json.loads(path.read_text())
        found = document[version if version in document else "8.6.1"]
        flat = set(document["source_names"].get(version, ()))

        def known(name: str) -> bool:
            return not flat or name in flat

        return cls(
            version,
            {name: frozenset(filter(known, members)) for name, members in found["classes"].items()},
            {
                name: {key: number for key, number in values.items() if known(key)}
                for name, values in found["enums"].items()
            },
            frozenset(filter(known, found["top_level"])),
        )


class Number(enum.Enum):
    """An enumeration as pybind11 makes it: it has a name, and a number only when asked for with int()."""

    def __int__(self) -> int:
        return int(self.value)


class Severity(Number):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


@dataclass
class _Layer:
    name: str
    nodes: list[str]
    kind: str
    ms: float
    ins: tuple[tuple[int, ...], ...]
    outs: tuple[tuple[int, ...], ...]
    types: tuple[str, str]


class _Fake:
    """What every fake object knows: the module it belongs to."""

    _module: FakeTensorRt
    _allowed: frozenset[str]

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in self._allowed:
            raise AttributeError(f"TensorRT {self._module.names.version}: no attribute {type(self).__name__}.{name}")
        object.__setattr__(self, name, value)


class ILogger:
    def __init__(self) -> None:
        self._ready = True

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity


class IProfiler:
    def __init__(self) -> None:
        self._ready = True


class Builder(_Fake):
    def __init__(self, logger: Any) -> None:
        assert logger._ready, "the logger's base class was not initialised"
        self._logger = logger
        self._module.script.builders += 1

    def create_network(self, flags: int = 0) -> Any:
        return self._module.make("INetworkDefinition", flags)

    def create_builder_config(self) -> Any:
        return self._module.make("IBuilderConfig")

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        script = self._module.script
        assert network._parser() is not None, "the parser, and with it the weights, is gone before the build"
        creation = self._module.names.enums["NetworkDefinitionCreationFlag"]
        asked = {name for name, number in creation.items() if network._flags >> number & 1}
        if "EXPLICIT_BATCH" in creation and self._module.names.version < "9" and "EXPLICIT_BATCH" not in asked:
            self._logger.log(Severity.ERROR, "implicit batch is not supported by the ONNX parser")
            return None
        script.builds.append(
            {
                "flags": {flag.name for flag in config._flags},
                "network": asked,
                "level": config.builder_optimization_level if "builder_optimization_level" in config._allowed else None,
                "pools": dict(config._pools),
                "cache": config._cache,
            }
        )
        if script.build_error is not None:
            if script.build_error:
                self._logger.log(Severity.ERROR, script.build_error)
            return None
        if config._cache is not None:
            config._cache._entries += b"x"
        return memoryview(MAGIC + network._proto.SerializeToString())


class INetworkDefinition(_Fake):
    num_inputs = num_outputs = num_layers = 0

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._proto = onnx.ModelProto()

    def get_input(self, index: int) -> Any:
        return self._module.make("ITensor", self._proto, index)

    def _fill(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self.num_inputs, self.num_outputs = len(proto.graph.input), len(proto.graph.output)
        self.num_layers = len(proto.graph.node)


class ITensor(_Fake):
    def __init__(self, proto: onnx.ModelProto, index: int) -> None:
        self._proto = proto
        self._value = proto.graph.input[index]

    @property
    def name(self) -> str:
        return str(self._value.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return _shape(self._value)

    @shape.setter
    def shape(self, shape: tuple[int, ...]) -> None:
        dims = self._value.type.tensor_type.shape.dim
        named = {dim.dim_param: size for dim, size in zip(dims, shape, strict=True) if dim.dim_param}
        for value in (*self._proto.graph.input, *self._proto.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in named:
                    dim.dim_value = named[dim.dim_param]


class IBuilderConfig(_Fake):
    builder_optimization_level = 3
    max_aux_streams = None
    profiling_verbosity = None

    def __init__(self) -> None:
        self._flags = {self._module.BuilderFlag.TF32}
        self._pools: dict[str, int] = {}
        self._cache: Any = None

    def set_flag(self, flag: Any) -> None:
        assert isinstance(flag, self._module.BuilderFlag)
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        assert isinstance(flag, self._module.BuilderFlag)
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert isinstance(pool, self._module.MemoryPoolType)
        self._pools[pool.name] = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return self._module.make("ITimingCache", serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._entries and self._module.script.foreign_timing_cache and not ignore_mismatch:
            return False
        self._cache = cache
        return True


class ITimingCache(_Fake):
    def __init__(self, blob: bytes) -> None:
        self._entries = bytearray(blob)

    def serialize(self) -> Any:
        return memoryview(bytes(self._entries))


class OnnxParser(_Fake):
    num_errors = 0

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        network._parser = weakref.ref(self)
        self._logger = logger
        self._errors: tuple[str, ...] = ()

    def parse(self, model: bytes) -> bool:
        self._errors = self._module.script.parser_errors
        if not self._errors:
            try:
                proto = onnx.load_from_string(model)
                onnx.checker.check_model(proto)
                self._network._fill(proto)
            except Exception as error:  # noqa: BLE001  (the parser never raises, whatever the bytes are)
                self._errors = (f"Failed to parse the ONNX model: {type(error).__name__}",)
        self.num_errors = len(self._errors)
        return not self._errors

    def get_error(self, index: int) -> Any:
        return self._module.make("ParserError", self._errors[index])


class ParserError(_Fake):
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "conv1"


class Runtime(_Fake):
    def __init__(self, logger: Any) -> None:
        assert logger._ready
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        if self._module.script.plan_refused or not serialized_engine.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "the plan was made by another version")
            return None
        return self._module.make("ICudaEngine", serialized_engine[len(MAGIC) :], self._logger)


class ICudaEngine(_Fake):
    num_io_tensors = 0

    def __init__(self, model: bytes, logger: Any) -> None:
        self._logger = logger
        self._proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
        self._layers = _layers(self._proto, self._module.script)
        self._reference = any(layer.name.startswith("depthwise") for layer in self._layers)
        graph = self._proto.graph
        self._io = {item.name: item for item in (*graph.input, *graph.output)}
        self._inputs = {item.name for item in graph.input}
        self.num_io_tensors = len(self._io)
        self._session: Any = None
        self._last: tuple[list[bytes], list[np.ndarray]] = ([], [])

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._module.TensorIOMode.INPUT if name in self._inputs else self._module.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._module.DataType[DATA_TYPES[self._io[name].type.tensor_type.elem_type]]

    def get_tensor_location(self, name: str) -> Any:
        return self._module.TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _shape(self._io[name])

    def create_execution_context(self) -> Any:
        return None if self._module.script.context_refused else self._module.make("IExecutionContext", self)

    def create_engine_inspector(self) -> Any:
        return self._module.make("EngineInspector", self)

    def _compute(self, given: dict[str, bytes]) -> list[np.ndarray]:
        """The outputs for these bytes; once for the same ones."""
        if self._last[0] != list(given.values()):
            import onnxruntime

            if self._session is None:
                self._session = onnxruntime.InferenceSession(self._proto.SerializeToString())
            arrays = {name: _array(self._io[name], data) for name, data in given.items()}
            self._last = list(given.values()), self._session.run(None, arrays)
        outputs = self._last[1]
        return [array + array.dtype.type(1) for array in outputs] if self._module.script.wrong_outputs else outputs


class IExecutionContext(_Fake):
    nvtx_verbosity: Any = None
    profiler: Any = None
    enqueue_emits_profile = True

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._engine.get_tensor_shape(name)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = int(memory)
        return name in self._engine._io

    def execute_async_v3(self, stream_handle: int) -> bool:
        module = self._module
        assert self.nvtx_verbosity is module.ProfilingVerbosity.NONE, "NVTX ranges slow the enqueueing"
        if module.script.enqueue_refused or set(self._addresses) != set(self._engine._io):
            return False
        for layer in self._engine._layers:
            if module.cudart.fake_kernel(ctypes.c_double(1e6 * layer.ms), int(not self._engine._reference)):
                self._engine._logger.log(Severity.ERROR, "a kernel could not be enqueued")
                return False
        if module.script.compute:
            module.enqueue(self._compute)
        return True

    def report_to_profiler(self) -> bool:
        assert self.profiler._ready
        assert not self.enqueue_emits_profile
        for layer in self._engine._layers:
            self.profiler.report_layer_time(layer.name, layer.ms + PROFILER_OVERHEAD_MS)
        return True

    def _compute(self) -> None:
        engine = self._engine
        given = {
            name: ctypes.string_at(self._addresses[name], _bytes(item))
            for name, item in engine._io.items()
            if name in engine._inputs
        }
        names = [name for name in engine._io if name not in engine._inputs]
        for name, array in zip(names, engine._compute(given), strict=True):
            data = np.ascontiguousarray(array).tobytes()
            ctypes.memmove(self._addresses[name], data, len(data))


class EngineInspector(_Fake):
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        assert format is self._module.LayerInformationFormat.JSON
        major = int(self._module.names.version.split(".")[0])
        layers = [_described(layer, major) for layer in self._engine._layers]
        if major >= 11:
            return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": name} for name in self._engine._io]})
        return json.dumps({"Layers": layers, "Bindings": list(self._engine._io)})


IMITATED: tuple[type, ...] = (
    ILogger,
    IProfiler,
    Builder,
    INetworkDefinition,
    ITensor,
    IBuilderConfig,
    ITimingCache,
    OnnxParser,
    ParserError,
    Runtime,
    ICudaEngine,
    IExecutionContext,
    EngineInspector,
)


class FakeTensorRt(types.ModuleType):
    """The module: `script` says what goes wrong, `cudart` is the fake CUDA runtime's library."""

    def __init__(self, names: Names, script: Script, cudart: ctypes.CDLL) -> None:
        super().__init__("tensorrt")
        self.__version__ = names.version
        self.names, self.script, self.cudart = names, script, cudart
        self._callbacks: list[Any] = []
        self._numbers: dict[Callable[[], None], int] = {}
        for name, members in names.enums.items():
            setattr(self, name, Number(name, dict(members)) if members else type(name, (), {}))
        for kind in IMITATED:
            setattr(self, kind.__name__, _limited(kind, names.classes[kind.__name__], self))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"TensorRT {self.__dict__['names'].version} has no '{name}', or the fake does not")

    def make(self, name: str, *arguments: Any) -> Any:
        """A new fake object."""
        return getattr(self, name)(*arguments)

    def enqueue(self, compute: Callable[[], None]) -> None:
        """Put a Python function on the stream, or into the graph that is captured."""
        if compute not in self._numbers:
            self._numbers[compute] = len(self._callbacks)
            self._callbacks.append(CALLBACK(lambda number, run=compute: run()))
        self.cudart.fake_call(self._callbacks[self._numbers[compute]], ctypes.c_long(0))


def _limited(kind: type, allowed: frozenset[str], module: FakeTensorRt) -> type:
    """The class with the names that this version has."""

    def missing(name: str) -> property:
        def refuse(self: object) -> None:
            raise NotImplementedError(f"the fake TensorRT does not imitate {kind.__name__}.{name}")

        return property(refuse)

    members = {name: value for name, value in vars(kind).items() if name.startswith("_") or name in allowed}
    extra = {name: missing(name) for name in allowed if name not in members}
    members.pop("__dict__", None)
    members.pop("__weakref__", None)
    base = (_Fake,) if issubclass(kind, _Fake) else ()
    return type(kind.__name__, base, {**extra, **members, "_allowed": allowed, "_module": module})


def _shape(item: Any) -> tuple[int, ...]:
    dims = item.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)


def _kind(item: Any) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type))


def _bytes(item: Any) -> int:
    return int(np.prod(_shape(item), dtype=np.int64)) * _kind(item).itemsize


def _array(item: Any, data: bytes) -> np.ndarray:
    return np.frombuffer(data, _kind(item)).reshape(_shape(item))


def _layers(proto: onnx.ModelProto, script: Script) -> list[_Layer]:
    """The operators with what is fused into them, timed as the simulated runtime does; a reformat before the first."""
    first = proto.graph.input[0]
    timed = SimulatedRuntime().layer_times(proto.SerializeToString(), Target(batch=_shape(first)[0]), runs=1)
    costs = iter(timed)
    graph = proto.graph
    halves = {
        item.name
        for item in (*graph.value_info, *graph.input, *graph.output)
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    found: list[_Layer] = []
    for node in graph.node:
        if node.op_type in FREE:
            if found:
                found[-1].nodes.append(node.name)
            continue
        cost = next(costs)
        ends = (node.input[0], node.output[0])
        types_ = tuple("FP16" if end in halves and node.name not in script.fp32_layers else "FP32" for end in ends)
        found.append(_Layer("", [node.name], node.op_type, cost.latency_ms, cost.in_shapes, cost.out_shapes, types_))
    for layer in found:
        layer.name = " + ".join(layer.nodes)
    if found:
        shape = (_shape(first),)
        name = f"Reformatting CopyNode for Input Tensor 0 to {found[0].name}"
        found.insert(0, _Layer(name, [], "Reformat", 0.002, shape, shape, found[0].types))
    return found


def _described(layer: _Layer, major: int) -> dict[str, Any]:
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
