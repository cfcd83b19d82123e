"""States of a GDP search: trained ones, networks with their weights, problems whose blocks may vanish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hwprune.methods import Answer, Problem
from hwprune.methods._gdp_search import PolarisingSearch
from hwprune.methods.gdp import GDP
from hwprune.testing.methods import StaircaseLatency
from hwprune.training.loop import train

QUICK = {"saliency_images": 16}


def solved(problem: Problem, **options: Any) -> Answer:
    """The method's one answer."""
    (answer,) = GDP(**{**QUICK, **options}).search(problem)
    return answer


def deep(problem: Problem) -> Problem:
    """The same problem with width 0 wherever a residual branch can vanish."""
    space = problem.graph.space(tile=4, min_keep=0.25, depth=True)
    latency = StaircaseLatency.of(problem.graph, space)
    return replace(problem, space=space, latency=latency)


def trained(problem: Problem, **options: Any) -> PolarisingSearch:
    """The search after its last step."""
    search = PolarisingSearch(problem, GDP(**{**QUICK, **options}))
    train(search, problem.data, plan=problem.plan, seed=problem.seed)
    return search


def with_weights(problem: Problem, state: dict[str, Tensor]) -> nn.Module:
    """The full-size network in eval mode with these weights."""
    model = PolarisingSearch(problem, GDP()).model.eval()
    model.load_state_dict(state)
    return model
