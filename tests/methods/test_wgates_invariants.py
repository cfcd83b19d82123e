"""The testable invariants of the methods page (section 6) on every family of wiring, numbered as there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwprune.core.errors import Interrupted
from hwprune.core.events import Event, SearchStep
from hwprune.graph import cut, gate_parameters, trace
from hwprune.latency.secant import secant_latency
from hwprune.methods import Problem
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gate_search import GateSearch
from hwprune.methods._gates import GateNetwork
from hwprune.methods.wgates import WGates
from hwprune.testing.methods import StaircaseLatency, family, tiny_problem
from hwprune.testing.networks import FAMILIES
from hwprune.training.loop import train

every_family = pytest.mark.parametrize("name", FAMILIES)


def started(problem: Problem, **options: Any) -> GateSearch:
    method = WGates(**{"start": "open", **options})
    search = GateSearch(problem, method)
    method._start(problem, search)
    return search


def batch(problem: Problem, count: int = 8) -> tuple[Tensor, Tensor]:
    return problem.data.batch("train", torch.arange(count))


def cost_of(search: GateSearch) -> tuple[Tensor, Tensor]:
    """The cost and the open counts now, on the graph of the scores."""
    counts = search._gate(1.0)[2]
    return search.efficiency(counts), counts


@every_family
def test_1_at_step_0_every_gate_is_open_and_nothing_has_changed(name: str) -> None:
    problem = tiny_problem(name, 0.9)
    for start in ("open", "taylor"):
        search = started(problem, start=start, saliency_images=16)
        _, gates, counts = search._gate(1.0)
        assert all(bool((gate == 1.0).all()) for gate in gates)
        assert float(search.efficiency(counts).detach()) == 1.0
        images, _ = batch(problem)
        parameters = dict(search.model.eval().named_parameters())
        changed = gate_parameters(parameters, problem.graph, dict(zip(problem.space.names, gates, strict=True)))
        gated = functional_call(search.model, {**parameters, **changed}, (images,))
        assert torch.equal(gated, problem.model(images))


@every_family
def test_2_gates_are_binary_and_the_latency_model_sees_allowed_widths(name: str) -> None:
    problem = tiny_problem(name, 0.5)
    seen: list[np.ndarray] = []

    class Watched(StaircaseLatency):
        def predict_batch(self, values: np.ndarray) -> np.ndarray:
            seen.append(values)
            return StaircaseLatency.predict_batch(self, values)

    problem = replace(problem, latency=Watched.of(problem.graph, problem.space))
    search = started(problem, bias_travel=10.0)
    for step in range(4):
        search.loss(*batch(problem), progress=0.5 + 0.1 * step).backward()
        for optimizer in search.optimizers():
            optimizer.step()
        search.after_step(0.5 + 0.1 * step)
        _, gates, counts = search._gate(1.0)
        assert all(set(gate.tolist()) <= {0.0, 1.0} for gate in gates)
        assert torch.equal(counts, counts.round())
    allowed = [set(widths) for widths in problem.space.widths]
    rows = np.concatenate(seen)
    assert all(set(rows[:, group].tolist()) <= allowed[group] for group in range(rows.shape[1]))


@every_family
def test_3_the_gated_network_equals_the_cut_one(name: str) -> None:
    problem = tiny_problem(name)
    made = family(name)
    generator = torch.Generator().manual_seed(3)
    images = problem.data.train.images[:4]
    for _ in range(3):
        gates, keep = {}, {}
        for group in problem.space.groups:
            kept = torch.randperm(group.units, generator=generator)[: max(1, group.units // 2)].sort().values
            gates[group.name] = torch.zeros(group.units).index_fill(0, kept, 1.0)
            keep[group.name] = kept.tolist()
        parameters = dict(made.model.named_parameters())
        changed = gate_parameters(parameters, made.graph, gates)
        with torch.no_grad():
            gated = functional_call(made.model, {**parameters, **changed}, (images,))
            small = cut(made.model, made.graph, keep)(images)
        assert float((gated - small).abs().max()) < 1e-5 or _statistics_count_zeros(made.model)


def _statistics_count_zeros(model: nn.Module) -> bool:
    """LayerNorm and GroupNorm see closed channels as zeros, cut ones not at all: inexact by design (page, 3.5)."""
    return any(isinstance(module, nn.GroupNorm | nn.LayerNorm) for module in model.modules())


@pytest.mark.parametrize("name", ["resnet_option_b", "mobilenetv2", "unet"])
def test_4_what_batch_norm_undoes_does_not_change_the_scores(name: str) -> None:
    problem = tiny_problem(name)
    search = started(problem)
    raw = started(problem, scale_fix=False)
    before, raw_before = search.gates(search.model), raw.gates(raw.model)
    scaled = 0
    for model in (search.model, raw.model):
        scaled += _rescale_filters(model, problem)
    assert scaled
    after, raw_after = search.gates(search.model), raw.gates(raw.model)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)
    assert max(float((new - old).abs().max().detach()) for old, new in zip(raw_before, raw_after, strict=True)) > 1e-3


def _rescale_filters(model: nn.Module, problem: Problem) -> int:
    """Scale the filters of layers in front of a batch norm by random factors, and its running statistics with them."""
    modules, count = dict(model.named_modules()), 0
    generator = torch.Generator().manual_seed(5)
    for layer, norm in zip(problem.graph.op_templates, problem.graph.op_templates[1:], strict=False):
        conv, bn = modules.get(layer.name), modules.get(norm.name)
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d) and conv.bias is None:
            assert bn.running_mean is not None
            assert bn.running_var is not None
            factor = 0.5 + torch.rand(len(bn.running_var), generator=generator)
            bn.eps = 0.0
            with torch.no_grad():
                conv.weight.mul_(factor[:, None, None, None])
                bn.running_mean.mul_(factor)
                bn.running_var.mul_(factor**2)
            count += 1
    return count


@every_family
def test_5_gradients_reach_the_gates_from_the_task_alone_and_from_the_cost_alone(name: str) -> None:
    problem = tiny_problem(name)
    search = started(problem)
    search.loss(*batch(problem), progress=0.0).backward()
    for direction, bias in zip(search.gates.directions, search.gates.bias.grad, strict=True):
        assert direction.grad is not None
        assert float(direction.grad.abs().sum()) > 0
        assert float(bias) != 0
    for how, reaches in (("detach", False), ("attach", True)):
        search = started(problem, gate_sees_weights=how)
        cost_of(search)[0].backward()
        assert float(search.gates.bias.grad.abs().sum()) > 0
        assert all(direction.grad is not None for direction in search.gates.directions)
        touched = [p for p in search.model.parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0]
        assert bool(touched) == reaches


def test_5_the_latency_model_is_in_no_optimizer() -> None:
    search = started(tiny_problem())
    optimised = {id(p) for o in search.optimizers() for group in o.param_groups for p in group["params"]}
    own = {id(p) for module in search.modules() for p in module.parameters()}
    assert optimised == own


def cost_gradient(search: GateSearch, budget: float) -> Tensor:
    """What the latency term of the search's own loss adds to the gradient by the biases, `(G,)`, at a budget."""
    search.model.eval()
    search.target, found = budget, []
    for weight in (0.0, 3.0):
        search.gates.zero_grad()
        search.multiplier.value = weight
        search.loss(*batch(search.problem), progress=1.0).backward()
        assert search.gates.bias.grad is not None
        found.append(search.gates.bias.grad.clone())
    return found[1] - found[0]


