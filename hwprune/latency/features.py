"""What a runtime has to do for a sub-network, as numbers: rounded work by layer, and its sums by kind.

Channels are rounded up to the target's tile first, because that is what the hardware computes: 17 channels cost as
much as 32 where the tile is 16. An operator left without channels is gone, its reads and writes included. The work of
a layer is linear or bilinear in the widths, so its expectation over independent widths above 0 is exact. (Our design.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from hwprune.core.errors import TableError, UsageError, did_you_mean
from hwprune.core.ops import ChannelCount, OpTemplate
from hwprune.core.widths import SearchSpace

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Role = Literal["stem", "pointwise", "spatial", "depthwise", "linear", "join", "none"]

_WEIGHTED = ("conv", "conv_transpose", "linear")
_JOINS = ("add", "mul", "concat", "pool", "resize", "matmul")
_ROLES: dict[str, tuple[str, ...]] = {
    "stem": ("stem",),
    "pointwise": ("pointwise",),
    "spatial": ("spatial",),
    "depthwise": ("depthwise",),
    "linear": ("linear",),
    "join": ("join",),
    "convolution": ("stem", "pointwise", "spatial", "depthwise"),
}
_TERMS = (
    ("pointwise", "MACs"),
    ("pointwise", "weights"),
    ("spatial", "MACs"),
    ("spatial", "weights"),
    ("depthwise", "MACs"),
    ("stem", "MACs"),
    ("linear", "weights"),
    ("convolution", "activations"),
    ("join", "activations"),
)
# Weights that fit into a cache (1 to 32 MB at fp32): where latency may bend as a network outgrows it.
_CACHES = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000)
# Fewer channels than this are never a multiple of a tile: the image itself, which kernels read unpacked.
_IMAGE_CHANNELS = 4


def restrict(templates: Sequence[OpTemplate], space: SearchSpace, dense: Mapping[str, int]) -> tuple[OpTemplate, ...]:
    """The same operators with every group outside the space fixed at its dense width."""
    names = set(space.names)

    def fold(count: ChannelCount) -> ChannelCount:
        fixed = sum(coefficient * dense[group] for group, coefficient in count.terms if group not in names)
        return ChannelCount(count.constant + fixed, tuple(term for term in count.terms if term[0] in names))

    return tuple(
        replace(op, in_channels=fold(op.in_channels), out_channels=fold(op.out_channels), groups=fold(op.groups))
        for op in templates
    )


def role(op: OpTemplate) -> Role:
    """Which kind of kernel runs an operator; `none` for what costs nothing of its own."""
    if op.kind in _JOINS:
        return "join"
    if op.kind not in _WEIGHTED:
        return "none"
    if op.kind == "linear":
        return "linear"
    if not op.in_channels.terms and op.in_channels.constant <= _IMAGE_CHANNELS:
        return "stem"
    if op.groups == op.in_channels:
        return "depthwise"
    return "pointwise" if op.kernel == (1, 1) and op.groups == ChannelCount(1) else "spatial"


def widths_array(space: SearchSpace, rows: Sequence[Mapping[str, int]]) -> IntArray:
    """Width mappings as the integer rows `[B, G]` that latency models read, in space order."""
    return np.array([[row[name] for name in space.names] for row in rows], dtype=np.int64).reshape(-1, len(space.names))


@dataclass(frozen=True)
class _Linear:
    """Channel counts of all operators at once: `values @ matrix.T + constant`."""

    matrix: Array
    constant: Array

    @classmethod
    def of(cls, counts: Sequence[ChannelCount], names: tuple[str, ...]) -> _Linear:
        matrix = np.zeros((len(counts), len(names)))
        for row, count in enumerate(counts):
            for group, coefficient in count.terms:
                if group not in names:
                    raise TableError(
                        f"an operator depends on the channel group '{group}', which the search space lacks."
                        f"{did_you_mean(group, names)}"
                    )
                matrix[row, names.index(group)] += coefficient
        return cls(matrix, np.array([count.constant for count in counts], dtype=np.float64))

    def at(self, values: Array) -> Array:
        """`[B, G]` widths to `[B, O]` counts."""
        return values @ self.matrix.T + self.constant


@dataclass(frozen=True)
class LayerWork:
    """Work of each of `O` operators for `B` sub-networks, all `[B, O]`.

    `macs` and `weights` use rounded channels; `reads` and `writes` are activation elements, rounded too.
    """

    macs: Array
    weights: Array
    reads: Array
    writes: Array


class Work:
    """The operators of one network, compiled for a search space and a tile: widths in, work out."""

    def __init__(self, op_templates: Sequence[OpTemplate], space: SearchSpace, tile: int) -> None:
        if tile < 1:
            raise UsageError(f"a tile is at least 1 channel, not {tile}")
        self.ops = tuple(op for op in op_templates if role(op) != "none")
        if not self.ops:
            raise TableError("no operator with work was traced, so there is nothing to predict")
        self.space = space
        self.tile = tile
        self.roles = tuple(role(op) for op in self.ops)
        self._in = _Linear.of([op.in_channels for op in self.ops], space.names)
        self._out = _Linear.of([op.out_channels for op in self.ops], space.names)
        self._groups = _Linear.of([op.groups for op in self.ops], space.names)
        self._shapes()
        self._terms = self._sums()
        dense = float(self.layers([space.dense().values_tuple()]).weights.sum())
        self._spills = tuple(size for size in _CACHES if size < dense)

    def _shapes(self) -> None:
        """Constants of each operator: elements of a channel before and after, kernel taps, whether it rounds."""
        ops = self.ops
        self._in_area = np.array([op.batch * op.in_size[0] * op.in_size[1] for op in ops], dtype=np.float64)
        self._out_area = np.array([op.batch * op.out_size[0] * op.out_size[1] for op in ops], dtype=np.float64)
        self._taps = np.array([op.kernel[0] * op.kernel[1] for op in ops], dtype=np.float64)
        self._taps[[kind == "join" for kind in self.roles]] = 0.0
        transposed = np.array([op.kind == "conv_transpose" for op in ops])
        self._mac_area = np.where(transposed, self._in_area, self._out_area)
        self._in_tile = np.array([1.0 if kind == "stem" else float(self.tile) for kind in self.roles])
        self._group_tile = np.array([float(self.tile) if kind == "depthwise" else 1.0 for kind in self.roles])

    def layers(self, values: npt.ArrayLike) -> LayerWork:
        """Work by layer for width rows `[B, G]`; all 0 for an operator that a group of width 0 removes."""
        rows = np.asarray(values, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.space.names):
            raise UsageError(f"widths of shape {rows.shape} do not fit a space of {len(self.space.names)} groups")
        inputs = _round_up(self._in.at(rows), self._in_tile)
        outputs = _round_up(self._out.at(rows), self.tile)
        there = (inputs > 0) & (outputs > 0)
        groups = np.maximum(_round_up(self._groups.at(rows), self._group_tile), 1.0)
        weights = self._taps * inputs * outputs / groups
        reads, writes = self._in_area * inputs * there, self._out_area * outputs * there
        return LayerWork(self._mac_area * weights, weights, reads, writes)

    def terms(self, values: npt.ArrayLike) -> Array:
        """Sums of work by kind, `[B, T]`, in the order of `term_names`: what the physics backbone weighs.

        The last ones, `weights beyond N`, are what of all weights exceeds N: run after run they are read from the
        caches while they fit, from memory when they do not.
        """
        work = self.layers(values)
        sums = [_quantity(work, quantity) @ mask for quantity, mask in self._terms.values()]
        total = work.weights.sum(axis=1)
        return np.stack([*sums, *(np.maximum(total - size, 0.0) for size in self._spills)], axis=1)

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the sums that occur in this network."""
        return (*self._terms, *(f"weights beyond {size}" for size in self._spills))

    def _sums(self) -> dict[str, tuple[str, Array]]:
        """Which quantity is summed over which operators; sums over no operator are left out."""
        wanted = {f"{kind} {quantity}": (kind, quantity) for kind, quantity in _TERMS}
        masks = {name: np.array([float(r in _ROLES[k]) for r in self.roles]) for name, (k, _) in wanted.items()}
        return {name: (wanted[name][1], mask) for name, mask in masks.items() if mask.any()}


def _quantity(work: LayerWork, name: str) -> Array:
    return {"MACs": work.macs, "weights": work.weights, "activations": work.reads + work.writes}[name]


def _round_up(channels: Array, tile: Array | int) -> Array:
    return np.ceil(channels / tile) * tile
