"""The half of the scripted TensorRT that makes plans: logger, builder, network, parser."""

from __future__ import annotations

import weakref
from typing import Any

import onnx
from fake_trt_base import MAGIC, Fake, Severity, shape_of


class ILogger:
    def __init__(self) -> None:
        self._ready = True

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity


class IProfiler:
    def __init__(self) -> None:
        self._ready = True


class Builder(Fake):
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
                "iterations": config.avg_timing_iterations,
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


class INetworkDefinition(Fake):
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


class ITensor(Fake):
    def __init__(self, proto: onnx.ModelProto, index: int) -> None:
        self._proto = proto
        self._value = proto.graph.input[index]

    @property
    def name(self) -> str:
        return str(self._value.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self._value)

    @shape.setter
    def shape(self, shape: tuple[int, ...]) -> None:
        dims = self._value.type.tensor_type.shape.dim
        named = {dim.dim_param: size for dim, size in zip(dims, shape, strict=True) if dim.dim_param}
        for value in (*self._proto.graph.input, *self._proto.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in named:
                    dim.dim_value = named[dim.dim_param]


class IBuilderConfig(Fake):
    builder_optimization_level = 3
    max_aux_streams = None
    avg_timing_iterations = 1
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
        refused = self._module.script.no_timing_cache
        if refused == "any" or (refused and serialized_timing_cache):
            return None
        return self._module.make("ITimingCache", serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache is None:
            raise TypeError("set_timing_cache(): incompatible function arguments")
        if cache._entries and self._module.script.foreign_timing_cache and not ignore_mismatch:
            return False
        self._cache = cache
        return True


class ITimingCache(Fake):
    def __init__(self, blob: bytes) -> None:
        self._entries = bytearray(blob)

    def serialize(self) -> Any:
        return memoryview(bytes(self._entries))


class OnnxParser(Fake):
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


class ParserError(Fake):
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "conv1"
