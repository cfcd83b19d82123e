"""Torch without compilation: one call an operator, in channels_last. What a network costs before any deployment.

The graph is the ONNX file's, with batch normalisation folded; a module that calls batch normalisation is slower.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hwprune.core.measurement import LayerTime, Target
from hwprune.core.statistics import faster_half
from hwprune.runtimes._torch.from_onnx import ONNX_KIND, ONNX_NAME
from hwprune.runtimes._torch.session import TorchRuntime, TorchSession, settings, torch_package

if TYPE_CHECKING:
    from torch import fx

WARM_UP = 3


@dataclass(frozen=True)
class TorchEager(TorchRuntime):
    """Torch, operator by operator, in fp32."""

    name: ClassVar[str] = "torch_eager"

    def flags(self, target: Target) -> tuple[tuple[str, str], ...]:
        return ()

    def open(self, model: bytes, target: Target) -> TorchSession:
        return TorchSession(model, target)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        session = TorchSession(model, target)
        watch = _watch(session.module)
        with settings(target.threads), torch_package().no_grad():
            for _ in range(runs + WARM_UP):
                watch.run(*session.examples)
        return _layers(session.module.graph, watch.laps, runs)


def _watch(module: Any) -> Any:
    """Runs the graph node by node and notes how long each takes and what goes in and out.

    Torch's profiler does the same and adds some microseconds to every operator, which is as long as small ones take.
    """
    from torch.fx import Interpreter

    class Watch(Interpreter):
        def __init__(self) -> None:
            super().__init__(module)
            self.laps: dict[str, list[float]] = {}
            self.shapes: dict[str, tuple[Any, Any]] = {}

        def run_node(self, n: fx.Node) -> Any:
            arguments, options = self.fetch_args_kwargs_from_env(n)
            call = getattr(self, n.op)
            begin = time.perf_counter_ns()
            result = call(n.target, arguments, options)
            self.laps.setdefault(n.name, []).append((time.perf_counter_ns() - begin) / 1e6)
            n.meta["in_shapes"], n.meta["out_shapes"] = _shapes(arguments), _shapes((result,))
            return result

    return Watch()


def _shapes(values: Any) -> tuple[tuple[int, ...], ...]:
    flat = [item for value in values for item in (value if isinstance(value, (tuple, list)) else (value,))]
    return tuple(tuple(value.shape) for value in flat if hasattr(value, "shape"))


def _layers(graph: fx.Graph, laps: dict[str, list[float]], runs: int) -> tuple[LayerTime, ...]:
    """The time of every ONNX node in the faster half of the last `runs` runs."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if ONNX_NAME in node.meta and node.op != "get_attr":
            calls.setdefault(node.meta[ONNX_NAME], []).append(node)
    table = [[sum(parts) for parts in zip(*(laps[call.name][-runs:] for call in made))] for made in calls.values()]
    means = faster_half(list(zip(*table)))
    return tuple(
        LayerTime(
            name,
            made[0].meta[ONNX_KIND],
            latency_ms,
            made[0].meta["in_shapes"],
            made[-1].meta["out_shapes"],
        )
        for (name, made), latency_ms in zip(calls.items(), means)
    )
