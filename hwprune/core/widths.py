"""Channel groups, the widths a search may choose for them, and the budget it must keep."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

from hwprune.core.errors import UsageError, did_you_mean
from hwprune.core.units import parse_fraction, parse_latency_ms

Statistic = Literal["median", "p90"]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that are kept or removed together.

    `units` is the dense width: the number of removable things (a channel, a head, a conv group), each of which
    stands for `unit_channels` channels of the first producer. A group that cannot be cut has
    `removable=False` and says why in `reason`. A `skippable` one may lose all its units: a residual branch vanishes.
    """

    name: str
    units: int
    unit_channels: int = 1
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    removable: bool = True
    reason: str = ""
    skippable: bool = False

    def __post_init__(self) -> None:
        if self.units < 1 or self.unit_channels < 1:
            raise UsageError(f"channel group '{self.name}' has {self.units=} and {self.unit_channels=}; both are >= 1")


@dataclass(frozen=True)
class Widths(Mapping[str, int]):
    """Units kept in each group: the shape of one sub-network. Hashable, compared by content, in graph order."""

    items_: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, mapping: Mapping[str, int]) -> Widths:
        """Widths from any mapping `group name -> units kept`."""
        return cls(tuple((name, int(width)) for name, width in mapping.items()))

    def __getitem__(self, name: str) -> int:
        for key, width in self.items_:
            if key == name:
                return width
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def values_tuple(self) -> tuple[int, ...]:
        """The widths alone, in graph order: the row a latency model reads."""
        return tuple(width for _, width in self.items_)

    def replace(self, name: str, width: int) -> Widths:
        """The same widths with one group changed."""
        return Widths(tuple((key, width if key == name else old) for key, old in self.items_))


