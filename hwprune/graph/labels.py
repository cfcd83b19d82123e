"""The union-find over labels: which of them must be removed together, and which can never be removed and why."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hwprune.graph.layout import Ids


@dataclass(frozen=True)
class Source:
    """One dim of one parameter or buffer and the first of its labels: index i carries label `first + i`.

    A virtual source stands for channels that the code makes, such as a padding; nothing is cut there.
    """

    name: str
    dim: int
    first: int
    size: int
    is_parameter: bool
    is_virtual: bool = False


@dataclass(frozen=True)
class Pin:
    """Channels that stay because of something the model does: an operator, where it was run, and why it pins.

    `module`: dotted path. `source`: file and line of the user's code. `channels`: how many stay because of it.
    """

    op: str
    module: str
    source: str
    channels: int
    reason: str

    @property
    def expected(self) -> bool:
        """Whether it goes without saying: the channels are the network's outputs, or were to stay."""
        return self.op in ("output", "protect")

    @property
    def place(self) -> str:
        """`sort in layer4 (net.py:31)`: the operator, the module and the line of code, as far as they are known."""
        return "".join(
            (self.op, f" in {self.module}" if self.module else "", f" ({self.source})" if self.source else "")
        )


class Labels:
    """Collects which labels belong together while the network runs; `components` resolves them once at the end."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.count = 1
        self._firsts: list[int] = []
        self._left: list[Ids] = []
        self._right: list[Ids] = []
        self._pinned: list[tuple[Ids, Pin]] = []

    def fresh(self, name: str, dim: int, size: int, *, is_parameter: bool, is_virtual: bool = False) -> Ids:
        """New labels for one dim of a parameter or buffer."""
        self.sources.append(Source(name, dim, self.count, size, is_parameter, is_virtual))
        self._firsts.append(self.count)
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids

    def source_of(self, label: int) -> Source:
        """The parameter dim that the label (not 0) was made for."""
        return self.sources[bisect_right(self._firsts, label) - 1]

    def unite(self, left: Ids, right: Ids) -> Ids:
        """Unite two arrays of labels position by position; returns the labels that met an index that stays."""
        left, right = np.broadcast_arrays(left, right)
        left, right = left.ravel(), right.ravel()
        both = (left != 0) & (right != 0) & (left != right)
        if both.any():
            self._left.append(left[both])
            self._right.append(right[both])
        return np.concatenate([left[(right == 0) & (left != 0)], right[(left == 0) & (right != 0)]])

    def pin(self, ids: Ids, pin: Pin) -> None:
        """Mark labels as never removable."""
        ids = np.unique(ids)
        ids = ids[ids != 0]
        if ids.size:
            self._pinned.append((ids, pin))

    def components(self) -> Ids:
        """The component of every label, `(count,)`. Component numbers mean nothing but equality."""
        if not self._left:
            return np.arange(self.count, dtype=np.int64)
        left, right = np.concatenate(self._left), np.concatenate(self._right)
        graph = coo_matrix((np.ones(left.size, np.int8), (left, right)), shape=(self.count, self.count))
        components: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
        return components

    def reasons(self, components: Ids) -> Mapping[int, Pin]:
        """The first pin of every component that has one."""
        result: dict[int, Pin] = {}
        for ids, pin in self._pinned:
            for component in np.unique(components[ids]).tolist():
                result.setdefault(component, pin)
        return result
