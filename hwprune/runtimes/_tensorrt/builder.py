"""From ONNX bytes to a plan: parser, builder flags, timing cache, and a memory of plans by content.

The ONNX file carries the types. Strong typing takes them as they are; weak typing, all that older versions have, takes
them as permission and may keep a layer in fp32, which `layers.fp32_layers` finds afterwards.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwprune.core.errors import UsageError
from hwprune.runtimes._refusals import fixed_shape
from hwprune.runtimes._tensorrt.api import Builder, Config, Module, Network, Parser, is_strongly_typed
from hwprune.runtimes._tensorrt.errors import MEMORY, BuildFailed, ParseFailed
from hwprune.runtimes._tensorrt.log import Log, shown
from hwprune.runtimes._tensorrt.timing_cache import TimingCache

if TYPE_CHECKING:
    from hwprune.core.measurement import Target

MIB = 1 << 20
PLANS_BYTES = 128 * MIB  # so many bytes of plans are remembered; on a board that is the GPU's memory too


@dataclass(frozen=True)
class BuildOptions:
    """What changes which kernels win, so all of it is part of the fingerprint."""

    typing: str = "auto"
    optimisation_level: int = 3
    workspace_mib: int = 1024
    aux_streams: int = 0
    tactic_mib: int = 0
    kernel_timings: int = 8

    def __post_init__(self) -> None:
        if self.typing not in ("auto", "strong", "weak"):
            raise UsageError(f"typing={self.typing!r} is not one of auto, strong, weak", hint="leave it at auto")
        if not 1 <= self.optimisation_level <= 5:
            raise UsageError(
                f"optimisation_level={self.optimisation_level} is not one of 1 to 5",
                hint="3 is TensorRT's own; 0 would ignore the timing cache",
            )
        if self.workspace_mib < 1 or self.aux_streams < 0:
            raise UsageError(
                f"workspace_mib={self.workspace_mib} must be 1 or more and aux_streams={self.aux_streams} 0 or more",
                hint="the standard is 1024 and 0",
            )
        if self.tactic_mib < 0 or self.kernel_timings < 1:
            raise UsageError(
                f"tactic_mib={self.tactic_mib} must be 0 or more, kernel_timings={self.kernel_timings} 1 or more",
                hint="the standard is 0, which sets no limit, and 8",
            )


class PlanBuilder:
    """The one builder of a process; `builds` counts the engines it has made."""

    def __init__(self, trt: Module, log: Log, options: BuildOptions) -> None:
        self._trt = trt
        self._log = log
        self._options = options
        self._builder: Builder = log.make("builder", trt.Builder)
        self._plans: OrderedDict[str, bytes] = OrderedDict()
        self.builds = 0

    def plan(self, model: bytes, target: Target, timings: TimingCache | None = None) -> bytes:
        """The serialised engine of an ONNX model, built once for the same bytes, precision and batch.

        Raises `ParseFailed` and other `UsageError`s for the model, `BuildFailed` when TensorRT finds no engine.
        """
        key = hashlib.sha256(model + f"|{target.precision}|{target.batch}".encode()).hexdigest()
        if key in self._plans:
            self._plans.move_to_end(key)
        else:
            self._plans[key] = self._build(model, target, timings)
            self._trim()
        return self._plans[key]

    def _trim(self) -> None:
        while len(self._plans) > 1 and sum(map(len, self._plans.values())) > PLANS_BYTES:
            self._plans.popitem(last=False)

    def _build(self, model: bytes, target: Target, timings: TimingCache | None) -> bytes:
        self._log.take()
        network = self._network()
        parser = self._parsed(network, model)
        _fix_batch(network, target.batch)
        config = self._config(target)
        if timings is not None:
            timings.attach(config)
        plan = self._builder.build_serialized_network(network, config)
        del parser  # not before: the memory of the weights is the parser's
        if plan is None:
            raise BuildFailed(
                f"TensorRT built no engine for the model ({len(model)} bytes): {self._log.take_text()}",
                hint=f"if memory ran out, {MEMORY}; else leave this network out",
            )
        self.builds += 1
        if timings is not None:
            timings.built()
        return bytes(memoryview(plan))  # type: ignore[arg-type]

    def _network(self) -> Network:
        builder = self._builder
        return builder.create_network(network_flags(self._trt, self._options.typing))

    def _parsed(self, network: Network, model: bytes) -> Parser:
        """A parser that has filled the network."""
        parser: Parser = self._log.make("ONNX parser", self._trt.OnnxParser, network)
        parsed = bool(model) and parser.parse(model)
        if not parsed:
            found = tuple(_complaint(parser, index) for index in range(parser.num_errors))
            raise ParseFailed(
                f"TensorRT cannot load the model ({len(model)} bytes): "
                f"{shown(found) or self._log.take_text('it is no ONNX model')}",
                hint="check the file with onnx.checker, or export it again",
            )
        if network.num_outputs == 0 or network.num_layers == 0:
            raise ParseFailed(
                f"TensorRT cannot load the model ({len(model)} bytes): it has no operators",
                hint="export it again",
            )
        return parser

    def _config(self, target: Target) -> Config:
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
        if options.tactic_mib and hasattr(trt.MemoryPoolType, "TACTIC_DRAM"):
            config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, options.tactic_mib * MIB)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if hasattr(config, "avg_timing_iterations"):  # TensorRT's own is 1: which kernel wins is then often chance
            config.avg_timing_iterations = options.kernel_timings
        if hasattr(config, "builder_optimization_level"):
            config.builder_optimization_level = options.optimisation_level
        if hasattr(config, "max_aux_streams"):
            config.max_aux_streams = options.aux_streams
        if hasattr(trt.BuilderFlag, "TF32"):
            change = config.set_flag if target.precision == "tf32" else config.clear_flag
            change(trt.BuilderFlag.TF32)
        if not is_strongly_typed(trt, options.typing):
            self._permit(config, target.precision)
        return config

    def _permit(self, config: Config, precision: str) -> None:
        """Allow narrower types than fp32, which weak typing takes where they are faster."""
        trt = self._trt
        if precision in ("fp16", "int8") and hasattr(trt.BuilderFlag, "FP16"):
            config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8" and hasattr(trt.BuilderFlag, "INT8"):
            config.set_flag(trt.BuilderFlag.INT8)


def network_flags(trt: Module, typing: str) -> int:
    """How a network is created: bits whose numbers differ from version to version."""
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):  # demanded by 8.x, ignored by 10.x, gone in 11
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if is_strongly_typed(trt, typing) and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return flags


def _fix_batch(network: Network, batch: int) -> None:
    """Give a free batch the target's size, so that kernels are chosen for this shape alone."""
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        shape = tuple(entry.shape)
        fixed = fixed_shape(entry.name, [None if size < 0 else size for size in shape], batch)
        if fixed != shape:
            entry.shape = fixed


def _complaint(parser: Parser, index: int) -> str:
    problem = parser.get_error(index)
    text = problem.desc()
    if hasattr(problem, "node_name"):  # from TensorRT 10 on
        return f"node {problem.node_name()}: {text}"
    return f"node {problem.node()}: {text}"
