"""Invariant 11 of W-Gates, a search that is resumed, and what surrounds the gates: projection, decay, events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gated_networks import batch
from resumed_search import check_resumes
from torch import Tensor, nn
from wgates_states import started

from hwprune.core.events import Event, SearchStep
from hwprune.graph import trace
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gates import GateNetwork
from hwprune.methods.wgates import WGates
from hwprune.testing.methods import tiny_problem
from hwprune.testing.networks import FAMILIES
from hwprune.training.loop import train

every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.mark.parametrize(
    ("name", "stopped_at", "options"),
    [
        ("resnet_option_b", 5, {}),
        ("resnet_option_b", 9, {"settle": 0.5}),
        ("chain", 5, {"start": "open", "project": False, "multiplier": "dual", "align": False, "settle": 0.0}),
    ],
)
def test_11_a_resumed_search_repeats_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, name: str, stopped_at: int, options: dict[str, Any]
) -> None:
    """Of 12 steps; with `settle` the stop is behind the choice of units."""
    check_resumes(WGates(bias_travel=6.0, **options), tiny_problem(name, 0.5), tmp_path, stopped_at)


def test_11_state_covers_multiplier_and_averages(tmp_path: Path) -> None:
    problem = tiny_problem(budget=0.5)
    first = started(problem, task_gradient="secant", warmup=0.0)
    train(first, problem.data, plan=problem.plan, seed=0)
    second = started(replace(problem, seed=7), task_gradient="secant", warmup=0.0)
    second.load_state(first.state())
    assert first.seen == second.seen == 12
    assert first.multiplier.state() == second.multiplier.state()
    for mine, other in zip(first.square, second.square, strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(first.gates(first.model), second.gates(second.model), strict=True):
        assert torch.equal(mine, other)


@every_family
def test_the_projection_keeps_the_budget_at_every_step_and_ignores_a_common_shift(name: str) -> None:
    problem = tiny_problem(name, 0.6)
    search = started(problem)
    least = search.efficiency.predict_batch(np.array([problem.space.smallest().values_tuple()]))[0]
    for budget in (1.0, 0.85, 0.7, search.target):
        budget = max(budget, float(least) / search.efficiency.dense)
        _, gates, counts = search._gate(budget)
        assert float(search.efficiency(counts).detach()) <= budget + 1e-6
        with torch.no_grad():
            search.gates.bias += 3.0
        for gate, shifted in zip(gates, search._gate(budget)[1], strict=True):
            assert torch.equal(gate, shifted)


def test_the_projection_is_the_least_strict_threshold_that_keeps_the_budget() -> None:
    problem = tiny_problem("mobilenetv2", 0.6)
    search = started(problem)
    scores = search.gates(search.model)
    threshold = search._threshold(scores, 0.7)
    levels = sorted({float(value) for score in scores for value in score.detach()})
    below = levels[levels.index(threshold) - 1]
    costs = []
    for level in (threshold, below):
        counts = torch.tensor([float((score.detach() >= level).sum().clamp(min=1)) for score in scores])
        costs.append(float(search.efficiency(counts)))
    assert costs[0] <= 0.7 < costs[1]


def test_the_cost_may_be_macs() -> None:
    problem = tiny_problem("mobilenetv2")
    macs = Efficiency(problem.space, problem.graph, problem.latency, "macs")
    widths = problem.space.smallest()
    counts = torch.tensor([float(width) for width in widths.values_tuple()], requires_grad=True)
    cost = macs(counts)
    assert float(cost.detach()) == pytest.approx(problem.graph.macs(widths) / problem.graph.macs({}))
    cost.backward()
    assert counts.grad is not None
    assert bool((counts.grad > 0).all())


def test_a_search_by_macs_has_a_budget_in_macs() -> None:
    problem = tiny_problem("mobilenetv2", 0.5, tile=1)
    by_time, by_macs = (started(problem, efficiency=kind) for kind in ("latency", "macs"))
    assert by_time.target == pytest.approx(0.5)
    assert by_macs.target == by_macs.efficiency.budget(problem.target_ms)
    assert by_macs.target != by_time.target


def test_a_group_without_weights_has_a_free_score_a_unit() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))
            self.first = nn.Conv2d(3, 6, 1)
            self.last = nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * self.scale[:, None, None]).flatten(1)

    model = Doubled().eval()
    graph = trace(model, torch.randn(1, 3, 2, 2))
    bare = graph.replace(
        slices={name: tuple((r, s) for r, s in items if r != "produce") for name, items in graph.slices.items()}
    )
    gates = GateNetwork(model, bare, graph.space())
    generator = torch.Generator().manual_seed(0)
    gates.open_all(model, 0.5, 0.1, generator)
    (scores,) = gates(model)
    torch.testing.assert_close(scores - gates.bias, gates.directions[0].expand(6))
    assert float(scores.detach().min()) == pytest.approx(0.5)


def test_closed_filters_are_not_decayed() -> None:
    problem = tiny_problem("resnet_option_b", tile=1)
    problem = replace(problem, plan=replace(problem.plan, weight_decay=0.5))
    search = started(problem, project=False)
    with torch.no_grad():
        for index, scores in enumerate(search.gates(search.model)):
            search.gates.bias[index] -= float(scores.sort().values[:2].mean())
    group = problem.space.groups[0]
    closed = search._gate(1.0)[1][0] == 0
    before = {name: value.detach().clone() for name, value in search.model.named_parameters()}
    search.loss(*batch(problem), progress=0.0).backward()
    search.optimizers()[0].step()
    after = dict(search.model.named_parameters())
    pieces = (*problem.graph.producer_slices(group.name), *problem.graph.consumer_slices(group.name))
    filters = [piece for piece in pieces if before[piece.parameter].ndim > 1]
    assert len(filters) >= 2
    for piece in filters:
        positions = torch.from_numpy(piece.positions)[closed[torch.from_numpy(piece.units)]]
        assert len(positions)
        old = before[piece.parameter].index_select(piece.dim, positions)
        assert torch.equal(after[piece.parameter].index_select(piece.dim, positions), old)


def test_search_events_tell_prediction_multiplier_and_open_share() -> None:
    events: list[Event] = []
    problem = replace(tiny_problem(budget=0.5), on_event=events.append)
    list(WGates(report_every=3).search(problem))
    steps = [event for event in events if isinstance(event, SearchStep)]
    assert [step.step for step in steps] == [3, 6, 9, 12]
    assert all(step.steps == 12 for step in steps)
    assert set(steps[0].metrics) == {"multiplier", "open_share", "cost", "budget"}
    assert steps[-1].metrics["budget"] == pytest.approx(0.5)
