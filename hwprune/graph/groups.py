"""From the tape to channel groups: labels that are removed together are a unit, units with equal roles are a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hwprune.core.widths import ChannelGroup
from hwprune.graph.channel_graph import ConsumerSlice, QueryScale
from hwprune.graph.labels import Pin, Source
from hwprune.graph.layout import Ids
from hwprune.graph.record import OpRecord, Record

_MAKERS = ("conv", "conv_transpose", "linear")


@dataclass(frozen=True, eq=False)
class Structure:
    """The groups of a tape. `group_of`, `unit_of`: for each label its group and unit, -1 for labels of no group."""

    record: Record
    components: Ids
    groups: tuple[ChannelGroup, ...]
    pins: tuple[Pin, ...]
    group_of: Ids
    unit_of: Ids

    @property
    def is_inexact(self) -> bool:
        """True if a group may go that a norm takes its statistics over."""
        chosen = {label for ids, _ in self.record.inexact for label in ids.tolist()}
        return any(self.group_of[label] >= 0 and self.groups[self.group_of[label]].removable for label in chosen)

    def slices(self, number: int) -> tuple[tuple[str, ConsumerSlice], ...]:
        """All parts of parameters and buffers that belong to a group, with their role."""
        gated = (("gate", item) for item in self._rows(self.record.gated).get(number, ()))
        return (*self._owned.get(number, ()), *gated)

    @cached_property
    def _owned(self) -> dict[int, list[tuple[str, ConsumerSlice]]]:
        consumed = _flags(self.record.labels.count, self.record.consumed)
        result: dict[int, list[tuple[str, ConsumerSlice]]] = {}
        for source in self.record.labels.sources:
            labels = np.arange(source.first, source.first + source.size)
            numbers = self.group_of[labels]
            for number in np.unique(numbers[numbers >= 0]).tolist() if not source.is_virtual else ():
                inside = labels[numbers == number]
                for role, chosen in (("consume", inside[consumed[inside]]), ("produce", inside[~consumed[inside]])):
                    if chosen.size:
                        role_here = role if source.is_parameter else "state"
                        result.setdefault(number, []).append((role_here, self._slice(source, chosen)))
        return result

    def query_scales(self) -> tuple[QueryScale, ...]:
        """The rows that make attention queries, group by group."""
        return tuple(
            QueryScale(item.parameter, item.dim, item.positions, self.groups[number].name)
            for number, items in sorted(self._rows(self.record.attention_queries).items())
            for item in items
        )

    def _slice(self, source: Source, labels: Ids) -> ConsumerSlice:
        return ConsumerSlice(source.name, source.dim, labels - source.first, self.unit_of[labels])

    def _rows(self, collected: list[Ids]) -> dict[int, list[ConsumerSlice]]:
        """The parameter rows that carry these labels, by group, with the rows of the same module's bias."""
        if not collected:
            return {}
        flags = _flags(self.record.labels.count, collected)
        result: dict[int, dict[tuple[str, int], ConsumerSlice]] = {}
        for source in self.record.labels.sources:
            labels = np.arange(source.first, source.first + source.size)
            labels = labels[flags[labels] & (self.group_of[labels] >= 0)]
            for number in np.unique(self.group_of[labels]).tolist():
                places = labels[self.group_of[labels] == number] - source.first
                for other in self._companions(source, places):
                    row = self._slice(other, places + other.first)
                    result.setdefault(number, {}).setdefault((other.name, other.dim), row)
        return {number: list(rows.values()) for number, rows in result.items()}

    def _companions(self, source: Source, positions: Ids) -> list[Source]:
        module = source.name.rpartition(".")[0]
        wanted = self.components[source.first + positions]
        return [
            other
            for other in self.record.labels.sources
            if other.is_parameter
            and other.name.rpartition(".")[0] == module
            and other.size == source.size
            and bool((self.components[other.first + positions] == wanted).all())
        ]


def find_groups(record: Record, *, allow_inexact: bool) -> Structure:
    """Resolve the tape's labels into groups of units, in order of execution."""
    labels = record.labels
    if not allow_inexact:
        for ids, pin in record.inexact:
            labels.pin(ids, pin)
    components = labels.components()
    reasons = labels.reasons(components)
    inexact = {c: pin for ids, pin in record.inexact for c in np.unique(components[ids[ids != 0]]).tolist()}
    first_op = _first_ops(record, components)
    classes = _classes(record, components, reasons, first_op)
    group_of = np.full(labels.count, -1, np.int64)
    unit_of = np.full(labels.count, -1, np.int64)
    members = _members(components)
    groups: list[ChannelGroup] = []
    names: Counter[str] = Counter()
    for chosen in classes:
        group, ordered = _group(record, components, members, chosen, reasons)
        if group.removable and chosen[0] in inexact:
            group = replace(group, reason=f"inexact until finetuned: {describe(inexact[chosen[0]])}")
        names[group.name] += 1
        if names[group.name] > 1:
            group = replace(group, name=f"{group.name}#{names[group.name]}")
        for unit, component in enumerate(ordered):
            group_of[members[component]] = len(groups)
            unit_of[members[component]] = unit
        groups.append(group)
    touched = {component for chosen in classes for component in chosen}
    pins = tuple(dict.fromkeys(pin for component, pin in sorted(reasons.items()) if component in touched))
    return Structure(record, components, tuple(groups), pins, group_of, unit_of)


