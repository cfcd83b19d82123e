"""Invariants 1 to 10 of W-Gates: gates, scores, and the gradients that reach them, on every family of wiring.

11 and what surrounds them are in test_wgates_search.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gated_networks import batch, gated_outputs
from torch import Tensor, nn
from wgates_states import bias_gradient, cost_gradient, cost_of, started, task_gradients_by_score, task_loss

from hwprune.graph import cut
from hwprune.latency.secant import secant_latency
from hwprune.methods import Problem
from hwprune.testing.methods import StaircaseLatency, family, tiny_problem
from hwprune.testing.networks import FAMILIES

every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
def test_1_at_step_0_every_gate_is_open_and_nothing_has_changed(name: str) -> None:
    problem = tiny_problem(name, 0.9)
    for start in ("open", "taylor"):
        search = started(problem, start=start, saliency_images=16)
        _, gates, counts = search._gate(1.0)
        assert all(bool((gate == 1.0).all()) for gate in gates)
        assert float(search.efficiency(counts).detach()) == 1.0
        images, _ = batch(problem)
        assert torch.equal(gated_outputs(problem, search.model.eval(), gates, images), problem.model(images))


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
        gates, keep = [], {}
        for group in problem.space.groups:
            kept = torch.randperm(group.units, generator=generator)[: max(1, group.units // 2)].sort().values
            gates.append(torch.zeros(group.units).index_fill(0, kept, 1.0))
            keep[group.name] = kept.tolist()
        gated = gated_outputs(problem, made.model, gates, images)
        with torch.no_grad():
            small = cut(made.model, made.graph, keep)(images)
        assert float((gated - small).abs().max()) < 1e-5


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


@pytest.mark.parametrize("name", ["resnet_option_b", "mobilenetv2", "unet"])
@torch.no_grad()
def test_4_the_scores_follow_the_weights_of_the_norm(name: str) -> None:
    """A unit that its norm makes larger, while what reads it is as much smaller, computes the same and scores more."""
    problem = tiny_problem(name)
    images, _ = batch(problem)
    for scale_fix in (True, False):
        search = started(problem, scale_fix=scale_fix)
        model, gates = search.model.eval(), search.gates
        places = [place for place, found in enumerate(gates.producers) if len(found) == 1 and found[0].norm]
        assert places
        for place in places:
            group = problem.space.groups[place]
            outputs, before = model(images), gates.features(model)[place]
            factors = 0.25 + 4 * torch.rand(group.units, generator=torch.Generator().manual_seed(place))
            _enlarge_units(model, problem, place, gates.producers[place][0].norm, factors)
            torch.testing.assert_close(model(images), outputs, rtol=1e-4, atol=1e-5)
            expected = before * factors[:, None] if scale_fix else before
            expected = expected / expected.square().mean().sqrt()
            torch.testing.assert_close(gates.features(model)[place], expected, rtol=1e-4, atol=1e-5)
            scores = expected @ gates.directions[place] / math.sqrt(expected.shape[1]) + gates.bias[place]
            torch.testing.assert_close(gates(model)[place], scores, rtol=1e-4, atol=1e-5)


def _enlarge_units(model: nn.Module, problem: Problem, place: int, norm: str, factors: Tensor) -> None:
    """Multiply what a norm makes of a group's units, and divide every weight that reads them."""
    bn = model.get_submodule(norm)
    assert isinstance(bn, nn.BatchNorm2d)
    bn.weight.mul_(factors)
    bn.bias.mul_(factors)
    for piece in problem.graph.consumer_slices(problem.space.names[place]):
        weight = model.get_parameter(piece.parameter)
        divisor = torch.ones(weight.shape[piece.dim])
        divisor[torch.from_numpy(piece.positions)] = factors[torch.from_numpy(piece.units)]
        weight.div_(divisor.reshape([-1 if d == piece.dim else 1 for d in range(weight.ndim)]))


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
    whole = task_gradients_by_score(search)
    for index, scores in enumerate(search.gates(search.model)):
        with torch.no_grad():
            drop = float(scores.detach().sort().values[:2].mean())
            search.gates.bias[index] -= drop
            closed = search._gate(1.0)[1][index] == 0
            assert int(closed.sum()) == 1
        gradient = task_gradients_by_score(search)[index]
        assert bool((gradient[closed] != 0).all() | (whole[index][closed] == 0).all())
        with torch.no_grad():
            search.gates.bias[index] += drop


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
def test_10_at_multiplier_0_the_gates_get_the_gradient_of_the_task_alone(name: str) -> None:
    search = started(tiny_problem(name), project=False, task_gradient="tangent", distill_alpha=0.0)
    gradient = bias_gradient(search, 0.0, 0.5)
    assert search._step is not None
    assert search._step.cost > search._step.budget
    (alone,) = torch.autograd.grad(task_loss(search)[0], search.gates.bias)
    assert float(alone.abs().max()) > 0
    torch.testing.assert_close(gradient, alone)
    assert float((bias_gradient(search, 1e6, 0.5) - alone).abs().max()) > float(alone.abs().max())


@every_family
def test_10_a_huge_multiplier_leaves_the_least_widths_and_no_group_without_a_unit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = tiny_problem(name)
    search = started(problem, project=False, bias_travel=12.0)
    search.target, search.multiplier.value = 1e-3, 1e6
    monkeypatch.setattr(search.multiplier, "update", lambda *_: None)
    for _ in range(4):
        for optimizer in search.optimizers():
            optimizer.zero_grad()
        search.loss(*batch(problem), progress=1.0).backward()
        search.optimizers()[-1].step()
        search.after_step(1.0)
    _, gates, counts = search._gate(1.0)
    assert counts.tolist() == [allowed[0] for allowed in problem.space.widths]
    assert all(float(gate.detach().sum()) >= 1 for gate in gates)
    assert search.widths() == problem.space.smallest()