@dataclass(frozen=True)
class SearchSpace:
    """The removable groups and, for each, the widths allowed: ascending, the last one dense."""

    groups: tuple[ChannelGroup, ...]
    widths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.widths):
            raise UsageError(f"a search space of {len(self.groups)} groups has {len(self.widths)} width lists")
        for group, allowed in zip(self.groups, self.widths, strict=True):
            ascending = all(a < b for a, b in itertools.pairwise(allowed))
            least = 0 if group.skippable else 1
            if not allowed or not ascending or allowed[0] < least or allowed[-1] != group.units:
                raise UsageError(
                    f"widths {allowed} of group '{group.name}' must ascend from {least} or more to {group.units}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The group names, in graph order."""
        return tuple(group.name for group in self.groups)

    @property
    def size(self) -> int:
        """The number of different sub-networks."""
        return math.prod(len(allowed) for allowed in self.widths)

    def make(self, values: tuple[int, ...] | list[int]) -> Widths:
        """Widths of this space from plain integers in graph order."""
        return Widths(tuple(zip(self.names, (int(v) for v in values), strict=True)))

    def dense(self) -> Widths:
        """The unpruned network."""
        return self.make([allowed[-1] for allowed in self.widths])

    def smallest(self) -> Widths:
        """The least width everywhere."""
        return self.make([allowed[0] for allowed in self.widths])

    def sample(self, rng: Random) -> Widths:
        """One sub-network, every group drawn on its own."""
        return self.make([rng.choice(allowed) for allowed in self.widths])

    def nearest(self, values: Sequence[float]) -> Widths:
        """The allowed widths nearest to real-valued ones (ties go to the wider)."""
        pairs = zip(self.widths, values, strict=True)
        return self.make([_nearest(allowed, value) for allowed, value in pairs])

    def snap(self, counts: Sequence[float]) -> Widths:
        """The allowed widths nearest to counts of units that are alive; none only where none is.

        Few units that live are the best ones of their branch: rounding must not remove it.
        """
        pairs = zip(self.widths, counts, strict=True)
        return self.make([_nearest(_positive(allowed) if count >= 0.5 else allowed, count) for allowed, count in pairs])

    def check(self, widths: Mapping[str, int]) -> None:
        """Raise `UsageError` naming the first group or width that is not of this space."""
        for name in widths:
            if name not in self.names:
                raise UsageError(f"no channel group '{name}'.{did_you_mean(name, self.names)}")
        for group, allowed in zip(self.groups, self.widths, strict=True):
            if group.name not in widths:
                raise UsageError(f"widths lack the channel group '{group.name}'")
            if widths[group.name] not in allowed:
                raise UsageError(
                    f"channel group '{group.name}' cannot have width {widths[group.name]}", hint=f"allowed: {allowed}"
                )

    def signature(self) -> str:
        """A hash of names and allowed widths: two artefacts of one space have the same."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal space."""
        return {"groups": [_group_json(group) for group in self.groups], "widths": [list(w) for w in self.widths]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SearchSpace:
        """The space that `to_json` wrote."""
        groups = tuple(
            ChannelGroup(**{**item, "producers": tuple(item["producers"]), "consumers": tuple(item["consumers"])})
            for item in document["groups"]
        )
        return cls(groups, tuple(tuple(allowed) for allowed in document["widths"]))


def _nearest(allowed: tuple[int, ...], value: float) -> int:
    return min(allowed, key=lambda width: (abs(width - value), -width))


def _positive(allowed: tuple[int, ...]) -> tuple[int, ...]:
    return allowed[1:] if allowed[0] == 0 else allowed


def _group_json(group: ChannelGroup) -> dict[str, Any]:
    document = {
        "name": group.name,
        "units": group.units,
        "unit_channels": group.unit_channels,
        "producers": list(group.producers),
        "consumers": list(group.consumers),
        "removable": group.removable,
        "reason": group.reason,
    }
    # Left out where it is False: the signatures of tables measured before it existed stay.
    return document | ({"skippable": True} if group.skippable else {})


@dataclass(frozen=True)
class Limits:
    """What a network may have at most beside its latency; None: as much as it likes. `macs` are those of a batch."""

    WORDS: ClassVar[dict[str, str]] = {"params": "parameters", "macs": "MACs"}

    params: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name, words in self.WORDS.items():
            most = getattr(self, name)
            if most is not None and most < 1:
                raise UsageError(f"a network cannot have at most {most} {words}", hint=f"give --max-{name} 2M")

    def __bool__(self) -> bool:
        return self != Limits()


@dataclass(frozen=True)
class Budget:
    """A hard upper bound on the measured latency: in ms, or as a fraction of the dense measured latency.

    Exactly one of the two is set. `statistic` is what is compared: the median (default) or the 90th percentile.
    `limits` are bounds that are counted, not measured.
    """

    latency_ms: float | None = None
    fraction: float | None = None
    statistic: Statistic = "median"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if (self.latency_ms is None) == (self.fraction is None):
            raise UsageError(
                "a budget is either a latency in ms or a fraction of the dense latency",
                hint="give --latency-ms 10 or --latency 60%",
            )
        value = self.latency_ms if self.latency_ms is not None else self.fraction
        if value is None or not math.isfinite(value) or value <= 0:
            raise UsageError(f"a budget must be a positive number, not {value}", hint="give --latency-ms 10")
        if self.fraction is not None and self.fraction > 1:
            raise UsageError(
                f"a budget of {self.fraction:.0%} is more than the dense network needs", hint="give less than 100%"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that somebody typed: "60%" of dense, or a latency with its unit ("4ms"). Raises `UsageError`."""
        typed = text.strip()
        if typed.endswith("%"):
            return cls(fraction=parse_fraction(typed))
        if typed[-1:].isdecimal():
            raise UsageError(f"a budget of '{typed}' has no unit", hint=f"{typed}% of dense, or {typed}ms")
        return cls(latency_ms=parse_latency_ms(typed))

    def in_ms(self, dense_ms: float) -> float:
        """The bound in ms, given the dense network's measured latency."""
        return self.latency_ms if self.latency_ms is not None else dense_ms * float(self.fraction or 0.0)
