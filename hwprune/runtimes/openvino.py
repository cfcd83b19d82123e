"""OpenVINO on the CPU: reads ONNX directly, tells the time and the precision of every layer it executed.

Settings and why: the precision is always asked for, since OpenVINO computes in bfloat16 by itself where the processor
can (int8 comes with the model, quantised); one stream; denormals flushed. One thread computes in the thread that
calls, so its CPU time is the right clock; this is checked once a process, and where it does not hold the wall clock
is used.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.core.statistics import faster_half
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._clocks import ThreadCpuClock, WallClock
from hwprune.runtimes._cpu import check_threads, cpu_fingerprint
from hwprune.runtimes._host import undisturbed
from hwprune.runtimes._inputs import Input, check_inputs, example_inputs, fixed_inputs
from hwprune.runtimes._refusals import cannot_load, check_precision

if TYPE_CHECKING:
    import onnx

TELEMETRY = "openvino_telemetry"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8 is in the model, what is left of it is in fp32
NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
CAPABILITIES = {"bf16": "BF16", "int8": "INT8"}
WEIGHTED = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")  # layers whose precision counts
KINDS = {"Convolution": "Conv", "GroupConvolution": "Conv", "FullyConnected": "Gemm", "Reduce": "ReduceMean"}
_SPLIT_OFF = "/WithoutBiases"  # OpenVINO's name for a convolution whose bias it has taken apart and fused again
_PROBE_CHANNELS, _PROBE_SIZE, _PROBE_S = 64, 14, 0.02
_OWN_SHARE = 0.5  # of the process's CPU time: with less, another thread than the caller's computed


@lru_cache(maxsize=1)
def _openvino() -> Any:
    try:
        with _silent():
            import openvino
    except ImportError as error:
        raise DeviceError("OpenVINO is not installed", hint="pip install openvino") from error
    return openvino


@contextmanager
def _silent() -> Iterator[None]:
    """Import without OpenVINO's telemetry, which counts every import in the user's home and reports it.

    OpenVINO does without where the package is not installed, and nothing here wants a thread that sends while another
    is timed.
    """
    known = {name: module for name, module in sys.modules.items() if name.split(".")[0] == TELEMETRY}
    for name in known:
        del sys.modules[name]
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # what Python takes for "there is no such package"
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
        sys.modules.update(known)


@lru_cache(maxsize=1)
def _core() -> Any:
    return _openvino().Core()


class OpenVinoSession(AbstractSession):
    """A compiled network with its inputs set once, so that a run copies nothing."""

    def __init__(self, model: bytes, target: Target, *, profiled: bool = False) -> None:
        network = _read(model)
        self._inputs = fixed_inputs([_input(port) for port in network.inputs], target.batch)
        network.reshape({name: list(shape) for name, (_, shape) in self._inputs.items()})
        self.compiled = _compile(network, model, target, profiled=profiled)
        self._precisions = _precisions(self.compiled) if target.precision != "fp32" else ""
        self._request = self.compiled.create_infer_request()
        self._outputs = list(self.compiled.outputs)
        self._set(example_inputs(self._inputs))

    @property
    def facts(self) -> Mapping[str, str]:
        return {"layers": self._precisions} if self._precisions else {}

    def run(self) -> None:
        self._request.infer()

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        check_inputs(inputs, self._inputs)
        timed = self._held
        self._set(inputs)
        self._request.infer()
        found = [np.array(self._request.get_tensor(port).data, copy=True) for port in self._outputs]
        self._set(timed)
        return found

    def profile(self) -> list[Any]:
        """What OpenVINO noted of the last run, a record a node."""
        return list(self._request.get_profiling_info())

    def close(self) -> None:
        del self._request, self.compiled, self._outputs

    def _set(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._held = {name: np.ascontiguousarray(values) for name, values in inputs.items()}  # OpenVINO borrows them
        for name, values in self._held.items():
            self._request.set_tensor(name, _openvino().Tensor(values, shared_memory=True))


@dataclass(frozen=True)
class OpenVino(AbstractRuntime):
    """OpenVINO's CPU device, in fp32, in bf16 where the processor has it, or in int8 as the model says."""

    precisions: ClassVar[tuple[str, ...]] = tuple(HINTS)

    def check(self, target: Target) -> None:
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        check_precision("openvino on a CPU", self.precisions, target)
        needed = CAPABILITIES.get(target.precision)
        if needed is not None and needed not in capabilities:
            raise UsageError(f"this processor does not compute in {target.precision}", hint="use precision fp32")
        check_threads(target)

    def fingerprint(self, target: Target) -> Fingerprint:
        hint, computed = _computed_in(target.precision)
        flags = (
            ("precision_hint", hint),
            ("streams", "1"),
            ("pinning", "off" if target.threads == 1 else "on"),
            ("denormals", "flushed"),
            ("clock", self.clock(target).name),
        )
        return cpu_fingerprint(
            target,
            runtime="openvino",
            version=str(_openvino().__version__).split("-")[0],
            flags=flags,
            precision=computed,
        )

    def clock(self, target: Target) -> AbstractClock:
        return ThreadCpuClock() if target.threads == 1 and _caller_computes() else WallClock()

    def open(self, model: bytes, target: Target) -> OpenVinoSession:
        return OpenVinoSession(model, target)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        records: list[list[Any]] = []
        with closing(OpenVinoSession(model, target, profiled=True)) as session:
            for _ in range(3):
                session.run()
            for _ in range(runs):
                session.run()
                records.append(session.profile())
            executed = session.compiled.get_runtime_model().get_ordered_ops()
        return _layers(records, executed)

    def name_layers(self, layers: tuple[LayerTime, ...], model: bytes) -> tuple[LayerTime, ...]:
        sources = _onnx_nodes(model)
        return tuple(_named_after_node(layer, sources.get(layer.name)) for layer in layers)

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return undisturbed(target.threads)


