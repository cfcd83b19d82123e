"""What a network computes, by ONNX Runtime without its optimiser: what the outputs of other runtimes are held against.

Without the optimiser, since that rewrites quantise-dequantise pairs into integer kernels, which saturate on some
processors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from hwprune.core.measurement import Target

if TYPE_CHECKING:
    import numpy as np


def expected_outputs(
    model: bytes, batches: Iterable[Mapping[str, np.ndarray]], *, batch: int = 1, threads: int = 1
) -> list[list[np.ndarray]]:
    """The outputs for each of `batches`, inputs by name with `batch` images each, computed in `threads`.

    Raises `UsageError` for bytes that are no model, and for wrong inputs.
    """
    import onnxruntime

    from hwprune.runtimes.onnxruntime import OrtSession

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = OrtSession(model, Target(batch=batch), options)
    try:
        return [session.infer(inputs) for inputs in batches]
    finally:
        session.close()


def expected(model: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs for inputs by name; the batch is that of the first one."""
    batch = len(next(iter(inputs.values())))
    return expected_outputs(model, [inputs], batch=batch)[0]
