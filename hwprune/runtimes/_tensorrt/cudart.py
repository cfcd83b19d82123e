"""The functions of the CUDA runtime that measuring takes, behind one call: by ctypes, or through cuda-python.

Each call returns the error code and the results as plain numbers. Handles and device pointers are ints. Every function
listed here is exported with the same binary interface by the runtimes of CUDA 11.4 to 13.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hwprune.core.errors import DeviceError

IN, OUT = "in", "out"
_PTR, _INT, _UINT, _SIZE, _U64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_ulonglong

SIGNATURES: dict[str, tuple[tuple[str, Any], ...]] = {
    "cudaGetDeviceCount": ((OUT, _INT),),
    "cudaSetDevice": ((IN, _INT),),
    "cudaSetDeviceFlags": ((IN, _UINT),),
    "cudaDeviceGetAttribute": ((OUT, _INT), (IN, _INT), (IN, _INT)),
    "cudaMemGetInfo": ((OUT, _SIZE), (OUT, _SIZE)),
    "cudaRuntimeGetVersion": ((OUT, _INT),),
    "cudaDriverGetVersion": ((OUT, _INT),),
    "cudaDeviceSynchronize": (),
    "cudaGetLastError": (),
    "cudaMalloc": ((OUT, _PTR), (IN, _SIZE)),
    "cudaFree": ((IN, _PTR),),
    "cudaMemcpy": ((IN, _PTR), (IN, _PTR), (IN, _SIZE), (IN, _INT)),
    "cudaStreamCreateWithFlags": ((OUT, _PTR), (IN, _UINT)),
    "cudaStreamDestroy": ((IN, _PTR),),
    "cudaStreamSynchronize": ((IN, _PTR),),
    "cudaStreamBeginCapture": ((IN, _PTR), (IN, _INT)),
    "cudaStreamEndCapture": ((IN, _PTR), (OUT, _PTR)),
    "cudaEventCreateWithFlags": ((OUT, _PTR), (IN, _UINT)),
    "cudaEventDestroy": ((IN, _PTR),),
    "cudaEventRecord": ((IN, _PTR), (IN, _PTR)),
    "cudaEventElapsedTime": ((OUT, ctypes.c_float), (IN, _PTR), (IN, _PTR)),
    "cudaGraphInstantiateWithFlags": ((OUT, _PTR), (IN, _PTR), (IN, _U64)),
    "cudaGraphLaunch": ((IN, _PTR), (IN, _PTR)),
    "cudaGraphGetNodes": ((IN, _PTR), (IN, _PTR), (OUT, _SIZE)),
    "cudaGraphDestroy": ((IN, _PTR),),
    "cudaGraphExecDestroy": ((IN, _PTR),),
}
OLD_DRIVER = 35  # the driver does not serve a runtime as new as this one
NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib", "/usr/lib/aarch64-linux-gnu")
WHEELS = ("cu13/lib", "cuda_runtime/lib")  # inside the package `nvidia`, which NVIDIA's wheels share


class AbstractCalls(ABC):
    """The CUDA runtime as numbers in, numbers out. `source` is the file or package that it comes from."""

    name: ClassVar[str]
    source: str

    @abstractmethod
    def call(self, function: str, *values: int) -> tuple[Any, ...]:
        """The error code (0 is success), then the results in the order of the C signature."""

    @abstractmethod
    def error_text(self, code: int) -> str:
        """CUDA's own name and sentence for an error code."""

    def prepared(self, function: str, *values: int) -> Callable[[], int]:
        """A function without results and with fixed arguments that returns its error code, made to be called often."""
        return lambda: int(self.call(function, *values)[0])


class CtypesCalls(AbstractCalls):
    """libcudart through ctypes: nothing to install where CUDA is."""

    name: ClassVar[str] = "ctypes"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.source = str(library._name)
        self._functions = {}
        for name, signature in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [ctypes.POINTER(kind) if way == OUT else kind for way, kind in signature]
            function.restype = ctypes.c_int
            self._functions[name] = function
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            getattr(library, name).argtypes = [ctypes.c_int]
            getattr(library, name).restype = ctypes.c_char_p

    def call(self, function: str, *values: int) -> tuple[Any, ...]:
        given = iter(values)
        cells = [kind() if way == OUT else kind(next(given)) for way, kind in SIGNATURES[function]]
        passed = [ctypes.byref(cell) if way == OUT else cell for (way, _), cell in zip(SIGNATURES[function], cells)]
        code = self._functions[function](*passed)
        results = [cell.value or 0 for (way, _), cell in zip(SIGNATURES[function], cells) if way == OUT]
        return (code, *results)

    def prepared(self, function: str, *values: int) -> Callable[[], int]:
        kinds = [kind for _, kind in SIGNATURES[function]]
        return partial(self._functions[function], *(kind(value) for kind, value in zip(kinds, values)))

    def error_text(self, code: int) -> str:
        name, sentence = (
            getattr(self.library, function)(code) or b"" for function in ("cudaGetErrorName", "cudaGetErrorString")
        )
        return f"{name.decode(errors='replace')} ({code}): {sentence.decode(errors='replace')}"


