"""Networks whose channels are multiplied by gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwprune.graph import gate_parameters
from hwprune.methods import Problem


def batch(problem: Problem, count: int = 8) -> tuple[Tensor, Tensor]:
    """The first training images and their targets."""
    return problem.data.batch("train", torch.arange(count))


def outputs_with(problem: Problem, model: nn.Module, gates: Sequence[Tensor], images: Tensor) -> Tensor:
    """The outputs of the model under gates, `(units,)` a group; the graph of the gates stays."""
    parameters = dict(model.named_parameters())
    changed = gate_parameters(parameters, problem.graph, dict(zip(problem.space.names, gates, strict=True)))
    outputs: Tensor = functional_call(model, {**parameters, **changed}, (images,))
    return outputs


@torch.no_grad()
def gated_outputs(problem: Problem, model: nn.Module, gates: Sequence[Tensor], images: Tensor) -> Tensor:
    """The same without a graph."""
    return outputs_with(problem, model, gates, images)
