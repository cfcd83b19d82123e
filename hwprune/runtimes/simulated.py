"""SIMULATED: an analytic staircase on a virtual clock. No hardware is timed; outputs are computed by onnx itself.

An operator takes the longer of its arithmetic, with channels rounded up to the tile, and its memory traffic, plus a
fixed cost. Activations and batch normalisation are fused into the convolution before them and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hwprune.core.errors import UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._machine import Disturbances, Machine, VirtualClock
from hwprune.runtimes._refusals import cannot_load, check_precision, check_tensors, fixed_shape

if TYPE_CHECKING:
    import numpy as np
    import onnx

FREE = ("Relu", "Clip", "BatchNormalization", "Identity", "Constant", "Reshape", "Flatten", "HardSwish", "Sigmoid")
REFERENCE_KINDS = "depthwise"  # nodes of the reference kernel are named so, and it does not flip its speed
FLOAT_BYTES = 4


@dataclass(frozen=True)
class _Node:
    name: str
    kind: str
    ms: float
    in_shapes: tuple[tuple[int, ...], ...]
    out_shapes: tuple[tuple[int, ...], ...]


class SimulatedSession(AbstractSession):
    """A network whose runs take virtual time."""

    def __init__(self, model: onnx.ModelProto, nodes: tuple[_Node, ...], machine: Machine, *, reference: bool) -> None:
        self._model = model
        self._machine = machine
        self._reference = reference
        self._sensitivity = 1.0 if reference else _sensitivity(nodes)
        self.latency_ms = math.fsum(node.ms for node in nodes)

    def run(self) -> None:
        self._machine.run(self.latency_ms, sensitivity=self._sensitivity, flips=not self._reference)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        from onnx.reference import ReferenceEvaluator

        check_tensors(
            {name: (str(array.dtype), tuple(array.shape)) for name, array in inputs.items()},
            {item.name: (_type_name(item), _shape(item)) for item in _real_inputs(self._model)},
        )
        return list(ReferenceEvaluator(self._model).run(None, dict(inputs)))

    def close(self) -> None:
        self._model = None


@dataclass(frozen=True)
class SimulatedRuntime(Disturbances, AbstractRuntime):
    """SIMULATED staircase device; the options are its speed and what disturbs it."""

    simulated: ClassVar[bool] = True

    tile: int = field(default=16, metadata={"help": "channels are computed in multiples of this"})
    macs_per_ms: float = field(default=4e7, metadata={"help": "arithmetic speed"})
    bytes_per_ms: float = field(default=2e7, metadata={"help": "memory speed"})
    overhead_us: float = field(default=2.0, metadata={"help": "fixed cost of an operator"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile < 1:
            raise UsageError(f"tile={self.tile} must be 1 or more", hint="tile=1 has no steps")
        options = {name: value for name, value in asdict(self).items() if name in Disturbances.__dataclass_fields__}
        object.__setattr__(self, "_machine", Machine(Disturbances(**options)))

    @property
    def machine(self) -> Machine:
        """The virtual machine that all sessions of this runtime share."""
        machine: Machine = self.__dict__["_machine"]
        return machine

    def check(self, target: Target) -> None:
        check_precision("the simulated runtime", self.precisions, target)

    def fingerprint(self, target: Target) -> Fingerprint:
        return Fingerprint(
            device=target.device,
            cpu_model="SIMULATED staircase",
            cores=target.threads,
            runtime="simulated",
            runtime_version="1",
            precision=target.precision,
            batch=target.batch,
            threads=target.threads,
            os="SIMULATED",
            flags=tuple((name, f"{value:g}") for name, value in asdict(self).items()),
        )

    def clock(self, target: Target) -> AbstractClock:
        return VirtualClock(self.machine)

    def open(self, model: bytes, target: Target) -> SimulatedSession:
        proto = _load(model, target.batch)
        nodes = self._nodes(proto)
        reference = any(node.name.startswith(REFERENCE_KINDS) for node in nodes)
        return SimulatedSession(proto, nodes, self.machine, reference=reference)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        nodes = self._nodes(_load(model, target.batch))
        return tuple(
            LayerTime(node.name, node.kind, node.ms, node.in_shapes, node.out_shapes, "SIMULATED") for node in nodes
        )

    def _nodes(self, model: onnx.ModelProto) -> tuple[_Node, ...]:
        """The operators that cost time, in order of execution."""
        graph = model.graph
        shapes = {item.name: _shape(item) for item in (*graph.value_info, *graph.input, *graph.output)}
        shapes.update({item.name: tuple(item.dims) for item in graph.initializer})
        weights = {item.name for item in graph.initializer}
        found = []
        for place, node in enumerate(graph.node):
            if node.op_type in FREE:
                continue
            ins = tuple(shapes.get(name, ()) for name in node.input if name)
            outs = tuple(shapes.get(name, ()) for name in node.output if name)
            weight = next((shapes[name] for name in node.input[1:] if name in weights and len(shapes[name]) > 1), ())
            macs = self._macs(node, ins, outs, weight)
            moved = FLOAT_BYTES * sum(math.prod(shape) for shape in (*ins, *outs))
            ms = max(macs / self.macs_per_ms, moved / self.bytes_per_ms) + self.overhead_us / 1e3
            found.append(_Node(node.name or f"{node.op_type}_{place}", node.op_type, ms, ins, outs))
        return tuple(found)

    def _macs(
        self, node: Any, ins: tuple[tuple[int, ...], ...], outs: tuple[tuple[int, ...], ...], weight: tuple[int, ...]
    ) -> float:
        """Multiply-accumulates with channels rounded up to the tile."""
        if node.op_type == "Conv" and weight:
            depthwise = weight[1] == 1 and outs[0][1] == ins[0][1]
            channels = self._up(weight[0]) * (1 if depthwise else self._up(weight[1]))
            return float(math.prod(weight[2:]) * channels * math.prod(outs[0][2:]) * outs[0][0])
        if node.op_type in ("Gemm", "MatMul") and weight:
            rows = math.prod(ins[0][:-1])
            return float(rows * self._up(weight[-1]) * self._up(weight[-2]))
        return 0.0

    def _up(self, channels: int) -> int:
        return math.ceil(channels / self.tile) * self.tile


def _sensitivity(nodes: tuple[_Node, ...]) -> float:
    """Networks of large dense convolutions suffer least from contention, those of many small operators most."""
    small = math.fsum(node.ms for node in nodes if node.ms < 0.02)
    return 0.3 + 0.7 * small / max(math.fsum(node.ms for node in nodes), 1e-9)


def _load(model: bytes, batch: int) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_from_string(model)
        for item in _real_inputs(proto):
            sizes = item.type.tensor_type.shape.dim
            known = [size.dim_value if size.HasField("dim_value") else None for size in sizes]
            sizes[0].dim_value = fixed_shape(item.name, known, batch)[0]
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except (DecodeError, onnx.shape_inference.InferenceError, IndexError) as error:
        raise cannot_load("the simulated runtime", model, str(error).splitlines()[0]) from error
    if not inferred.graph.node:
        raise cannot_load("the simulated runtime", model, "it has no operators")
    return inferred


def _real_inputs(model: onnx.ModelProto) -> list[Any]:
    weights = {item.name for item in model.graph.initializer}
    return [item for item in model.graph.input if item.name not in weights]


def _type_name(item: Any) -> str:
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type))


def _shape(item: Any) -> tuple[int, ...]:
    return tuple(dimension.dim_value for dimension in item.type.tensor_type.shape.dim)
