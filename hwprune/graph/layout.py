"""Which label every index of a tensor's dimensions carries, and what views and permutations do to it. Numpy only.

A label is a positive integer, one for each index of each dimension of each parameter. Label 0 marks an index that
can never be removed (a channel of the input, a zero padded on).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Factor:
    """The labels along some dimensions of a tensor: `ids` has one axis for each of `dims` (ascending).

    With several dims the factor is joint: a channel dimension was split into them by a view. `preferred` is the
    dim that stays free when the others must be tied (the last one of the split: positions inside each row).
    """

    dims: tuple[int, ...]
    ids: Ids
    preferred: int


Layout = tuple[Factor, ...]


def vector(dim: int, ids: Ids) -> Layout:
    """The layout of a tensor with labels along one dim only; empty if none of them is a real label."""
    return (Factor((dim,), ids, dim),) if ids.size > 1 and ids.any() else ()


def factor_on(layout: Layout, dim: int) -> Factor | None:
    """The factor that covers the dim, if any."""
    return next((factor for factor in layout if dim in factor.dims), None)


def renamed(layout: Layout, names: Mapping[int, int]) -> Layout:
    """The layout after dims were permuted, inserted or dropped; `names` maps every labelled old dim to its new one."""
    result = []
    for factor in layout:
        new = [names[dim] for dim in factor.dims]
        order = sorted(range(len(new)), key=new.__getitem__)
        ids = factor.ids.transpose(order)
        result.append(Factor(tuple(new[i] for i in order), ids, names[factor.preferred]))
    return tuple(result)


def rows(factor: Factor, dim: int) -> Ids:
    """The labels as a matrix `(size of dim, all other positions)`: the entries of one row share an index of `dim`."""
    axis = factor.dims.index(dim)
    moved = np.moveaxis(factor.ids, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest runs of dims of equal product that a reshape maps to each other; dims of size 1 are left out."""
    olds = [dim for dim, size in enumerate(old) if size != 1]
    news = [dim for dim, size in enumerate(new) if size != 1]
    result = []
    i = j = 0
    while i < len(olds) and j < len(news):
        first_i, first_j = i, j
        left, right = old[olds[i]], new[news[j]]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * old[olds[i]], i + 1
            else:
                right, j = right * new[news[j]], j + 1
        result.append((tuple(olds[first_i:i]), tuple(news[first_j:j])))
    return result


def merges(factor: Factor, old: Sequence[int], new: Sequence[int]) -> bool:
    """True if the reshape puts two dims of a joint factor into one block: its rows must be tied before."""
    if len(factor.dims) == 1:
        return False
    return any(sum(dim in factor.dims for dim in before) > 1 for before, _ in blocks(old, new))


def reshaped(layout: Layout, old: Sequence[int], new: Sequence[int]) -> tuple[Layout, Layout]:
    """The layout after a reshape, and the factors that could not be carried over because another one is in the way."""
    pairs = blocks(old, new)
    kept: list[Factor] = []
    lost: list[Factor] = []
    taken: set[int] = set()
    for factor in sorted(layout, key=lambda item: -item.ids.size):
        touched = [n for n, (before, _) in enumerate(pairs) if any(dim in before for dim in factor.dims)]
        if any(n in taken for n in touched if len(pairs[n][0]) > 1):
            lost.append(factor)
            continue
        taken.update(touched)
        moved = _reshape_factor(factor, [pairs[n] for n in touched], old, new)
        if moved is not None:
            kept.append(moved)
    return tuple(kept), tuple(lost)


def _reshape_factor(
    factor: Factor,
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    old: Sequence[int],
    new: Sequence[int],
) -> Factor | None:
    before = [dim for pair in pairs for dim in pair[0]]
    after = [dim for pair in pairs for dim in pair[1]]
    expanded = factor.ids.reshape([old[dim] if dim in factor.dims else 1 for dim in before])
    ids = np.broadcast_to(expanded, [old[dim] for dim in before]).reshape([new[dim] for dim in after])
    home = next(pair[1] for pair in pairs if factor.preferred in pair[0])
    return varying(after, ids, home)


def varying(dims: Sequence[int], ids: Ids, home: Sequence[int]) -> Factor | None:
    """The factor over the dims along which the labels differ; None if there is none. `home` holds the preferred dim."""
    kept = list(dims)
    for dim in dims:
        axis = kept.index(dim)
        first = ids.take([0], axis)
        if math.prod(ids.shape) == 0 or bool((ids == first).all()):
            ids = first.squeeze(axis)
            kept.remove(dim)
    if not kept:
        return None
    inside = [dim for dim in kept if dim in home]
    return Factor(tuple(kept), np.ascontiguousarray(ids), (inside or kept)[-1])
