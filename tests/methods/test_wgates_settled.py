"""How W-Gates values a gate, and the part of its search in which the units stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gated_networks import batch, gated_outputs
from wgates_states import started

from hwprune.methods._gate_search import GateSearch
from hwprune.methods._multiplier import ClosedForm
from hwprune.methods.wgates import WGates
from hwprune.testing.methods import tiny_problem
from hwprune.testing.networks import FAMILIES
from hwprune.training.loop import train

every_family = pytest.mark.parametrize("name", FAMILIES)


def test_a_gate_is_worth_its_benefit_whether_open_just_closed_or_long_closed() -> None:
    """Loss `sum(worth * (1 - gate)^2)`: opening a gate changes it by -worth, closed or not.

    The batch's gradient is `-2 worth (1 - gate)` plus noise of variance `2 worth / batch size`, as where the Fisher
    information is the curvature.
    """
    search = started(tiny_problem("resnet_option_b", tile=1), task_gradient="secant", saliency_decay=0.98)
    search.loss(*batch(search.problem), progress=0.0)
    step = search._step
    assert step is not None
    step.batch_size = 64
    generator = torch.Generator().manual_seed(0)
    worths = torch.logspace(-5, -2.5, search.gates.units[0])

    def seen(gate: float, steps: int) -> torch.Tensor:
        """The mean estimate of so many steps."""
        step.masks[0] = torch.full_like(worths, gate)
        estimates = []
        for _ in range(steps):
            noise = torch.randn(worths.shape, generator=generator) * (2 * worths / step.batch_size).sqrt()
            estimates.append(search._task_gradient(step, 0, -2 * worths * (1 - gate) + noise))
            search.after_step(0.0)
        return torch.stack(estimates).mean(dim=0)

    seen(1.0, 100)
    for gate, steps, tolerance in ((1.0, 400, 0.2), (0.0, 5, 0.6), (0.0, 400, 0.2)):
        ratio = seen(gate, steps) / -worths
        assert float(ratio.min()) > 1 - tolerance
        # Nor does the mean gradient of a closed gate, which the squares contain, count for more than it should.
        assert bool((ratio < 1 + tolerance + 2 * step.batch_size * worths * (gate == 0)).all())


def test_the_order_follows_the_running_saliency_if_asked() -> None:
    """A unit that was worth the least of its group and gets by far the largest gradients ends with the best score."""
    problem = tiny_problem("mobilenetv2", 1.0, tile=1)
    for follow in (True, False):
        search = started(problem, start="taylor", saliency_images=16, follow=follow)
        search.loss(*batch(problem), progress=0.0)
        assert search._step is not None
        first = [score.detach().clone() for score in search.gates(search.model)]
        unit = int(first[-1].argmin())
        gradient = torch.zeros_like(first[-1]).index_fill(0, torch.tensor([unit]), 10.0)
        search._task_gradient(search._step, len(first) - 1, gradient)
        search.after_step(0.0)
        last = [score.detach() for score in search.gates(search.model)]
        assert (int(last[-1].argmax()) == unit) == follow
        unchanged = [bool(torch.equal(old, new)) for old, new in zip(first, last, strict=True)]
        assert not any(unchanged) if follow else all(unchanged)
        mean = float(torch.cat(last).mean())
        assert mean == pytest.approx(float(torch.cat(first).mean()), abs=1e-4)


def test_travel_is_how_far_adam_moves_while_units_are_chosen() -> None:
    problem = tiny_problem()
    for settle in (0.0, 0.5):
        search = started(problem, bias_travel=3.0, direction_travel=0.2, settle=settle)
        rates = [group["lr"] for group in search.optimizers()[-1].param_groups]
        assert [rate * search.steps * (1 - settle) for rate in rates] == pytest.approx([3.0, 0.2])


def test_the_multiplier_is_boosted_only_where_the_budget_can_be_exceeded() -> None:
    for project, boost in ((True, 0.0), (False, 7.0)):
        multiplier = started(tiny_problem(), project=project, multiplier_boost=7.0).multiplier
        assert isinstance(multiplier, ClosedForm)
        assert multiplier.boost == boost


@every_family
def test_settled_units_stay_within_the_target_whatever_the_gates_do(name: str) -> None:
    search = _settled(name)
    problem, widths, keep = search.problem, search.widths(), search.keep()
    assert problem.latency.predict(widths).latency_ms <= problem.target_ms
    assert {group: len(kept) for group, kept in keep.items()} == dict(widths)
    scores = search.unit_scores()
    for group, kept in keep.items():
        closed = np.delete(scores[group], kept)
        assert not len(closed) or scores[group][list(kept)].min() >= closed.max()
    with torch.no_grad():
        for direction in search.gates.directions:
            direction.normal_(0.0, 10.0, generator=torch.Generator().manual_seed(1))
        search.gates.bias.copy_(torch.linspace(-30.0, 30.0, len(search.gates.bias)))
    assert search.keep() == keep
    for group, kept in search.unit_scores().items():
        np.testing.assert_array_equal(kept, scores[group])


@every_family
def test_once_settled_the_cut_network_trains_and_nothing_else(name: str) -> None:
    search = _settled(name, distill_alpha=0.0)
    problem = replace(search.problem, plan=replace(search.problem.plan, weight_decay=0.5))
    search.problem = problem
    assert search.settled is not None
    search.model.eval()
    before = {key: value.detach().clone() for key, value in search.model.named_parameters()}
    images, targets = batch(problem)
    for optimizer in search.optimizers():
        optimizer.zero_grad()
        optimizer.state.clear()
    loss = search.loss(images, targets, progress=0.9)
    masked = problem.task.loss(gated_outputs(problem, search.model, search.settled.masks, images), targets)
    assert float(loss.detach()) == pytest.approx(float(masked), rel=1e-4, abs=1e-5)
    loss.backward()
    search.optimizers()[0].step()
    moved = 0
    for group, mask in zip(problem.space.names, search.settled.masks, strict=True):
        for piece in problem.graph.producer_slices(group):
            closed = torch.from_numpy(piece.positions)[mask[torch.from_numpy(piece.units)] == 0]
            now, old = search.model.get_parameter(piece.parameter), before[piece.parameter]
            assert torch.equal(now.index_select(piece.dim, closed), old.index_select(piece.dim, closed))
            moved += int(not torch.equal(now, old))
    assert moved


def test_the_answer_is_what_was_settled_and_reports_go_on() -> None:
    problem = tiny_problem("mobilenetv2", 0.5)
    search = GateSearch(problem, WGates(settle=0.5))
    WGates()._start(problem, search)
    log = train(search, problem.data, plan=problem.plan, seed=problem.seed)
    (answer,) = WGates(settle=0.5).search(problem)
    assert answer.widths == search.widths()
    assert answer.keep == search.keep()
    assert log.history[-1]["cost"] <= 0.5
    assert log.history[-1]["open_share"] < 1


def _settled(name: str, **options: float) -> GateSearch:
    """A search of 12 steps, half of which chose units."""
    problem = tiny_problem(name, 0.7)
    least_ms = problem.latency.predict(problem.space.smallest()).latency_ms
    problem = replace(problem, target_ms=max(problem.target_ms, least_ms))
    search = started(problem, start="taylor", saliency_images=16, settle=0.5, **options)
    train(search, problem.data, plan=problem.plan, seed=0)
    assert search.settled is not None
    return search
