"""One engine, ready to run: buffers, inputs, a CUDA graph where capture succeeds, plain enqueue where it does not.

The order of the steps is the one that is right in every version: engine, context, buffers, inputs, addresses, one plain
run for whatever is initialised lazily, and only then the capture, which freezes shapes and addresses.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from hwprune.core.errors import UsageError
from hwprune.core.statistics import median
from hwprune.core.tensors import ITEM_BYTES, RawTensor, volume
from hwprune.runtimes._base import AbstractSession
from hwprune.runtimes._refusals import check_tensors
from hwprune.runtimes._tensorrt.api import Context, Engine, Module
from hwprune.runtimes._tensorrt.cuda import Cuda, Graph, timed_region
from hwprune.runtimes._tensorrt.errors import CudaError, EngineRefused, RunFailed
from hwprune.runtimes._tensorrt.log import Log

if TYPE_CHECKING:
    import numpy as np

    from hwprune.runtimes._nvidia import ClockSpan
    from hwprune.runtimes._tensorrt.api import Runtime

TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
BLOCK = 4099  # so many input values, repeated; a prime, so that no two channels of a network are alike
PROBE_RUNS, PROBE_MS = 9, 20.0  # runs in which it is found out whether the host keeps up; fewer when they are long
HOST_BOUND = 0.8  # trtexec's rule: enqueueing takes longer than this share of the GPU's time


@dataclass(frozen=True)
class Binding:
    """An input or output of an engine, and its place in device memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    address: int
    is_input: bool

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes."""
        return volume(self.shape) * ITEM_BYTES[self.dtype]


class TrtSession(AbstractSession):
    """Runs a plan on the stream of a GPU. `graph` asks for a CUDA graph; `kernels` are its nodes, 0 without one."""

    def __init__(self, trt: Module, runtime: Runtime, cuda: Cuda, log: Log, plan: bytes, *, graph: bool = True) -> None:
        self._trt = trt
        self._cuda = cuda
        self._log = log
        self._bindings: tuple[Binding, ...] = ()
        self._graph: Graph | None = None
        self._notes: list[str] = []
        self._clocks: ClockSpan | None = None
        self.kernels = 0
        self.engine = _engine(runtime, plan, log)
        self.context = self.new_context()
        try:
            for index in range(self.engine.num_io_tensors):
                self._bindings += (self._bind(index),)
            self._fill()
            self.enqueue()
            cuda.synchronise()
            self._run: Callable[[], None] = self._captured() if graph else self.enqueue
            self._probe_host()
        except BaseException:
            self.close()
            raise

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._notes)

    @property
    def facts(self) -> Mapping[str, str]:
        clocks = self._clocks.facts() if self._clocks is not None else {}
        return {"graph": "captured" if self._graph else "enqueued", "kernels": str(self.kernels), **clocks}

    def note(self, warning: str) -> None:
        """Add what became known about this engine."""
        self._notes.append(warning)

    def watch_clocks(self, clocks: ClockSpan) -> None:
        """Tell of the GPU's clock among the facts."""
        self._clocks = clocks

    def run(self) -> None:
        """Put one inference on the stream; the clock waits for it."""
        self._run()

    def enqueue(self) -> None:
        """One inference without a graph. Raises `RunFailed` when TensorRT refuses."""
        self._cuda.ensure_alive()
        if not self.context.execute_async_v3(self._cuda.stream):
            self._cuda.raise_pending()  # an error of CUDA says more
            raise RunFailed(
                f"TensorRT refused to enqueue the inference: {self._log.take_text()}", hint="leave this network out"
            )

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = self.infer_raw({name: RawTensor.of(array) for name, array in inputs.items()})
        return [item.array() for item in found]

    def infer_raw(self, inputs: Mapping[str, RawTensor]) -> list[RawTensor]:
        self._check_inputs(inputs)
        try:
            for item in self._inputs():
                self._cuda.write(item.address, inputs[item.name].data)
            self._run()
            outputs = [item for item in self._bindings if not item.is_input]
            return [
                RawTensor(item.dtype, item.shape, self._cuda.read(item.address, item.size_bytes)) for item in outputs
            ]
        finally:
            if not self._cuda.lost:
                self._fill()  # what is timed later are the standard inputs again

    def close(self) -> None:
        with suppress(CudaError):  # one that came meanwhile; it comes again if the GPU is lost
            self._cuda.synchronise()
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for item in self._bindings:
            self._cuda.free(item.address)
        self._bindings = ()
        self._run = self._closed
        self.__dict__.pop("context", None)  # before the engine that made it
        self.__dict__.pop("engine", None)

    def unrolled(self, copies: int) -> Graph | None:
        """A graph of so many inferences one after the other; None where CUDA cannot capture it."""

        def enqueue() -> None:
            for _ in range(copies):
                self.enqueue()

        return self._cuda.capture(enqueue)

    def new_context(self) -> Context:
        """An execution context with these buffers, without NVTX ranges, which would slow the enqueueing."""
        context = self.engine.create_execution_context()
        if context is None:
            raise EngineRefused(
                f"TensorRT made no execution context: {self._log.take_text()}", hint="free device memory"
            )
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        for item in self._bindings:
            context.set_tensor_address(item.name, item.address)
        return context

    def _bind(self, index: int) -> Binding:
        trt, engine = self._trt, self.engine
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise UsageError(f"tensor '{name}' lives on the host, which cannot be timed", hint="export fixed shapes")
        dtype = TYPES.get(engine.get_tensor_dtype(name).name, "")
        if not dtype:
            kind = engine.get_tensor_dtype(name).name
            raise UsageError(f"tensor '{name}' is of type {kind}, which cannot be timed", hint="use float inputs")
        shape = tuple(int(size) for size in self.context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise UsageError(f"tensor '{name}' has no fixed shape: {shape}", hint="export it with fixed sizes")
        address = self._cuda.allocate(volume(shape) * ITEM_BYTES[dtype])
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        if not self.context.set_tensor_address(name, address):
            self._cuda.free(address)
            raise EngineRefused(
                f"TensorRT does not take the memory for tensor '{name}': {self._log.take_text()}",
                hint="leave this network out",
            )
        return Binding(name, dtype, shape, address, is_input)

    def _inputs(self) -> tuple[Binding, ...]:
        return tuple(item for item in self._bindings if item.is_input)

    def _fill(self) -> None:
        for item in self._inputs():
            self._cuda.write(item.address, example_bytes(item.dtype, volume(item.shape)))

    def _captured(self) -> Callable[[], None]:
        self._graph = self._cuda.capture(self.enqueue)
        if self._graph is None:
            self._notes.append("no_cuda_graph")
            return self.enqueue
        self.kernels = self._graph.nodes
        return self._graph.launch

    def _probe_host(self) -> None:
        """Compare the time to enqueue with the time to compute: a GPU that waits for the host tells about the host."""
        host, device = [], []
        for _ in range(PROBE_RUNS):
            with timed_region(self._cuda) as (mark, elapsed_ms):
                self._run()  # keeps the GPU busy while the next one is enqueued
                mark()
                begin = self._cuda.now_s()
                self._run()
                host.append(1e3 * (self._cuda.now_s() - begin))
                mark()
                device.append(elapsed_ms())
            if math.fsum(device) > PROBE_MS:
                break
        if median(host) > HOST_BOUND * median(device):
            self._notes.append("host_bound")

    def _check_inputs(self, inputs: Mapping[str, RawTensor]) -> None:
        check_tensors(
            {name: (item.dtype, item.shape) for name, item in inputs.items()},
            {item.name: (item.dtype, item.shape) for item in self._inputs()},
        )

    def _closed(self) -> None:
        raise RunFailed("the session is closed", hint="open another one")


def example_bytes(dtype: str, count: int) -> bytes:
    """Values to time with, in C order: finite and away from zero, since zeros draw less power and run faster.

    Floats of size 0.5 to 1.5 with either sign, ones for integers.
    """
    if dtype not in ("float16", "float32", "float64"):
        return (1).to_bytes(ITEM_BYTES[dtype], "little") * count
    whole = _block({"float16": "e", "float32": "f", "float64": "d"}[dtype]) * (count // BLOCK + 1)
    return whole[: count * ITEM_BYTES[dtype]]


@lru_cache(maxsize=3)  # one for each type
def _block(code: str) -> bytes:
    rng = random.Random(0)
    values = [rng.choice((-1, 1)) * rng.uniform(0.5, 1.5) for _ in range(BLOCK)]
    return struct.pack(f"<{BLOCK}{code}", *values)


def _engine(runtime: Runtime, plan: bytes, log: Log) -> Engine:
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineRefused(
            f"TensorRT does not load the plan it built ({len(plan)} bytes): {log.take_text()}",
            hint="free device memory; a plan is only good for the GPU and version that built it",
        )
    return engine