def _read(model: bytes) -> Any:
    try:
        network = _core().read_model(model)
    except RuntimeError as error:
        raise _refused(model, error) from error
    if not network.outputs:
        raise cannot_load("OpenVINO", model, "it has no operators")
    return network


def _compile(network: Any, model: bytes, target: Target, *, profiled: bool) -> Any:
    hint = HINTS[target.precision]
    try:
        compiled = _core().compile_model(network, "CPU", _settings(hint, target.threads, profiled=profiled))
    except RuntimeError as error:
        raise _refused(model, error) from error
    used = (
        compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        compiled.get_property("INFERENCE_NUM_THREADS"),
    )
    if used != (_openvino_type(hint), target.threads):
        raise DeviceError(
            f"OpenVINO was asked for {hint} on {target.threads} threads and uses {used[0]} on {used[1]}",
            hint="use a precision and a number of threads that the processor has",
        )
    return compiled


def _refused(model: bytes, error: RuntimeError) -> UsageError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if not line.startswith(("Exception from", "Check '"))), "")
    return cannot_load("OpenVINO", model, reason)


def _settings(hint: str, threads: int, *, profiled: bool = False) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": threads > 1,  # a single thread is pinned by the measuring loop, which moves it
        "CPU_DENORMALS_OPTIMIZATION": True,
        "PERF_COUNT": profiled,
    }


def _openvino_type(hint: str) -> str:
    return str(getattr(_openvino().Type, hint).get_type_name())


def _input(port: Any) -> Input:
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    try:
        kind = np.dtype(port.element_type.to_dtype()).name
    except (TypeError, RuntimeError):
        kind = ""
    return Input(port.any_name, kind, shape)


def _probe(*, quantised: bool = False) -> Any:
    """A convolution that takes some hundred microseconds, to ask what OpenVINO does with it."""
    openvino = _openvino()
    ops = openvino.opset13
    channels, size = _PROBE_CHANNELS, _PROBE_SIZE
    source = ops.parameter([1, channels, size, size], np.float32)
    weight = ops.constant(np.full((channels, channels, 3, 3), 0.01, np.float32))
    inputs = [_eight_bits(source), _eight_bits(weight)] if quantised else [source, weight]
    convolved = ops.convolution(*inputs, [1, 1], [1, 1], [1, 1], [1, 1])
    return openvino.Model([ops.relu(convolved)], [source], "probe")


