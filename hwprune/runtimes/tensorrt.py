"""TensorRT 8.5.2 to 11.x on an NVIDIA GPU: one engine a network, timed by events on the device.

Settings and why: one stream and no auxiliary ones, so that times of layers can be added; a fixed optimisation level and
workspace, since both change which kernels win; TF32 off unless asked for; no version or hardware compatibility, which
costs speed. Needs TensorRT's Python package and libcudart, nothing else.
"""

from __future__ import annotations

import os
import platform as host
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hwprune.core.errors import UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, Check
from hwprune.runtimes._host import cpu_model
from hwprune.runtimes._nvidia import ClockSpan, facts, findings
from hwprune.runtimes._refusals import check_precision
from hwprune.runtimes._tensorrt import api
from hwprune.runtimes._tensorrt.api import Inspector
from hwprune.runtimes._tensorrt.builder import BuildOptions
from hwprune.runtimes._tensorrt.errors import BuildFailed, EngineRefused, MixedPrecision
from hwprune.runtimes._tensorrt.inspector import fp32_layers, layer_times, with_node_names
from hwprune.runtimes._tensorrt.layers import in_network_times
from hwprune.runtimes._tensorrt.platform import Access, Platform, platform
from hwprune.runtimes._tensorrt.session import TrtSession
from hwprune.runtimes._tensorrt.timing_cache import default_folder

MIB = 1 << 20
SHOWN = 5  # layers named in a warning
TF32_SINCE = 8  # compute capability


WARNINGS = {
    "no_cuda_graph": (
        "the network could not be captured as a CUDA graph; every kernel was launched by itself, which takes longer",
        "compare it only with networks that ran without a graph: set graph = false for all",
    ),
    "host_bound": (
        "the host takes longer to enqueue the network than the GPU to compute it; the time is the host's",
        "judge by a larger batch or network, or by a CUDA graph",
    ),
    "mixed_precision": (
        "TensorRT kept layers in fp32",
        "set typing = strong where TensorRT 10 or later is installed; otherwise this is what the device really runs",
    ),
    "timing_cache_refused": (
        "a saved timing cache did not fit and was not used: kernels were chosen anew",
        "nothing to do; later builds are fast again",
    ),
}


