"""What a search counts as cost, and how much of it goes with a latency."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprune.latency.features import Array, IntArray
from hwprune.methods import Problem
from hwprune.methods._dhp_search import DhpSearch
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gdp_search import PolarisingSearch
from hwprune.methods.dhp import DHP
from hwprune.methods.gdp import GDP
from hwprune.methods.uniform import Uniform
from hwprune.testing.methods import StaircaseLatency, tiny_problem


class HalfFixed(StaircaseLatency):
    """Half of the dense latency goes with no unit at all."""

    def predict_batch(self, values: IntArray) -> Array:
        """Milliseconds `[B]`."""
        dense = np.array([self.space.dense().values_tuple()])
        return np.asarray(0.5 * super().predict_batch(values) + 0.5 * super().predict_batch(dense))


def half_fixed_problem(share: float) -> Problem:
    """A target at `share` of the dense latency, of which half cannot be saved."""
    problem = tiny_problem("mobilenetv2", tile=1)
    latency = HalfFixed.of(problem.graph, problem.space)
    dense_ms = latency.predict(problem.space.dense()).latency_ms
    return replace(problem, latency=latency, dense_ms=dense_ms, target_ms=share * dense_ms)


def test_a_budget_in_latency_is_the_share_of_the_latency() -> None:
    problem = half_fixed_problem(0.8)
    efficiency = Efficiency(problem.space, problem.graph, problem.latency)
    assert efficiency.budget(problem.target_ms) == pytest.approx(0.8)
    assert efficiency.budget(2 * problem.dense_ms) == 1.0


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9])
def test_a_budget_in_macs_is_what_the_uniform_network_within_the_latency_takes(share: float) -> None:
    problem = half_fixed_problem(share)
    efficiency = Efficiency(problem.space, problem.graph, problem.latency, "macs")
    (uniform,) = Uniform(channels="l1").search(problem)
    macs = problem.graph.macs(uniform.widths) / problem.graph.macs({})
    assert efficiency.budget(problem.target_ms) == pytest.approx(macs)
    assert macs < share - 0.05
    assert efficiency.budget(problem.dense_ms) == 1.0


def test_a_search_by_macs_compares_macs_with_macs() -> None:
    problem = half_fixed_problem(0.8)
    budget = Efficiency(problem.space, problem.graph, problem.latency, "macs").budget(problem.target_ms)
    assert DhpSearch(problem, DHP(efficiency="macs")).target == budget
    assert PolarisingSearch(problem, GDP(efficiency="macs")).target == budget
    assert DhpSearch(problem, DHP()).target == pytest.approx(0.8)
    assert PolarisingSearch(problem, GDP()).target == pytest.approx(0.8)
