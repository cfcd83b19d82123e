"""The testable invariants of the methods page of GDP, numbered as there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwprune.core.errors import Interrupted, public_class
from hwprune.core.events import Caution, Event, SearchStep
from hwprune.graph import cut, gate_parameters, mask, trace
from hwprune.methods import Answer, Problem, _gdp_search
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gdp_gates import (
    START,
    STEEPEST,
    GateVectors,
    absorbed,
    smoothed_l0,
    soft_threshold,
)
from hwprune.methods._gdp_prices import Prices, critical_pressure, shortened
from hwprune.methods._gdp_search import NotPolarised, PolarisingSearch
from hwprune.methods.gdp import GDP
from hwprune.testing.methods import StaircaseLatency, family, tiny_problem
from hwprune.testing.networks import FAMILIES
from hwprune.training.loop import train

every_family = pytest.mark.parametrize("name", FAMILIES)
QUICK = {"saliency_images": 16}


def solved(problem: Problem, **options: Any) -> Answer:
    (answer,) = GDP(**{**QUICK, **options}).search(problem)
    return answer


def deep(problem: Problem) -> Problem:
    """The same problem with width 0 wherever a residual branch can vanish."""
    space = problem.graph.space(tile=4, min_keep=0.25, depth=True)
    latency = StaircaseLatency.of(problem.graph, space)
    return replace(problem, space=space, latency=latency)


def trained(problem: Problem, **options: Any) -> PolarisingSearch:
    search = PolarisingSearch(problem, GDP(**{**QUICK, **options}))
    train(search, problem.data, plan=problem.plan, seed=problem.seed)
    return search


def with_weights(problem: Problem, state: dict[str, Tensor]) -> nn.Module:
    model = PolarisingSearch(problem, GDP()).model.eval()
    model.load_state_dict(state)
    return model


def gated_outputs(problem: Problem, model: nn.Module, gates: list[Tensor], images: Tensor) -> Tensor:
    parameters = dict(model.named_parameters())
    changed = gate_parameters(parameters, problem.graph, dict(zip(problem.space.names, gates, strict=True)))
    with torch.no_grad():
        return functional_call(model, {**parameters, **changed}, (images,))


def _statistics_count_zeros(model: nn.Module) -> bool:
    """LayerNorm and GroupNorm see closed channels as zeros, cut ones not at all: inexact by design (page, 6)."""
    return any(isinstance(module, nn.GroupNorm | nn.LayerNorm) for module in model.modules())


def test_1_the_gate_and_its_slope_are_those_of_the_page() -> None:
    for eps in (1e-1, 1e-4, 1e-8):
        theta = torch.linspace(-2, 2, 401, dtype=torch.float64, requires_grad=True)
        gate = smoothed_l0(theta, eps)
        (slope,) = torch.autograd.grad(gate.sum(), theta)
        exact = theta.detach()
        torch.testing.assert_close(gate.detach(), exact**2 / (exact**2 + eps))
        torch.testing.assert_close(slope, 2 * eps * exact / (exact**2 + eps) ** 2)
        steepest = math.sqrt(eps / 3)
        at = torch.tensor([0.0, steepest, math.sqrt(eps)], dtype=torch.float64, requires_grad=True)
        values = smoothed_l0(at, eps)
        torch.testing.assert_close(values, torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64))
        (slopes,) = torch.autograd.grad(values.sum(), at)
        assert float(slopes[0]) == 0.0
        assert float(slopes[1]) == pytest.approx(STEEPEST / math.sqrt(eps))
    assert pytest.approx(0.6495, abs=1e-4) == STEEPEST


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_1_at_zero_the_slope_is_zero_and_half_precision_does_not_underflow(dtype: torch.dtype) -> None:
    theta = torch.tensor([0.0, 1e-4, 1.0], dtype=dtype, requires_grad=True)
    gate = smoothed_l0(theta, 1e-8)
    (slope,) = torch.autograd.grad(gate.sum(), theta)
    assert gate.dtype == torch.float32
    assert float(slope[0]) == 0.0
    assert bool(torch.isfinite(slope).all())
    assert float(gate[1].detach()) == pytest.approx(0.5, abs=0.01)


def test_2_the_proximal_step_makes_exact_zeros_and_flips_no_sign() -> None:
    theta = torch.tensor([-1.0, -0.3, -0.1, 0.0, 0.1, 0.25, 1.0])
    moved = soft_threshold(theta, 0.25)
    torch.testing.assert_close(moved, torch.tensor([-0.75, -0.05, 0.0, 0.0, 0.0, 0.0, 0.75]))
    assert [float(value) == 0.0 for value in moved] == [False, False, True, True, True, True, False]
    assert bool((moved * theta >= 0).all())
    assert bool((moved.abs() <= theta.abs()).all())
    assert torch.equal(soft_threshold(torch.zeros(3), 0.25), torch.zeros(3))
    assert torch.equal(soft_threshold(theta, 0.0), theta)


def test_3_without_pressure_no_gate_ever_becomes_zero() -> None:
    problem = tiny_problem(budget=1.0)
    for how in ("secant", "tangent"):
        search = trained(problem, task_gradient=how)
        assert all(bool((theta.detach() > 0).all()) for theta in search.gates.theta)
        assert search.pressure == 0.0


def test_3_undefended_gates_reach_zero_after_the_steps_that_the_pressure_needs() -> None:
    problem = replace(tiny_problem(budget=0.5), plan=replace(tiny_problem().plan, epochs=10))
    search = PolarisingSearch(problem, GDP(boost=0.0, warmup=0.0, saliency_images=0, hold=0.8, travel=4.2))
    needed = math.ceil(START / search._speed - 1e-9)
    assert needed == 12
    for step in range(1, needed + 1):
        assert all(bool((theta.detach() > 0).all()) for theta in search.gates.theta)
        search.seen = step
        search._press(step / search.steps)
    assert any(bool((theta.detach() == 0).any()) for theta in search.gates.theta)
    assert search.cost() <= search.target


@every_family
def test_4_the_absorbed_and_cut_network_equals_the_gated_one(name: str) -> None:
    problem = tiny_problem(name)
    model = family(name).model
    images = problem.data.train.images[:4]
    generator = torch.Generator().manual_seed(4)
    for share in (1.0, 0.5):
        gates, keep = [], {}
        for group in problem.space.groups:
            gate = 0.3 + 0.7 * torch.rand(group.units, generator=generator)
            closed = torch.randperm(group.units, generator=generator)[max(1, round(share * group.units)) :]
            gate[closed] = 0.0
            gates.append(gate)
            keep[group.name] = torch.nonzero(gate).flatten().tolist()
        expected = gated_outputs(problem, model, gates, images)
        state = absorbed(model.state_dict(), problem.graph, problem.space.names, gates)
        small = cut(with_weights(problem, state), problem.graph, keep)
        with torch.no_grad():
            difference = float((small(images) - expected).abs().max())
        scale = max(1.0, float(expected.abs().max()))
        assert difference / scale < 1e-5 or (share < 1 and _statistics_count_zeros(model))


class InPlace(nn.Module):
    """A convolution whose inputs and outputs are the same group, between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.last = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.wide(x + self.same(x)))


