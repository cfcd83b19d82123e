"""ExecuTorch on the CPU with its XNNPACK delegate, fp32: what PyTorch's own route to a phone computes with.

A network is converted through torch.export (`_executorch_program.py`): some 3 to 10 s each, kept in the cache folder.
ExecuTorch has one pool of threads in a process, which is set to the target's number before a network is loaded.
Images are given channels first, as torch has them and as ExecuTorch's own operators want them: XNNPACK's reordering
is a part of the time. Layer times are XNNPACK's own profile of the operators inside the delegate.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hwprune.core.errors import UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.core.statistics import faster_half
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._cpu import check_threads, cpu_clock, cpu_fingerprint
from hwprune.runtimes._executorch_program import bindings, program, quietly, version
from hwprune.runtimes._host import undisturbed
from hwprune.runtimes._inputs import check_inputs, example_inputs, fixed_inputs, onnx_inputs
from hwprune.runtimes._onnx.graph import Graph, Node, read_graph
from hwprune.runtimes._refusals import check_precision
from hwprune.runtimes._torch.from_onnx import load_onnx
from hwprune.runtimes._torch.session import settings, torch_package

_WEIGHTED = {"Conv": r"Convolution|Fully Connected", "ConvTranspose": "Deconvolution", "Gemm": "Fully Connected"}
_WARMUP_RUNS = 3
_ROUNDED_MS = 0.0005  # XNNPACK drops the fractions of its microseconds: half of one, on average
_WHOLE = ("DELEGATE_CALL", "Method::execute")  # events that contain others


class ExecutorchSession(AbstractSession):
    """A loaded program and its inputs as tensors."""

    def __init__(self, model: bytes, target: Target, *, keep_bytes: int, profile: bool = False) -> None:
        self._expected = fixed_inputs(
            onnx_inputs(load_onnx(model, batch=target.batch, reader="ExecuTorch")), target.batch
        )
        self._program = program(model, target.batch, keep_bytes=keep_bytes)  # the module reads from these bytes
        if bindings()._threadpool_get_thread_count() != target.threads:
            bindings()._unsafe_reset_threadpool(target.threads)
        try:
            self._module: Any = bindings()._load_for_executorch_from_buffer(self._program, enable_etdump=profile)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise UsageError(
                f"ExecuTorch cannot load the network made for it: {first}",
                hint="use --runtime litert",
            ) from error
        examples = example_inputs(self._expected).values()
        self._examples = [torch_package().from_numpy(values) for values in examples]
        self._threads = target.threads

    def run(self) -> None:
        self._module.forward(self._examples, clone_outputs=False)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        check_inputs(inputs, self._expected)
        given = [torch_package().from_numpy(inputs[name].copy()) for name in self._expected]
        with settings(self._threads):
            return [value.numpy() for value in self._module.forward(given)]

    def write_profile(self, path: Path) -> None:
        """The events of all runs so far, as ExecuTorch writes them."""
        self._module.write_etdump_result_to_file(str(path))

    def close(self) -> None:
        self._module = None


@dataclass(frozen=True)
class ExecutorchRuntime(AbstractRuntime):
    """ExecuTorch with XNNPACK, CPU, fp32."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    keep_mb: int = field(default=1024, metadata={"help": "megabytes of converted networks to keep; 0 keeps none"})

    def check(self, target: Target) -> None:
        bindings()
        check_precision("ExecuTorch", self.precisions, target)
        check_threads(target)

    def fingerprint(self, target: Target) -> Fingerprint:
        flags = (
            ("kernels", "XNNPACK"),
            ("layout", "channels first"),
            ("torch", str(torch_package().__version__)),
            ("denormals", "flushed"),
            ("clock", self.clock(target).name),
        )
        return cpu_fingerprint(target, runtime="executorch", version=version(), flags=flags)

    def clock(self, target: Target) -> AbstractClock:
        return cpu_clock(target)

    def open(self, model: bytes, target: Target) -> ExecutorchSession:
        return ExecutorchSession(model, target, keep_bytes=self.keep_mb << 20)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        opened = closing(ExecutorchSession(model, target, keep_bytes=self.keep_mb << 20, profile=True))
        with opened as session, tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            for _ in range(_WARMUP_RUNS + runs):
                session.run()
            path = Path(folder) / "profile.etdp"
            session.write_profile(path)
            events = _events(path, runs)
        return _layers(events, read_graph(model, batch=target.batch, reader="ExecuTorch"))

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return _measuring(target.threads)


@contextmanager
def _measuring(threads: int) -> Iterator[None]:
    with settings(threads), undisturbed(threads):
        yield


def _events(path: Path, runs: int) -> list[tuple[str, list[float]]]:
    """The operators that took part, in order of execution, each with its times in ms over the last `runs` runs."""
    with quietly():
        from executorch.devtools import Inspector

        blocks = Inspector(etdump_path=str(path)).event_blocks
    return [
        (str(event.name), [float(value) for value in event.perf_data.raw[-runs:]])
        for block in blocks
        if block.name == "Execute"
        for event in block.events
        if event.name not in _WHOLE and event.perf_data is not None
    ]


def _layers(events: Sequence[tuple[str, Sequence[float]]], graph: Graph) -> tuple[LayerTime, ...]:
    """Layer times in the faster half of the runs.

    XNNPACK names no layers. It runs them in the order of the graph, so the i-th convolution or linear layer of the
    profile is the i-th of the graph, when there are as many; otherwise all keep XNNPACK's names.
    """
    means = faster_half(list(zip(*(times for _, times in events))))
    weighted = [node for node in graph.nodes if node.kind in _WEIGHTED]
    kernels = [place for place, (name, _) in enumerate(events) if re.match("|".join(_WEIGHTED.values()), name)]
    named = dict(zip(kernels, weighted)) if len(kernels) == len(weighted) else {}
    return tuple(
        _layer(name, latency_ms + _ROUNDED_MS, named.get(place), graph)
        for place, ((name, _), latency_ms) in enumerate(zip(events, means))
    )


def _layer(name: str, latency_ms: float, node: Node | None, graph: Graph) -> LayerTime:
    plain = re.sub(r" #\d+$", "", name)
    if node is None:
        return LayerTime(name, plain, latency_ms, (), ())
    ins = tuple(graph.shape(item) for item in node.inputs if item)
    return LayerTime(node.name, node.kind, latency_ms, ins, tuple(graph.shape(item) for item in node.outputs), plain)