def _flags(count: int, collected: list[Ids]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    flags = np.zeros(count, bool)
    for ids in collected:
        flags[ids] = True
    flags[0] = False
    return flags


def _first_ops(record: Record, components: Ids) -> Mapping[int, int]:
    """For each component that ever is a channel of an activation: the number of the operator that first makes it."""
    result: dict[int, int] = {}
    for number, op in enumerate(record.ops):
        for component in np.unique(components[op.out_ids[op.out_ids != 0]]).tolist():
            result.setdefault(component, number)
    return result


def _classes(
    record: Record, components: Ids, reasons: Mapping[int, Pin], first_op: Mapping[int, int]
) -> list[list[int]]:
    """Components with equal incidence in every weight and operator, classes in order of execution."""
    # A random number for each place, summed over a component's labels, is its signature: 128 bits never collide.
    rng = np.random.default_rng(0)
    signature = np.zeros((2, components.max() + 1), np.uint64)

    def count(where: Ids) -> None:
        for row in signature:
            np.add.at(row, components[where[where != 0]], rng.integers(0, 2**63, dtype=np.uint64))

    for source in record.labels.sources:
        count(np.arange(source.first, source.first + source.size))
    for op in record.ops:
        count(op.in_ids)
        count(op.out_ids)
    count(np.flatnonzero(_flags(record.labels.count, record.consumed)))
    has_parameter = _components_of_parameters(record, components)
    classes: dict[tuple[int, int, Pin | None], list[int]] = {}
    for component, _ in sorted(first_op.items(), key=lambda item: item[1]):
        if component in has_parameter:
            key = (int(signature[0, component]), int(signature[1, component]), reasons.get(component))
            classes.setdefault(key, []).append(component)
    return list(classes.values())


def _components_of_parameters(record: Record, components: Ids) -> set[int]:
    sources = record.labels.sources
    owned = [components[source.first : source.first + source.size] for source in sources if source.is_parameter]
    return set(np.unique(np.concatenate(owned)).tolist()) if owned else set()


def _members(components: Ids) -> dict[int, Ids]:
    order = np.argsort(components, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(components[order])) + 1)
    return {int(components[part[0]]): part for part in parts}


def _group(
    record: Record, components: Ids, members: Mapping[int, Ids], chosen: list[int], reasons: Mapping[int, Pin]
) -> tuple[ChannelGroup, list[int]]:
    """The group of these components, and the components in the order of their units."""
    inside = np.zeros(components.max() + 1, bool)
    inside[chosen] = True
    makers = _distinct(op for op in record.ops if op.kind in _MAKERS and inside[components[op.out_ids]].any())
    first = _first_ids(record, components, inside)
    positions = {int(component): place for place, component in reversed(list(enumerate(components[first])))}
    ordered = sorted(chosen, key=lambda component: positions.get(component, first.size))
    owner = record.labels.source_of(int(members[ordered[0]][0])).name
    name = makers[0] if makers else owner.rpartition(".")[0] or owner
    pin = reasons.get(chosen[0])
    reason = describe(pin) if pin is not None else ""
    if not reason and len(chosen) == 1:
        reason = "it has a single unit"
    unit_channels = int((components[first] == ordered[0]).sum())
    consumers = _consumers(record, components, inside)
    group = ChannelGroup(name, len(chosen), max(1, unit_channels), makers, consumers, not reason, reason)
    return group, ordered


def _first_ids(record: Record, components: Ids, inside: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Ids:
    """The output labels of the operator that first makes channels of the group: a convolution or linear, if any."""
    having = (op for op in record.ops if inside[components[op.out_ids[op.out_ids != 0]]].any())
    first = next(having)
    return next((op for op in (first, *having) if op.kind in _MAKERS), first).out_ids


def _distinct(ops: Iterable[OpRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(op.name for op in ops))


def _consumers(record: Record, components: Ids, inside: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for ids in record.consumed:
        mine = ids[(ids != 0) & inside[components[ids]]]
        if mine.size:
            names[record.labels.source_of(int(mine[0])).name.rpartition(".")[0]] = None
    return tuple(names)


def describe(pin: Pin) -> str:
    """A pin as the reason of a group."""
    place = f" in '{pin.module}'" if pin.module else ""
    source = f" ({pin.source})" if pin.source else ""
    return f"{pin.op}{place}: {pin.reason}{source}"
