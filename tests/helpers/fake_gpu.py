"""A GPU that is not there: the fake CUDA runtime and the fake TensorRT together, as tests want them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fake_tensorrt import FakeTensorRt
from fake_trt_base import Names, Script

from hwprune.runtimes._base import AbstractSession
from hwprune.runtimes._tensorrt.cuda import Cuda, Graph
from hwprune.runtimes._tensorrt.cudart import CtypesCalls
from hwprune.runtimes._tensorrt.platform import platform
from hwprune.runtimes.tensorrt import TensorRt

LIVE = ("memory", "streams", "events", "graphs", "executables")


@dataclass
class Gpu:
    """`script` is what TensorRT does wrong; `set` what the GPU does."""

    library: ctypes.CDLL
    path: Path
    names_file: Path = Path()
    cache: Path = Path()
    script: Script = field(default_factory=Script)

    def __post_init__(self) -> None:
        for name in ("fake_now_s",):
            getattr(self.library, name).restype = ctypes.c_double
        for name in ("fake_live", "fake_kernels", "fake_throttle_events"):
            getattr(self.library, name).restype = ctypes.c_long
        self.library.fake_set.argtypes = [ctypes.c_char_p, ctypes.c_double]

    def reset(self) -> None:
        """As at the beginning."""
        self.library.fake_reset()

    def set(self, **settings: float) -> None:
        """Costs, disturbances and faults by name."""
        for name, value in settings.items():
            assert self.library.fake_set(name.encode(), float(value)) == 0, f"the fake GPU has no setting '{name}'"

    def now_s(self) -> float:
        """The virtual time of the host."""
        return float(self.library.fake_now_s())

    def live(self) -> dict[str, int]:
        """How much is allocated of each kind."""
        return {name: int(self.library.fake_live(place)) for place, name in enumerate(LIVE)}

    def cuda(self) -> Cuda:
        """The GPU by itself, its host on the virtual clock too."""
        return Cuda(CtypesCalls(self.library), now_s=self.now_s)

    def tensorrt(self, version: str) -> FakeTensorRt:
        """The module of that version."""
        return FakeTensorRt(Names.read(self.names_file, version), self.script, self.library)

    def install(self, version: str) -> FakeTensorRt:
        """Make that version the one that `import tensorrt` finds."""
        module = self.tensorrt(version)
        sys.modules["tensorrt"] = module
        platform.cache_clear()
        return module

    def runtime(self, **options: str | int | bool) -> TensorRt:
        """The runtime over the fakes, on the virtual clock."""
        found = TensorRt(cudart=str(self.path), cache=str(self.cache), **options)  # type: ignore[arg-type]
        found._platform().cuda.now_s = self.now_s
        return found


class KernelSession(AbstractSession):
    """Kernels of known times as one network, in a CUDA graph unless `graph` is False."""

    def __init__(
        self, gpu: Gpu, cuda: Cuda, kernels_us: Sequence[float], *, flips: bool = True, graph: bool = True
    ) -> None:
        self._gpu, self._cuda, self._flips = gpu, cuda, flips
        self._kernels_ns = [ctypes.c_double(1e3 * time) for time in kernels_us]
        self._graph: Graph | None = self.unrolled(1) if graph else None
        self._run: Callable[[], None] = self._graph.launch if self._graph is not None else self.enqueue

    def run(self) -> None:
        self._run()

    def enqueue(self) -> None:
        """The kernels, one by one."""
        for kernel_ns in self._kernels_ns:
            assert self._gpu.library.fake_kernel(kernel_ns, int(self._flips)) == 0

    def unrolled(self, copies: int) -> Graph | None:
        """A graph of so many runs."""

        def enqueue() -> None:
            for _ in range(copies):
                self.enqueue()

        return self._cuda.capture(enqueue)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return []

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
