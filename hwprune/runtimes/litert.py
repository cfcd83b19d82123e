"""LiteRT (TensorFlow Lite) on the CPU with its XNNPACK kernels, fp32: the runtime of most Android applications.

The network is written as a LiteRT file directly from the ONNX graph (`_litert/rules.py`), in milliseconds. LiteRT
hands to XNNPACK what XNNPACK knows, in one part or, where LiteRT's own kernels have to run between, in several: their
number is a fact of each session. Images are held channels last and given so; bringing them there is the caller's work
and is not timed. The Python package offers no profile of what XNNPACK does inside, so there are no layer times.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._cpu import check_threads, cpu_clock, cpu_fingerprint
from hwprune.runtimes._host import undisturbed
from hwprune.runtimes._inputs import check_inputs, example_inputs
from hwprune.runtimes._litert.model import FIRST, LAST
from hwprune.runtimes._litert.rules import write
from hwprune.runtimes._onnx.graph import read_graph
from hwprune.runtimes._refusals import check_precision


@lru_cache(maxsize=1)
def _litert() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise DeviceError("LiteRT is not installed", hint="pip install ai-edge-litert") from error
    return interpreter


class LitertSession(AbstractSession):
    """An interpreter whose inputs are set once, so that a run copies nothing."""

    def __init__(self, model: bytes, target: Target) -> None:
        self._graph = read_graph(model, batch=target.batch, reader="LiteRT")
        self._model = write(self._graph)
        self._interpreter: Any = _litert().Interpreter(model_content=self._model.content, num_threads=target.threads)
        try:
            self._interpreter.allocate_tensors()
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise UsageError(f"LiteRT refuses the model: {first}", hint="use --runtime onnxruntime") from error
        self._example = example_inputs(self._graph.inputs)
        self._set(self._example)
        self._invoke = self._interpreter.invoke

    @property
    def facts(self) -> Mapping[str, str]:
        parts = sum(item["op_name"] == "DELEGATE" for item in self._interpreter._get_ops_details())
        return {"parts in XNNPACK": str(parts)}

    def run(self) -> None:
        self._invoke()

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        check_inputs(inputs, self._graph.inputs)
        self._set(inputs)
        self._invoke()
        found = []
        for detail, last in zip(self._interpreter.get_output_details(), self._model.outputs_last):
            array = self._interpreter.get_tensor(detail["index"])
            found.append(array.transpose(FIRST) if last else array)
        self._set(self._example)
        return found

    def close(self) -> None:
        self._interpreter = self._invoke = None

    def _set(self, inputs: Mapping[str, np.ndarray]) -> None:
        for detail, (name, last) in zip(self._interpreter.get_input_details(), self._model.inputs_last.items()):
            array = inputs[name].transpose(LAST) if last else inputs[name]
            self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(array))


@dataclass(frozen=True)
class LitertRuntime(AbstractRuntime):
    """LiteRT with XNNPACK, CPU, fp32."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def check(self, target: Target) -> None:
        _litert()
        check_precision("LiteRT", self.precisions, target)
        check_threads(target)

    def fingerprint(self, target: Target) -> Fingerprint:
        flags = (
            ("kernels", "XNNPACK"),
            ("layout", "channels last"),
            ("denormals", "flushed"),
            ("clock", self.clock(target).name),
        )
        return cpu_fingerprint(target, runtime="litert", version=_version(), flags=flags)

    def clock(self, target: Target) -> AbstractClock:
        return cpu_clock(target)

    def open(self, model: bytes, target: Target) -> LitertSession:
        return LitertSession(model, target)

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        """None: XNNPACK runs as one operator of LiteRT, and the package shows nothing of what happens inside."""
        return ()

    def measuring(self, target: Target) -> AbstractContextManager[None]:
        return undisturbed(target.threads)


def _version() -> str:
    import ai_edge_litert

    return str(ai_edge_litert.__version__)
