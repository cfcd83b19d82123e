"""A network called with other tensors: what it computes, and that it keeps its own under every name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hwprune.graph.stateless import called_with
from hwprune.testing.methods import family
from hwprune.testing.networks import FAMILIES


def drawn_anew(model: nn.Module) -> dict[str, torch.Tensor]:
    """Other parameters and buffers for the model, by first name."""
    generator = torch.Generator().manual_seed(0)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: value + torch.rand(value.shape, generator=generator) if value.is_floating_point() else value.clone()
        for name, value in named
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_it_computes_what_a_model_with_these_tensors_does(name: str) -> None:
    model, images = copy.deepcopy(family(name).model), family(name).data.val.images
    given, own = drawn_anew(model), dict(model.state_dict(keep_vars=True))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for key, value in [*other.named_parameters(), *other.named_buffers()]:
            value.copy_(given[key])
        expected, before = other(images), model(images)
        assert torch.equal(called_with(model, given, images), expected)
        assert torch.equal(called_with(model, {}, images), before)
        assert torch.equal(model(images), before)
        assert not torch.equal(expected, before)
    assert all(value is own[key] for key, value in model.state_dict(keep_vars=True).items())


@pytest.mark.parametrize("name", ["registered", "tied"])
def test_every_use_of_a_tensor_adds_to_its_gradient(name: str) -> None:
    model, images = family(name).model, family(name).data.val.images
    given = {key: value.detach().clone().requires_grad_() for key, value in model.named_parameters()}
    gradients = torch.autograd.grad(called_with(model, given, images).square().sum(), list(given.values()))
    expected = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_it_updates_the_statistics_that_it_was_given() -> None:
    model, images = copy.deepcopy(family("registered").model).train(), family("registered").data.train.images
    own = {name: value.clone() for name, value in model.named_buffers()}
    given = {name: value.clone() for name, value in model.named_buffers()}
    called_with(model, given, images)
    assert all(torch.equal(value, own[name]) for name, value in model.named_buffers())
    assert all(not torch.equal(value, own[name]) for name, value in given.items())
    model(images)
    assert all(torch.equal(value, given[name]) for name, value in model.named_buffers())
