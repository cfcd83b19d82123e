"""Invariants 10 to 12 of S2HPruner, and the traps around them.

Invariant 10 speaks of several ranks too; the shared loop trains in one process, so its resume is what is tested.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gated_networks import batch
from resumed_search import check_resumes
from s2h_states import LEARNING, close, expected_widths, gradients, masks_of, scattered, started

from hwprune.core.errors import UsageError
from hwprune.core.events import Event, Note, SearchStep
from hwprune.core.widths import Widths
from hwprune.graph import cut
from hwprune.methods._base import top_units
from hwprune.methods._s2h_search import unit
from hwprune.methods.s2hpruner import S2HPruner
from hwprune.testing.methods import tiny_problem
from hwprune.training.loop import train


@pytest.mark.parametrize(("balance", "name"), [("closed_form", "mobilenetv2"), ("norm", "chain")])
def test_10_a_resumed_search_repeats_logits_order_statistics_and_rates_bit_for_bit(
    tmp_path: Path, balance: str, name: str
) -> None:
    problem = tiny_problem(name, 0.5)
    problem = replace(problem, plan=replace(problem.plan, schedule="onecycle"))
    check_resumes(S2HPruner(balance=balance, saliency_images=16), problem, tmp_path, 5, 11)  # type: ignore[arg-type]


def test_10_state_covers_both_sets_of_statistics_logits_and_multiplier() -> None:
    problem = tiny_problem(budget=0.5)
    first = started(problem)
    train(first, problem.data, plan=replace(problem.plan, epochs=1), seed=0)
    second = started(replace(problem, seed=7))
    second.load_state(first.state())
    for mine, other in zip(first.choice.values, second.choice.values, strict=True):
        assert torch.equal(mine, other)
    for key, value in first.hard_buffers.by_name().items():
        assert torch.equal(value, second.hard_buffers.by_name()[key])
    assert first.multiplier.state() == second.multiplier.state()
    assert (first.seen, first.pass_thirds) == (second.seen, second.pass_thirds)


def test_11_every_epoch_tells_gap_scores_and_latency_and_the_end_tells_what_recalibration_gives() -> None:
    events: list[Event] = []
    measured: list[Widths] = []

    def measure(candidates: Any) -> list[float]:
        measured.extend(candidates)
        return [0.9] * len(candidates)

    problem = replace(tiny_problem(budget=0.5), on_event=events.append, measure=measure)
    (answer,) = S2HPruner(report_every=4).search(problem)
    assert answer.log is not None
    for epoch in answer.log.history:
        assert {"gap", "soft_score", "hard_score", "hard_predicted_ms"} <= set(epoch)
        assert epoch["hard_measured_use"] == 0.9
    assert measured[-1] == answer.widths
    assert len(measured) == len(set(measured))
    assert answer.log.history[-1]["hard_predicted_ms"] == pytest.approx(answer.predicted_ms)
    texts = [event.text for event in events if isinstance(event, Note)]
    assert sum("measured 90.0 % of the budget" in text for text in texts) == 2
    assert "without further training" in texts[-1]
    assert "with recalibrated batch norms" in texts[-1]
    steps = [event for event in events if isinstance(event, SearchStep)]
    assert [step.step for step in steps] == [4, 8, 12]
    assert steps[-1].predicted_ms == pytest.approx(answer.predicted_ms)


def test_11_comparing_touches_neither_network() -> None:
    problem = tiny_problem("resnet_option_b", 0.5)
    search = scattered(started(problem))
    before = {name: value.clone() for name, value in search.state().items()}
    first, second = search.compare(48), search.compare(48)
    assert first == second
    assert first["gap"] > 0
    assert all(torch.equal(value, before[name]) for name, value in search.state().items())


def test_11_without_a_device_the_latency_is_predicted_only() -> None:
    (answer,) = S2HPruner(saliency_images=16).search(tiny_problem("chain", 0.5))
    assert answer.log is not None
    assert all("hard_measured_use" not in epoch for epoch in answer.log.history)


def test_11_training_on_the_gap_closes_it() -> None:
    problem = tiny_problem("resnet_option_b", 0.5)
    search = scattered(started(problem))
    before = search.compare(48)["gap"]
    images, _ = batch(problem, 48)
    optimizer = torch.optim.SGD(search.model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(15):
        optimizer.zero_grad()
        soft, hard = search.soft(images, [mask.detach() for mask in masks_of(search)]), search.hard(images)
        search.gap.for_weights(soft, hard).backward()
        optimizer.step()
    assert search.compare(48)["gap"] < 0.7 * before


def test_12_without_the_gap_it_is_plain_pruning_by_soft_masks() -> None:
    problem = tiny_problem("chain")
    plain = scattered(started(problem, gap_weight=0.0))
    images, targets = batch(problem)
    found = gradients(plain, plain.loss(images, targets, LEARNING))
    task = gradients(plain, plain._task_loss(plain.soft(images, masks_of(plain)), images, targets))
    close(found[0], task[0])
    torch.testing.assert_close(found[1], task[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("routing", ["to_weights", "to_widths", "coupled"])
def test_12_the_routing_flags_recover_one_sided_and_mutual_distillation(routing: str) -> None:
    problem = tiny_problem("chain")
    search = scattered(started(problem, routing=routing))
    images, targets = batch(problem)
    weights, widths = gradients(search, search.loss(images, targets, LEARNING))
    masks = masks_of(search)
    soft, hard = search.soft(images, masks), search.hard(images)
    task = gradients(search, search._task_loss(soft, images, targets))
    by_hard, by_soft = search.gap.for_weights(soft, hard), search.gap.for_widths(soft, hard)
    whole = gradients(search, search.problem.task.distance(hard, soft, 1.0).mean())
    to_weights = {"to_weights": gradients(search, by_hard)[0], "coupled": whole[0]}.get(routing)
    to_widths = {"to_widths": gradients(search, by_soft)[1], "coupled": whole[1]}.get(routing)
    close(weights, task[0] if to_weights is None else {name: task[0][name] + to_weights[name] for name in weights})
    expected = task[1] if to_widths is None else task[1] + to_widths
    torch.testing.assert_close(widths, expected, rtol=1e-4, atol=1e-6)


def test_trap_norms_of_zero_length_do_not_divide() -> None:
    assert all(not gradient.any() for gradient in unit([torch.zeros(3), torch.zeros(2)]))
    first, second = unit([torch.tensor([3.0]), torch.tensor([0.0, 4.0])])
    torch.testing.assert_close(torch.cat([first, second]), torch.tensor([0.6, 0.0, 0.8]))


def test_trap_norm_balance_fades_out_within_the_budget() -> None:
    problem = tiny_problem("chain", 0.5)
    search = scattered(started(problem, balance="norm", norm_ratio=2.0))
    images, targets = batch(problem)
    search.loss(images, targets, LEARNING).backward()
    step = search._step
    assert step is not None
    for cost, ratio in ((2 * step.budget, 2.0), (step.budget, 0.0)):
        search._step = replace(step, cost=cost)
        search._balance()
        found = torch.cat([value.grad for value in search.choice.values if value.grad is not None])
        task = torch.cat(unit(step.task_gradients))
        torch.testing.assert_close(found, task + ratio * torch.cat(unit(step.cost_gradients)))


def test_trap_logits_are_not_decayed_and_do_not_follow_the_schedule() -> None:
    search = started(tiny_problem("chain"))
    decayed, plain = search.optimizers()
    logits = {id(value) for value in search.choice.values}
    assert not logits & {id(p) for group in decayed.param_groups for p in group["params"]}
    assert logits == {id(p) for group in plain.param_groups for p in group["params"]}
    assert all(group["weight_decay"] == 0 and group["scheduled"] is False for group in plain.param_groups)


def test_trap_soft_and_hard_network_have_statistics_of_their_own() -> None:
    problem = tiny_problem("resnet_option_b")
    search = scattered(started(problem))
    dense = {name: value.clone() for name, value in search.model.named_buffers()}
    images, _ = batch(problem)
    search.soft(images, masks_of(search))
    assert all(torch.equal(value, dense[name]) for name, value in search.hard_buffers.by_name().items())
    soft = {name: value.clone() for name, value in search.model.named_buffers()}
    search.hard(images)
    assert all(torch.equal(value, soft[name]) for name, value in search.model.named_buffers())
    moved = search.hard_state()
    assert any(not torch.equal(moved[name], dense[name]) for name in dense)
    keep = top_units(search.scores, search.hard_widths())
    small = copy.deepcopy(problem.model)
    small.load_state_dict(moved)
    search.model.eval()
    torch.testing.assert_close(cut(small, problem.graph, keep)(images), search.hard(images), rtol=1e-5, atol=1e-5)


def test_trap_the_reported_width_is_the_hard_one_not_the_expectation() -> None:
    problem = tiny_problem("mobilenetv2")
    search = scattered(started(problem))
    search._step = search._latency_step(LEARNING)
    hard = search.hard_widths()
    assert search._step.cost == pytest.approx(problem.latency.predict(hard).latency_ms / problem.dense_ms, rel=1e-5)
    assert any(hard[n] > float(e) + 1e-3 for n, e in zip(problem.space.names, expected_widths(search), strict=True))


@pytest.mark.parametrize(
    ("options", "progress", "passes"),
    [
        ({}, LEARNING, 8 / 3),
        ({}, 0.01, 2.0),
        ({}, 0.7, 2.0),
        ({}, 0.95, 1.0),
        ({"gap_weight": 0.0}, LEARNING, 4 / 3),
        ({"routing": "to_widths"}, LEARNING, 2.0),
    ],
)
def test_trap_a_step_counts_all_its_passes(options: dict[str, Any], progress: float, passes: float) -> None:
    problem = tiny_problem("chain")
    search = started(problem, **options)
    search.loss(*batch(problem), progress=progress)
    assert search.pass_thirds / 3 == pytest.approx(8 * passes)


def test_once_frozen_the_hard_network_trains_at_the_target_and_then_alone() -> None:
    problem = tiny_problem("resnet_option_b", 0.5)
    search = started(problem)
    images, targets = batch(problem)
    search.loss(images, targets, 0.7).backward()
    assert problem.latency.predict(search.hard_widths()).latency_ms <= problem.target_ms
    assert search.widths() == search.hard_widths()
    assert all(value.grad is None for value in search.choice.values)
    before = {name: value.clone() for name, value in search.model.named_buffers()}
    search.loss(images, targets, 0.95).backward()
    assert all(torch.equal(value, before[name]) for name, value in search.model.named_buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routing": "decoupld"}, "routing cannot be 'decoupld'.* Did you mean 'decoupled'"),
        ({"order": "l2"}, "order cannot be 'l2'"),
        ({"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"gap_weight": -1.0}, "gap_weight must be 0 or more, not -1.0"),
        ({"warmup": 2.0}, r"warmup must be a share between 0 and 1, not 2.0"),
        ({"hard_only": 0.5}, "hard_only=0.5 is longer than frozen=0.4"),
        ({"warmup": 0.5, "frozen": 0.5}, "leave nothing of the search for the widths"),
    ],
)
def test_a_bad_option_of_s2hpruner_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        S2HPruner(**options)


@pytest.mark.parametrize("order", ["l1", "bn"])
def test_units_may_be_ranked_by_weights_alone(order: str) -> None:
    problem = tiny_problem("chain")
    (answer,) = S2HPruner(order=order).search(problem)  # type: ignore[arg-type]
    assert answer.predicted_ms <= problem.target_ms
    assert answer.keep == top_units(answer.scores, answer.widths)
