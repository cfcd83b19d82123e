"""Run in a process of its own: the real cuda-python takes every call of ours, and says that there is no driver.

Prints one JSON document.
"""

from __future__ import annotations

import ctypes
import importlib
import json

from hwprune.core.errors import DeviceError
from hwprune.runtimes._tensorrt.cuda import Cuda
from hwprune.runtimes._tensorrt.cudart import OUT, SIGNATURES, CudaPythonCalls

NULL = ("cudaFree", "cudaGraphGetNodes", "cudaGraphDestroy", "cudaGraphExecDestroy", "cudaEventDestroy")


def main() -> None:
    calls = CudaPythonCalls(importlib.import_module("cuda.bindings.runtime"))
    here = ctypes.addressof(ctypes.create_string_buffer(16))
    wrong = []
    for name, signature in SIGNATURES.items():
        values = [0 if name in NULL else 1 for way, _ in signature if way != OUT]
        code, *results = calls.call(name, *([here, here, 4, 1] if name == "cudaMemcpy" else values))
        if not isinstance(code, int) or len(results) != sum(way == OUT for way, _ in signature):
            wrong.append(f"{name} gave {code!r} and {results!r}")
    try:
        Cuda(calls)
        refused = ""
    except DeviceError as error:
        refused = error.message
    print(json.dumps({"wrong": wrong, "refused": refused}))


if __name__ == "__main__":
    main()
