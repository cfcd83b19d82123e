"""The families of `hwprune.testing.networks`, traced once a process, and random cuts of them."""

from __future__ import annotations

import copy
import random
from functools import cache

from torch import Tensor, nn

from hwprune.graph import ChannelGraph, trace
from hwprune.testing.networks import build

Traced = tuple[nn.Module, tuple[Tensor, ...], ChannelGraph]


def traced(family: str) -> Traced:
    """A copy of the network of a family with its verified graph.

    A copy, because torch's `functional_call` leaves its tensors in a module that is registered under two names.
    """
    model, example, graph = _traced(family)
    return copy.deepcopy(model), example, graph


@cache
def _traced(family: str) -> Traced:
    model, example = build(family)
    return model, example, trace(model, example)


def random_keep(graph: ChannelGraph, seed: int) -> dict[str, list[int]]:
    """A random subset of the removable groups, each with a random non-empty subset of its units."""
    rng = random.Random(seed)
    groups = [group for group in graph.removable if rng.random() < 0.8]
    return {g.name: sorted(rng.sample(range(g.units), rng.randint(1, g.units))) for g in groups}
