"""The part of the TensorRT Python API that is used here, as types, and the module that has it.

Every name below exists from TensorRT 8.5.2 to 11.x, or is asked for with `hasattr` where it is used; a test compares
them with the real bindings. Enumerations change their numbers between versions, so none is ever written as a number.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Protocol, cast

from hwprune.core.errors import DeviceError, UsageError

PACKAGES = ("tensorrt", "tensorrt_rtx")
STRONG_TYPING_SINCE = (10, 12)  # the flag is older, but NVIDIA calls it complete from here on


class Dims(Protocol):
    """A shape; -1 is a free size."""

    def __iter__(self) -> Iterator[int]: ...


class Tensor(Protocol):
    """A tensor of a network under construction."""

    name: str
    shape: Any
    dtype: Any


class Network(Protocol):
    """A parsed network."""

    num_inputs: int
    num_outputs: int
    num_layers: int

    def get_input(self, index: int) -> Tensor: ...


class Config(Protocol):
    """How to build."""

    avg_timing_iterations: int
    builder_optimization_level: int
    max_aux_streams: int
    profiling_verbosity: Any

    def set_flag(self, flag: Any) -> None: ...

    def clear_flag(self, flag: Any) -> None: ...

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCacheObject | None: ...

    def set_timing_cache(self, cache: TimingCacheObject, ignore_mismatch: bool) -> bool: ...


class TimingCacheObject(Protocol):
    """The builder's memory of how long each kernel took."""

    def serialize(self) -> HostMemory: ...


class HostMemory(Protocol):
    """Bytes that TensorRT owns."""

    nbytes: int


class Builder(Protocol):
    """Makes plans."""

    def create_network(self, flags: int) -> Network: ...

    def create_builder_config(self) -> Config: ...

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None: ...


class ParserError(Protocol):
    """One complaint of the ONNX parser."""

    def desc(self) -> str: ...

    def node(self) -> int: ...

    def node_name(self) -> str: ...

    def node_operator(self) -> str: ...


class Parser(Protocol):
    """Reads ONNX."""

    num_errors: int

    def parse(self, model: bytes) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class Inspector(Protocol):
    """Tells what an engine is made of."""

    def get_engine_information(self, format: Any) -> str: ...


class Engine(Protocol):
    """A plan, loaded."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Any: ...

    def get_tensor_dtype(self, name: str) -> Any: ...

    def get_tensor_location(self, name: str) -> Any: ...

    def get_tensor_shape(self, name: str) -> Dims: ...

    def create_execution_context(self) -> Context | None: ...

    def create_engine_inspector(self) -> Inspector: ...


class Context(Protocol):
    """An engine with its working memory."""

    nvtx_verbosity: Any
    profiler: Any
    enqueue_emits_profile: bool

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def get_tensor_shape(self, name: str) -> Dims: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...

    def report_to_profiler(self) -> bool: ...


class Runtime(Protocol):
    """Loads plans."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None: ...


class Module(Protocol):
    """The package `tensorrt`, or `tensorrt_rtx`, which has the same form."""

    __version__: str
    Builder: Any
    BuilderFlag: Any
    ILogger: Any
    IBuilderConfig: Any
    IExecutionContext: Any
    IProfiler: Any
    LayerInformationFormat: Any
    MemoryPoolType: Any
    NetworkDefinitionCreationFlag: Any
    OnnxParser: Any
    ProfilingVerbosity: Any
    Runtime: Any
    TensorIOMode: Any
    TensorLocation: Any


def load(package: str = "tensorrt") -> Module:
    """The installed TensorRT. Raises `DeviceError` when it is missing, broken, or older than 8.5."""
    if package not in PACKAGES:
        raise UsageError(f"unknown package '{package}'", hint=f"known: {', '.join(PACKAGES)}")
    try:
        trt = cast("Module", importlib.import_module(package))
    except ImportError as error:
        raise DeviceError(
            f"TensorRT cannot be imported: {error}",
            hint="on a Jetson it comes with JetPack (apt install python3-libnvinfer); elsewhere: pip install tensorrt",
        ) from error
    if not hasattr(trt.IExecutionContext, "execute_async_v3"):
        raise DeviceError(
            f"TensorRT {trt.__version__} is too old: it cannot enqueue by tensor names",
            hint="TensorRT 8.5.2 or later is needed, which comes with JetPack 5.1 or later",
        )
    return trt


def version(trt: Module) -> tuple[int, ...]:
    """`(10, 3)` of 10.3.0."""
    return tuple(int(part) for part in trt.__version__.split(".")[:2])


def is_strongly_typed(trt: Module, typing: str) -> bool:
    """Whether networks are built with the types of the ONNX file and no others.

    `typing` is strong, weak or auto. Raises `UsageError` for a choice this TensorRT does not have.
    """
    has_strong = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    has_weak = hasattr(trt.BuilderFlag, "FP16")
    if typing == "strong" and not has_strong:
        raise UsageError(f"TensorRT {trt.__version__} has no strong typing", hint="use typing auto or weak")
    if typing == "weak" and not has_weak:
        raise UsageError(f"TensorRT {trt.__version__} has no weak typing", hint="use typing auto or strong")
    if typing == "auto":
        return has_strong and (not has_weak or version(trt) >= STRONG_TYPING_SINCE)
    return typing == "strong"
