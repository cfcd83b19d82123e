"""The half of the scripted TensorRT that runs plans: engine, context, inspector."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fake_trt_base import MAGIC, Fake, Severity, shape_of
from fake_trt_layers import described, layers_of

DATA_TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.BOOL: "BOOL",
}
PROFILER_OVERHEAD_MS = 0.004  # what the profiler's events add to every layer


class Runtime(Fake):
    def __init__(self, logger: Any) -> None:
        assert logger._ready
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        if self._module.script.plan_refused or not serialized_engine.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "the plan was made by another version")
            return None
        return self._module.make("ICudaEngine", serialized_engine[len(MAGIC) :], self._logger)


class ICudaEngine(Fake):
    num_io_tensors = 0

    def __init__(self, model: bytes, logger: Any) -> None:
        self._logger = logger
        self._proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
        self._layers = layers_of(self._proto, self._module.script)
        self._reference = any(layer.name.startswith("depthwise") for layer in self._layers)
        graph = self._proto.graph
        self._io = {item.name: item for item in (*graph.input, *graph.output)}
        self._inputs = {item.name for item in graph.input}
        self._sizes = {item.name: _bytes(item) for item in graph.input}
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
        return shape_of(self._io[name])

    def create_execution_context(self) -> Any:
        return None if self._module.script.context_refused else self._module.make("IExecutionContext", self)

    def create_engine_inspector(self) -> Any:
        return self._module.make("EngineInspector", self)

    def _compute(self, given: dict[str, bytes]) -> list[np.ndarray]:
        """The outputs for these bytes; once for the same ones."""
        if self._last[0] != list(given.values()):
            if self._session is None:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = 1  # engines are many, and threads outlive the test
                self._session = onnxruntime.InferenceSession(self._proto.SerializeToString(), options)
            arrays = {name: _array(self._io[name], data) for name, data in given.items()}
            self._last = list(given.values()), self._session.run(None, arrays)
        outputs = self._last[1]
        return [array + array.dtype.type(1) for array in outputs] if self._module.script.wrong_outputs else outputs


class IExecutionContext(Fake):
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
        given = {name: ctypes.string_at(self._addresses[name], size) for name, size in engine._sizes.items()}
        names = [name for name in engine._io if name not in engine._inputs]
        for name, array in zip(names, engine._compute(given), strict=True):
            data = np.ascontiguousarray(array).tobytes()
            ctypes.memmove(self._addresses[name], data, len(data))


class EngineInspector(Fake):
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        assert format is self._module.LayerInformationFormat.JSON
        major = int(self._module.names.version.split(".")[0])
        layers = [described(layer, major) for layer in self._engine._layers]
        if major >= 11:
            return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": name} for name in self._engine._io]})
        return json.dumps({"Layers": layers, "Bindings": list(self._engine._io)})


def _kind(item: Any) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type))


def _bytes(item: Any) -> int:
    return int(np.prod(shape_of(item), dtype=np.int64)) * _kind(item).itemsize


def _array(item: Any, data: bytes) -> np.ndarray:
    return np.frombuffer(data, _kind(item)).reshape(shape_of(item))
