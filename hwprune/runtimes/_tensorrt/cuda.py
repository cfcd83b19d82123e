"""One GPU of this process: memory, a stream, events, graphs; every failed call becomes one exception.

One process, one context (the primary one), one thread at a time that works with the GPU.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwprune.core.errors import DeviceError
from hwprune.runtimes._nvidia import Jetson
from hwprune.runtimes._tensorrt.cudart import OLD_DRIVER, AbstractCalls
from hwprune.runtimes._tensorrt.errors import MEMORY, CudaError, DeviceLost

TO_DEVICE, TO_HOST = 1, 2
NON_BLOCKING = 1  # a stream that does not wait for the default one
PLAIN_EVENT = 0  # one that has a time stamp and follows the device's way of waiting
SPINNING = 1  # the host waits by spinning; sleeping until an interrupt, as on a Jetson by itself, adds its jitter
THREAD_LOCAL = 1  # capture that other threads do not disturb
NO_GPU, OUT_OF_MEMORY = 100, 2
ROOT = Path("/")
CURRENT = threading.local()  # `index`: the GPU that CUDA uses in a thread; a new thread begins with number 0
ATTRIBUTES = {
    "multiprocessors": 16,
    "major": 75,
    "minor": 76,
    "l2_bytes": 38,
    "pci_bus": 33,
    "pci_device": 34,
    "pci_domain": 50,
}


class Cuda:
    """The GPU number `index` through the CUDA runtime; `now_s` is the host's clock. `DeviceError` without a GPU."""

    def __init__(self, calls: AbstractCalls, index: int = 0, *, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._calls = calls
        self.now_s = now_s
        self._lost: DeviceLost | None = None
        self._capturing = False
        self.backend = calls.name
        self.index = index
        code, count = calls.call("cudaGetDeviceCount")
        if code or index >= count:
            raise _no_gpu(calls, code, count, index)
        self._become_current()
        self._wait_by_spinning()
        self.stream = int(self._call("cudaStreamCreateWithFlags", NON_BLOCKING))
        self._wait = self._quick("cudaStreamSynchronize", self.stream)

    @property
    def lost(self) -> bool:
        """Whether a sticky error has ended this process's use of the GPU."""
        return self._lost is not None

    def attribute(self, name: str) -> int:
        """One of `ATTRIBUTES`; major and minor are of the compute capability."""
        return int(self._call("cudaDeviceGetAttribute", ATTRIBUTES[name], self.index))

    def bus_id(self) -> str:
        """Where the GPU is plugged in, as NVML wants it: numbers follow CUDA_VISIBLE_DEVICES, and this does not."""
        domain, bus, device = (self.attribute(f"pci_{part}") for part in ("domain", "bus", "device"))
        return f"{domain:08x}:{bus:02x}:{device:02x}.0"

    def versions(self) -> tuple[str, str]:
        """The versions of the CUDA runtime, and of the newest that the driver serves: `12.6`."""
        numbers = [int(self._call(name)) for name in ("cudaRuntimeGetVersion", "cudaDriverGetVersion")]
        runtime, driver = (f"{number // 1000}.{number % 1000 // 10}" for number in numbers)
        return runtime, driver

    def memory_bytes(self) -> tuple[int, int]:
        """(free, total) memory of the device."""
        code, free, total = self._raw("cudaMemGetInfo")
        self._check(code, "cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size_bytes: int) -> int:
        """The address of new device memory; at least one byte, since some tensors are empty."""
        return int(self._call("cudaMalloc", max(size_bytes, 1)))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._release("cudaFree", address)

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes to the device and wait.

        A copy from pageable memory may return before it has arrived, and the stream does not wait for it by itself.
        """
        self.synchronise()
        host = ctypes.create_string_buffer(data, len(data))
        self._call("cudaMemcpy", address, ctypes.addressof(host), len(data), TO_DEVICE)
        self._call("cudaDeviceSynchronize")

    def read(self, address: int, size_bytes: int) -> bytes:
        """Wait for the stream, then copy bytes from the device."""
        self.synchronise()
        host = ctypes.create_string_buffer(max(size_bytes, 1))
        self._call("cudaMemcpy", ctypes.addressof(host), address, size_bytes, TO_HOST)
        return host.raw[:size_bytes]

    def synchronise(self) -> None:
        """Wait until everything on the stream is done."""
        self.ensure_alive()
        self._wait()

    def raise_pending(self) -> None:
        """Raise the error that another library's CUDA calls have left behind, if there is one.

        A library with a CUDA runtime of its own keeps its last error to itself, but a sticky one comes from every call.
        """
        code = self._raw("cudaGetLastError")[0]
        if not code and not self._capturing:
            code = self._raw("cudaDeviceSynchronize")[0]
        self._check(code, "an earlier CUDA call")

    def event(self) -> int:
        """A new event with a time stamp (about 0.5 us fine)."""
        return int(self._call("cudaEventCreateWithFlags", PLAIN_EVENT))

    def recorder(self, event: int) -> Callable[[], None]:
        """A function that marks the event on the stream."""
        return self._quick("cudaEventRecord", event, self.stream)

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Device time between two recorded events that have passed."""
        return float(self._call("cudaEventElapsedTime", begin, end))

    def destroy_event(self, event: int) -> None:
        """Free an event."""
        self._release("cudaEventDestroy", event)

    def capture(self, enqueue: Callable[[], None]) -> Graph | None:
        """What `enqueue` puts on the stream as a graph; None where CUDA cannot capture it.

        A refused capture leaves its error behind for the next call, so that is cleared. Raises `DeviceLost` when the
        refusal was a sticky error.
        """
        code = self._raw("cudaStreamBeginCapture", self.stream, THREAD_LOCAL)[0]
        if code:
            self._forget(code, "cudaStreamBeginCapture")
            return None
        refused, graph = False, 0
        self._capturing = True
        try:
            enqueue()
        except DeviceError:
            refused = True
        finally:
            self._capturing = False
            code, graph = self._calls.call("cudaStreamEndCapture", self.stream)
        if refused or code or not graph:
            if graph:
                self._calls.call("cudaGraphDestroy", graph)
            self._forget(code, "cudaStreamEndCapture")
            return None
        return self._instantiated(graph)

    def _instantiated(self, graph: int) -> Graph | None:
        try:
            nodes = int(self._call("cudaGraphGetNodes", graph, 0))
            code, executable = self._raw("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._release("cudaGraphDestroy", graph)
        if code:
            self._forget(code, "cudaGraphInstantiateWithFlags")
            return None
        return Graph(self, executable, nodes)

    def launcher(self, executable: int) -> Callable[[], None]:
        """A function that puts a graph on the stream."""
        return self._quick("cudaGraphLaunch", executable, self.stream)

    def destroy_graph(self, executable: int) -> None:
        """Free an instantiated graph."""
        self._release("cudaGraphExecDestroy", executable)

    def close(self) -> None:
        """Free the stream."""
        self._release("cudaStreamDestroy", self.stream)

    def fail(self, code: int, doing: str) -> CudaError:
        """The exception for an error code; finds out whether the error is sticky, and remembers it then.

        An ordinary error is gone once it was read. A sticky one comes back from every call until the process ends.
        """
        text = self._calls.error_text(code)
        self._calls.call("cudaGetLastError")
        again = 0 if self._capturing else self._calls.call("cudaDeviceSynchronize")[0]  # forbidden in a capture
        if not again:
            return CudaError(f"{doing} failed: {text}", code=code, hint=_hint(code))
        self._lost = DeviceLost(
            f"the GPU is lost to this process: {doing} failed with {text}, and so does every call after it",
            code=code,
            hint="start a new process; if the same network does it again, leave it out and report it",
        )
        return self._lost

    def ensure_alive(self) -> None:
        """Raise `DeviceLost` at once when the GPU is out of use for this process; else make it this thread's GPU."""
        if self._lost is not None:
            raise self._lost
        if getattr(CURRENT, "index", None) != self.index:
            self._become_current()

    def _become_current(self) -> None:
        """Choose this GPU for the calling thread, which TensorRT's own calls rest on too."""
        code = self._calls.call("cudaSetDevice", self.index)[0]
        self._check(code, "cudaSetDevice")
        CURRENT.index = self.index

    def _wait_by_spinning(self) -> None:
        """Where CUDA refuses it, the device's own way of waiting stays: end to end times are then longer."""
        code = self._raw("cudaSetDeviceFlags", SPINNING)[0]
        if code:
            self._forget(code, "cudaSetDeviceFlags")

    def _quick(self, function: str, *values: int) -> Callable[[], None]:
        prepared = self._calls.prepared(function, *values)

        def run() -> None:
            code = prepared()
            if code:
                self.ensure_alive()
                raise self.fail(code, function)

        return run

    def _raw(self, function: str, *values: int) -> tuple[Any, ...]:
        self.ensure_alive()
        return self._calls.call(function, *values)

    def _call(self, function: str, *values: int) -> Any:
        code, *results = self._raw(function, *values)
        self._check(code, function)
        return results[0] if results else None

    def _check(self, code: int, function: str) -> None:
        if code:
            raise self.fail(code, function)

    def _forget(self, code: int, function: str) -> None:
        """Clear a refusal; raise when it was more than that."""
        error = self.fail(code, function)
        if isinstance(error, DeviceLost):
            raise error

    def _release(self, function: str, handle: int) -> None:
        """Free something; with the GPU lost there is nothing left to free, and nothing can be."""
        if not self.lost:
            self._call(function, handle)


class Graph:
    """A captured and instantiated CUDA graph; `nodes` are its kernels and copies."""

    def __init__(self, cuda: Cuda, executable: int, nodes: int) -> None:
        self._cuda = cuda
        self._executable = executable
        self.nodes = nodes
        self.launch = cuda.launcher(executable)

    def close(self) -> None:
        """Free it."""
        self._cuda.destroy_graph(self._executable)


@contextmanager
def timed_region(cuda: Cuda) -> Iterator[tuple[Callable[[], None], Callable[[], float]]]:
    """`(mark, elapsed_ms)`: mark the begin, then the end; `elapsed_ms` waits and tells the device time between."""
    events = [cuda.event(), cuda.event()]
    marks = iter([cuda.recorder(event) for event in events])

    def elapsed_ms() -> float:
        cuda.synchronise()
        return cuda.elapsed_ms(*events)

    try:
        yield (lambda: next(marks)()), elapsed_ms
    finally:
        for event in events:
            cuda.destroy_event(event)


def _no_gpu(calls: AbstractCalls, code: int, count: int, index: int) -> DeviceError:
    if code == OLD_DRIVER:
        hint = (
            "install a driver that serves this CUDA version, or name an older libcudart with the option cudart; "
            "without a GPU choose another device"
        )
        text = f"CUDA finds no working driver: {calls.error_text(code)}, asked through {calls.source}"
        return DeviceError(text, hint=hint)
    on_jetson = Jetson.find(ROOT) is not None
    allow = "let your account use it, then log in again: sudo usermod -aG video,render $USER"
    if code and code != NO_GPU:
        hint = allow if on_jetson else "check nvidia-smi"
        return DeviceError(f"CUDA cannot count the GPUs: {calls.error_text(code)}", hint=hint)
    if count and not code:
        return DeviceError(f"there is no GPU number {index}: this machine has {count}", hint=f"use 0 to {count - 1}")
    if on_jetson:
        return DeviceError("CUDA sees no GPU on this Jetson", hint=allow)
    return DeviceError("this machine has no GPU that CUDA can use", hint="check nvidia-smi, or choose another device")


def _hint(code: int) -> str:
    return MEMORY if code == OUT_OF_MEMORY else "the next call may succeed again"
