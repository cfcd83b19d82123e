"""Invariants 1 to 9 of S2HPruner: masks, gradients, and the networks they make.

10 to 12 are in test_s2hpruner_training.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gated_networks import batch
from s2h_states import LEARNING, close, expected_widths, gradients, masks_of, scattered, size, started
from torch import Tensor, nn
from torch.func import functional_call

from hwprune.graph import cut, gate_parameters, trace
from hwprune.graph.stateless import called_with
from hwprune.methods import Problem
from hwprune.methods._base import top_units
from hwprune.methods._s2h_gap import Gap
from hwprune.testing.methods import StaircaseLatency, tiny_problem
from hwprune.testing.networks import FAMILIES
from hwprune.training.tasks import Classification

every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
def test_1_masks_fall_by_rank_from_exactly_1_and_sum_to_the_expectation(name: str) -> None:
    problem = tiny_problem(name)
    search = scattered(started(problem))
    probabilities = search.choice.now(1.0)
    for group, mask, expected in zip(
        problem.space.groups, masks_of(search), search.grid.expected(probabilities), strict=True
    ):
        by_rank = mask.detach()[torch.from_numpy(np.argsort(-search.scores[group.name], kind="stable"))]
        assert float(by_rank[0]) == 1.0
        assert bool((by_rank.diff() <= 1e-6).all())
        assert float(by_rank.sum()) == pytest.approx(float(expected), abs=1e-5 * group.units)
    hard = search.hard_widths()
    problem.space.check(hard)
    assert all(
        hard[g.name] >= float(e) - 1e-4 * g.units
        for g, e in zip(problem.space.groups, expected_widths(search), strict=True)
    )


def test_2_the_slope_of_the_expected_width_is_p_times_k_minus_e_over_t() -> None:
    search = scattered(started(tiny_problem("mobilenetv2"), temperature=0.7))
    values = list(search.choice.values)
    probabilities = search.choice.probabilities(values, 0.7)
    for logits, p, widths, expected in zip(
        values, probabilities, search.grid.widths, search.grid.expected(probabilities), strict=True
    ):
        (slope,) = torch.autograd.grad(expected, logits, retain_graph=True)
        torch.testing.assert_close(slope, p * (widths - expected) / 0.7, rtol=1e-4, atol=1e-5)
        assert float(slope.sum()) == pytest.approx(0.0, abs=1e-4)


def test_2_a_common_shift_of_the_logits_and_recentring_change_nothing() -> None:
    problem = tiny_problem("chain")
    search = scattered(started(problem))
    images, _ = batch(problem)
    search.model.eval()
    before, soft = masks_of(search), search.soft(images, masks_of(search))
    with torch.no_grad():
        for logits in search.choice.values:
            logits.add_(3.0)
    shifted = masks_of(search)
    search.choice.tidy()
    assert all(float(logits.detach().mean()) == pytest.approx(0, abs=1e-6) for logits in search.choice.values)
    for old, new, centred in zip(before, shifted, masks_of(search), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)
        torch.testing.assert_close(centred, old, rtol=0, atol=1e-6)
    torch.testing.assert_close(search.soft(images, masks_of(search)), soft, rtol=1e-5, atol=1e-6)


def test_3_routing_of_the_soft_loss_it_reaches_weights_and_widths_through_the_soft_network() -> None:
    problem = tiny_problem("chain")
    search = scattered(started(problem, gap_weight=0.0))
    images, targets = batch(problem)
    weights, widths = gradients(search, search.loss(images, targets, LEARNING))
    expected = gradients(search, search._task_loss(search.soft(images, masks_of(search)), images, targets))
    assert size(weights) > 0
    assert bool(widths.any())
    close(weights, expected[0])
    torch.testing.assert_close(widths, expected[1], rtol=1e-4, atol=1e-6)


def test_3_routing_of_the_gap_to_the_weights_only_through_the_hard_network_and_only_to_kept_units() -> None:
    problem = tiny_problem("resnet_option_b", tile=2)
    search = scattered(started(problem))
    images, _ = batch(problem)
    soft, hard = search.soft(images, masks_of(search)), search.hard(images)
    weights, widths = gradients(search, search.gap.for_weights(soft, hard))
    assert not widths.any()
    assert size(weights) > 0
    close(weights, gradients(search, search.gap.for_weights(soft.detach(), hard))[0])
    keep = top_units(search.scores, search.hard_widths())
    assert any(len(kept) < problem.graph.group(name).units for name, kept in keep.items())
    for name, kept in keep.items():
        for piece in problem.graph.producer_slices(name):
            removed = torch.from_numpy(piece.positions[~np.isin(piece.units, kept)])
            assert not weights[piece.parameter].index_select(piece.dim, removed).any()


def test_3_routing_of_the_gap_to_the_widths_only_through_the_soft_network() -> None:
    problem = tiny_problem("chain")
    search = scattered(started(problem, routing="to_widths"))
    images, _ = batch(problem)
    masks = masks_of(search)
    soft, hard = search.soft(images, masks), search.hard(images)
    weights, widths = gradients(search, search.gap.loss(soft, hard, masks))
    assert size(weights) == 0
    assert bool(widths.any())
    expected = gradients(search, search.gap.for_widths(soft, hard))[1]
    torch.testing.assert_close(widths, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(search, search.gap.for_widths(soft, hard.detach()))[1], expected)


def test_3_routing_of_the_latency_term_it_reaches_only_the_widths() -> None:
    problem = tiny_problem("chain", 0.4)
    search = scattered(started(problem))
    search.multiplier.value = 2.0
    with torch.no_grad():
        for logits in search.choice.values:
            logits[-1] += 5.0
    search._step = search._latency_step(0.75)
    weights, widths = gradients(search, search._latency_pull())
    assert size(weights) == 0
    torch.testing.assert_close(widths, 2.0 * torch.cat(search._step.cost_gradients))
    assert bool(widths.any())


def test_3_routing_of_the_hard_network_no_gradient_reaches_the_widths_through_it() -> None:
    problem = tiny_problem("chain")
    search = scattered(started(problem))
    images, targets = batch(problem)
    weights, widths = gradients(search, search._task_loss(search.hard(images), images, targets))
    assert size(weights) > 0
    assert not widths.any()


def test_3_one_backward_pass_gives_the_whole_table() -> None:
    """theta: soft loss and the gap through the hard network. u: soft loss, the gap through the soft one, latency."""
    problem = tiny_problem("mobilenetv2", 0.4)
    search = scattered(started(problem))
    search.multiplier.value = 1.5
    images, targets = batch(problem)
    weights, widths = gradients(search, search.loss(images, targets, LEARNING))
    assert search._step is not None
    assert search._step.cost > search._step.budget
    masks = masks_of(search)
    soft, hard = search.soft(images, masks), search.hard(images)
    by_loss = gradients(search, search._task_loss(soft, images, targets))
    by_hard = gradients(search, search.gap.for_weights(soft, hard))
    by_soft = gradients(search, search.gap.for_widths(soft, hard))
    assert size(by_soft[0]) > 0
    close(weights, {name: by_loss[0][name] + by_hard[0][name] for name in weights})
    latency = 1.5 * torch.cat(search._step.cost_gradients)
    torch.testing.assert_close(widths, by_loss[1] + by_soft[1] + latency, rtol=1e-4, atol=1e-5)


def test_4_with_separate_weights_both_halves_make_the_gradient_of_the_undetached_gap() -> None:
    gap = Gap(Classification(), 0.7, 2.0, "decoupled")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, generator=generator)
    first = torch.randn(5, 4, generator=generator, requires_grad=True)
    second = torch.randn(5, 4, generator=generator, requires_grad=True)
    soft, hard = inputs @ first, inputs @ second
    undetached = 0.7 * 4.0 * _kl(soft / 2, hard / 2)
    expected = torch.autograd.grad(undetached, (first, second), retain_graph=True)
    (by_soft,) = torch.autograd.grad(gap.for_widths(soft, hard), first, retain_graph=True)
    (by_hard,) = torch.autograd.grad(gap.for_weights(soft, hard), second, retain_graph=True)
    torch.testing.assert_close(by_soft, expected[0])
    torch.testing.assert_close(by_hard, expected[1])
    assert torch.autograd.grad(gap.for_widths(soft, hard), second, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(gap.for_weights(soft, hard), first, allow_unused=True) == (None,)


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student), summed over classes, averaged over the batch: written out."""
    p, q = teacher.softmax(1), student.softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean()


