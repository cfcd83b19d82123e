"""Learned widths: what is trained, what is kept, and that the search arrives where it should."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gated_networks import batch
from resumed_search import check_resumes
from torch.func import functional_call

from hwprune.core.errors import UsageError
from hwprune.core.events import Event, SearchStep
from hwprune.graph import cut, gate_parameters, mask
from hwprune.methods import AbstractMethod, Problem
from hwprune.methods._base import top_units
from hwprune.methods._saliency import taylor
from hwprune.methods._sliced import SlicedNetwork
from hwprune.methods._width_search import WidthSearch
from hwprune.methods.knapsack import KnapsackWidths
from hwprune.methods.s2hpruner import S2HPruner
from hwprune.methods.widths import LearnedWidths
from hwprune.testing.methods import StaircaseLatency, family, tiny_problem
from hwprune.testing.networks import FAMILIES

BOTH = pytest.mark.parametrize("form", ["sigmoid", "softmax"])


def started(problem: Problem, **options: Any) -> WidthSearch:
    return WidthSearch(problem, LearnedWidths(**options), taylor(problem, images=16).scores)


def half(problem: Problem) -> dict[str, tuple[int, ...]]:
    random = np.random.default_rng(0)
    scores = {group.name: random.random(group.units) for group in problem.space.groups}
    return top_units(scores, {group.name: max(1, group.units // 2) for group in problem.space.groups})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_a_sliced_network_equals_the_cut_one_and_moves_the_same_statistics(name: str, training: bool) -> None:
    problem = tiny_problem(name)
    search = started(problem)
    keep = half(problem)
    search.model.train(training)
    small = cut(search.model, problem.graph, keep).train(training)
    buffers = {key: value.clone() for key, value in search.model.named_buffers()}
    images, _ = batch(problem)
    with torch.no_grad():
        expected = small(images)
    outputs = SlicedNetwork(search.model, problem.graph)(keep, images, buffers)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    indices = problem.graph.kept_indices(keep)
    for key, value in small.named_buffers():
        full = buffers[key]
        for dim, kept in indices.get(key, {}).items():
            full = full.index_select(dim, torch.from_numpy(kept))
        torch.testing.assert_close(full, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["chain", "resnet_option_b", "mobilenetv2", "shuffle"])
def test_removed_weights_of_a_sliced_network_get_a_gradient_of_exactly_0(name: str) -> None:
    problem = tiny_problem(name)
    search = started(problem)
    keep = half(problem)
    images, targets = batch(problem)
    outputs = SlicedNetwork(search.model, problem.graph)(keep, images, dict(search.model.named_buffers()))
    problem.task.loss(outputs, targets).backward()
    removed = mask(problem.model, problem.graph, keep)
    kept = dict(removed.named_parameters())
    seen = 0
    for key, parameter in search.model.named_parameters():
        if parameter.grad is not None:
            gone = (kept[key] == 0) & (problem.model.get_parameter(key) != 0)
            assert bool((parameter.grad[gone] == 0).all()), key
            seen += int((parameter.grad[~gone] != 0).sum())
    assert seen


@BOTH
def test_masks_multiply_where_a_group_is_read(form: str) -> None:
    problem = tiny_problem("mobilenetv2")
    search = started(problem, form=form)
    widths = problem.space.smallest()
    pairs = zip(search.grid.widths, widths.values_tuple(), strict=True)
    certain = [(allowed == width).to(allowed.dtype) for allowed, width in pairs]
    gates = dict(zip(problem.space.names, search.grid.soft_masks(certain), strict=True))
    made = family("mobilenetv2")
    parameters = dict(made.model.named_parameters())
    images, _ = batch(problem)
    with torch.no_grad():
        changed = gate_parameters(parameters, made.graph, gates)
        gated = functional_call(made.model, {**parameters, **changed}, (images,))
        small = cut(made.model, made.graph, top_units(search.scores, widths))(images)
    assert float((gated - small).abs().max()) < 1e-5


@BOTH
def test_gradients_are_the_tasks_plus_multiplier_times_that_of_the_log_of_the_cost(form: str) -> None:
    problem = tiny_problem("chain")
    gradients = []
    for weight in (0.0, 2.0, 4.0):
        search = started(problem, form=form)
        search.multiplier.value = weight
        search.loss(*batch(problem), progress=0.1).backward()
        assert all(value.grad is not None for value in search.choice.values)
        gradients.append(torch.cat([value.grad for value in search.choice.values if value.grad is not None]))
    assert search._step is not None
    cost = torch.cat(search._step.cost_gradients)
    task = torch.cat(search._step.task_gradients)
    torch.testing.assert_close(gradients[0], task, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[1] - gradients[0], 2 * cost, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[2] - gradients[0], 4 * cost, rtol=1e-4, atol=1e-5)


@BOTH
def test_the_search_arrives_at_the_budget_before_the_widths_are_fixed(form: str) -> None:
    events: list[Event] = []
    problem = replace(tiny_problem("resnet_option_b", 0.6, tile=1), on_event=events.append)
    problem = replace(problem, plan=replace(problem.plan, epochs=6))
    (answer,) = LearnedWidths(form=form, report_every=1).search(problem)
    costs = [event.metrics["cost"] for event in events if isinstance(event, SearchStep)]
    assert costs[-1] == pytest.approx(0.6, abs=0.06)
    assert answer.predicted_ms <= problem.target_ms


def test_fixed_widths_meet_the_target_and_only_the_small_network_trains_then() -> None:
    problem = tiny_problem("chain")
    search = started(problem)
    search.loss(*batch(problem), progress=0.9).backward()
    widths = search.widths()
    assert problem.latency.predict(widths).latency_ms <= problem.target_ms
    assert search.choice.fixed(problem.space) == widths
    assert all(value.grad is None or not value.grad.any() for value in search.choice.values)
    keep = top_units(search.scores, widths)
    removed = dict(mask(problem.model, problem.graph, keep).named_parameters())
    for key, parameter in search.model.named_parameters():
        assert parameter.grad is not None
        assert not parameter.grad[(removed[key] == 0) & (problem.model.get_parameter(key) != 0)].any()


def test_weights_may_be_kept_dense_or_not_trained_at_all() -> None:
    problem = tiny_problem("chain")
    answers = {kind: list(LearnedWidths(weights=kind).search(problem))[-1] for kind in ("joint", "dense", "frozen")}
    assert answers["dense"].state is None
    assert answers["frozen"].state is None
    state = answers["joint"].state
    assert state is not None
    dense = problem.model.state_dict()
    assert any(not torch.equal(value, dense[name]) for name, value in state.items())
    assert answers["joint"].widths == answers["dense"].widths
    frozen = started(problem, weights="frozen")
    for progress in (0.1, 0.9):
        frozen.loss(*batch(problem), progress=progress).backward()
    assert all(parameter.grad is None for parameter in frozen.model.parameters())


def test_units_stay_in_the_order_of_taylor_saliency() -> None:
    problem = tiny_problem("mobilenetv2")
    (answer,) = LearnedWidths().search(problem)
    assert answer.keep == top_units(taylor(problem, images=1024).scores, answer.widths)


def test_rates_do_not_depend_on_the_number_of_steps() -> None:
    problem = tiny_problem("chain")
    longer = replace(problem, plan=replace(problem.plan, epochs=20))
    for form, travel in (("sigmoid", 1.56), ("softmax", 7.8)):
        for posed, steps in ((problem, 12), (longer, 120)):
            search = started(posed, form=form)
            assert search._choice_optimizer.param_groups[0]["lr"] == pytest.approx(travel / steps)
            assert search._choice_optimizer.param_groups[0]["scheduled"] is False


@BOTH
def test_a_resumed_search_of_widths_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path, form: str) -> None:
    check_resumes(LearnedWidths(form=form), tiny_problem(budget=0.5), tmp_path, 5, 11)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [LearnedWidths(), S2HPruner(), KnapsackWidths(floor=0.0)])
def test_branches_may_vanish_where_the_space_allows_it(method: AbstractMethod) -> None:
    problem = tiny_problem("resnet_option_b")
    space = problem.graph.space(tile=4, min_keep=0.25, depth=True)
    latency = StaircaseLatency.of(problem.graph, space, 4)
    least_ms = latency.predict(space.smallest()).latency_ms
    problem = replace(problem, space=space, latency=latency, target_ms=1.05 * least_ms)
    answer = list(method.search(problem))[-1]
    assert answer.predicted_ms <= problem.target_ms
    assert any(not kept for kept in answer.keep.values())
    full = copy.deepcopy(problem.model)
    full.load_state_dict(dict(answer.state or problem.model.state_dict()))
    images, _ = batch(problem)
    with torch.no_grad():
        small = cut(full, problem.graph, answer.keep)(images)
        masked = mask(full, problem.graph, answer.keep)(images)
    assert float((small - masked).abs().max()) < 1e-5


def test_image_passes_are_those_of_the_saliency_and_of_the_training() -> None:
    problem = tiny_problem("chain")
    (answer,) = LearnedWidths(saliency_images=16).search(problem)
    assert answer.image_passes == 12 * 8 + 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "sigmod"}, "form cannot be 'sigmod'.* Did you mean 'sigmoid'"),
        ({"weights": "free"}, "weights cannot be 'free'"),
        ({"softness_last": 0.0}, "softness_last must be positive, not 0.0"),
        ({"logit_travel": float("nan")}, "logit_travel must be positive, not nan"),
        ({"ramp": 1.5}, r"ramp must be a share between 0 and 1, not 1.5"),
        ({"momentum": 1.0}, "momentum must be a share of at least 0 and less than 1, not 1"),
        ({"settle": 1.0}, "settle must be a share of at least 0 and less than 1, not 1"),
    ],
)
def test_a_bad_option_of_learned_widths_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LearnedWidths(**options)
