"""Invariants 4, 5, 9 and 12 of GDP: what is absorbed, cut or gone computes and costs what the gated network does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gated_networks import gated_outputs
from gdp_states import deep, solved, trained, with_weights
from torch import Tensor, nn

from hwprune.graph import cut, mask
from hwprune.methods._gdp_gates import (
    absorbed,
)
from hwprune.methods.gdp import GDP
from hwprune.testing.methods import family, tiny_problem
from hwprune.testing.networks import FAMILIES

every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
def test_4_the_absorbed_network_whole_and_cut_equals_the_gated_one(name: str) -> None:
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
        full = with_weights(problem, state)
        small = cut(full, problem.graph, keep)
        within = 1e-5 * max(1.0, float(expected.abs().max()))
        with torch.no_grad():
            binary = gated_outputs(problem, full, [(gate > 0).float() for gate in gates], images)
            assert float((binary - expected).abs().max()) < within
            assert float((small(images) - expected).abs().max()) < within


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
    learned = with_weights(problem, dict(answer.state))
    with torch.no_grad():
        expected = mask(learned, problem.graph, answer.keep)(images)
        small = cut(learned, problem.graph, answer.keep)(images)
    torch.testing.assert_close(small, expected, rtol=0, atol=1e-5)
    wider = GDP().refit(problem, answer, 0.9 * problem.dense_ms)
    assert sum(wider.widths[name] > 0 for name in gone) > 0


@pytest.mark.parametrize("name", ["chain", "resnet_option_a", "mobilenetv2", "unet", "c2f"])
def test_9_a_thousand_predictions_are_the_same_before_and_after_the_cut(name: str) -> None:
    problem = tiny_problem(name, 0.6)
    search = trained(problem)
    images = torch.randn(1000, *problem.data.input_shape, generator=torch.Generator().manual_seed(9))
    gates = [gate.detach() for gate in search.gates()]
    assert any(bool((gate == 0).any()) for gate in gates)
    before = gated_outputs(problem, search.model.eval(), gates, images)
    small = cut(with_weights(problem, search.final_state()), problem.graph, search.keep())
    with torch.no_grad():
        after = small(images)
    assert torch.equal(before.argmax(1), after.argmax(1))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


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