def _eight_bits(value: Any) -> Any:
    ops = _openvino().opset13
    low, high = ops.constant(np.float32(-1.28)), ops.constant(np.float32(1.27))
    return ops.fake_quantize(value, low, high, low, high, 256)


@lru_cache(maxsize=8)
def _computed_in(precision: str) -> tuple[str, str]:
    """The precision OpenVINO says it was given, and the one a convolution was really compiled for."""
    probe = _probe(quantised=precision == "int8")
    compiled = _core().compile_model(probe, "CPU", _settings(HINTS[precision], 1))
    given = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    return given, next(iter(_weighted(compiled)))


def _weighted(compiled: Any) -> Counter[str]:
    """How many layers with weights were compiled for which precision."""
    used = [
        _fact(node, "runtimePrecision")
        for node in compiled.get_runtime_model().get_ordered_ops()
        if _fact(node, "layerType") in WEIGHTED
    ]
    return Counter(NAMES.get(name, name) for name in used)


def _precisions(compiled: Any) -> str:
    """`12 in int8, 1 in fp32`: the layers with weights."""
    return ", ".join(f"{count} in {name}" for name, count in _weighted(compiled).most_common())


@lru_cache(maxsize=1)
def _caller_computes() -> bool:
    """Whether a run on one thread spends its CPU time in the thread that asked for it."""
    request = _core().compile_model(_probe(), "CPU", _settings("f32", 1)).create_infer_request()
    request.infer()
    begin, own, whole = time.perf_counter(), time.thread_time(), time.process_time()
    while time.process_time() - whole < _PROBE_S and time.perf_counter() - begin < 1:
        request.infer()
    return time.thread_time() - own > _OWN_SHARE * (time.process_time() - whole)


def _fact(node: Any, name: str) -> str:
    found = node.get_rt_info()
    return str(found[name].astype(str)) if name in found else ""


def _layers(records: list[list[Any]], executed: list[Any]) -> tuple[LayerTime, ...]:
    """The time of every executed node in the faster half of the runs.

    A node below the microsecond that OpenVINO counts in is now executed and now not in its records.
    """
    means = faster_half([[item.real_time.total_seconds() * 1e3 for item in run] for run in records])
    ran = [any(run[place].status.name == "EXECUTED" for run in records) for place in range(len(records[0]))]
    nodes = {node.friendly_name: node for node in executed}
    return tuple(
        _layer(item, nodes.get(item.node_name), mean) for item, mean, real in zip(records[0], means, ran) if real
    )


def _layer(item: Any, node: Any, latency_ms: float) -> LayerTime:
    """A node under the name of the operator it was made from first; what was fused into it stands in the note."""
    originals = _fact(node, "originalLayersNames").split(",") if node is not None else []
    plain = (name[: -len(_SPLIT_OFF)] if name.endswith(_SPLIT_OFF) else name for name in originals)
    made_of = [name for name in dict.fromkeys(plain) if name]
    fused = ", ".join(made_of[1:])
    note = f"{item.exec_type}, fused: {fused}" if fused else str(item.exec_type)
    ins = tuple(_shape(port) for port in node.inputs()) if node is not None else ()
    outs = tuple(_shape(port) for port in node.outputs()) if node is not None else ()
    name = made_of[0] if made_of else item.node_name
    return LayerTime(name, KINDS.get(item.node_type, item.node_type), latency_ms, ins, outs, note)


def _onnx_nodes(model: bytes) -> dict[str, onnx.NodeProto]:
    """The nodes by their name and by the tensors they make, either of which OpenVINO calls them by."""
    import onnx

    nodes = onnx.load_from_string(model).graph.node
    made = {name: node for node in nodes for name in node.output}
    return {**made, **{node.name: node for node in nodes if node.name}}


def _named_after_node(layer: LayerTime, node: onnx.NodeProto | None) -> LayerTime:
    if node is None:
        return layer
    return replace(layer, name=node.name or node.output[0], kind=node.op_type)


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in port.get_shape())
