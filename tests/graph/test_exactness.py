"""Cut, masked and gated network compute the same function, on every family of wiring."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from traced_families import random_keep, traced

from hwprune.graph import ChannelGraph, cut, gate_parameters, mask, trace
from hwprune.graph.call import tensors_in
from hwprune.testing.networks import FAMILIES, build


def gates_of(graph: ChannelGraph, keep: dict[str, list[int]]) -> dict[str, Tensor]:
    """Gates of 1 for kept and 0 for removed units, for every group."""
    gates = {group.name: torch.ones(group.units) for group in graph.removable}
    for name, kept in keep.items():
        gates[name] = torch.zeros(graph.group(name).units).index_fill(0, torch.tensor(kept), 1.0)
    return gates


def difference(left: object, right: object) -> float:
    """The largest absolute difference between the tensors of two outputs."""
    pairs = zip(tensors_in(left), tensors_in(right), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_cut_equals_mask_and_gates(family: str, seed: int) -> None:
    model, example, graph = traced(family)
    keep = random_keep(graph, seed)
    small, masked = cut(model, graph, keep), mask(model, graph, keep)
    assert type(small) is type(model)
    assert not small.training
    expected = masked(*example)
    assert difference(small(*example), expected) < 1e-5
    changed = gate_parameters(dict(model.named_parameters()), graph, gates_of(graph, keep))
    assert difference(functional_call(model, changed, example), expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_another_input_than_the_traced_one(family: str) -> None:
    model, example, graph = traced(family)
    other = tuple(torch.randn(3, *tensor.shape[1:], generator=torch.Generator().manual_seed(7)) for tensor in example)
    keep = {group.name: list(range(0, group.units, 2)) for group in graph.removable}
    expected = mask(model, graph, keep)(*other)
    assert difference(cut(model, graph, keep)(*other), expected) < 1e-5
    # The comparison means nothing if removing channels does not change the output at all.
    assert difference(model(*other), expected) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_one_unit_left_everywhere(family: str) -> None:
    model, example, graph = traced(family)
    keep = {group.name: [group.units - 1] for group in graph.removable}
    assert difference(cut(model, graph, keep)(*example), mask(model, graph, keep)(*example)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_untouched(family: str) -> None:
    model, example = build(family)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, example)
    cut(model, graph, random_keep(graph, 0))
    mask(model, graph, random_keep(graph, 0))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["mobilenetv2", "densenet", "transformer"])
def test_the_cut_network_can_be_traced_and_cut_again(family: str) -> None:
    model, example, graph = traced(family)
    once = cut(model, graph, {group.name: list(range(0, group.units, 2)) for group in graph.removable})
    again = trace(once, example)
    assert [group.name for group in again.removable] == [group.name for group in graph.removable]
    keep = random_keep(again, 3)
    assert difference(cut(once, again, keep)(*example), mask(once, again, keep)(*example)) < 1e-5


def test_the_cut_network_trains() -> None:
    model, example, graph = traced("mobilenetv2")
    small = cut(model, graph, {group.name: [0, 1, 2] for group in graph.removable}).train()
    small(*example).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_model() -> None:
    model, example = build("resnet_option_b")
    graph = trace(model.bfloat16(), (example[0].bfloat16(),))
    assert len(graph.removable) == len(traced("resnet_option_b")[2].removable)
    small = cut(model, graph, {"stem.0": [1, 2]})
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}


def test_frozen_parameters_stay_frozen() -> None:
    model, example = build("chain")
    model.requires_grad_(False)
    with torch.no_grad():
        graph = trace(model, example)
    assert [group.name for group in graph.removable] == ["conv1", "conv2", "fc1"]
    assert not any(parameter.requires_grad for parameter in cut(model, graph, {"conv1": [0]}).parameters())
