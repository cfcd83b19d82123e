"""What methods that train weights and widths together share: the training itself, its loss, the way of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hwprune.graph import gate_parameters
from hwprune.graph.stateless import called_with
from hwprune.methods._base import Problem
from hwprune.training._plan import TrainLog
from hwprune.training._trainee import AbstractTrainee, mixed_loss
from hwprune.training.loop import train


def train_search(
    problem: Problem, trainee: AbstractTrainee, evaluate: Callable[[], Mapping[str, float]] | None = None
) -> TrainLog:
    """The training of a search by the shared loop, as the problem says."""
    return train(
        trainee,
        problem.data,
        plan=problem.plan,
        seed=problem.seed,
        checkpoint=problem.checkpoint,
        on_event=problem.on_event,
        stage="search",
        stop=problem.stop,
        evaluate=evaluate,
    )


def gated_outputs(problem: Problem, model: nn.Module, gates: Sequence[Tensor], images: Tensor) -> Tensor:
    """Outputs of the full-size model with gates, `(units,)` a group in space order, where each group is read."""
    parameters = dict(model.named_parameters())
    named = dict(zip(problem.space.names, gates, strict=True))
    changed = gate_parameters(parameters, problem.graph, named)
    return called_with(model, {**parameters, **changed}, images).float()


def distilled_loss(problem: Problem, outputs: Tensor, images: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """The task's loss, mixed by `alpha` with the distance to the dense network's outputs; without it at 0."""
    if alpha == 0:
        return problem.task.loss(outputs, targets)
    with torch.no_grad():
        reference = problem.model(images).float()
    return mixed_loss(problem.task, outputs, targets, reference, alpha, problem.plan.temperature)


def tightened(target: float, progress: float, warmup: float, ramp: float) -> float:
    """The cost allowed at `progress`: 1.0 during `warmup`, then falling geometrically over `ramp` to `target`."""
    share = (progress - warmup) / max(ramp, 1e-9)
    return float(target ** min(1.0, max(0.0, share)))


def step_count(problem: Problem) -> int:
    """The optimiser steps that the shared loop will take."""
    images = len(problem.data.train)
    return max(1, round(problem.plan.epochs * (images // min(problem.plan.batch_size, images))))
