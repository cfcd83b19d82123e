"""Networks whose channels are multiplied by gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwprune.methods import Problem
from hwprune.methods._joint import gated_outputs as outputs_with


def batch(problem: Problem, count: int = 8) -> tuple[Tensor, Tensor]:
    """The first training images and their targets."""
    return problem.data.batch("train", torch.arange(count))


@torch.no_grad()
def gated_outputs(problem: Problem, model: nn.Module, gates: Sequence[Tensor], images: Tensor) -> Tensor:
    """The outputs of the model under gates, `(units,)` a group, without a graph."""
    return outputs_with(problem, model, gates, images)