def test_4_the_soft_network_is_the_target_in_both_halves() -> None:
    soft, hard = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    gap = Gap(Classification(), 1.0, 1.0, "decoupled")
    for half in (gap.for_weights, gap.for_widths):
        assert float(half(soft, hard)) == pytest.approx(float(_kl(soft, hard)))
    assert float(_kl(soft, hard)) != pytest.approx(float(_kl(hard, soft)), rel=0.05)


@every_family
def test_5_all_logits_on_dense_soft_hard_and_dense_network_agree_and_the_gap_is_0(name: str) -> None:
    problem = tiny_problem(name)
    search = started(problem)
    with torch.no_grad():
        for logits in search.choice.values:
            logits[-1] = 60.0
    search.model.eval()
    images, _ = batch(problem)
    soft, hard = search.soft(images, masks_of(search)), search.hard(images)
    torch.testing.assert_close(soft, problem.model(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hard, problem.model(images), rtol=1e-5, atol=1e-5)
    assert float(search.gap.for_weights(soft, hard).detach()) == pytest.approx(0, abs=1e-6)


def test_5_at_the_start_the_hard_network_is_dense() -> None:
    problem = tiny_problem("mobilenetv2", tile=2)
    assert started(problem, temperature=0.5).hard_widths() == problem.space.dense()


@every_family
def test_6_sliced_masked_and_cut_hard_network_agree_in_both_modes(name: str) -> None:
    problem = tiny_problem(name)
    if name in ("group_norm", "transformer"):
        return _sliced_equals_cut(problem)
    search = scattered(started(problem))
    images, _ = batch(problem)
    keep = top_units(search.scores, search.hard_widths())
    gates = {g.name: torch.zeros(g.units).index_fill(0, torch.tensor(keep[g.name]), 1.0) for g in problem.space.groups}
    parameters = dict(search.model.named_parameters())
    for training in (False, True):
        search.model.train(training)
        changed = gate_parameters(parameters, problem.graph, gates)
        buffers = {key: value.clone() for key, value in search.model.named_buffers()}
        masked = called_with(search.model, {**parameters, **changed, **buffers}, images)
        torch.testing.assert_close(search.hard(images), masked, rtol=1e-4, atol=1e-5)
    return _sliced_equals_cut(problem)


def _sliced_equals_cut(problem: Problem) -> None:
    """Norms over channels see closed channels as zeros, so there only slicing is the real network."""
    search = scattered(started(problem))
    images, _ = batch(problem)
    small = cut(search.model, problem.graph, top_units(search.scores, search.hard_widths()))
    for training in (False, True):
        search.model.train(training)
        with torch.no_grad():
            expected = small.train(training)(images)
        torch.testing.assert_close(search.hard(images), expected, rtol=1e-4, atol=1e-5)


class ConvNormRelu(nn.Module):
    """Where a mask in front of the norm would have no effect in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return out


def test_7_a_soft_mask_has_an_effect_under_batch_statistics() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = ConvNormRelu(), torch.randn(8, 3, 6, 6)
    graph = trace(model.eval(), images[:1])
    model.train()
    (group,) = graph.removable
    parameters = dict(model.named_parameters())
    changed = gate_parameters(parameters, graph, {group.name: torch.full((8,), 0.5)})
    with torch.no_grad():
        difference = functional_call(model, {**parameters, **changed}, (images,)) - model(images)
        before_norm = nn.functional.batch_norm(0.5 * model.conv(images), None, None, training=True)
        unmasked = nn.functional.batch_norm(model.conv(images), None, None, training=True)
    assert float(difference.abs().max()) > 1e-3
    assert float((before_norm - unmasked).abs().max()) < 1e-3


@every_family
def test_8_a_pure_latency_step_narrows_and_within_the_budget_there_is_none(name: str) -> None:
    problem = tiny_problem(name, 0.5)
    search = started(problem)
    search.multiplier.value = 1.0
    search._step = search._latency_step(0.75)
    assert search._step.cost > search._step.budget
    _, widths = gradients(search, search._latency_pull())
    before = sum(
        float(width) / group.units for width, group in zip(expected_widths(search), problem.space.groups, strict=True)
    )
    with torch.no_grad():
        for logits, slope in zip(search.choice.values, search._step.cost_gradients, strict=True):
            logits.sub_(0.5 * slope)
    after = sum(
        float(width) / group.units for width, group in zip(expected_widths(search), problem.space.groups, strict=True)
    )
    assert bool(widths.any())
    assert after < before
    search._step = replace(search._step, cost=search._step.budget)
    assert not search._latency_pull().requires_grad
    assert float(search._latency_pull()) == 0.0


def test_9_the_gradient_of_the_expected_latency_is_a_finite_difference_in_the_logits() -> None:
    problem = tiny_problem("mobilenetv2", 0.5)
    search = scattered(started(problem))
    hard = search.hard_widths()
    logits = [value.detach().double().requires_grad_() for value in search.choice.values]
    cost = search.cost([torch.softmax(value, 0) for value in logits], hard)
    slopes = torch.autograd.grad(cost, logits)
    assert float(cost.detach()) == pytest.approx(problem.latency.predict(hard).latency_ms / problem.dense_ms)
    for group, (name, allowed) in enumerate(zip(problem.space.names, problem.space.widths, strict=True)):
        costs = (
            np.array([problem.latency.predict(hard.replace(name, w)).latency_ms for w in allowed]) / problem.dense_ms
        )
        for place in range(len(allowed)):
            step = np.eye(len(allowed))[place] * 1e-5
            mean = [
                float((torch.softmax(logits[group].detach() + torch.from_numpy(s), 0).numpy() * costs).sum())
                for s in (step, -step)
            ]
            assert float(slopes[group][place]) == pytest.approx((mean[0] - mean[1]) / 2e-5, abs=1e-8)


def test_9_where_a_wider_layer_is_faster_probability_moves_to_it() -> None:
    problem = tiny_problem("chain", 0.5)
    allowed = problem.space.widths[0]

    class Dip(StaircaseLatency):
        """The second-widest of the first group's widths is slower than dense."""

        def predict_batch(self, values: np.ndarray) -> np.ndarray:
            return StaircaseLatency.predict_batch(self, values) + 1.0 * (values[:, 0] == allowed[-2])

    problem = replace(problem, latency=Dip.of(problem.graph, problem.space))
    search = started(problem)
    with torch.no_grad():
        search.choice.values[0].zero_()
    before = search.choice.now(1.0)[0]
    search._step = search._latency_step(0.5)
    with torch.no_grad():
        search.choice.values[0].sub_(0.5 * search._step.cost_gradients[0])
    after = search.choice.now(1.0)[0]
    assert float(after[-2]) < float(before[-2])
    assert float(after[-1] / after[-2]) > float(before[-1] / before[-2])
