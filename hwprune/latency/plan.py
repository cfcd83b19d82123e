"""Which sub-networks to measure for a latency model: half at random, the rest where random widths say little.

Four kinds (our design): every group on its own (50 %), one keep ratio for all with noise (25 %),
sweeps of a single group from random bases (15 %; they show whether a model's *differences* are right), and corners
(10 %). The order is one endless sequence per seed: a longer plan begins with the shorter one, so a table can grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Literal

from hwprune.core.errors import UsageError
from hwprune.core.widths import SearchSpace, Widths

Kind = Literal["dense", "uniform", "ratio", "sweep", "corner", "search"]
PROFILED: tuple[Kind, ...] = ("dense", "uniform", "ratio", "sweep", "corner")  # all but what a search has measured

# Twenty rows with the shares above: a sweep is three of them, one after the other.
_CYCLE: tuple[Kind, ...] = (
    *("uniform", "ratio", "uniform", "corner", "uniform", "uniform", "ratio", "uniform", "sweep"),
    *("uniform", "ratio", "uniform", "uniform", "corner", "ratio", "uniform", "ratio", "uniform"),
)
_BARREN_CYCLES = 20  # this many cycles without a new sub-network: the space is (nearly) used up


def plan_widths(space: SearchSpace, n: int, seed: int = 0) -> tuple[tuple[Widths, Kind], ...]:
    """The first `n` sub-networks to measure, all different, the dense and the smallest one first.

    A space with fewer than `n` sub-networks yields all that were found. Raises `UsageError` for `n` below 2.
    """
    if n < 2:
        raise UsageError(f"a latency table needs at least 2 networks, not {n}", hint="try --samples 100")
    chosen: dict[Widths, Kind] = {}
    for widths, kind in _candidates(space, Random(f"{seed} {space.signature()}")):
        chosen.setdefault(widths, kind)
        if len(chosen) >= min(n, space.size):
            break
    return tuple(chosen.items())[:n]


def _candidates(space: SearchSpace, rng: Random) -> Iterator[tuple[Widths, Kind]]:
    """Widths with their kinds, repetitions included; ends when whole cycles bring nothing new."""
    yield space.dense(), "dense"
    yield space.smallest(), "corner"
    seen = {space.dense(), space.smallest()}
    barren = 0
    while barren < _BARREN_CYCLES:
        drawn = [(widths, kind) for kind in _CYCLE for widths in _draw(space, kind, rng)]
        new = {widths for widths, _ in drawn} - seen
        barren = 0 if new else barren + 1
        seen |= new
        yield from drawn


def _draw(space: SearchSpace, kind: Kind, rng: Random) -> Iterator[Widths]:
    if kind == "uniform":
        yield space.sample(rng)
    elif kind == "ratio":
        yield _one_ratio(space, rng)
    elif kind == "corner":
        yield _one_hot(space, rng)
    else:
        yield from _sweep(space, rng)


def _one_ratio(space: SearchSpace, rng: Random) -> Widths:
    least = min(allowed[0] / allowed[-1] for allowed in space.widths)
    ratio = rng.uniform(least, 1.0)
    return space.nearest([allowed[-1] * (ratio + rng.gauss(0.0, 0.1)) for allowed in space.widths])


def _one_hot(space: SearchSpace, rng: Random) -> Widths:
    """The dense network with one group at its least width, or the smallest one with one group dense."""
    group = rng.randrange(len(space.widths))
    allowed, name = space.widths[group], space.names[group]
    if rng.random() < 0.5:
        return space.dense().replace(name, allowed[0])
    return space.smallest().replace(name, allowed[-1])


def _sweep(space: SearchSpace, rng: Random) -> Iterator[Widths]:
    """One group from its widest to its least width, everything else as drawn."""
    base = space.sample(rng)
    choosable = [g for g, allowed in enumerate(space.widths) if len(allowed) > 1]
    if not choosable:
        return
    group = rng.choice(choosable)
    allowed, name = space.widths[group], space.names[group]
    for width in dict.fromkeys((allowed[-1], allowed[len(allowed) // 2], allowed[0])):
        yield base.replace(name, width)
