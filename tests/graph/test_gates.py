"""Gates: identity at 1, gradients for every unit and weight, right lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from traced_families import traced

from hwprune.core.errors import GraphError
from hwprune.graph import gate_parameters
from hwprune.graph.call import tensors_in
from hwprune.testing.networks import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_open_gates_change_nothing(family: str) -> None:
    model, example, graph = traced(family)
    gates = {group.name: torch.ones(group.units) for group in graph.removable}
    changed = gate_parameters(dict(model.named_parameters()), graph, gates)
    before, after = tensors_in(model(*example)), tensors_in(functional_call(model, changed, example))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_gate_and_weight(family: str) -> None:
    model, example, graph = traced(family)
    parameters = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}

    def output(gates: dict[str, Tensor]) -> Tensor:
        changed = gate_parameters(parameters, graph, gates)
        outputs = functional_call(model, {**parameters, **changed}, example)
        return torch.stack([tensor.square().sum() for tensor in tensors_in(outputs)]).sum()

    gates = {group.name: torch.ones(group.units, requires_grad=True) for group in graph.removable}
    open_loss = output(gates)
    open_loss.backward()
    assert all(parameter.grad is not None for parameter in parameters.values())
    alive = 0
    for name, gate in gates.items():
        for unit in range(min(4, gate.numel())):
            closed = torch.ones(gate.numel())
            closed[unit] = 0.0
            # A unit that is dead behind a ReLU has neither effect nor gradient.
            if bool((output({name: closed}) - open_loss).abs() > 1e-4 * open_loss.abs()):
                alive += 1
                assert gate.grad is not None
                assert gate.grad[unit] != 0, (name, unit)
    assert alive > 3


def test_a_gate_scales_its_channel() -> None:
    model, _, graph = traced("chain")
    gate = torch.linspace(0.1, 2.0, 12)
    changed = gate_parameters(dict(model.named_parameters()), graph, {"conv2": gate})
    assert list(changed) == ["fc1.weight"]
    expected = model.fc1.weight * gate.repeat_interleave(16)
    assert torch.equal(changed["fc1.weight"], expected)


def test_wrong_gates_are_refused() -> None:
    model, _, graph = traced("chain")
    parameters = dict(model.named_parameters())
    with pytest.raises(GraphError, match=r"gate of group 'conv1' has shape \(3,\)"):
        gate_parameters(parameters, graph, {"conv1": torch.ones(3)})
    with pytest.raises(GraphError, match=r"no channel group 'conv9'\. Did you mean 'conv"):
        gate_parameters(parameters, graph, {"conv9": torch.ones(3)})
    with pytest.raises(GraphError, match="group 'fc2' cannot be cut: output"):
        gate_parameters(parameters, graph, {"fc2": torch.ones(5)})