@pytest.mark.parametrize("name", ["resnet_option_a", "resnet_option_b", "mobilenetv2", "c2f"])
def test_5_a_block_with_only_closed_gates_is_its_constant(name: str) -> None:
    problem = deep(tiny_problem(name))
    model, images = family(name).model, problem.data.train.images[:4]
    vanishing = [group.name for group in problem.space.groups if group.skippable]
    assert vanishing
    gates = [torch.full((g.units,), 0.0 if g.skippable else 0.7) for g in problem.space.groups]
    expected = gated_outputs(problem, model, gates, images)
    state = absorbed(model.state_dict(), problem.graph, problem.space.names, gates)
    small = cut(with_weights(problem, state), problem.graph, dict.fromkeys(vanishing, ()))
    with torch.no_grad():
        torch.testing.assert_close(small(images), expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_5_a_search_may_take_whole_blocks() -> None:
    problem = deep(tiny_problem("resnet_option_b", 0.5))
    smallest = problem.latency.predict(problem.space.smallest()).latency_ms
    answer = solved(replace(problem, target_ms=1.05 * smallest))
    gone = [name for name, width in answer.widths.items() if width == 0]
    assert len(gone) >= 3
    assert all(answer.keep[name] == () for name in gone)
    assert answer.predicted_ms <= 1.05 * smallest
    assert answer.state is not None
    images = problem.data.val.images
    trained = with_weights(problem, dict(answer.state))
    with torch.no_grad():
        expected = mask(trained, problem.graph, answer.keep)(images)
        small = cut(trained, problem.graph, answer.keep)(images)
    torch.testing.assert_close(small, expected, rtol=0, atol=1e-5)
    wider = GDP().refit(problem, answer, 0.9 * problem.dense_ms)
    assert sum(wider.widths[name] > 0 for name in gone) > 0


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
    assert prices.clamped == 1
    assert prices.values[2] == 0.0
    assert bool((weights > 0).all())
    assert weights.mean() == pytest.approx(1.0)
    assert weights[1] == pytest.approx(3 * weights[0])


@pytest.mark.parametrize("share", [0.2, 0.9, 1.1, 5.0])
def test_7_a_gate_closes_exactly_when_its_benefit_is_below_the_critical_one(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search's own steps with known benefits and prices, and a target so low that it never stops pressing."""
    problem = tiny_problem("chain", 0.6)
    search = PolarisingSearch(problem, GDP(boost=0.0, warmup=0.0))
    level, prices = 0.03, np.array([0.5, 1.0, 1.5])
    search.steps, search.target, search.has_prior = 200, 0.01, True
    monkeypatch.setattr(_gdp_search, "critical_pressure", lambda *_: level)
    monkeypatch.setattr(search.prices, "weights", lambda: prices)
    for square, price in zip(search.square, prices, strict=True):
        square.copy_(share * level * price * (1 + 1e-6 * torch.arange(len(square))))
    gate_optimizer = search.optimizers()[-1]
    for step in range(400):
        search._set_gate_rate(step / 400)
        gate_optimizer.zero_grad()
        before = [theta.detach().clone() for theta in search.gates.theta]
        pairs = zip(search.benefits(), search.gates(), strict=True)
        torch.stack([-(benefit * gate).sum() for benefit, gate in pairs]).sum().backward()
        gate_optimizer.step()
        search._limit_moves(before)
        search._press(search.options.hold)
    least = [allowed[0] for allowed in problem.space.widths]
    assert search.gates.counts() == (least if share < 1 else [group.units for group in problem.space.groups])


def test_7_the_largest_slope_of_a_gate_is_the_one_that_rates_are_set_by() -> None:
    for eps in (0.1, 1e-3, 1e-6):
        gates = GateVectors(tiny_problem("chain").space, torch.zeros(1), eps)
        theta = torch.linspace(0, START, 200_001, dtype=torch.float64, requires_grad=True)
        gate = theta**2 / (theta**2 + eps) * (START**2 + eps) / START**2
        (slope,) = torch.autograd.grad(gate.sum(), theta)
        assert gates.slope_scale() == pytest.approx(float(slope.max()), rel=1e-3)


@every_family
def test_8_every_gate_is_zero_or_open_at_the_end(name: str) -> None:
    search = trained(tiny_problem(name, 0.9))
    for occupancy in search.gates.occupancy():
        assert bool(((occupancy == 0) | (occupancy > 0.99)).all())
    search.check_polarised()


def test_8_a_gate_in_between_is_an_error() -> None:
    search = trained(tiny_problem(budget=0.7))
    with torch.no_grad():
        search.gates.theta[0][0] = 0.5 * float(search.gates.eps) ** 0.5
    with pytest.raises(NotPolarised, match=r"not polarised: 1 of \d+ lie between 0 and 0.99 after 12 steps") as caught:
        search.final_state()
    assert "more epochs" in caught.value.hint
    assert caught.value.exit_code == 1


def test_8_a_hold_that_ends_too_early_is_an_error_if_the_user_says_so(tmp_path: Path) -> None:
    problem = replace(tiny_problem(budget=0.5), checkpoint=tmp_path)
    with pytest.raises(NotPolarised, match=r"the gates reached \d+% of the dense cost when the hold ended") as caught:
        solved(problem, travel=0.1, late="error")
    assert "travel" in caught.value.hint
    events: list[Event] = []
    answer = solved(replace(tiny_problem(budget=0.5), on_event=events.append), travel=0.1)
    assert answer.predicted_ms <= problem.target_ms
    (caution,) = (event for event in events if isinstance(event, Caution))
    assert "closed at once" in caution.text


@pytest.mark.parametrize("name", ["chain", "resnet_option_a", "mobilenetv2", "unet", "c2f"])
def test_9_predictions_are_the_same_before_and_after_the_cut(name: str) -> None:
    problem = tiny_problem(name, 0.6)
    search = trained(problem)
    images = torch.randn(200, *problem.data.input_shape, generator=torch.Generator().manual_seed(9))
    gates = [gate.detach() for gate in search.gates()]
    assert any(bool((gate == 0).any()) for gate in gates)
    before = gated_outputs(problem, search.model.eval(), gates, images)
    small = cut(with_weights(problem, search.final_state()), problem.graph, search.keep())
    with torch.no_grad():
        after = small(images)
    assert torch.equal(before.argmax(1), after.argmax(1))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_10_the_checkpoint_has_eps_pressure_and_the_log_of_closings() -> None:
    problem = tiny_problem(budget=0.5)
    first = trained(problem)
    second = PolarisingSearch(replace(problem, seed=7), GDP())
    second.load_state(first.state())
    assert float(second.gates.eps) == float(first.gates.eps) < 1e-3
    assert (second.seen, second.settled_at, second.pressure) == (first.seen, first.settled_at, first.pressure)
    for mine, other in zip(first.closed_at, second.closed_at, strict=True):
        assert torch.equal(mine, other)
    closed = torch.cat([at[at >= 0] for at in first.closed_at])
    assert len(closed)
    assert float(closed.max()) <= first.settled_at


def test_10_an_evaluation_changes_neither_eps_nor_theta() -> None:
    search = PolarisingSearch(tiny_problem(), GDP())
    before = {name: value.clone() for name, value in search.gates.state_dict().items()}
    for _ in range(3):
        search.gates.eval()()
        search.gates.train()()
    assert all(torch.equal(value, before[name]) for name, value in search.gates.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"task_gradient": "tangent", "saliency_images": 0}])
