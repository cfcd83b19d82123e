"""Invariants 5, 9, 13 and 14 of DHP: proximal steps, masks, prices; and what surrounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from hwprune.core.errors import BudgetInfeasible
from hwprune.latency.features import Array, IntArray
from hwprune.methods import Answer, Problem
from hwprune.methods._dhp_budget import exchange_fit, needed_travel, threshold_fit, tile_prices
from hwprune.methods._dhp_latents import Latents, kept_mask, soft_width
from hwprune.methods._dhp_search import DhpSearch
from hwprune.methods._efficiency import Efficiency
from hwprune.methods.dhp import DHP
from hwprune.testing.methods import StaircaseLatency, tiny_problem
from hwprune.training.loop import train


def latents_of(problem: Problem) -> Latents:
    return Latents(problem.space, next(problem.model.parameters()).detach())


def test_5_the_threshold_is_that_of_the_current_learning_rate() -> None:
    problem = tiny_problem(budget=0.5)
    search = DhpSearch(problem, DHP(penalty=2.0, metric="plain"))
    search.start(None)
    group = search.optimizers()[0].param_groups[-1]
    group["lr"] = 0.01
    before = search.thresholds()
    group["lr"] = 0.001
    torch.testing.assert_close(search.thresholds(), before / 10)
    torch.testing.assert_close(before.max(), torch.tensor(float(search.prices.max()) * 2.0 * 0.01))


def test_9_a_mask_keeps_the_floor_and_is_monotone_in_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(n, generator=generator) for n in (1, 3, 4, 12)] + [torch.zeros(2), torch.zeros(9)]
    for vector in vectors:
        counts = []
        for threshold in (0.0, 5e-3, 0.5, 1.0, 10.0):
            mask = kept_mask(vector, threshold, 4)
            assert int(mask.sum()) >= min(4, len(vector))
            assert bool(mask[vector.abs() >= threshold].all())
            counts.append(int(mask.sum()))
        assert counts == sorted(counts, reverse=True)


def test_9_proximal_steps_leave_every_group_its_floor() -> None:
    latents = latents_of(tiny_problem())
    with torch.no_grad():
        latents.vector.copy_(torch.linspace(0.1, 1, len(latents.vector)))
    latents.shrink(torch.full_like(latents.vector, 5.0), [4] * len(latents.units))
    for part in latents.split(latents.vector.detach()):
        assert int((part != 0).sum()) == 4
        assert bool((part[-4:] != 0).all())


@pytest.mark.parametrize(("decay", "momentum", "steps"), [(0.0, 0.9, 2230), (1e-3, 0.9, 1159), (1e-3, 0.0, 1992)])
def test_13_steps_to_the_threshold_without_a_task(decay: float, momentum: float, steps: int) -> None:
    """The paper's 22 300 and 11 606 steps at ten times its penalty and decay, which take a tenth of them.

    Without momentum the decay is ten times weaker: `z' = -lr (penalty + decay z)` ends after
    `log((penalty + .674 decay) / (penalty + .005 decay)) / (lr decay)` steps.
    """
    options = DHP(metric="plain", penalty=3e-3, latent_lr=0.1, latent_decay=decay, latent_momentum=momentum)
    search = DhpSearch(tiny_problem("chain"), options)
    (optimizer,) = search.optimizers()
    vector = search.latents.vector
    with torch.no_grad():
        vector.fill_(0.674)
    search.prices[:] = 1.0
    thresholds, taken = search.thresholds(), 0
    while float(vector.detach()[0]) >= options.threshold:
        vector.grad = torch.zeros_like(vector)
        optimizer.step()
        search.latents.shrink(thresholds, search.least)
        taken += 1
    assert taken == pytest.approx(steps, rel=0.01)


class OneGroupCosts(StaircaseLatency):
    """Latency is 1 ms + 1 ms a unit of the second group."""

    def predict_batch(self, values: IntArray) -> Array:
        return np.asarray(1.0 + values[:, 1], dtype=np.float64)


def test_14_only_a_group_that_costs_something_shrinks() -> None:
    problem = tiny_problem("mobilenetv2")
    latency = OneGroupCosts.of(problem.graph, problem.space)
    dense_ms = 1.0 + problem.space.groups[1].units
    problem = replace(problem, latency=latency, dense_ms=dense_ms, target_ms=0.5 * dense_ms)
    search = DhpSearch(problem, DHP(latent_lr=1e-6, arrival=1.0))
    search.start(None)
    assert search.prices.tolist() == [0.0, len(search.prices), *[0.0] * (len(search.prices) - 2)]
    train(search, problem.data, plan=problem.plan)
    shrunk = [float((part.detach() == 0).float().mean()) for part in search.latents.split(search.latents.values())]
    assert shrunk[1] > 0.3
    assert sum(shrunk) == shrunk[1]


@pytest.mark.parametrize("name", ["chain", "resnet_option_b", "mobilenetv2", "densenet"])
def test_14_prices_are_differences_over_a_tile_and_average_to_one(name: str) -> None:
    problem = tiny_problem(name)
    efficiency = Efficiency(problem.space, problem.graph, problem.latency)
    dense = problem.space.dense()
    prices = tile_prices(efficiency, problem.space, dense)
    assert prices.cost == pytest.approx(1.0)
    assert (prices.weights >= 0).all()
    assert prices.weights.mean() == pytest.approx(1.0)
    slopes = []
    for group, allowed in zip(problem.space.groups, problem.space.widths, strict=True):
        narrower = dense.replace(group.name, allowed[-2]) if len(allowed) > 1 else dense
        saved = problem.dense_ms - problem.latency.predict(narrower).latency_ms
        slopes.append(saved / max(group.units - narrower[group.name], 1))
    np.testing.assert_allclose(prices.weights, np.array(slopes) / np.mean(slopes), rtol=1e-9)
    assert tile_prices(efficiency, problem.space, problem.space.smallest()).weights.sum() == 0


def test_14_a_soft_width_has_a_slope_everywhere() -> None:
    latents = torch.tensor([0.0, 1e-3, 0.7, -1.0, 3.0], requires_grad=True)
    width = soft_width(latents, 0.7)
    width.backward()
    assert latents.grad is not None
    assert bool((latents.grad[1:] != 0).all())
    assert float(soft_width(torch.zeros(6), 0.5)) == 0.0
    assert float(soft_width(torch.ones(6), 0.0)) == 6.0
    slope = (soft_width(torch.tensor([1e-6]), 0.5) - soft_width(torch.tensor([0.0]), 0.5)) / 1e-6
    assert float(slope) == pytest.approx(2.0, rel=1e-3)


def test_14_the_latency_loss_is_the_hard_excess_with_a_soft_gradient() -> None:
    problem = tiny_problem(budget=0.5)
    search = DhpSearch(problem, DHP(latency_weight=1.0))
    search.start(None)
    loss = search.latency_loss()
    assert float(loss.detach()) == pytest.approx(1.0)
    loss.backward()
    assert search.latents.vector.grad is not None
    assert bool((search.latents.vector.grad >= 0).all())
    parts = search.latents.split(search.latents.vector.grad)
    assert all(float(part.min()) > 0 for part, price in zip(parts, search.prices, strict=True) if price > 0)
    within = DhpSearch(replace(problem, target_ms=problem.dense_ms), DHP(latency_weight=1.0))
    assert float(within.latency_loss().detach()) == 0.0


def test_14_the_latency_loss_alone_narrows_a_search() -> None:
    problem = tiny_problem(budget=0.6)
    sizes = []
    for weight in (0.0, 3.0):
        search = DhpSearch(problem, DHP(latency_weight=weight, latent_lr=1.0, penalty=1e-12, arrival=0.1))
        search.start(None)
        train(search, problem.data, plan=problem.plan)
        sizes.append(float(search.latents.vector.detach().abs().mean()))
    assert sizes[1] < 0.9 * sizes[0]


def test_the_needed_travel_is_the_least_that_meets_the_budget() -> None:
    problem = tiny_problem("mobilenetv2")
    efficiency = Efficiency(problem.space, problem.graph, problem.latency)
    generator = np.random.default_rng(0)
    lifetimes = [generator.random(group.units) for group in problem.space.groups]

    def cost(travel: float) -> float:
        counts = [float((times > travel).sum()) for times in lifetimes]
        row = np.array([problem.space.snap(counts).values_tuple()])
        return float(efficiency.predict_batch(row)[0]) / efficiency.dense

    travel = needed_travel(efficiency, problem.space, lifetimes, 0.6)
    before = max(time for times in lifetimes for time in times if time < travel)
    assert cost(travel) <= 0.6 < cost(before)
    assert needed_travel(efficiency, problem.space, lifetimes, 1.0) == 0.0
    immortal = [np.full(len(times), np.inf) for times in lifetimes]
    assert needed_travel(efficiency, problem.space, immortal, 0.6) == 0.0
    assert needed_travel(efficiency, problem.space, lifetimes, 1e-6) == max(float(t.max()) for t in lifetimes)


def test_one_threshold_orders_all_groups() -> None:
    problem = tiny_problem("mobilenetv2", tile=1)
    generator = np.random.default_rng(1)
    ranks = {group.name: generator.random(group.units) for group in problem.space.groups}
    fit = threshold_fit(problem.space, problem.latency, ranks, 0.6 * problem.dense_ms)
    assert fit.predicted_ms <= 0.6 * problem.dense_ms
    kept = {name: np.sort(values)[::-1][: fit.widths[name]] for name, values in ranks.items()}
    lowest = {name: float(values[-1]) for name, values in kept.items()}
    floor = {group.name: allowed[0] for group, allowed in zip(problem.space.groups, problem.space.widths, strict=True)}
    free = [lowest[name] for name in lowest if fit.widths[name] > floor[name]]
    # Above the threshold everything stays; below it a group has at most the one step that still fitted.
    for name, values in ranks.items():
        assert int((values > max(free)).sum()) <= fit.widths[name]
    with pytest.raises(BudgetInfeasible, match="the fastest needs"):
        threshold_fit(problem.space, problem.latency, ranks, 0.01 * problem.dense_ms)


def test_units_that_died_early_rank_below_those_that_died_late() -> None:
    latents = latents_of(tiny_problem("chain"))
    speed = torch.linspace(0.1, 2.0, len(latents.vector))
    for _ in range(8):
        latents.shrink(0.2 * speed, [0] * len(latents.units))
    ranks = latents.ranks()
    assert bool((ranks > 0).all())
    assert bool((ranks[:-1] > ranks[1:]).all())
    assert bool((ranks[latents.vector.detach() != 0] > 1).all())
    assert bool((ranks[latents.vector.detach() == 0] <= 1).all())


def test_revived_units_are_as_large_as_the_smallest_live_one() -> None:
    latents = latents_of(tiny_problem("chain"))
    mask = torch.ones_like(latents.open)
    with torch.no_grad():
        latents.vector.copy_(torch.linspace(-1, 1, len(latents.vector)))
        latents.vector[0], mask[1] = 0.0, 0.0
    latents.remove(mask, latents.ranks(), debias=False)
    revived = latents.revived()
    first, live = latents.split(revived)[0], latents.split(latents.values().detach())[0]
    assert float(first[0]) == pytest.approx(float(live[live != 0].abs().min()))
    assert float(first[1]) == pytest.approx(float(latents.vector.detach()[1]))
    kept = latents.values().detach() != 0
    assert torch.equal(revived[kept], latents.values().detach()[kept])


def test_debiasing_gives_back_what_proximal_steps_took() -> None:
    latents = latents_of(tiny_problem("chain"))
    with torch.no_grad():
        latents.vector[1] = -2.0
        before = latents.vector.detach().clone()
    thresholds = torch.linspace(0.0, 0.3, len(before))
    for _ in range(5):
        latents.shrink(thresholds, [4] * len(latents.units))
    ranks = latents.ranks()
    assert bool((latents.vector.detach() == 0).any())
    assert float(latents.vector.detach()[3]) == pytest.approx(1 - 5 * float(thresholds[3]))
    latents.remove((latents.vector.detach() != 0).float(), ranks, debias=True)
    torch.testing.assert_close(latents.vector.detach(), before)
    assert torch.equal(latents.final, ranks)


@pytest.mark.parametrize("debias", [True, False])
def test_a_negative_latent_that_died_comes_back_negative(debias: bool) -> None:
    latents = latents_of(tiny_problem("chain"))
    with torch.no_grad():
        latents.vector[:2] = torch.tensor([-0.3, 0.3])
    latents.shrink(torch.full_like(latents.vector, 0.5), [1] * len(latents.units))
    assert latents.vector.detach()[:2].tolist() == [0.0, 0.0]
    latents.remove(torch.ones_like(latents.open), latents.ranks(), debias=debias)
    assert latents.vector.detach()[:2].tolist() == pytest.approx([-0.3, 0.3] if debias else [-0.5, 0.5])


def test_the_saliency_is_half_the_fisher_information_of_a_gate() -> None:
    latents = latents_of(tiny_problem("chain"))
    gradient = torch.randn(len(latents.vector), generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        latents.learn(gradient, 8, 0.9)
    torch.testing.assert_close(latents.saliency, 4 * gradient.square())


def test_a_unit_at_0_keeps_the_saliency_that_it_had() -> None:
    latents = latents_of(tiny_problem("chain"))
    latents.learn(torch.ones_like(latents.open), 8, 0.5)
    with torch.no_grad():
        latents.vector[1] = 0.0
    latents.open[2] = 0.0
    latents.learn(torch.full_like(latents.open, 3.0), 8, 0.5)
    assert latents.saliency[:4].tolist() == [19.0, 2.0, 2.0, 19.0]


def test_worth_is_the_saliency_in_the_order_of_the_ranks() -> None:
    latents = latents_of(tiny_problem("chain"))
    generator = torch.Generator().manual_seed(0)
    latents.saliency.copy_(torch.rand(latents.open.shape, generator=generator))
    with torch.no_grad():
        latents.vector.copy_(torch.randn(latents.open.shape, generator=generator))
    parts = [latents.split(values) for values in (latents.worth(), latents.ranks(), latents.saliency)]
    for worth, ranks, saliency in zip(*parts, strict=True):
        assert torch.equal(worth.sort().values, saliency.sort().values)
        assert torch.equal(worth.argsort(), ranks.argsort())


@pytest.mark.parametrize("name", ["resnet_option_b", "mobilenetv2"])
def test_trading_between_groups_keeps_more_within_the_same_latency(name: str) -> None:
    problem = tiny_problem(name, 0.6, tile=1)
    generator = np.random.default_rng(1)
    ranks = {group.name: generator.random(group.units) for group in problem.space.groups}
    worth = {name: values * generator.exponential() for name, values in ranks.items()}
    threshold = threshold_fit(problem.space, problem.latency, ranks, problem.target_ms)
    traded = exchange_fit(problem.space, problem.latency, ranks, worth, problem.target_ms)

    def kept(widths: Mapping[str, int]) -> float:
        return sum(float(np.sort(worth[name])[::-1][:width].sum()) for name, width in widths.items())

    assert traded.predicted_ms <= problem.target_ms
    assert kept(traded.widths) > 1.01 * kept(threshold.widths)
    answer = Answer(threshold.widths, {}, 0.0, worth)
    assert DHP().refit(problem, answer, problem.target_ms).widths == traded.widths
    by_ranks = DHP(exchange=False).refit(problem, replace(answer, scores=ranks), problem.target_ms)
    assert by_ranks.widths == threshold.widths


@pytest.mark.parametrize("exchange", [True, False])
def test_the_answer_is_what_the_search_has_trained(exchange: bool) -> None:
    problem = tiny_problem("mobilenetv2", 0.6, tile=1)
    search = DhpSearch(problem, DHP(exchange=exchange))
    search.start({group.name: np.linspace(1e-4, 1e-3, group.units) for group in problem.space.groups})
    train(search, problem.data, plan=problem.plan)
    answer = Answer(search.widths(), {}, 0.0, search.scores())
    found = DHP(exchange=exchange).refit(problem, answer, problem.target_ms)
    trained = [torch.nonzero(part).flatten().tolist() for part in search.latents.split(search.latents.open)]
    assert [list(units) for units in found.keep.values()] == trained


def test_a_factor_common_to_a_group_does_not_show_in_the_weights() -> None:
    latents = latents_of(tiny_problem("chain"))
    assert torch.equal(latents.flat(), torch.ones(len(latents.vector) + 1))
    with torch.no_grad():
        latents.vector.copy_(torch.linspace(0.5, 1, len(latents.vector)))
        before = latents.flat()
        latents.split(latents.vector)[1].mul_(0.01)
        torch.testing.assert_close(latents.flat(), before)
        first = latents.split(latents.vector)[0]
        first[2:] = 1e-3
        nearly = latents.flat()
        first[2:] = 0.0
        torch.testing.assert_close(latents.flat()[:2], nearly[:2], rtol=1e-4, atol=0)
        assert bool((latents.flat()[2 : len(first)] == 0).all())


def test_the_metric_slows_salient_units_down() -> None:
    latents = latents_of(tiny_problem("chain"))
    assert torch.equal(latents.inverse_saliency(), torch.ones_like(latents.open))
    latents.saliency.copy_(torch.arange(float(len(latents.open))))
    metric = latents.inverse_saliency()
    assert bool((metric[1:-1] > metric[2:]).all())
    assert float(metric.median()) == pytest.approx(1.0, rel=0.1)
    assert bool(torch.isfinite(metric).all())


def test_the_latents_rate_does_not_depend_on_the_number_of_steps() -> None:
    problem = tiny_problem()
    saliency = {group.name: np.full(group.units, 1e-3) for group in problem.space.groups}
    travels = []
    for epochs in (1, 4):
        plan = replace(problem.plan, epochs=epochs, schedule="cosine")
        search = DhpSearch(replace(problem, plan=plan), DHP())
        search.start(saliency)
        factors = sum(plan.lr_factor(step / search.steps) for step in range(search.steps))
        travels.append(search.latent_lr * factors * np.sqrt(2 * 1e-3 / plan.batch_size))
    assert travels == pytest.approx([0.05, 0.05])
    fixed = DhpSearch(problem, DHP(latent_lr=0.3))
    fixed.start(saliency)
    assert fixed.latent_lr == 0.3