@dataclass(frozen=True)
class TensorRt(AbstractRuntime):
    """TensorRT, fp32, tf32, fp16 and int8 as the ONNX file says, one stream, CUDA graphs."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "tf32", "fp16", "int8")
    precisions_in_model: ClassVar[tuple[str, ...]] = ("fp16", "int8")
    own_warnings: ClassVar[Mapping[str, tuple[str, str]]] = WARNINGS

    typing: str = field(default="auto", metadata={"help": "strong, weak, or auto: strong from TensorRT 10.12 on"})
    mixed: str = field(default="warn", metadata={"help": "warn or refuse, when weak typing leaves layers in fp32"})
    optimisation_level: int = field(default=3, metadata={"help": "the builder's, 1 to 5; never mix two in a table"})
    workspace_mib: int = field(default=1024, metadata={"help": "memory a kernel may use; changes which ones win"})
    tactic_mib: int = field(default=0, metadata={"help": "memory in which kernels are tried out, 0 for no limit"})
    kernel_timings: int = field(default=8, metadata={"help": "how often a kernel is timed before one is chosen"})
    aux_streams: int = field(default=0, metadata={"help": "streams besides the one that is timed"})
    graph: bool = field(default=True, metadata={"help": "run as a CUDA graph where capture succeeds"})
    gpu: int = field(default=0, metadata={"help": "number of the GPU among those that CUDA sees"})
    cuda: str = field(default="auto", metadata={"help": "auto, ctypes, cuda-python, or pycuda for its context"})
    cudart: str = field(default="", metadata={"help": "path of libcudart, where it is not found by itself"})
    package: str = field(default="tensorrt", metadata={"help": "tensorrt or tensorrt_rtx"})
    cache: str = field(default="", metadata={"help": "folder of timing caches, instead of the user's cache folder"})

    def __post_init__(self) -> None:
        self._build_options()
        self._access()
        if self.mixed not in ("warn", "refuse"):
            raise UsageError(f"mixed={self.mixed!r} is not one of warn, refuse", hint="leave it at warn")

    def check(self, target: Target) -> None:
        check_precision("TensorRT", self.precisions, target)
        if target.threads != 1:
            raise UsageError(f"{target.threads} threads: a GPU has no threads to choose", hint="leave threads at 1")
        place = self._platform()
        api.is_strongly_typed(place.trt, self.typing)
        if target.precision == "tf32" and place.cuda.attribute("major") < TF32_SINCE:
            raise UsageError(
                f"this GPU has no TF32: its compute capability is {_capability(place)}, and TF32 begins with 8.0",
                hint="use fp32 or fp16",
            )

    def fingerprint(self, target: Target) -> Fingerprint:
        place = self._platform()
        cuda = place.cuda
        runtime, driver = cuda.versions()
        cores = cuda.attribute("multiprocessors")
        state = facts(cuda.bus_id())
        named = dict(state)
        level = hasattr(place.trt.IBuilderConfig, "builder_optimization_level")
        tactics = hasattr(place.trt.MemoryPoolType, "TACTIC_DRAM")
        flags = (
            ("package", self.package),
            ("typing", "strong" if api.is_strongly_typed(place.trt, self.typing) else "weak"),
            ("optimisation_level", str(self.optimisation_level) if level else "not settable"),
            ("workspace_mib", str(self.workspace_mib)),
            ("tactic_mib", "not settable" if not tactics else str(self.tactic_mib or "no limit")),
            ("kernel_timings", str(self.kernel_timings)),
            ("aux_streams", str(self.aux_streams)),
            ("graph", "captured" if self.graph else "enqueued"),
            ("clock", "device"),
            ("compute_capability", _capability(place)),
            ("memory_mib", str(cuda.memory_bytes()[1] // MIB)),
            ("cuda", runtime),
            ("driver_cuda", driver),
            *state,
        )
        return Fingerprint(
            device=target.device,
            cpu_model=named.get("board") or named.get("gpu") or cpu_model(),
            cores=cores,
            runtime="tensorrt",
            runtime_version=str(place.trt.__version__),
            precision=target.precision,
            batch=target.batch,
            threads=target.threads,
            os=f"{host.system()} {host.machine()}",
            flags=flags,
        )

    def clock(self, target: Target) -> AbstractClock:
        return self._platform().clock

    def open(self, model: bytes, target: Target) -> TrtSession:
        place = self._platform()
        session = self._opened(place, model, target)
        try:
            self._judge(place, session, target)
        except BaseException:
            session.close()
            raise
        return session

    def open_reference(self, model: bytes, target: Target) -> TrtSession:
        return self._opened(self._platform(), model, target)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        place = self._platform()
        session = self._opened(place, model, target)
        try:
            times = in_network_times(place.trt, place.cuda, session, runs)
            return layer_times(_information(place, session), times)
        finally:
            session.close()

    def name_layers(self, layers: tuple[LayerTime, ...], model: bytes) -> tuple[LayerTime, ...]:
        import onnx

        return with_node_names(layers, [node.name for node in onnx.load_from_string(model).graph.node if node.name])

    def findings(self) -> tuple[Check, ...]:
        return findings(self._platform().cuda.bus_id())

    def _opened(self, place: Platform, model: bytes, target: Target) -> TrtSession:
        folder = Path(os.path.expanduser(self.cache)) if self.cache else default_folder()
        timings = place.timing_cache(folder, target, lambda: self.fingerprint(target))
        try:
            plan = place.builder(self._build_options()).plan(model, target, timings)
            session = TrtSession(place.trt, place.runtime, place.cuda, place.log, plan, graph=self.graph)
        except (BuildFailed, EngineRefused):
            place.cuda.raise_pending()  # with the GPU lost, this network is the one that lost it
            raise
        session.watch_clocks(ClockSpan(place.throttle))
        if timings.refused:
            session.note(f"timing_cache_refused: {timings.refused}")
        return session

    def _judge(self, place: Platform, session: TrtSession, target: Target) -> None:
        """Look whether weak typing has left layers in fp32 that the file wants narrower.

        Raises `MixedPrecision` where the option says so.
        """
        if target.precision not in ("fp16", "int8") or api.is_strongly_typed(place.trt, self.typing):
            return
        left = fp32_layers(_information(place, session), target.precision)
        if not left:
            return
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        names = f"{', '.join(left[:SHOWN])}{more}"
        if self.mixed == "refuse":
            raise MixedPrecision(
                f"weak typing left {len(left)} layers in fp32: {names}",
                hint="set typing = strong (TensorRT 10 or later), or mixed = warn to measure it as it is",
            )
        session.note(f"mixed_precision: {names}")

    def _platform(self) -> Platform:
        place = platform(self._access())
        place.cuda.ensure_alive()
        return place

    def _access(self) -> Access:
        return Access(self.package, self.cuda, os.path.expanduser(self.cudart), self.gpu)

    def _build_options(self) -> BuildOptions:
        return BuildOptions(
            self.typing,
            self.optimisation_level,
            self.workspace_mib,
            self.aux_streams,
            self.tactic_mib,
            self.kernel_timings,
        )


def _capability(place: Platform) -> str:
    """The GPU's compute capability: `8.7`."""
    return f"{place.cuda.attribute('major')}.{place.cuda.attribute('minor')}"


def _information(place: Platform, session: TrtSession) -> str:
    trt = place.trt
    inspector: Inspector = session.engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)