class CudaPythonCalls(AbstractCalls):
    """NVIDIA's cuda-python: where its wheels are installed and libcudart is not found by itself."""

    name: ClassVar[str] = "cuda-python"
    enums: ClassVar[dict[str, tuple[int, str]]] = {
        "cudaMemcpy": (3, "cudaMemcpyKind"),
        "cudaStreamBeginCapture": (1, "cudaStreamCaptureMode"),
        "cudaDeviceGetAttribute": (0, "cudaDeviceAttr"),
    }

    def __init__(self, module: Any) -> None:
        self._module = module
        self.source = "cuda-python"

    def call(self, function: str, *values: int) -> tuple[Any, ...]:
        arguments: list[Any] = list(values)
        if function in self.enums:
            place, name = self.enums[function]
            arguments[place] = getattr(self._module, name)(arguments[place])
        code, *results = getattr(self._module, function)(*arguments)
        if function == "cudaGraphGetNodes":
            results = results[-1:]  # it returns the nodes as well
        return (int(code), *(_number(item) for item in results))

    def error_text(self, code: int) -> str:
        error = self._module.cudaError_t(code)
        name, sentence = (
            getattr(self._module, function)(error)[1] for function in ("cudaGetErrorName", "cudaGetErrorString")
        )
        return f"{name.decode(errors='replace')} ({code}): {sentence.decode(errors='replace')}"


def _number(value: Any) -> Any:
    if value is None:
        return 0
    return value if isinstance(value, float) else int(value)


def load_calls(backend: str, path: str = "") -> AbstractCalls:
    """The CUDA runtime by `backend`: auto, ctypes, cuda-python or pycuda; `path` names a libcudart to take instead.

    `auto` is ctypes where libcudart is found, else cuda-python. With pycuda too the calls go to libcudart: pycuda
    only holds the context. Of several the first one is taken that the driver serves; where it serves none, the first.
    Raises `DeviceError` where there is none.
    """
    too_new: list[AbstractCalls] = []
    for calls in _installed(backend, path):
        if calls.call("cudaGetDeviceCount")[0] != OLD_DRIVER:
            return calls
        too_new.append(calls)
    if too_new:
        return too_new[0]
    if path:
        raise DeviceError(f"cannot load the CUDA runtime from {path}", hint="give the path of a libcudart.so")
    if backend == "cuda-python":
        raise DeviceError("cuda-python is not installed", hint="pip install cuda-python")
    raise DeviceError(
        "the CUDA runtime (libcudart) was not found",
        hint="install CUDA, or name the file with the option cudart; pip install cuda-python has one too",
    )


def _installed(backend: str, path: str) -> Iterator[AbstractCalls]:
    """The CUDA runtimes of this machine, as they are preferred."""
    if backend != "cuda-python":
        yield from map(CtypesCalls, _libraries([path] if path else _candidates()))
    if backend in ("auto", "cuda-python"):
        module = _cuda_python()
        if module is not None:
            yield CudaPythonCalls(module)


def _libraries(candidates: Iterable[str]) -> Iterator[ctypes.CDLL]:
    for candidate in candidates:
        try:
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        if all(hasattr(library, name) for name in SIGNATURES):
            yield library


def _candidates() -> Iterator[str]:
    found = ctypes.util.find_library("cudart")
    if found:
        yield found
    yield from NAMES
    for folder in (*FOLDERS, *_wheel_folders()):
        yield from (str(file) for file in sorted(Path(folder).glob("libcudart.so*"), reverse=True))


def _wheel_folders() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    return [str(Path(root) / part) for root in roots or () for part in WHEELS]


def _cuda_python() -> Any:
    with suppress(ImportError):
        return importlib.import_module("cuda.bindings.runtime")
    with suppress(ImportError):
        return importlib.import_module("cuda.cudart")  # where it was before cuda-python 12.6
    return None
