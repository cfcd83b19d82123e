"""The families of `hwprune.testing.networks`, traced once a process, and random cuts of them."""

from __future__ import annotations

import random
from functools import cache

from torch import Tensor, nn

from hwprune.graph import ChannelGraph, trace
from hwprune.testing.networks import build

Traced = tuple[nn.Module, tuple[Tensor, ...], ChannelGraph]


@cache
def traced(family: str) -> Traced:
    """The network of a family with its verified graph."""
    model, example = build(family)
    return model, example, trace(model, example)


def random_keep(graph: ChannelGraph, seed: int) -> dict[str, list[int]]:
    """A random subset of the removable groups, each with a random non-empty subset of its units."""
    rng = random.Random(seed)
    groups = [group for group in graph.removable if rng.random() < 0.8]
    return {g.name: sorted(rng.sample(range(g.units), rng.randint(1, g.units))) for g in groups}
