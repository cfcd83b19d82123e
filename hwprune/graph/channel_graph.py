"""What `trace` returns: channel groups, operators and parameters as functions of the widths. Data only, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hwprune.core.errors import GraphError, UsageError, did_you_mean
from hwprune.core.ops import ChannelCount, OpKey, OpTemplate, ParameterTemplate
from hwprune.core.widths import ChannelGroup, SearchSpace, Widths
from hwprune.graph import counting
from hwprune.graph.labels import Pin

Keep = Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class ConsumerSlice:
    """Part of a weight that belongs to a group: `weight.select(dim, positions[i])` is of unit `units[i]`."""

    parameter: str
    dim: int
    positions: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]

    @cached_property
    def is_ordered(self) -> bool:
        """True if position i belongs to unit i."""
        order = np.arange(self.positions.size)
        return bool((self.positions == order).all() and (self.units == order).all())


@dataclass(frozen=True)
class AttributeEdit:
    """A number that a module keeps outside its weights and that must follow the widths, such as a head size.

    `index`: position inside a tuple attribute, None for a plain int.
    """

    module: str
    attribute: str
    index: int | None
    value: ChannelCount


@dataclass(frozen=True, eq=False)
class QueryScale:
    """Rows of a weight that make the queries of an attention with the default scale 1/sqrt(head size).

    Removing head channels changes that scale; multiplying these rows by sqrt(kept/dense) restores it.
    """

    parameter: str
    dim: int
    positions: npt.NDArray[np.int64]
    group: str


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The coupled channel groups of one network and everything that follows from their widths.

    `groups`: all, also those that cannot be removed (`removable=False`, with the reason). `pins`: what in the model
    holds channels. `op_templates`: in order of execution. `example`: the input that was traced. `slices`: for each
    removable group its `(role, slice)` pairs; role is `produce`, `consume`, `gate` or `state`. `sizes`: dense shapes
    of parameters and buffers. `aliases`: other names of a shared tensor.
    """

    groups: tuple[ChannelGroup, ...]
    pins: tuple[Pin, ...]
    op_templates: tuple[OpTemplate, ...]
    parameter_templates: tuple[ParameterTemplate, ...]
    example: tuple[Tensor, ...]
    slices: Mapping[str, tuple[tuple[str, ConsumerSlice], ...]]
    sizes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edits: tuple[AttributeEdit, ...] = ()
    query_scales: tuple[QueryScale, ...] = ()

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    @property
    def removable(self) -> tuple[ChannelGroup, ...]:
        """The groups that can lose units."""
        return tuple(group for group in self.groups if group.removable)

    def group(self, name: str) -> ChannelGroup:
        """The group of this name. Raises `GraphError` for an unknown one."""
        if name not in self._by_name:
            raise GraphError(
                f"no channel group '{name}'.{did_you_mean(name, self._by_name)}",
                hint=f"groups: {', '.join(self._by_name)}",
            )
        return self._by_name[name]

    def space(self, *, tile: int = 1, min_keep: float = 0.25, depth: bool = False) -> SearchSpace:
        """The widths a search may choose: multiples of `tile` channels, at least `min_keep` of each group, and dense.

        The tile counts channels of the group's first producer; a unit of several channels steps accordingly. With
        `depth` skippable groups may have width 0 too.
        """
        if tile < 1:
            raise UsageError(f"a tile of {tile} channels is less than one", hint="tile is 1, 8, 16, ...")
        if not 0 <= min_keep <= 1:
            raise UsageError(f"min_keep={min_keep} is not between 0 and 1", hint="0.25 keeps a quarter of each group")
        groups = tuple(replace(group, skippable=depth and group.skippable) for group in self.removable)
        none = {True: (0,), False: ()}
        return SearchSpace(groups, tuple((*none[g.skippable], *_allowed(g, tile, min_keep)) for g in groups))

    def dense(self) -> Widths:
        """The widths of the unpruned network: one entry for each removable group."""
        return Widths(tuple((group.name, group.units) for group in self.removable))

    def full(self, widths: Mapping[str, int]) -> Widths:
        """The widths with absent groups dense. Raises `GraphError` for an unknown or pinned group or a bad width."""
        for name, width in widths.items():
            group = self.group(name)
            least = 0 if group.skippable else 1
            if not least <= width <= group.units:
                raise GraphError(f"group '{name}' cannot have width {width}", hint=f"{least} to {group.units} units")
            if not group.removable and width != group.units:
                raise GraphError(f"group '{name}' cannot be cut: {group.reason}", hint="leave it out of the widths")
        return Widths(tuple((group.name, int(widths.get(group.name, group.units))) for group in self.removable))

    def ops(self, widths: Mapping[str, int]) -> tuple[OpKey, ...]:
        """The operators of the sub-network, in order of execution; groups absent from `widths` stay dense."""
        whole = dict(self.full(widths))
        return tuple(template.at(whole) for template in self.op_templates)

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates of convolutions and linear layers for the example's batch."""
        return sum(key.macs for key in self.ops(widths))

    def params(self, widths: Mapping[str, int]) -> int:
        """The number of parameters."""
        whole = dict(self.full(widths))
        return sum(template.count(whole) for template in self.parameter_templates)

    def macs_batch(self, space: SearchSpace, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`macs` of many sub-networks: `values (batch, groups)` in the order of the space -> `(batch,)`."""
        return counting.macs(self.op_templates, space.names, self._rest(space), np.asarray(values))

    def params_batch(self, space: SearchSpace, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`params` of many sub-networks: `values (batch, groups)` in the order of the space -> `(batch,)`."""
        return counting.params(self.parameter_templates, space.names, self._rest(space), np.asarray(values))

    def _rest(self, space: SearchSpace) -> dict[str, int]:
        for name in space.names:
            self.group(name)
        return {group.name: group.units for group in self.removable if group.name not in space.names}

    def check_keep(self, keep: Keep) -> dict[str, npt.NDArray[np.int64]]:
        """The kept units as sorted arrays. Raises `GraphError` naming the group and the index that is wrong."""
        return {name: _checked(self.group(name), indices) for name, indices in keep.items()}

    def widths_of(self, keep: Keep) -> Widths:
        """The widths that these kept units make."""
        return self.full({name: len(kept) for name, kept in self.check_keep(keep).items()})

    def kept_indices(self, keep: Keep) -> dict[str, dict[int, npt.NDArray[np.int64]]]:
        """For each parameter or buffer that shrinks: dim -> the indices that stay. All names of shared ones."""
        stays: dict[tuple[str, int], npt.NDArray[np.bool_]] = {}
        for name, kept in self.check_keep(keep).items():
            alive = np.zeros(self.group(name).units, bool)
            alive[kept] = True
            if alive.all():
                continue
            for role, item in self.slices[name]:
                if role != "gate":
                    key = (item.parameter, item.dim)
                    stays.setdefault(key, np.ones(self.sizes[item.parameter][item.dim], bool))
                    stays[key][item.positions] &= alive[item.units]
        result: dict[str, dict[int, npt.NDArray[np.int64]]] = {}
        for (parameter, dim), mask in stays.items():
            for alias in (parameter, *self.aliases.get(parameter, ())):
                result.setdefault(alias, {})[dim] = np.flatnonzero(mask).astype(np.int64)
        return result

    def changed_state(self, state: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of a full-size state dict with the changed tensors, given by first name, under all of their names."""
        everywhere = {
            alias: tensor for name, tensor in changed.items() for alias in (name, *self.aliases.get(name, ()))
        }
        return {name: everywhere.get(name, value).detach().clone() for name, value in state.items()}

    def producer_slices(self, group: str) -> tuple[ConsumerSlice, ...]:
        """What makes the channels of a group: rows of weights, biases and norm vectors, in order of registration."""
        return self._slices(group, ("produce",))

    def consumer_slices(self, group: str) -> tuple[ConsumerSlice, ...]:
        """What a gate on the group multiplies: input slices of every weight that reads it.

        Channels that only meet other activations (the queries of an attention) have no such weight; there it is the
        rows that produce them.
        """
        return self._slices(group, ("consume", "gate"))

    def _slices(self, name: str, roles: tuple[str, ...]) -> tuple[ConsumerSlice, ...]:
        group = self.group(name)
        if not group.removable:
            raise GraphError(f"group '{name}' cannot be cut: {group.reason}", hint="choose a removable group")
        return tuple(item for role, item in self.slices[name] if role in roles)

    def replace(self, **changes: object) -> ChannelGraph:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _allowed(group: ChannelGroup, tile: int, min_keep: float) -> tuple[int, ...]:
    # The step in units is the least whose channels are a multiple of the tile.
    step = tile // int(np.gcd(tile, group.unit_channels))
    least = max(1, int(np.ceil(group.units * min_keep - 1e-9)))
    grid = [width for width in range(step, group.units, step) if width >= least]
    return (*grid, group.units)


def _checked(group: ChannelGroup, indices: Sequence[int]) -> npt.NDArray[np.int64]:
    kept = np.asarray(list(indices), dtype=np.int64)
    if kept.size == 0 and not group.skippable:
        raise GraphError(f"group '{group.name}' would keep no unit", hint="at least one unit of a group must stay")
    for bad in kept[(kept < 0) | (kept >= group.units)]:
        raise GraphError(
            f"index {bad} is out of range for group '{group.name}'", hint=f"it has units 0 to {group.units - 1}"
        )
    unique = np.unique(kept)
    if unique.size != kept.size:
        raise GraphError(f"the indices kept of group '{group.name}' repeat", hint="name each unit once")
    if not group.removable and unique.size != group.units:
        raise GraphError(f"group '{group.name}' cannot be cut: {group.reason}", hint="leave it out, or keep all units")
    return unique
