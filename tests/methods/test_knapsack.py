"""The knapsack against brute force: exact where latencies add up, never above the target anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hwprune.core.errors import BudgetInfeasible
from hwprune.core.widths import ChannelGroup, SearchSpace
from hwprune.methods import Problem
from hwprune.methods._adjust import fit_to_target
from hwprune.methods._base import top_units
from hwprune.methods._knapsack import Knapsack, solve_all
from hwprune.methods._saliency import bn_scale, weight_norm
from hwprune.methods.knapsack import KnapsackWidths
from hwprune.testing.methods import tiny_problem

Scores = Mapping[str, np.ndarray]


@dataclass
class Separable:
    """A latency that is a sum over groups: `curves` have a cost in ms for each allowed width."""

    space: SearchSpace
    curves: list[np.ndarray]
    asked: int = field(default=0)

    def predict_batch(self, values: np.ndarray) -> np.ndarray:
        self.asked += 1
        columns = zip(self.curves, self.space.widths, values.T, strict=True)
        return sum(curve[np.searchsorted(allowed, column)] for curve, allowed, column in columns)  # type: ignore[return-value]


def all_rows(space: SearchSpace) -> np.ndarray:
    return np.array(list(itertools.product(*space.widths)))


def brute_force(space: SearchSpace, scores: Scores, latency: object, target_ms: float) -> float:
    """The most importance of any network within the target."""
    rows = all_rows(space)
    best_first = {name: np.concatenate([[0.0], np.cumsum(np.sort(s)[::-1])]) for name, s in scores.items()}
    kept = sum(best_first[name][column] for name, column in zip(space.names, rows.T, strict=True))
    within = latency.predict_batch(rows) <= target_ms  # type: ignore[attr-defined]
    return float(np.max(kept[within]))  # type: ignore[index]


@st.composite
def separable_problems(draw: st.DrawFn) -> tuple[Separable, dict[str, np.ndarray], float]:
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    groups, widths, curves, scores = [], [], [], {}
    for index in range(draw(st.integers(1, 4))):
        units = int(random.integers(2, 9))
        allowed = sorted({*random.integers(1, units, size=3).tolist(), units})
        groups.append(ChannelGroup(f"g{index}", units))
        widths.append(tuple(allowed))
        curves.append(random.integers(1, 40, size=len(allowed)).astype(float))
        scores[f"g{index}"] = random.random(units)
    latency = Separable(SearchSpace(tuple(groups), tuple(widths)), curves)
    all_ms = latency.predict_batch(all_rows(latency.space))
    return latency, scores, float(np.quantile(all_ms, draw(st.floats(0.05, 1.0))))


@hypothesis_settings(max_examples=60)
@given(separable_problems())
def test_on_separable_latencies_it_is_optimal_up_to_the_discretisation(
    posed: tuple[Separable, dict[str, np.ndarray], float],
) -> None:
    latency, scores, target_ms = posed
    for bins in (20, 1000):
        knapsack = Knapsack(latency.space, latency, scores, bins, 0.0)  # type: ignore[arg-type]
        fit = knapsack.fit(target_ms)
        assert fit.predicted_ms <= target_ms
        rounding_ms = len(latency.space.groups) * target_ms / bins
        rows = latency.predict_batch(all_rows(latency.space))
        if rows.min() <= target_ms - rounding_ms:
            bound = brute_force(latency.space, scores, latency, target_ms - rounding_ms)
            assert knapsack.importance(fit.widths) >= bound - 1e-9


@hypothesis_settings(max_examples=40)
@given(separable_problems())
def test_costs_in_whole_bins_lose_nothing_to_rounding(posed: tuple[Separable, dict[str, np.ndarray], float]) -> None:
    latency, scores, target_ms = posed
    whole_ms = float(np.floor(target_ms))
    knapsack = Knapsack(latency.space, latency, scores, int(whole_ms), 0.0)  # type: ignore[arg-type]
    if latency.predict_batch(all_rows(latency.space)).min() > whole_ms:
        with pytest.raises(BudgetInfeasible):
            knapsack.fit(whole_ms)
        return
    best = brute_force(latency.space, scores, latency, whole_ms)
    assert knapsack.importance(knapsack.fit(whole_ms).widths) == pytest.approx(best)


@hypothesis_settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_the_table_holds_the_optimum_of_every_capacity(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 5, size=3)
    values = [np.round(random.random(size), 2) for size in sizes]
    costs = [(cost := random.integers(0, 12, size=size)) - cost.min() for size in sizes]
    places = solve_all(values, costs, 25)
    assert places.shape == (26, 3)
    choices = list(itertools.product(*(range(size) for size in sizes)))
    worth = np.array([sum(v[i] for v, i in zip(values, choice, strict=True)) for choice in choices])
    price = np.array([sum(c[i] for c, i in zip(costs, choice, strict=True)) for choice in choices])
    for capacity, row in enumerate(places):
        assert sum(c[i] for c, i in zip(costs, row, strict=True)) <= capacity
        found = sum(v[i] for v, i in zip(values, row, strict=True))
        assert found == pytest.approx(worth[price <= capacity].max())


def _coupled(name: str) -> tuple[Problem, dict[str, np.ndarray]]:
    problem = tiny_problem(name)
    random = np.random.default_rng(len(name))
    return problem, {group.name: random.random(group.units) ** 3 for group in problem.space.groups}


@pytest.mark.parametrize("name", ["chain", "resnet_option_b", "mobilenetv2", "resnet50", "densenet"])
def test_where_groups_share_layers_it_is_near_the_optimum_and_no_worse_than_the_greedy_walk(name: str) -> None:
    problem, scores = _coupled(name)
    total = sum(float(s.sum()) for s in scores.values())
    for budget in (0.8, 0.6, 0.5):
        target_ms = budget * problem.dense_ms
        knapsack = Knapsack(problem.space, problem.latency, scores, 2000, 0.0)
        fit = knapsack.fit(target_ms)
        assert fit.predicted_ms <= target_ms
        assert fit.predicted_ms == pytest.approx(problem.latency.predict(fit.widths).latency_ms)
        found = knapsack.importance(fit.widths)
        walked = knapsack.importance(fit_to_target(problem.space, problem.latency, scores, target_ms).widths)
        best = brute_force(problem.space, scores, problem.latency, target_ms)
        assert found >= best - 0.01 * total
        assert found >= walked - 0.005 * total


def test_the_floor_holds_unless_the_target_needs_less() -> None:
    problem, scores = _coupled("resnet_option_b")
    scores[problem.space.names[0]] *= 1e-6
    first = problem.space.names[0]
    free = Knapsack(problem.space, problem.latency, scores, 500, 0.0).fit(0.6 * problem.dense_ms)
    held = Knapsack(problem.space, problem.latency, scores, 500, 0.75).fit(0.7 * problem.dense_ms)
    assert free.widths[first] == problem.space.smallest()[first]
    assert all(held.widths[group.name] >= 0.75 * group.units for group in problem.space.groups)
    smallest = problem.latency.predict(problem.space.smallest()).latency_ms
    tight = Knapsack(problem.space, problem.latency, scores, 500, 0.75).fit(smallest)
    assert tight.widths == problem.space.smallest()


def test_the_score_is_pluggable() -> None:
    problem = tiny_problem("mobilenetv2")
    expected = {
        "l1": weight_norm(problem.model, problem.graph, problem.space, "l1"),
        "l2": weight_norm(problem.model, problem.graph, problem.space, "l2"),
        "bn": bn_scale(problem.model, problem.graph, problem.space),
    }
    for score, scores in expected.items():
        (answer,) = KnapsackWidths(score=score).search(problem)  # type: ignore[arg-type]
        assert answer.image_passes == 0
        assert answer.keep == top_units(scores, answer.widths)
        for group, values in scores.items():
            np.testing.assert_array_equal(answer.scores[group], values)
    (answer,) = KnapsackWidths(saliency_images=16).search(problem)
    assert answer.image_passes == 32


def test_refitting_to_its_own_target_changes_nothing() -> None:
    problem = tiny_problem("mobilenetv2")
    method = KnapsackWidths(score="l1")
    (answer,) = method.search(problem)
    assert method.refit(problem, answer, problem.target_ms).widths == answer.widths
