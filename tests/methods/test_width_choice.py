"""Distributions over allowed widths: masks, expectations and costs against sums written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from hwprune.core.widths import Widths
from hwprune.methods import Problem
from hwprune.methods._base import top_units
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._width_choice import (
    AbstractWidthChoice,
    ExpectedCost,
    SigmoidChoice,
    SoftmaxChoice,
    WidthGrid,
    kept_shares,
)
from hwprune.testing.methods import tiny_problem
from hwprune.testing.networks import FAMILIES

LIKE = torch.zeros(1, dtype=torch.float64)


def scores_of(problem: Problem, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {group.name: random.random(group.units) for group in problem.space.groups}


def grid_of(problem: Problem, seed: int = 0) -> WidthGrid:
    return WidthGrid(problem.space, scores_of(problem, seed), LIKE)


def drawn(grid: WidthGrid, seed: int = 0) -> list[Tensor]:
    """Random probabilities over each group's widths."""
    random = torch.Generator().manual_seed(seed)
    return [torch.softmax(torch.randn(len(w), generator=random, dtype=w.dtype), 0) for w in grid.widths]


def choices(grid: WidthGrid) -> list[AbstractWidthChoice]:
    return [SoftmaxChoice.rising(grid, 2.0), SoftmaxChoice.dense(grid, 1.0), SigmoidChoice(grid, 0.7)]


def certain(grid: WidthGrid, widths: Widths) -> list[Tensor]:
    """Probability 1 for these widths."""
    pairs = zip(grid.widths, widths.values_tuple(), strict=True)
    return [(allowed == width).to(allowed.dtype) for allowed, width in pairs]


def test_kept_shares_are_a_reverse_cumulative_sum_that_begins_with_exactly_1() -> None:
    shares = kept_shares(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.9, 0.7, 0.4]))
    assert float(shares[0]) == 1.0


@pytest.mark.parametrize("name", FAMILIES)
def test_soft_masks_fall_with_rank_and_sum_to_the_expected_width(name: str) -> None:
    problem = tiny_problem(name)
    scores, grid = scores_of(problem), grid_of(problem)
    probabilities = drawn(grid)
    for group, mask, expected in zip(
        problem.space.groups, grid.soft_masks(probabilities), grid.expected(probabilities), strict=True
    ):
        by_rank = mask[torch.from_numpy(np.argsort(-scores[group.name], kind="stable"))]
        assert float(by_rank[0]) == 1.0
        assert bool((by_rank.diff() <= 1e-12).all())
        assert float(by_rank.sum()) == pytest.approx(float(expected), abs=1e-5)


def test_masks_of_certain_widths_keep_the_best_units_and_no_others() -> None:
    problem = tiny_problem("mobilenetv2")
    scores, grid = scores_of(problem), grid_of(problem)
    widths = problem.space.smallest()
    keep = top_units(scores, widths)
    for name, mask in zip(problem.space.names, grid.soft_masks(certain(grid, widths)), strict=True):
        assert tuple(mask.nonzero().flatten().tolist()) == keep[name]
        assert set(mask.tolist()) <= {0.0, 1.0}


def test_ties_in_the_scores_go_to_the_lower_index() -> None:
    problem = tiny_problem("chain")
    flat = {group.name: np.ones(group.units) for group in problem.space.groups}
    grid = WidthGrid(problem.space, flat, LIKE)
    smallest = problem.space.smallest()
    keep = top_units(flat, smallest)
    for name, mask in zip(problem.space.names, grid.soft_masks(certain(grid, smallest)), strict=True):
        assert tuple(mask.nonzero().flatten().tolist()) == keep[name]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_choice_gives_probabilities_and_moves_the_width_it_is_pulled_to(which: int) -> None:
    grid = grid_of(tiny_problem("mobilenetv2"))
    choice = choices(grid)[which]
    for softness in (1.0, 0.1):
        for probabilities in choice.now(softness):
            assert bool((probabilities >= 0).all())
            assert float(probabilities.sum()) == pytest.approx(1.0)
    values = list(choice.values)
    before = torch.stack(grid.expected(choice.probabilities(values, 0.5)))
    gradients = torch.autograd.grad(before.sum(), values)
    with torch.no_grad():
        for value, gradient in zip(values, gradients, strict=True):
            value.sub_(0.05 * gradient)
    after = torch.stack(grid.expected(choice.now(0.5)))
    movable = torch.tensor([len(widths) > 1 for widths in grid.widths])
    assert bool((after < before.detach())[movable].all())


def test_the_sigmoids_most_probable_width_is_nearest_to_the_threshold() -> None:
    problem = tiny_problem("mobilenetv2")
    grid = grid_of(problem)
    for share in (0.3, 0.55, 0.8, 1.0):
        choice = SigmoidChoice(grid, share)
        likely = [int(w[p.argmax()]) for w, p in zip(grid.widths, choice.now(0.01), strict=True)]
        assert likely == list(
            problem.space.snap([share * group.units for group in problem.space.groups]).values_tuple()
        )


def test_a_threshold_out_of_range_comes_back() -> None:
    choice = SigmoidChoice(grid_of(tiny_problem("chain")), 5.0)
    choice.tidy()
    assert all(float(value.detach()) == pytest.approx(1.05) for value in choice.values)