def test_10_a_resumed_search_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    problem = tiny_problem(budget=0.5)
    problem = replace(problem, plan=replace(problem.plan, checkpoint_s=0.0))
    whole = solved(problem, **options)
    for number in (3, 8):
        done: list[int] = []

        def stop(done: list[int] = done, number: int = number) -> bool:
            done.append(1)
            return len(done) == number

        folder = tmp_path / str(number)
        with pytest.raises(Interrupted):
            solved(replace(problem, checkpoint=folder, stop=stop), **options)
        resumed = solved(replace(problem, checkpoint=folder), **options)
        assert resumed.log is not None
        assert resumed.log.resumed_at == number
        assert resumed.keep == whole.keep
        for group in problem.space.names:
            np.testing.assert_array_equal(resumed.scores[group], whole.scores[group])
        for key, value in (whole.state or {}).items():
            assert torch.equal(value, (resumed.state or {})[key]), key


def test_11_scaling_theta_and_eps_together_changes_nothing() -> None:
    theta = torch.linspace(0, 1, 11, dtype=torch.float64)
    for factor in (0.1, 7.0):
        torch.testing.assert_close(smoothed_l0(factor * theta, factor**2 * 0.1), smoothed_l0(theta, 0.1))


def test_11_theta_starts_at_one_and_the_network_is_unchanged_whatever_eps_is() -> None:
    problem = tiny_problem()
    for eps in (0.5, 0.1, 1e-3):
        gates = GateVectors(problem.space, next(problem.model.parameters()), eps)
        assert all(bool((theta.detach() == START).all()) for theta in gates.theta)
        for gate in gates():
            torch.testing.assert_close(gate.detach(), torch.ones_like(gate), rtol=1e-6, atol=1e-6)


