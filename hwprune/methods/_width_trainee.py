"""Weights and a distribution over each group's widths, trained together: what `widths` and `s2hpruner` share."""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam

from hwprune.core.widths import Widths
from hwprune.methods._adjust import fit_to_target
from hwprune.methods._base import Problem
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._joint import step_count
from hwprune.methods._multiplier import ClosedForm
from hwprune.methods._sliced import SlicedNetwork
from hwprune.methods._width_choice import AbstractWidthChoice, ExpectedCost, WidthGrid
from hwprune.training._trainee import AbstractTrainee


@dataclass
class LearningStep:
    """What one pass with learning widths leaves for `after_step`: cost 1.0 = dense, gradients by the learned values."""

    cost: float
    budget: float
    cost_gradients: tuple[Tensor, ...]
    task_gradients: list[Tensor]

    @classmethod
    def at(cls, cost: Tensor, values: Sequence[Tensor], budget: float) -> LearningStep:
        """With the gradient of log(cost) by the values; the task's gradients are still zeros."""
        gradients = torch.autograd.grad(torch.log(cost), values)
        return cls(float(cost.detach()), budget, gradients, [torch.zeros_like(value) for value in values])

    def keep_task_gradient(self, index: int, gradient: Tensor) -> None:
        """A hook for the value of that index."""
        self.task_gradients[index] = gradient.detach()


class AbstractWidthTrainee(AbstractTrainee, ABC):
    """A copy of the model, the grid of widths, their cost and what of the budget is met; `scores` order the units."""

    choice: AbstractWidthChoice

    def __init__(self, problem: Problem, scores: Mapping[str, np.ndarray], multiplier: ClosedForm) -> None:
        self.problem, self.scores, self.multiplier = problem, scores, multiplier
        self.model = copy.deepcopy(problem.model).train()
        self.grid = WidthGrid(problem.space, scores, next(self.model.parameters()))
        self.cost = ExpectedCost(Efficiency(problem.space, problem.graph, problem.latency))
        self.target = min(1.0, problem.target_ms / self.cost.efficiency.dense)
        self.small = SlicedNetwork(self.model, problem.graph)
        self.seen, self.steps = 0, step_count(problem)
        self._step: LearningStep | None = None

    def _width_optimizer(self, travel: float, momentum: float) -> Adam:
        """Adam that can move a learned value by `travel` in the whole search; no weight decay."""
        group = {"params": list(self.choice.values), "lr": travel / self.steps, "scheduled": False}
        return Adam([group], betas=(momentum, 0.99))

    def _fitted(self, start: Widths) -> Widths:
        """From these widths to the target."""
        problem = self.problem
        fit = fit_to_target(problem.space, problem.latency, self.scores, problem.target_ms, start=start, exchange=False)
        return fit.widths
