"""Torch compiled by Inductor with frozen weights: torch's own compiler, which needs a C++ compiler on the device.

Settings and why: freezing, which packs the weights of convolutions once and fuses what follows them (it has to be set
for the whole of Inductor: as an option of one `torch.compile` it is dropped half-way); code for exactly the target's
threads; no worker processes, which would go on beside the measurement. Building takes seconds to a minute a network.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import LayerTime, Target
from hwprune.core.statistics import faster_half
from hwprune.runtimes._torch.from_onnx import Builder, load_onnx
from hwprune.runtimes._torch.session import TorchRuntime, TorchSession, settings, torch_package

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

WARM_UP = 3
COMPILERS = ("g++", "clang++", "c++")
KINDS = {"_convolution_pointwise": "Conv", "convolution": "Conv", "_mkl_linear": "Gemm", "_linear_pointwise": "Gemm"}
_REGION = "## Call CompiledFxGraph"  # the profiler's name for one run of the compiled network


class InductorSession(TorchSession):
    """A network that was compiled when the session was opened; `profiled` makes its kernels visible to a profiler."""

    def __init__(self, model: bytes, target: Target, *, profiled: bool = False) -> None:
        super().__init__(model, target)
        torch = torch_package()
        self._profiled = profiled
        begin = time.perf_counter()
        try:
            with settings(target.threads):
                self._compile()
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UsageError(
                f"Inductor cannot compile the model ({len(model)} bytes): {' '.join(lines[:2]) or repr(error)}",
                hint="use --runtime torch_eager or onnxruntime",
            ) from error
        self._compile_s = time.perf_counter() - begin

    @property
    def facts(self) -> Mapping[str, str]:
        return {"compile_s": f"{self._compile_s:.1f}"}

    def compute(self, inputs: tuple[Tensor, ...]) -> Any:
        """The outputs; compiled again where `torch.export`, used by another runtime, made torch forget the network.

        That shows in the untimed runs before a round.
        """
        try:
            return super().compute(inputs)
        except RuntimeError:
            if torch_package().get_num_threads() != self.threads:
                raise
            self._compile()
            return super().compute(inputs)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with _fixed():
            return super().infer(inputs)

    def _compile(self) -> None:
        torch = torch_package()
        self.function = torch.compile(self.module, backend="inductor", dynamic=False, fullgraph=True)
        with _compiling(self.threads, profiled=self._profiled):
            super().compute(self.examples)


@dataclass(frozen=True)
class TorchInductor(TorchRuntime):
    """Torch compiled by Inductor with frozen weights, in fp32."""

    name: ClassVar[str] = "torch_inductor"

    def flags(self, target: Target) -> tuple[tuple[str, str], ...]:
        return (("freezing", "on"), ("compiler", os.path.basename(_compiler())))

    def check(self, target: Target) -> None:
        super().check(target)
        _compiler()

    def open(self, model: bytes, target: Target) -> InductorSession:
        return InductorSession(model, target)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        from torch.profiler import ProfilerActivity, profile

        opened = closing(InductorSession(model, target, profiled=True))
        with opened as session, settings(target.threads), _fixed():
            for _ in range(WARM_UP):
                session.run()
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
                for _ in range(runs):
                    session.run()
        return _layers(list(profiler.events()))

    def name_layers(self, layers: tuple[LayerTime, ...], model: bytes) -> tuple[LayerTime, ...]:
        return _named_after_nodes(layers, load_onnx(model))

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return _measuring(super().measuring(target))


@contextmanager
def _measuring(settled: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(settled)
        stack.enter_context(_fixed())
        yield


@contextmanager
def _fixed() -> Iterator[None]:
    """What torch would compile anew here, it would compile in another way: that is an error."""
    with torch_package().compiler.set_stance("fail_on_recompile"):
        yield


@contextmanager
def _compiling(threads: int, *, profiled: bool) -> Iterator[None]:
    from torch._inductor import config

    changes = {
        "freezing": True,
        "compile_threads": 1,
        "cpp.threads": threads,
        "cpp.enable_kernel_profile": profiled,
    }
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch deprecates parts that it uses itself
        stack.enter_context(torch_package().compiler.set_stance("default"))
        stack.enter_context(config.patch(changes))
        yield


def _compiler() -> str:
    """The C++ compiler that Inductor will find. Raises `DeviceError` without one."""
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise DeviceError("Inductor needs a C++ compiler and there is none", hint="sudo apt install g++")


def _layers(events: list[Any]) -> tuple[LayerTime, ...]:
    """The time of every kernel in the faster half of the runs."""
    regions = [region for region in events if region.name.startswith(_REGION)]
    found = [[child for child in region.cpu_children if child.name != "aten::empty"] for region in regions]
    # Should the profiler lose an event, that run is left out.
    usual = Counter(tuple(event.name for event in run) for run in found).most_common(1)[0][0]
    runs = [run for run in found if tuple(event.name for event in run) == usual]
    means = faster_half([[event.cpu_time / 1e3 for event in run] for run in runs])
    return tuple(
        LayerTime(f"{event.name}:{place}", _kind(event.name), mean, _shapes(event.input_shapes), (), event.name)
        for place, (event, mean) in enumerate(zip(runs[0], means))
    )


def _kind(kernel: str) -> str:
    return KINDS.get(kernel.rpartition("::")[2].rstrip("_"), kernel)


def _shapes(shapes: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(size) for size in shape) for shape in shapes if shape)


def _named_after_nodes(layers: tuple[LayerTime, ...], model: onnx.ModelProto) -> tuple[LayerTime, ...]:
    """The kernels of convolutions and linear layers under the name of their ONNX node, with its shapes.

    Inductor keeps their order and loses their names. The i-th kernel is the i-th node when there are as many of both
    and every kernel has the weight of its node; otherwise the kernels keep the names they have.
    """
    known = Builder(model)
    named = dict(enumerate(layers))
    for kind, operators in (("Conv", ("Conv",)), ("Gemm", ("Gemm", "MatMul"))):
        nodes = [node for node in model.graph.node if node.op_type in operators and node.input[1] in known.constants]
        places = [place for place, layer in enumerate(layers) if layer.kind == kind]
        if len(nodes) != len(places):
            continue
        weights = [tuple(known.constants[node.input[1]].shape) for node in nodes]
        if all({weight, weight[::-1]} & set(layers[place].in_shapes) for weight, place in zip(weights, places)):
            for node, place in zip(nodes, places):
                shapes = known.shapes[node.input[0]], known.shapes[node.output[0]]
                layer = layers[place]
                named[place] = LayerTime(
                    node.name, node.op_type, layer.latency_ms, (shapes[0],), (shapes[1],), layer.note
                )
    return tuple(named.values())