def test_12_the_cost_of_exact_zeros_is_that_of_the_cut_network() -> None:
    problem = tiny_problem("resnet_option_b", 0.6, tile=1)
    search = trained(problem, efficiency="macs")
    small = cut(search.model, problem.graph, search.keep())
    counted = _count_macs(small, problem.data.train.images[:2])
    dense = _count_macs(problem.model, problem.data.train.images[:2])
    assert search.cost() == pytest.approx(counted / dense, rel=1e-3)
    assert counted < dense


def _count_macs(model: nn.Module, images: Tensor) -> int:
    """An independent count: hooks on the layers that multiply."""
    total = 0

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return total


@every_family
def test_whatever_the_pressure_no_group_loses_all_units(name: str) -> None:
    problem = tiny_problem(name, 0.9)
    search = PolarisingSearch(problem, GDP(travel=1e3, saliency_images=0, warmup=0.0))
    for step in range(1, 4):
        search.seen = step
        search._press(step / search.steps)
        counts = search.gates.counts()
        assert all(count >= allowed[0] for count, allowed in zip(counts, problem.space.widths, strict=True))
    assert search.cost() <= search.target


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


def test_a_network_without_any_benefit_is_called_collapsed() -> None:
    problem = tiny_problem(budget=0.6)
    search = PolarisingSearch(problem, GDP())
    with pytest.raises(NotPolarised, match="no unit has any influence on the loss") as caught:
        search._settle()
    assert (public_class(caught.value), caught.value.exit_code) == ("MethodGaveUp", 1)


