"""ncnn on the CPU, fp32: the runtime of many phones, with kernels that like multiples of 4, 8 and 16 channels.

The network is written in ncnn's format directly from the ONNX graph (`_ncnn/rules.py`), in milliseconds. Settings and
why: fp16, bf16 and int8 are switched off, since ncnn would use them where a processor has them; one thread unless the
target says more (ncnn's OpenMP threads spin, and two of them on busy cores take fifty times as long); light mode,
which frees a blob when it was read for the last time. Whether denormals are flushed depends on how ncnn was compiled:
the fingerprint says what was found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.core.statistics import faster_half
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._cpu import check_threads, cpu_clock, cpu_fingerprint
from hwprune.runtimes._host import undisturbed
from hwprune.runtimes._inputs import check_inputs, example_inputs
from hwprune.runtimes._ncnn.model import NcnnModel
from hwprune.runtimes._ncnn.rules import write
from hwprune.runtimes._onnx.graph import Graph, read_graph
from hwprune.runtimes._refusals import check_precision

_KEEP_PACKED = 1  # extract a blob as it is, without unpacking it
_WARMUP_RUNS = 3
_HALVING = "7767517\n2 2\nInput in 0 1 in 0=16\nBinaryOp half 1 1 in out 0=2 1=1 2=5.0e-1\n"
_OFF = ("use_fp16", "use_bf16", "use_int8", "use_vulkan")


@lru_cache(maxsize=1)
def _ncnn() -> Any:
    try:
        import ncnn
    except ImportError as error:
        raise DeviceError("ncnn is not installed", hint="pip install ncnn") from error
    return ncnn


class NcnnSession(AbstractSession):
    """A network loaded once; every run takes a fresh extractor, as ncnn wants it."""

    def __init__(self, model: bytes, target: Target, runtime: NcnnRuntime) -> None:
        self._graph = read_graph(model, batch=target.batch, reader="ncnn")
        self._model = write(self._graph)
        self._net: Any = _load(self._model, target, runtime)
        self._bound = self._blobs(example_inputs(self._graph.inputs))

    @property
    def model(self) -> NcnnModel:
        """The network in ncnn's format."""
        return self._model

    @property
    def graph(self) -> Graph:
        """The network as it was given."""
        return self._graph

    def run(self) -> None:
        self._extract(self._bound)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        check_inputs(inputs, self._graph.inputs)
        found = self._extract(self._blobs(inputs))
        shapes = [self._graph.shape(name) for name in self._graph.outputs]
        return [np.array(blob).reshape(shape) for blob, shape in zip(found, shapes)]

    def close(self) -> None:
        self._bound = {}
        self._net = None

    def time_layers(self, clock: AbstractClock, pools: tuple[Any, Any]) -> list[float]:
        """One run, layer by layer, in ms: what every layer after the inputs takes.

        Blobs are asked for in the order in which they are made, unpacked never and dropped at once, so that light
        mode works as in a whole run. They lie in `pools` (for blobs and for workspace), since ncnn copies what it
        hands out of its own. What remains on top is the call itself: it is measured and taken off.
        """
        extractor = self._extractor(self._bound)
        extractor.set_blob_allocator(pools[0])
        extractor.set_workspace_allocator(pools[1])
        times = []
        for layer in self._model.layers:
            if layer.kind == "Input":
                continue
            blob = layer.outputs[0]
            whole = clock.time(lambda name=blob: extractor.extract(name, _KEEP_PACKED)).time_ms  # type: ignore[misc]
            again = clock.time(lambda name=blob: extractor.extract(name, _KEEP_PACKED)).time_ms  # type: ignore[misc]
            times.append(max(whole - again, 0.0))
        extractor.clear()
        return times

    def _extractor(self, blobs: Mapping[str, Any]) -> Any:
        extractor = self._net.create_extractor()
        for name, blob in blobs.items():
            extractor.input(name, blob)
        return extractor

    def _extract(self, blobs: Mapping[str, Any]) -> list[Any]:
        extractor = self._extractor(blobs)
        found = []
        for name in self._model.outputs:
            status, blob = extractor.extract(name)
            if status != 0:
                raise DeviceError(f"ncnn failed with code {status}", hint="is there enough memory?")
            found.append(blob)
        return found

    def _blobs(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """ncnn's own copies of the inputs, without the batch, by blob."""
        return {
            self._model.inputs[name]: _ncnn().Mat(np.ascontiguousarray(array[0])).clone()
            for name, array in arrays.items()
        }


@dataclass(frozen=True)
class NcnnRuntime(AbstractRuntime):
    """ncnn, CPU, fp32, one image at a time."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    packing: bool = field(default=True, metadata={"help": "hold 4, 8 or 16 channels side by side"})
    winograd: bool = field(default=True, metadata={"help": "Winograd's transform for 3x3 convolutions"})
    sgemm: bool = field(default=True, metadata={"help": "convolutions as matrix products where that is faster"})
    light_mode: bool = field(default=True, metadata={"help": "free every blob after its last use"})

    def check(self, target: Target) -> None:
        _ncnn()
        check_precision("ncnn", self.precisions, target)
        if target.batch != 1:
            raise UsageError(f"ncnn holds one image at a time, not a batch of {target.batch}", hint="use batch 1")
        check_threads(target)

    def fingerprint(self, target: Target) -> Fingerprint:
        chosen = tuple((name, "on" if value else "off") for name, value in asdict(self).items())
        flags = (
            *chosen,
            ("fp16", "off"),
            ("bf16", "off"),
            ("int8", "off"),
            ("denormals", _denormals()),
            ("clock", self.clock(target).name),
        )
        return cpu_fingerprint(target, runtime="ncnn", version=str(_ncnn().__version__), flags=flags)

    def clock(self, target: Target) -> AbstractClock:
        return cpu_clock(target)

    def open(self, model: bytes, target: Target) -> NcnnSession:
        return NcnnSession(model, target, self)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        clock = self.clock(target)
        pools = _ncnn().UnlockedPoolAllocator(), _ncnn().PoolAllocator()
        with closing(self.open(model, target)) as session:
            table = [session.time_layers(clock, pools) for _ in range(_WARMUP_RUNS + runs)][_WARMUP_RUNS:]
            return _layers(session, faster_half(table))

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return undisturbed(target.threads)


@lru_cache(maxsize=1)
def _denormals() -> str:
    """What this build of ncnn makes of denormal numbers, by halving the smallest normal one."""
    net = _ncnn().Net()
    net.opt.num_threads = 1
    net.load_param_mem(_HALVING)
    extractor = net.create_extractor()
    extractor.input("in", _ncnn().Mat(np.full(16, np.finfo(np.float32).tiny, np.float32)).clone())
    return "kept" if np.array(extractor.extract("out")[1]).any() else "flushed"


def _load(model: NcnnModel, target: Target, runtime: NcnnRuntime) -> Any:
    """The network in ncnn. Through a file, since the package's loader from memory keeps a pointer to freed memory."""
    net = _ncnn().Net()
    _set_options(net.opt, target, runtime)
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        path = Path(folder) / "network.bin"
        path.write_bytes(model.weights)
        if net.load_param_mem(model.text) != 0 or net.load_model(str(path)) != 0:
            raise UsageError("ncnn cannot load the network written for it", hint="use --runtime onnxruntime")
    return net


def _set_options(options: Any, target: Target, runtime: NcnnRuntime) -> None:
    for name in dir(options):
        if name.startswith(_OFF):
            setattr(options, name, False)
        elif name.startswith("use_winograd"):
            setattr(options, name, runtime.winograd)
    options.use_packing_layout = runtime.packing
    options.use_sgemm_convolution = runtime.sgemm
    options.lightmode = runtime.light_mode
    options.num_threads = target.threads


def _layers(session: NcnnSession, times: Sequence[float]) -> tuple[LayerTime, ...]:
    """Layer times under the names of the ONNX nodes; those of layers that ncnn needs besides follow their own kind."""
    layers = [layer for layer in session.model.layers if layer.kind != "Input"]
    shape = session.graph.shape
    found = []
    for layer, latency_ms in zip(layers, times):
        node = layer.node
        if node is None:
            found.append(LayerTime(layer.kind, layer.kind, latency_ms, (), ()))
            continue
        ins = tuple(shape(name) for name in node.inputs if name)
        outs = tuple(shape(name) for name in node.outputs if name)
        found.append(LayerTime(node.name, node.kind, latency_ms, ins, outs))
    return tuple(found)
