"""What exists once a process: the TensorRT module and its logger, builder, runtime and timing cache, and the GPU."""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.core.errors import DeviceError, UsageError
from hwprune.runtimes._nvidia import Throttle, throttle_counters
from hwprune.runtimes._tensorrt import api
from hwprune.runtimes._tensorrt.api import Module, Runtime
from hwprune.runtimes._tensorrt.builder import BuildOptions, PlanBuilder
from hwprune.runtimes._tensorrt.clock import DeviceClock
from hwprune.runtimes._tensorrt.cuda import Cuda
from hwprune.runtimes._tensorrt.cudart import load_calls
from hwprune.runtimes._tensorrt.log import Log
from hwprune.runtimes._tensorrt.timing_cache import TimingCache

if TYPE_CHECKING:
    from hwprune.core.measurement import Fingerprint, Target

BACKENDS = ("auto", "ctypes", "cuda-python", "pycuda")


@dataclass(frozen=True)
class Access:
    """How this process reaches TensorRT and the GPU."""

    package: str = "tensorrt"
    cuda: str = "auto"
    cudart: str = ""
    gpu: int = 0

    def __post_init__(self) -> None:
        if self.cuda not in BACKENDS:
            raise UsageError(f"cuda={self.cuda!r} is not one of {', '.join(BACKENDS)}", hint="leave it at auto")
        if self.gpu < 0:
            raise UsageError(f"gpu={self.gpu} must be 0 or more", hint="0 is the first GPU that CUDA sees")


@dataclass(eq=False)
class Platform:
    """Everything of TensorRT and CUDA that a process has one of."""

    trt: Module
    cuda: Cuda
    clock: DeviceClock
    throttle: Throttle
    log: Log
    runtime: Runtime
    builders: dict[BuildOptions, PlanBuilder] = field(default_factory=dict)
    caches: dict[tuple[Path, Target], TimingCache] = field(default_factory=dict)
    primary: Any = None

    def builder(self, options: BuildOptions) -> PlanBuilder:
        """The builder; another one only where a process really changes the options."""
        if options not in self.builders:
            self.builders[options] = PlanBuilder(self.trt, self.log, options)
        return self.builders[options]

    def timing_cache(self, folder: Path, target: Target, fingerprint: Callable[[], Fingerprint]) -> TimingCache:
        """The live timing cache of a target; the fingerprint is asked for once."""
        key = folder, target
        if key not in self.caches:
            self.caches[key] = TimingCache(folder, fingerprint(), self.throttle.near_mhz())
        return self.caches[key]

    def save(self) -> None:
        """Write the timing caches to the disk."""
        for timings in self.caches.values():
            timings.save()


@lru_cache(maxsize=None)  # noqa: UP033 - Python 3.8 has no functools.cache
def platform(access: Access) -> Platform:
    """The platform of this process for one access, opened at the first call.

    Raises `DeviceError` where a part of it is missing.
    """
    trt = api.load(access.package)
    calls = load_calls(access.cuda, access.cudart)
    primary = _primary_context(access.gpu) if access.cuda == "pycuda" else None
    cuda = Cuda(calls, access.gpu)
    log = Log(trt)
    runtime: Runtime = log.make("runtime", trt.Runtime)
    throttle = throttle_counters(cuda.bus_id())
    opened = Platform(trt, cuda, DeviceClock(cuda, throttle), throttle, log, runtime, primary=primary)
    atexit.register(opened.save)
    return opened


def _primary_context(gpu: int) -> Any:
    """The GPU's primary context, retained through pycuda and made current: the one that libcudart uses too.

    `pycuda.autoinit` would make a second context, in which neither TensorRT nor this process's other CUDA code is.
    """
    try:
        driver: Any = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise DeviceError("pycuda is not installed", hint="pip install pycuda, or set cuda = auto") from error
    driver.init()
    primary = driver.Device(gpu).retain_primary_context()
    primary.push()
    atexit.register(driver.Context.pop)  # pycuda aborts a process that ends with a context on its stack
    return primary