def test_theta_is_never_decayed_and_closed_units_keep_their_weights() -> None:
    problem = tiny_problem(budget=0.6)
    problem = replace(problem, plan=replace(problem.plan, weight_decay=0.5))
    search = PolarisingSearch(problem, GDP(warmup=0.9, hold=0.95, anneal=1.0))
    gates = search.optimizers()[-1].param_groups
    assert all(group["weight_decay"] == 0 and group["momentum"] == 0 for group in gates)
    group, closed = problem.space.groups[0], 2
    with torch.no_grad():
        search.gates.theta[0][closed] = 0.0
    before = {name: value.detach().clone() for name, value in search.model.named_parameters()}
    search.loss(*problem.data.batch("train", torch.arange(8)), progress=0.0).backward()
    for optimizer in search.optimizers():
        optimizer.step()
    after = dict(search.model.named_parameters())
    pieces = (*problem.graph.producer_slices(group.name), *problem.graph.consumer_slices(group.name))
    for piece in (piece for piece in pieces if before[piece.parameter].ndim > 1):
        positions = torch.from_numpy(piece.positions[piece.units == closed])
        old, new = (tensors[piece.parameter].index_select(piece.dim, positions) for tensors in (before, after))
        assert torch.equal(old, new)
    assert all(bool((theta.detach()[theta.detach() != 0] == START).all()) for theta in search.gates.theta)


def test_units_closed_last_come_back_first() -> None:
    problem = tiny_problem(budget=0.5)
    search = trained(problem)
    scores = search.unit_scores()
    for name, at in zip(problem.space.names, search.closed_at, strict=True):
        closed, score = at.numpy() >= 0, scores[name]
        if closed.any() and not closed.all():
            assert score[closed].max() <= score[~closed].min()
            order = np.argsort(at.numpy()[closed], kind="stable")
            assert bool((np.diff(score[closed][order])[np.diff(at.numpy()[closed][order]) > 0] >= 0).all())


def test_search_events_tell_pressure_eps_and_the_share_in_between() -> None:
    events: list[Event] = []
    solved(replace(tiny_problem(budget=0.6), on_event=events.append), report_every=3)
    steps = [event for event in events if isinstance(event, SearchStep)]
    assert [step.step for step in steps] == [3, 6, 9, 12]
    assert set(steps[0].metrics) == {"pressure", "eps", "open_share", "between_share", "cost"}
    assert steps[-1].metrics["between_share"] == 0.0
    assert steps[-1].metrics["pressure"] == 0.0
    assert steps[-1].metrics["eps"] < steps[0].metrics["eps"] == pytest.approx(0.1)


def test_prices_may_count_macs() -> None:
    problem = tiny_problem("mobilenetv2", 0.6)
    answer = solved(problem, efficiency="macs")
    assert answer.predicted_ms <= problem.target_ms
