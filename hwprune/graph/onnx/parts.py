"""What an ONNX template consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hwprune.graph.onnx.cut import Alive
from hwprune.graph.onnx.fold import TensorLabels
from hwprune.graph.onnx.labels import Labels
from hwprune.graph.onnx.network import Array, Ints, Network
from hwprune.graph.onnx.units import Units


class ScaleLike(Protocol):
    """Rows of a weight that a torch cut multiplies by `sqrt(kept / dense)` to undo a changed attention scale."""

    @property
    def parameter(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def positions(self) -> Ints: ...
    @property
    def group(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Scale:
    """Rows of a tensor along `dim` that follow the attention scale of a group."""

    tensor: str
    dim: int
    rows: Ints
    group: str

    @classmethod
    def of(cls, item: ScaleLike, alias: Mapping[str, str]) -> Scale:
        """From a graph's entry; `alias` gives the tensor's name in the ONNX file."""
        name = alias.get(item.parameter, item.parameter)
        return cls(name, item.dim, np.asarray(item.positions, np.int64), item.group)

    def undo(self, array: Array, labels: Labels | None, alive: Alive, ratio: float) -> Array:
        """The cut tensor with these rows divided by `sqrt(ratio)`; `labels` are the dense ones along `dim`."""
        rows = self.rows
        if labels is not None:
            rows = (np.cumsum(alive[labels]) - 1)[rows[alive[labels[rows]]]]
        factors = np.ones(array.shape[self.dim])
        factors[rows] = ratio**-0.5
        return (array * factors.reshape(-1, *(1,) * (array.ndim - self.dim - 1))).astype(array.dtype)


@dataclass(frozen=True, eq=False)
class Parts:
    """The exported network, BatchNormalization not folded, and the unit of every index of its weights.

    `state`: each tensor's name in the module's state dict. `scales`: rows that a torch cut multiplies by
    `sqrt(kept / dense)`; the file holds the dense attention scale as a constant and needs them unmultiplied.
    """

    network: Network
    units: Units
    labels: TensorLabels
    state: Mapping[str, str]
    scales: tuple[Scale, ...] = ()
