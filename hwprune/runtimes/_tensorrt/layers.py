"""Layer times inside the whole network: the profiler's shares of a latency that was measured without the profiler.

The profiler puts events around every kernel, which lengthens and serialises them, so its milliseconds are not those of
the network; their shares are. The latency they are shares of is the slope between a short and a long chain of runs in
one CUDA graph, in which everything constant cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hwprune.core.statistics import faster_half, median
from hwprune.runtimes._tensorrt.api import Module
from hwprune.runtimes._tensorrt.cuda import Cuda, timed_region
from hwprune.runtimes._tensorrt.errors import RunFailed
from hwprune.runtimes._tensorrt.session import TrtSession

CHAIN_MS, CHAIN_MAX = 0.5, 16  # the short chain lasts about so long, in at most so many runs
LONG = 4  # the long chain has so many times as many runs
PAIRS = 9  # chains of either length that are timed
WARM_RUNS = 3


class Shares:
    """What one engine's profiler reported, run by run, in the order of the layers."""

    def __init__(self) -> None:
        self._runs: list[list[tuple[str, float]]] = [[]]

    def add(self, name: str, ms: float) -> None:
        """A layer of the run in hand."""
        self._runs[-1].append((name, ms))

    def next_run(self) -> None:
        """The run in hand is complete."""
        self._runs.append([])

    def result(self) -> list[tuple[str, float]]:
        """(layer, share of the whole), from the faster half of the complete runs."""
        runs = [run for run in self._runs if run]
        if not runs:
            raise RunFailed("TensorRT's profiler reported no layer", hint="rebuild the engine; report the version")
        times = faster_half([[ms for _, ms in run] for run in runs])
        whole = math.fsum(times) or 1.0
        return [(name, time / whole) for (name, _), time in zip(runs[0], times)]


def in_network_times(trt: Module, cuda: Cuda, session: TrtSession, runs: int) -> list[tuple[str, float]]:
    """(TensorRT's name of a layer, the ms it takes inside the whole network), in the order of execution."""
    whole_ms = chained_ms(session, cuda)
    return [(name, share * whole_ms) for name, share in profile(trt, cuda, session, runs)]


def profile(trt: Module, cuda: Cuda, session: TrtSession, runs: int) -> list[tuple[str, float]]:
    """(layer, share of the whole) of `runs` runs in a context of their own."""
    shares = Shares()
    context = session.new_context()
    context.enqueue_emits_profile = False
    context.profiler = profiler = make_profiler(trt, shares)
    for number in range(runs + WARM_RUNS):
        if not context.execute_async_v3(cuda.stream):
            cuda.raise_pending()  # an error of CUDA says more
            raise RunFailed("TensorRT refused to enqueue the profiled inference", hint="leave this network out")
        cuda.synchronise()
        if number >= WARM_RUNS:
            context.report_to_profiler()
            shares.next_run()
    del context, profiler  # in this order: the context calls its profiler
    return shares.result()


def make_profiler(trt: Module, shares: Shares) -> Any:
    """An object that TensorRT calls for every layer."""

    class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # the binding's base class must be initialised by name

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            shares.add(layer_name, ms)

    return Profiler()


def chained_ms(session: TrtSession, cuda: Cuda) -> float:
    """The time of one inference among others: the slope between chains of two lengths.

    Each chain is one CUDA graph; where CUDA captures none, plain runs one behind the other.
    """
    once_ms = _timed_ms(cuda, session.run)
    short = min(max(math.ceil(CHAIN_MS / max(once_ms, 1e-3)), 1), CHAIN_MAX)
    lengths = short, LONG * short
    graphs = [session.unrolled(copies) for copies in lengths]
    chains = [
        graph.launch if graph is not None else _repeated(session.enqueue, copies)
        for graph, copies in zip(graphs, lengths)
    ]
    try:
        for chain in chains:
            chain()
        pairs = [[_timed_ms(cuda, chain) for chain in chains] for _ in range(PAIRS)]
    finally:
        for graph in graphs:
            if graph is not None:
                graph.close()
    few, many = (median([pair[place] for pair in pairs]) for place in (0, 1))
    return (many - few) / (lengths[1] - lengths[0])


def _timed_ms(cuda: Cuda, run: Callable[[], None]) -> float:
    """Device time of one run behind another: it is launched meanwhile, which takes longer the more kernels it has."""
    with timed_region(cuda) as (mark, elapsed_ms):
        run()
        mark()
        run()
        mark()
        return elapsed_ms()


def _repeated(enqueue: Callable[[], None], copies: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(copies):
            enqueue()

    return run
