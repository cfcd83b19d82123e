"""What every runtime refuses in the same words: a precision, a shape, inputs, bytes. Standard library only.

Runtimes that need no NumPy say these too, so a type is told by its NumPy name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hwprune.core.errors import UsageError
from hwprune.core.target import Target


def check_precision(runtime: str, known: Sequence[str], target: Target) -> None:
    """Raise `UsageError` for a precision that is not among the `known` ones; `runtime` is what people call it."""
    if target.precision not in known:
        raise UsageError(
            f"{runtime} computes in {_any_of(known)} here, not in {target.precision}",
            hint=f"use precision {_any_of(known)}",
        )


def fixed_shape(name: str, shape: Sequence[int | None], batch: int) -> tuple[int, ...]:
    """The shape of the input `name` with a free batch (None) taken from the target.

    Raises `UsageError` for another batch than the target's and for a free size besides it.
    """
    free = [place for place, size in enumerate(shape) if size is None and place > 0]
    if free:
        raise UsageError(
            f"input '{name}' has free sizes besides the batch (dimensions {free})", hint="export it with fixed sizes"
        )
    found = tuple(batch if size is None else size for size in shape)
    if found and found[0] != batch:
        wanted = "x".join(map(str, (batch, *found[1:])))
        raise UsageError(
            f"the model is fixed to batch {found[0]}, the target says batch {batch}",
            hint=f"make the two agree: --batch {found[0]}, or an input of {wanted}, which --input gives a Python model"
            " and the export an ONNX file",
        )
    return found


def check_tensors(
    given: Mapping[str, tuple[str, tuple[int, ...]]], expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Raise `UsageError` for inputs, (type, shape) by name, that are not the network's."""
    if set(given) != set(expected):
        raise UsageError(f"the model takes inputs {sorted(expected)}, not {sorted(given)}", hint="give these names")
    for name, (kind, shape) in expected.items():
        for found, wanted in ((given[name][1], shape), (given[name][0], kind)):
            if found != wanted:
                raise UsageError(
                    f"the model does not take these inputs: '{name}' is {found}, not {wanted}",
                    hint=f"give '{name}' as {kind} of shape {shape}",
                )


def cannot_load(runtime: str, model: bytes, reason: str) -> UsageError:
    """The error for bytes that are no model, or none that the runtime can run."""
    return UsageError(
        f"{runtime} cannot load the model ({len(model)} bytes): {reason}",
        hint="check the file with onnx.checker, or export it again",
    )


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
