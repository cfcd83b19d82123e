"""What a network takes: names, types and shapes of its inputs, with the batch of the target filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwprune.core.errors import UsageError
from hwprune.runtimes._refusals import check_tensors, fixed_shape

if TYPE_CHECKING:
    import onnx

EXAMPLE_SEED = 0


@dataclass(frozen=True)
class Input:
    """One input: `kind` is a numpy type name, "" for a type that numpy lacks; a size of None is free."""

    name: str
    kind: str
    shape: tuple[int | None, ...]


def fixed_inputs(inputs: Sequence[Input], batch: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of every input by name, a free batch taken from the target.

    Raises `UsageError` for another batch than the target's, a free size besides the batch, and a type that cannot be
    timed.
    """
    return {item.name: (_numpy_type(item), fixed_shape(item.name, item.shape, batch)) for item in inputs}


def _numpy_type(item: Input) -> np.dtype[Any]:
    if not item.kind:
        raise UsageError(f"input '{item.name}' is of a type which cannot be timed", hint="use a float or integer input")
    return np.dtype(item.kind)


def example_inputs(
    inputs: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], seed: int = EXAMPLE_SEED
) -> dict[str, np.ndarray]:
    """Values to time with: normal floats, since denormal ones would be timed as something else; ones for integers."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(kind) if np.issubdtype(kind, np.floating) else np.ones(shape, kind)
        for name, (kind, shape) in inputs.items()
    }


def check_inputs(
    given: Mapping[str, np.ndarray], expected: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> None:
    """Raise `UsageError` for inputs of other names, shapes or types than the network's."""
    check_tensors(
        {name: (str(array.dtype), tuple(array.shape)) for name, array in given.items()},
        {name: (str(kind), shape) for name, (kind, shape) in expected.items()},
    )


def onnx_inputs(model: onnx.ModelProto) -> tuple[Input, ...]:
    """The inputs of an ONNX model that are not initialisers too."""
    weights = {item.name for item in model.graph.initializer}
    return tuple(_onnx_input(item) for item in model.graph.input if item.name not in weights)


def _onnx_input(item: onnx.ValueInfoProto) -> Input:
    from onnx import helper

    tensor = item.type.tensor_type
    try:
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except KeyError:
        kind = ""
    sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return Input(item.name, kind, sizes)
