"""From the channel groups of a network to labels: which unit every index of every weight belongs to.

A graph says which indices stay for a keep set. A few such questions, each asking one bit of the answer, tell the unit
of every index; afterwards no keep set needs the graph again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwprune.core.errors import GraphError, unknown_name
from hwprune.graph.onnx.cut import Alive
from hwprune.graph.onnx.fold import TensorLabels
from hwprune.graph.onnx.labels import FIXED, Labels
from hwprune.graph.onnx.network import Ints

KeptIndices = Callable[[Mapping[str, Sequence[int]]], Mapping[str, Mapping[int, Ints]]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Units:
    """The removable groups in order: the units of all of them are numbered through, group after group.

    Those in `skippable` may keep no unit.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    skippable: frozenset[str] = frozenset()

    @cached_property
    def offsets(self) -> dict[str, int]:
        """The number of the first unit of each group."""
        return dict(zip(self.names, itertools.accumulate((0, *self.sizes)), strict=False))

    @cached_property
    def size_of(self) -> dict[str, int]:
        """The number of units of each group."""
        return dict(zip(self.names, self.sizes, strict=True))

    @property
    def total(self) -> int:
        """The number of units of all groups."""
        return sum(self.sizes)

    def groups_of(self, labels: Collection[int]) -> tuple[str, ...]:
        """The groups that these units belong to, in order."""
        numbers = np.array(sorted(labels), np.int64)
        ends = np.cumsum(self.sizes)
        return tuple(self.names[place] for place in np.unique(np.searchsorted(ends, numbers, side="right")))

    def alive(self, keep: Mapping[str, Sequence[int]]) -> Alive:
        """Which units live when each group of `keep` keeps these and every other group all."""
        alive = np.ones(self.total + 1, np.bool_)
        for name, indices in keep.items():
            offset, size = self._group(name)
            chosen = np.asarray(indices, np.int64)
            none = chosen.size == 0
            if (none and name not in self.skippable) or (not none and (chosen.min() < 0 or chosen.max() >= size)):
                raise GraphError(f"kept units of group '{name}' are empty or not in 0..{size - 1}")
            alive[offset : offset + size] = False
            alive[offset + chosen] = True
        return alive

    def alive_first(self, widths: Mapping[str, int]) -> Alive:
        """Which units live when each group of `widths` keeps its first ones."""
        alive = np.ones(self.total + 1, np.bool_)
        for name, width in widths.items():
            offset, size = self._group(name)
            least = 0 if name in self.skippable else 1
            if not least <= width <= size:
                raise GraphError(f"width {width} of group '{name}' is not in {least}..{size}")
            alive[offset + width : offset + size] = False
        return alive

    def kept_ratio(self, name: str, alive: Alive) -> float:
        """The share of a group's units that live."""
        offset, size = self._group(name)
        return float(alive[offset : offset + size].mean())

    def _group(self, name: str) -> tuple[int, int]:
        if name not in self.offsets:
            raise unknown_name("removable channel group", name, self.names)
        return self.offsets[name], self.size_of[name]


def find_labels(units: Units, kept_indices: KeptIndices, shapes: Shapes) -> TensorLabels:
    """The unit of every index of every weight, from `kept_indices` alone: `name -> dim -> labels`.

    Asks about `2 log2(groups) + log2(units)` keep sets, one bit of the answer each. Members of a group are those that
    go when only its first unit stays, or when only its first unit goes; their units are read off bit by bit.
    """
    group_bits = range(len(units.names).bit_length())  # the number with all bits set is left for what always stays
    numbered = tuple(zip(units.names, units.sizes, strict=True))
    only_first = [{name: [0] for i, (name, _) in enumerate(numbered) if not i >> bit & 1} for bit in group_bits]
    all_but_first = [
        {name: range(1, size) for i, (name, size) in enumerate(numbered) if size > 1 and not i >> bit & 1}
        for bit in group_bits
    ]
    unit_bits = range((max(units.sizes, default=1) - 1).bit_length())
    with_bit = [
        {name: [u for u in range(size) if u >> bit & 1] for name, size in numbered if (size - 1) >> bit}
        for bit in unit_bits
    ]
    first, rest, unit = (_ask(queries, kept_indices, shapes) for queries in (only_first, all_but_first, with_bit))
    every_bit = (1 << len(group_bits)) - 1
    table = np.full((every_bit + 1, 2), (FIXED, 0), np.int64)  # of each group: its first label, the bits of its units
    for i, (name, size) in enumerate(numbered):
        table[i] = units.offsets[name], (1 << (size - 1).bit_length()) - 1
    labels: dict[str, dict[int, Labels]] = {}
    for name, dim in sorted(first.keys() | rest.keys()):
        whole = np.full(shapes[name][dim], -1)
        group = first.get((name, dim), whole) & rest.get((name, dim), whole) & every_bit
        labels.setdefault(name, {})[dim] = _label(table[group], unit.get((name, dim), whole))
    return labels


def _label(rows: Ints, unit_codes: Ints) -> Labels:
    return (rows[:, 0] + (unit_codes & rows[:, 1])).astype(np.int32)


def _ask(
    queries: Sequence[Mapping[str, Sequence[int]]], kept_indices: KeptIndices, shapes: Shapes
) -> dict[tuple[str, int], Ints]:
    """For every index a number: bit i is set when the index stays under query i. Dims that never shrink are absent."""
    codes: dict[tuple[str, int], Ints] = {}
    for bit, query in enumerate(queries):
        for name, by_dim in kept_indices(query).items() if query else ():
            for dim, indices in by_dim.items() if name in shapes else ():
                code = codes.setdefault((name, dim), np.full(shapes[name][dim], -1, np.int64))
                gone = np.ones(len(code), np.bool_)
                gone[indices] = False
                code[gone] &= ~(1 << bit)
    return codes


def verify_labels(units: Units, labels: TensorLabels, kept_indices: KeptIndices, shapes: Shapes) -> None:
    """Compare the labels with the graph's own answer for two keep sets; `GraphError` names the first difference.

    They differ where the indices of one group depend on another group, which labels cannot say.
    """
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        keep = {
            name: np.sort(rng.permutation(size)[: (size + 1) // 2]).tolist()
            for name, size in zip(units.names, units.sizes, strict=True)
        }
        alive = units.alive(keep)
        answer = kept_indices(keep)
        for name in sorted((labels.keys() | answer.keys()) & shapes.keys()):
            for dim, size in enumerate(shapes[name]):
                ours = np.flatnonzero(alive[labels.get(name, {}).get(dim, np.full(size, FIXED))])
                theirs = answer.get(name, {}).get(dim, np.arange(size))
                if not np.array_equal(ours, theirs):
                    raise GraphError(f"the channels of '{name}', dimension {dim}, do not belong to one group each")