def test_the_expectation_rounds_up_to_dense_at_the_dense_start() -> None:
    for name in FAMILIES:
        problem = tiny_problem(name, tile=2)
        grid = grid_of(problem)
        choice = SoftmaxChoice.dense(grid, 0.7)
        assert grid.above(choice.now(0.7)) == problem.space.dense()
        for widths, p in zip(grid.widths, choice.now(0.7), strict=True):
            if len(widths) > 1:
                assert float(p[-1]) == pytest.approx(max(0.5, float(widths[-2] / widths[-1])))


def test_where_a_branch_may_vanish_width_0_is_a_width_like_others() -> None:
    problem = tiny_problem("resnet_option_b")
    space = problem.graph.space(tile=4, min_keep=0.25, depth=True)
    scores = scores_of(problem)
    grid = WidthGrid(space, scores, LIKE)
    for choice in (SoftmaxChoice.dense(grid, 1.0), SigmoidChoice(grid, 0.05)):
        assert choice.fixed(space) is None
        masks = grid.soft_masks(choice.now(1.0))
        for mask, expected in zip(masks, grid.expected(choice.now(1.0)), strict=True):
            assert float(mask.sum()) == pytest.approx(float(expected))
        choice.fix(space.smallest())
        assert choice.fixed(space) == space.smallest()
    assert 0 in space.smallest().values_tuple()
    assert grid.above(SoftmaxChoice.dense(grid, 1.0).now(1.0)) == space.dense()
    assert grid.nearest(SigmoidChoice(grid, 0.05).now(0.01)) == space.smallest()
    masks = grid.soft_masks(certain(grid, space.smallest()))
    assert [float(mask.sum()) for mask in masks] == list(space.smallest().values_tuple())


def test_widths_above_are_the_least_allowed_ones_not_below_the_expectation() -> None:
    problem = tiny_problem("mobilenetv2")
    grid = grid_of(problem)
    for seed in range(5):
        probabilities = drawn(grid, seed)
        pairs = zip(grid.expected(probabilities), problem.space.widths, strict=True)
        least = [min(w for w in allowed if w >= float(expected)) for expected, allowed in pairs]
        assert list(grid.above(probabilities).values_tuple()) == least
    one_hot = [torch.eye(len(w), dtype=w.dtype)[0] * (1 + 1e-9) for w in grid.widths]
    assert grid.above(one_hot) == problem.space.smallest()


@pytest.mark.parametrize("name", ["chain", "resnet_option_b", "densenet"])
def test_the_expected_cost_is_that_of_hard_widths_and_its_slopes_are_finite_differences(name: str) -> None:
    problem = tiny_problem(name)
    grid = grid_of(problem)
    cost = ExpectedCost(Efficiency(problem.space, problem.graph, problem.latency))
    hard = problem.space.smallest()
    values = [torch.randn(len(w), dtype=w.dtype, requires_grad=True) for w in grid.widths]

    def mean(group: int, logits: Tensor) -> float:
        """The expectation over one group's width, the others hard: row by row."""
        name, allowed = problem.space.names[group], problem.space.widths[group]
        ms = [problem.latency.predict(hard.replace(name, width)).latency_ms for width in allowed]
        return float((torch.softmax(logits, 0).numpy() * ms).sum()) / problem.dense_ms

    total = cost([torch.softmax(v, 0) for v in values], hard)
    assert float(total.detach()) == pytest.approx(problem.latency.predict(hard).latency_ms / problem.dense_ms)
    total.backward()
    for group, value in enumerate(values):
        assert value.grad is not None
        for place in range(len(value)):
            step = torch.zeros_like(value).index_fill(0, torch.tensor([place]), 1e-5)
            now = value.detach()
            slope = (mean(group, now + step) - mean(group, now - step)) / 2e-5
            assert float(value.grad[place]) == pytest.approx(slope, abs=1e-8)


def test_the_expected_cost_is_exact_over_all_networks_where_latency_is_separable() -> None:
    problem = tiny_problem("chain")
    random = np.random.default_rng(0)
    curves = [np.sort(random.random(len(allowed))) for allowed in problem.space.widths]

    class Separable:
        def predict_batch(self, rows: np.ndarray) -> np.ndarray:
            places = [[allowed.index(w) for allowed, w in zip(problem.space.widths, row, strict=True)] for row in rows]
            return np.array([sum(c[p] for c, p in zip(curves, place, strict=True)) for place in places])

    efficiency = Efficiency(problem.space, problem.graph, Separable())  # type: ignore[arg-type]
    cost = ExpectedCost(efficiency)
    probabilities = drawn(grid_of(problem))
    hard = problem.space.smallest()
    value, levels = cost.levels(hard)
    first_order = value + sum(
        float((p.numpy() * (level - value)).sum()) for p, level in zip(probabilities, levels, strict=True)
    )
    exact = sum(
        np.prod([float(p[i]) for p, i in zip(probabilities, places, strict=True)])
        * sum(c[i] for c, i in zip(curves, places, strict=True))
        for places in itertools.product(*(range(len(allowed)) for allowed in problem.space.widths))
    )
    assert first_order == pytest.approx(exact / efficiency.dense)


def test_a_change_of_the_hard_widths_asks_the_model_again() -> None:
    problem = tiny_problem("chain")
    cost = ExpectedCost(Efficiency(problem.space, problem.graph, problem.latency))
    dense, small = cost.levels(problem.space.dense())[0], cost.levels(problem.space.smallest())[0]
    assert dense == pytest.approx(1.0)
    assert small == pytest.approx(problem.latency.predict(problem.space.smallest()).latency_ms / problem.dense_ms)