@every_family
def test_6_the_cost_pushes_biases_down_above_the_budget_and_not_at_all_below(name: str) -> None:
    search = started(tiny_problem(name), project=False)
    above = cost_gradient(search, 0.5)
    assert search._step is not None
    assert search._step.cost == 1.0
    scale = float(above.abs().max())
    assert scale > 0
    assert float(above.min()) >= -1e-4 * scale
    assert float(cost_gradient(search, 2.0).abs().max()) == 0.0


@every_family
def test_6_with_projection_the_cost_is_within_the_budget_and_pushes_all_the_same(name: str) -> None:
    """The deviation that `GateSearch` names: without it the latency would have no say at all."""
    problem = tiny_problem(name)
    search = started(problem)
    least = problem.latency.predict(problem.space.smallest()).latency_ms / problem.dense_ms
    for budget in (max(0.7, least), 2.0):
        pushed = cost_gradient(search, budget)
        assert search._step is not None
        assert search._step.cost <= budget + 1e-6
        scale = float(pushed.abs().max())
        assert scale > 0
        assert float(pushed.min()) >= -1e-4 * scale


def test_7_the_secant_equals_autograd_where_latency_is_linear_and_sees_the_stairs() -> None:
    problem = tiny_problem("mobilenetv1")

    class Linear(StaircaseLatency):
        def predict_batch(self, values: np.ndarray) -> np.ndarray:
            return np.asarray(values @ np.arange(1.0, values.shape[1] + 1))

    middle = torch.tensor([float(widths[len(widths) // 2]) for widths in problem.space.widths], requires_grad=True)
    secant_latency(Linear.of(problem.graph, problem.space), problem.space, middle).backward()
    torch.testing.assert_close(middle.grad, torch.arange(1.0, len(middle) + 1), rtol=1e-6, atol=1e-6)
    fine = problem.graph.space(tile=1)
    stairs = StaircaseLatency.of(problem.graph, fine, tile=4)
    rows = np.array([fine.dense().values_tuple()])
    assert stairs.predict_batch(rows - 1) == pytest.approx(stairs.predict_batch(rows))
    dense = torch.tensor([float(w) for w in problem.space.dense().values_tuple()], requires_grad=True)
    secant_latency(problem.latency, problem.space, dense).backward()
    assert dense.grad is not None
    assert bool((dense.grad > 0).all())


@every_family
def test_8_a_closed_gate_can_reopen(name: str) -> None:
    search = started(tiny_problem(name, tile=1), project=False)
    whole = _task_gradients_by_score(search)
    for index, scores in enumerate(search.gates(search.model)):
        with torch.no_grad():
            drop = float(scores.detach().sort().values[:2].mean())
            search.gates.bias[index] -= drop
            closed = search._gate(1.0)[1][index] == 0
            assert int(closed.sum()) == 1
        gradient = _task_gradients_by_score(search)[index]
        assert bool((gradient[closed] != 0).all() | (whole[index][closed] == 0).all())
        with torch.no_grad():
            search.gates.bias[index] += drop


def _task_gradients_by_score(search: GateSearch) -> list[Tensor]:
    """Gradient of the task's loss by every score; 0 for a unit whose activation is 0 on the whole batch."""
    problem = search.problem
    scores, gates, _ = search._gate(1.0)
    parameters = dict(search.model.named_parameters())
    changed = gate_parameters(parameters, problem.graph, dict(zip(problem.space.names, gates, strict=True)))
    images, targets = batch(problem)
    outputs = functional_call(search.model.eval(), {**parameters, **changed}, (images,))
    return list(torch.autograd.grad(problem.task.loss(outputs, targets), scores))


@pytest.mark.parametrize("name", ["chain", "resnet_option_a", "mobilenetv2", "densenet"])
def test_9_permuting_the_channels_of_a_group_permutes_its_gates(name: str) -> None:
    problem = tiny_problem(name)
    search = started(problem)
    group = problem.space.groups[-1]
    order = torch.randperm(group.units, generator=torch.Generator().manual_seed(0))
    before = search.gates(search.model)[-1]
    state = dict(search.model.state_dict())
    for piece in (s for role, s in problem.graph.slices[group.name] if role != "gate"):
        positions = torch.from_numpy(piece.positions)
        by_unit = {int(unit): [] for unit in piece.units}
        for position, unit in zip(piece.positions, piece.units, strict=True):
            by_unit[int(unit)].append(int(position))
        source = torch.cat(
            [
                torch.tensor(by_unit[int(order[int(u)])])[[by_unit[int(u)].index(int(p))]]
                for p, u in zip(piece.positions, piece.units, strict=True)
            ]
        )
        state[piece.parameter] = state[piece.parameter].index_copy(
            piece.dim, positions, state[piece.parameter].index_select(piece.dim, source)
        )
    search.model.load_state_dict(state)
    torch.testing.assert_close(search.gates(search.model)[-1], before[order], rtol=1e-4, atol=1e-5)
    images, _ = batch(problem)
    torch.testing.assert_close(search.model.eval()(images), problem.model(images), rtol=1e-3, atol=1e-4)


@every_family
def test_10_no_pressure_closes_nothing_and_any_pressure_leaves_the_least_width(name: str) -> None:
    problem = tiny_problem(name)
    search = started(problem, project=False)
    cost, _ = cost_of(search)
    (0.0 * torch.relu(torch.log(cost / 0.5))).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) == 0 for p in search.gates.parameters())
    with torch.no_grad():
        search.gates.bias -= 100.0
    _, gates, counts = search._gate(1.0)
    assert counts.tolist() == [allowed[0] for allowed in problem.space.widths]
    assert all(float(gate.detach().sum()) >= 1 for gate in gates)
    assert search.widths() == problem.space.smallest()


@pytest.mark.parametrize("options", [{}, {"start": "open", "project": False, "multiplier": "dual", "align": False}])
def test_11_a_resumed_search_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    problem = tiny_problem(budget=0.5)
    problem = replace(problem, plan=replace(problem.plan, checkpoint_s=0.0))
    method = WGates(bias_travel=6.0, **options)
    (whole,) = method.search(problem)
    done: list[Event] = []

    def stop() -> bool:
        done.append(SearchStep(0, 0, 0.0))
        return len(done) == 5

    interrupted = replace(problem, checkpoint=tmp_path, stop=stop)
    with pytest.raises(Interrupted):
        list(method.search(interrupted))
    (resumed,) = method.search(replace(problem, checkpoint=tmp_path))
    assert resumed.log is not None
    assert resumed.log.resumed_at == 5
    assert resumed.widths == whole.widths
    assert resumed.keep == whole.keep
    for group in problem.space.names:
        np.testing.assert_array_equal(resumed.scores[group], whole.scores[group])
    assert whole.state is not None
    assert resumed.state is not None
    for key, value in whole.state.items():
        assert torch.equal(value, resumed.state[key]), key


def test_11_state_covers_multiplier_and_averages(tmp_path: Path) -> None:
    problem = tiny_problem(budget=0.5)
    first = started(problem, task_gradient="secant", warmup=0.0)
    train(first, problem.data, plan=problem.plan, seed=0)
    second = started(replace(problem, seed=7), task_gradient="secant", warmup=0.0)
    second.load_state(first.state())
    assert first.seen == second.seen == 12
    assert first.multiplier.state() == second.multiplier.state()
    for mine, other in zip((*first.mean, *first.square), (*second.mean, *second.square), strict=True):
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
    problem = tiny_problem("resnet_option_b")
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
    for piece in (*problem.graph.producer_slices(group.name), *problem.graph.consumer_slices(group.name)):
        if before[piece.parameter].ndim > 1:
            positions = torch.from_numpy(piece.positions)[closed[torch.from_numpy(piece.units)]]
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
