"""ONNX Runtime on the CPU: the default runtime.

Settings and why: all graph optimisations (the blocked layout that makes convolutions fast exists only there), one
executor, no spinning threads, denormals flushed. ONNX Runtime reads the denormal setting from the first session of a
process only, so every session here asks for it: a convolution on denormal inputs is 200 times slower without.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.core.statistics import faster_half
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._cpu import check_threads, cpu_clock, cpu_fingerprint
from hwprune.runtimes._host import undisturbed
from hwprune.runtimes._inputs import Input, check_inputs, example_inputs, fixed_inputs
from hwprune.runtimes._refusals import cannot_load, check_precision

if TYPE_CHECKING:
    import onnxruntime

_BLOCKED = "_nchwc"
NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@lru_cache(maxsize=1)
def _ort() -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise DeviceError("ONNX Runtime is not installed", hint="pip install onnxruntime") from error
    ort.set_default_logger_severity(3)
    return ort


@lru_cache(maxsize=1)
def _refusals() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for bytes that are no model, or a model that it cannot run."""
    state = _ort().capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NotImplemented", "NoModel", "NoSuchFile")
    found = [getattr(state, name) for name in (*names, "ModelLoaded", "RuntimeException", "EPFail")]
    return tuple(found)


class OrtSession(AbstractSession):
    """A session with inputs and outputs bound once, so that a run copies nothing."""

    def __init__(self, model: bytes, target: Target, options: onnxruntime.SessionOptions) -> None:
        try:
            self._session = _ort().InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except _refusals() as error:
            raise cannot_load("ONNX Runtime", model, str(error).splitlines()[0]) from error
        self._inputs = fixed_inputs([_input(item) for item in self._session.get_inputs()], target.batch)
        self._binding = self._session.io_binding()
        for name, values in example_inputs(self._inputs).items():
            self._binding.bind_cpu_input(name, values)
        for item in self._session.get_outputs():
            self._binding.bind_output(item.name, "cpu")
        self._run = self._session.run_with_iobinding

    def run(self) -> None:
        self._run(self._binding)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        check_inputs(inputs, self._inputs)
        return list(self._session.run(None, dict(inputs)))

    def end_profiling(self) -> Path:
        """Stop the profiler; the file it wrote."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        del self._run, self._binding, self._session


def _input(item: Any) -> Input:
    kind = NUMPY_TYPES.get(item.type)
    shape = tuple(size if isinstance(size, int) else None for size in item.shape)
    return Input(item.name, "" if kind is None else np.dtype(kind).name, shape)


@dataclass(frozen=True)
class OnnxRuntime(AbstractRuntime):
    """ONNX Runtime, CPU execution provider, fp32."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def check(self, target: Target) -> None:
        _ort()
        check_precision("onnxruntime on a CPU", self.precisions, target)
        check_threads(target)

    def fingerprint(self, target: Target) -> Fingerprint:
        flags = (
            ("optimisation", "all"),
            ("spinning", "off"),
            ("denormals", "flushed"),
            ("clock", self.clock(target).name),
        )
        return cpu_fingerprint(target, runtime="onnxruntime", version=str(_ort().__version__), flags=flags)

    def clock(self, target: Target) -> AbstractClock:
        return cpu_clock(target)

    def open(self, model: bytes, target: Target) -> OrtSession:
        session = OrtSession(model, target, _options(target))
        refusals: tuple[type[Exception], ...] = (*_refusals(), RuntimeError)
        try:
            session.run()
        except refusals as error:
            raise UsageError(
                f"the network does not run on made-up inputs: {str(error).splitlines()[0]}",
                hint="an index that is out of range, say; bring an ONNX file whose inputs may hold any values",
            ) from error
        return session

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            options = _options(target)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            with closing(OrtSession(model, target, options)) as session:
                for _ in range(runs + 3):
                    session.run()
                events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
        return _layers(events, runs)

    def name_layers(self, layers: tuple[LayerTime, ...], model: bytes) -> tuple[LayerTime, ...]:
        return _named_after_nodes(layers, model)

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return undisturbed(target.threads)


def _options(target: Target) -> Any:
    ort = _ort()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _layers(events: list[dict[str, Any]], runs: int) -> tuple[LayerTime, ...]:
    """The time of every node in the faster half of the last `runs` runs."""
    first: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"][: -len("_kernel_time")]
            first.setdefault(name, event["args"])
            times.setdefault(name, []).append(event["dur"] / 1e3)
    means = faster_half(list(zip(*(durations[-runs:] for durations in times.values()))))
    return tuple(
        LayerTime(
            name,
            details["op_name"],
            latency_ms,
            _shapes(details.get("input_type_shape", [])),
            _shapes(details.get("output_type_shape", [])),
        )
        for (name, details), latency_ms in zip(first.items(), means)
    )


def _named_after_nodes(layers: tuple[LayerTime, ...], model: bytes) -> tuple[LayerTime, ...]:
    """Convolutions that make an output of the network, under their own name.

    ONNX Runtime names a convolution in its blocked layout after the tensor it makes, which tells the layer everywhere
    but at the end, where the tensor is called `output`.
    """
    import onnx

    graph = onnx.load_from_string(model).graph
    makers = {name: node for node in graph.node for name in node.output}
    names: dict[str, str] = {}
    for tensor in (value.name for value in graph.output):
        node = makers.get(tensor)
        while node is not None and node.op_type != "Conv" and node.input:
            node = makers.get(node.input[0])
        if node is not None and node.name:
            names[f"{tensor}{_BLOCKED}"] = f"{node.name}{_BLOCKED}"
    return tuple(replace(layer, name=names.get(layer.name, layer.name)) for layer in layers)


def _shapes(entries: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for entry in entries for shape in entry.values())
