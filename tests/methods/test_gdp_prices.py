"""Invariant 6 of GDP: what a unit costs; and the pressure and the step that just meet the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gdp_states import solved
from torch import Tensor, nn

from hwprune.graph import trace
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gdp_prices import Prices, critical_pressure, shortened
from hwprune.testing.methods import tiny_problem


class InPlace(nn.Module):
    """A convolution whose inputs and outputs are the same group, between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.last = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.wide(x + self.same(x)))


def test_6_prices_are_the_differences_of_bilinear_macs() -> None:
    """One step of the grid to either side: the slope of what is linear in a width, the derivative of a square."""
    graph = trace(InPlace().eval(), torch.randn(1, 3, 4, 4))
    space = graph.space(tile=1)
    n, m = 5, 7

    class Macs:
        def predict_batch(self, values: np.ndarray) -> np.ndarray:
            return graph.macs_batch(space, values).astype(np.float64)

    def cost(first: int, second: int) -> float:
        return 16.0 * (3 * 9 * first + 9 * first**2 + first * second + 5 * second)

    prices = Prices(Macs(), space)
    prices.update(np.array([n, m]))
    assert Macs().predict_batch(np.array([[n, m]]))[0] == cost(n, m)
    assert prices.values[1] == cost(n, m + 1) - cost(n, m)
    assert prices.values[0] == 16 * (27 + 2 * 9 * n + m)
    assert prices.weights().mean() == pytest.approx(1.0)


def test_6_negative_differences_count_as_zero_and_no_group_is_free() -> None:
    problem = tiny_problem(tile=1)

    class Odd(Efficiency):
        def predict_batch(self, values: np.ndarray) -> np.ndarray:
            slopes = np.zeros(values.shape[1])
            slopes[:3] = (1.0, 3.0, -2.0)
            return 100 + values @ slopes

    prices = Prices(Odd(problem.space, problem.graph, problem.latency), problem.space)
    weights = prices.update(np.array([allowed[1] for allowed in problem.space.widths]))
    assert prices.values[2] == 0.0
    assert bool((weights > 0).all())
    assert weights.mean() == pytest.approx(1.0)
    assert weights[1] == pytest.approx(3 * weights[0])


def test_a_shortened_step_is_the_least_that_meets_the_budget() -> None:
    problem = tiny_problem("mobilenetv2", 0.7, tile=1)
    efficiency = Efficiency(problem.space, problem.graph, problem.latency)
    rng = np.random.default_rng(0)
    thetas = [rng.random(group.units) + 0.01 for group in problem.space.groups]
    least = [allowed[0] for allowed in problem.space.widths]
    free = [theta < np.sort(theta)[-width] for theta, width in zip(thetas, least, strict=True)]
    amount = shortened(efficiency, problem.space, thetas, free, 1e3, 0.8)

    def cost(level: float) -> float:
        counts = [float((~(f & (t <= level))).sum()) for t, f in zip(thetas, free, strict=True)]
        return float(efficiency.predict_batch(np.array([problem.space.snap(counts).values_tuple()]))[0])

    assert cost(amount) <= 0.8 * efficiency.dense < cost(np.nextafter(amount, 0))
    assert shortened(efficiency, problem.space, thetas, free, 1e-6, 0.8) == 1e-6


def test_the_critical_pressure_is_the_least_that_the_surplus_cannot_resist() -> None:
    problem = tiny_problem("mobilenetv2", 0.7, tile=1)
    efficiency = Efficiency(problem.space, problem.graph, problem.latency)
    rng = np.random.default_rng(1)
    benefits = [rng.random(group.units) for group in problem.space.groups]
    live = [np.ones(group.units, dtype=bool) for group in problem.space.groups]
    weights = rng.random(len(benefits)) + 0.5
    level = critical_pressure(efficiency, problem.space, benefits, live, weights, 0.8)

    def cost(pressure: float) -> float:
        left = [float((b / p > pressure).sum()) for b, p in zip(benefits, weights, strict=True)]
        counts = [max(float(w[0]), count) for count, w in zip(left, problem.space.widths, strict=True)]
        return float(efficiency.predict_batch(np.array([problem.space.snap(counts).values_tuple()]))[0])

    assert cost(level) <= 0.8 * efficiency.dense < cost(np.nextafter(level, 0))


def test_prices_may_count_macs() -> None:
    problem = tiny_problem("mobilenetv2", 0.6)
    answer = solved(problem, efficiency="macs")
    assert answer.predicted_ms <= problem.target_ms
