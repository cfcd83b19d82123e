"""What methods that train weights and widths together share: distilled loss, the way of the budget, number of steps."""

from __future__ import annotations

import torch
from torch import Tensor

from hwprune.methods._base import Problem


def distilled_loss(problem: Problem, outputs: Tensor, images: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) * task loss + alpha * distance to the dense network's outputs` at the plan's temperature."""
    loss = problem.task.loss(outputs, targets)
    if alpha == 0:
        return loss
    with torch.no_grad():
        reference = problem.model(images).float()
    distance = problem.task.distance(outputs, reference, problem.plan.temperature).mean()
    return (1 - alpha) * loss + alpha * distance


def tightened(target: float, progress: float, warmup: float, ramp: float) -> float:
    """The cost allowed at `progress`: 1.0 during `warmup`, then falling geometrically over `ramp` to `target`."""
    share = (progress - warmup) / max(ramp, 1e-9)
    return float(target ** min(1.0, max(0.0, share)))


def step_count(problem: Problem) -> int:
    """The optimiser steps that the shared loop will take."""
    images = len(problem.data.train)
    return max(1, round(problem.plan.epochs * (images // min(problem.plan.batch_size, images))))
