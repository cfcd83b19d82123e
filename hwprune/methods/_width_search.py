"""Joint training of weights and widths under a latency budget: what the shared loop drives for `widths`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from hwprune.core.events import SearchStep
from hwprune.core.widths import Widths
from hwprune.graph import gate_parameters
from hwprune.methods._adjust import fit_to_target
from hwprune.methods._base import Problem, top_units
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._joint import distilled_loss, step_count, tightened
from hwprune.methods._multiplier import ClosedForm
from hwprune.methods._sliced import SlicedNetwork
from hwprune.methods._width_choice import AbstractWidthChoice, ExpectedCost, SigmoidChoice, SoftmaxChoice, WidthGrid
from hwprune.training._trainee import AbstractTrainee, below, sgd

if TYPE_CHECKING:
    from hwprune.methods.widths import LearnedWidths


@dataclass
class _Step:
    """What one pass with open widths leaves for `after_step`: cost 1.0 = dense, gradients by the learned values."""

    cost: float
    budget: float
    cost_gradients: tuple[Tensor, ...]
    task_gradients: list[Tensor]


class WidthSearch(AbstractTrainee):
    """The model's weights and a distribution over each group's widths, trained by task + multiplier * log(cost).

    In the last `settle` share of the search the widths are fitted to the target and stay; only the small network
    trains then.
    """

    def __init__(self, problem: Problem, options: LearnedWidths, scores: Mapping[str, np.ndarray]) -> None:
        self.problem, self.options, self.scores = problem, options, scores
        self.model = copy.deepcopy(problem.model).train()
        if options.weights == "frozen":
            self.model.requires_grad_(False)
        self.grid = WidthGrid(problem.space, scores, next(self.model.parameters()))
        self.choice = self._make_choice()
        self.cost = ExpectedCost(Efficiency(problem.space, problem.graph, problem.latency))
        self.target = min(1.0, problem.target_ms / self.cost.efficiency.dense)
        self.multiplier = ClosedForm(options.multiplier_decay, options.multiplier_boost)
        self.small = SlicedNetwork(self.model, problem.graph)
        self.seen = 0
        self.steps = step_count(problem)
        self._step: _Step | None = None
        travel = options.logit_travel if options.form == "softmax" else options.threshold_travel
        group = {"params": list(self.choice.values), "lr": travel / self.steps, "scheduled": False}
        self._choice_optimizer = Adam([group], betas=(options.momentum, 0.99))
        trains = options.weights != "frozen"
        self._optimizers = (
            (sgd(self.model, problem.plan), self._choice_optimizer) if trains else (self._choice_optimizer,)
        )

    def modules(self) -> Sequence[nn.Module]:
        """The model and the choice of widths."""
        return (self.model, self.choice)

    def optimizers(self) -> Sequence[Optimizer]:
        """SGD for the weights by the plan, Adam for the widths."""
        return self._optimizers

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Task loss of the softly masked network plus the latency term; of the small network once widths are fixed."""
        share = progress / (1 - self.options.settle)
        if share >= 1:
            return self._settled_loss(images, targets)
        softness = self.softness_at(share)
        values = [value.clone() for value in self.choice.values]
        step = self._step = self._open_step(softness, share)
        for index, value in enumerate(values):
            value.register_hook(partial(_keep_gradient, step, index))
        masks = self.grid.soft_masks(self.choice.probabilities(values, softness))
        parameters = dict(self.model.named_parameters())
        gates = dict(zip(self.problem.space.names, masks, strict=True))
        changed = gate_parameters(parameters, self.problem.graph, gates)
        outputs = functional_call(self.model, {**parameters, **changed}, (images,)).float()
        loss = self._task_loss(outputs, images, targets)
        for value, gradient in zip(self.choice.values, step.cost_gradients, strict=True):
            pull = (value * gradient).sum() * self.multiplier.value
            loss = loss + pull - pull.detach()
        return loss

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Move the multiplier by what the step has shown; tell the listener."""
        self.seen += 1
        self.choice.tidy()
        step = self._step
        if step is None:
            return {}
        violation = step.cost / step.budget - 1
        task = torch.cat(step.task_gradients)
        self.multiplier.update(violation, task, torch.cat(step.cost_gradients))
        figures = {"multiplier": self.multiplier.value, "cost": step.cost, "budget": step.budget}
        if self.seen % self.options.report_every == 0:
            predicted_ms = step.cost * self.cost.efficiency.dense
            self.problem.on_event(SearchStep(self.seen, self.steps, predicted_ms, figures))
        return figures

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers, choice of widths and multiplier."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state.update({f"choice.{name}": value for name, value in self.choice.state_dict().items()})
        state["numbers"] = torch.tensor([float(self.seen), *self.multiplier.state()], dtype=torch.float64)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`."""
        for prefix, module in (("model.", self.model), ("choice.", self.choice)):
            module.load_state_dict(below(prefix, state))
        seen, *rest = state["numbers"].tolist()
        self.seen = int(seen)
        self.multiplier.load_state(rest)

    def widths(self) -> Widths:
        """The widths fitted to the target: those that stay, or those nearest to the expected ones."""
        fixed = self.choice.fixed(self.problem.space)
        if fixed is not None:
            return fixed
        nearest = self.grid.nearest(self.choice.now(self.softness_at(1.0)))
        problem = self.problem
        fit = fit_to_target(
            problem.space, problem.latency, self.scores, problem.target_ms, start=nearest, exchange=False
        )
        return fit.widths

    def softness_at(self, share: float) -> float:
        """Temperature (softmax) or softness (sigmoid) at a share of the learning of widths: geometric."""
        options = self.options
        first, last = options.temperatures if options.form == "softmax" else options.softness
        return float(first * (last / first) ** min(1.0, share))

    def _make_choice(self) -> AbstractWidthChoice:
        if self.options.form == "softmax":
            return SoftmaxChoice.rising(self.grid, self.options.logit_start)
        return SigmoidChoice(self.grid, self.options.threshold_start)

    def _open_step(self, softness: float, share: float) -> _Step:
        """The cost at the widths nearest to the expected ones and the gradient of log(cost) by the learned values."""
        values = [value.detach().requires_grad_() for value in self.choice.values]
        probabilities = self.choice.probabilities(values, softness)
        hard = self.grid.nearest(probabilities)
        cost = self.cost(probabilities, hard)
        gradients = torch.autograd.grad(torch.log(cost), values)
        budget = tightened(self.target, share, 0.0, self.options.ramp)
        return _Step(float(cost.detach()), budget, gradients, [torch.zeros_like(value) for value in values])

    def _settled_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        self._step = None
        widths = self.widths()
        self.choice.fix(widths)
        keep = top_units(self.scores, widths)
        outputs = self.small(keep, images, dict(self.model.named_buffers())).float()
        loss = self._task_loss(outputs, images, targets)
        # With frozen weights nothing is left to learn, but the loop wants a loss it can go backward through.
        return loss + 0.0 * torch.stack([value.sum() for value in self.choice.values]).sum()

    def _task_loss(self, outputs: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return distilled_loss(self.problem, outputs, images, targets, self.options.distill_alpha)


def _keep_gradient(step: _Step, index: int, gradient: Tensor) -> None:
    step.task_gradients[index] = gradient.detach()
