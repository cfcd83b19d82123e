"""Every method in a space where whole residual branches may go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hwprune import methods
from hwprune.graph import cut, mask, trace
from hwprune.methods import Problem
from hwprune.testing.methods import StaircaseLatency, tiny_problem

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"floor": 0.0},
    "knapsack": {"floor": 0.0},
    "metapruning": {"hidden": 2, "evaluations": 4, "population": 2, "recalibration_images": 16},
}


def deep_problem(share: float) -> Problem:
    """Half of the groups may have width 0; the target lies `share` of the way from the smallest network to dense."""
    problem = tiny_problem("resnet_option_b")
    space = problem.graph.space(tile=4, min_keep=0.25, depth=True)
    latency = StaircaseLatency.of(problem.graph, space)
    smallest_ms = latency.predict(space.smallest()).latency_ms
    target_ms = smallest_ms + share * (problem.dense_ms - smallest_ms)
    return replace(problem, space=space, latency=latency, target_ms=target_ms)


@pytest.mark.parametrize("name", methods.names())
def test_width_zero_is_a_width_like_any_other(name: str) -> None:
    method = methods.load(name)(**OPTIONS.get(name, {}))
    problem = deep_problem(0.02)
    answer = list(method.search(problem))[-1]
    assert answer.predicted_ms <= problem.target_ms
    problem.space.check(answer.widths)
    gone = [group for group, width in answer.widths.items() if width == 0]
    assert gone
    assert all(answer.keep[group] == () for group in gone)
    images = problem.data.val.images
    with torch.no_grad():
        small = cut(problem.model, problem.graph, answer.keep)(images)
        masked = mask(problem.model, problem.graph, answer.keep)(images)
    torch.testing.assert_close(small, masked, rtol=0, atol=1e-5)
    wider = method.refit(problem, answer, problem.dense_ms)
    assert wider.predicted_ms > answer.predicted_ms


def test_the_importance_of_no_unit_is_zero() -> None:
    """Greedy compares what two networks keep: an empty group must count as nothing, not as everything."""
    problem = deep_problem(0.5)
    answer = list(methods.load("greedy")(floor=0.0).search(problem))[-1]
    kept = sum(float(answer.scores[group][list(units)].sum()) for group, units in answer.keep.items())
    smallest = list(methods.load("greedy")(floor=0.0).search(deep_problem(0.0)))[-1]
    least = sum(float(answer.scores[group][list(units)].sum()) for group, units in smallest.keep.items())
    assert least < kept


@pytest.mark.parametrize("name", methods.names())
def test_every_group_may_vanish(name: str) -> None:
    """All that a search may cut lies in residual branches: at the smallest target nothing of it is left."""
    problem = tiny_problem("resnet_option_a")
    graph = trace(problem.model, problem.graph.example, protect=["network.stem.0"])
    space = graph.space(tile=4, min_keep=0.25, depth=True)
    assert all(group.skippable for group in space.groups)
    latency = StaircaseLatency.of(graph, space)
    smallest_ms = latency.predict(space.smallest()).latency_ms
    posed = replace(problem, graph=graph, space=space, latency=latency, target_ms=smallest_ms)
    answer = list(methods.load(name)(**OPTIONS.get(name, {})).search(posed))[-1]
    assert answer.widths == space.smallest()
    assert set(answer.keep.values()) == {()}
