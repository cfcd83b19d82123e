"""Joint training of weights and widths under a latency budget: what the shared loop drives for `widths`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hwprune.core.events import SearchStep
from hwprune.core.widths import Widths
from hwprune.methods._base import Problem, top_units
from hwprune.methods._joint import distilled_loss, gated_outputs, tightened
from hwprune.methods._multiplier import ClosedForm
from hwprune.methods._width_choice import AbstractWidthChoice, SigmoidChoice, SoftmaxChoice
from hwprune.methods._width_trainee import AbstractWidthTrainee, LearningStep
from hwprune.training._trainee import below, sgd

if TYPE_CHECKING:
    from hwprune.methods.widths import LearnedWidths


class WidthSearch(AbstractWidthTrainee):
    """The model's weights and a distribution over each group's widths, trained by task + multiplier * log(cost).

    In the last `settle` share of the search the widths are fitted to the target and stay; only the small network
    trains then.
    """

    def __init__(self, problem: Problem, options: LearnedWidths, scores: Mapping[str, np.ndarray]) -> None:
        super().__init__(problem, scores, ClosedForm(options.multiplier_decay, options.multiplier_boost))
        self.options = options
        self.choice = self._make_choice()
        travel = options.logit_travel if options.form == "softmax" else options.threshold_travel
        self._choice_optimizer = self._width_optimizer(travel, options.momentum)
        if options.weights == "frozen":
            self.model.requires_grad_(False)
            self._optimizers: tuple[Optimizer, ...] = (self._choice_optimizer,)
        else:
            self._optimizers = (sgd(self.model, problem.plan), self._choice_optimizer)

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
            value.register_hook(partial(step.keep_task_gradient, index))
        masks = self.grid.soft_masks(self.choice.probabilities(values, softness))
        outputs = gated_outputs(self.problem, self.model, masks, images)
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
        return self._fitted(self.grid.nearest(self.choice.now(self.softness_at(1.0))))

    def softness_at(self, share: float) -> float:
        """Temperature (softmax) or softness (sigmoid) at a share of the learning of widths: geometric."""
        options = self.options
        first, last = options.temperatures if options.form == "softmax" else options.softness
        return float(first * (last / first) ** min(1.0, share))

    def _make_choice(self) -> AbstractWidthChoice:
        if self.options.form == "softmax":
            return SoftmaxChoice.rising(self.grid, self.options.logit_start)
        return SigmoidChoice(self.grid, self.options.threshold_start)

    def _open_step(self, softness: float, share: float) -> LearningStep:
        """The cost at the widths nearest to the expected ones and the gradient of log(cost) by the learned values."""
        values = [value.detach().requires_grad_() for value in self.choice.values]
        probabilities = self.choice.probabilities(values, softness)
        hard = self.grid.nearest(probabilities)
        cost = self.cost(probabilities, hard)
        return LearningStep.at(cost, values, tightened(self.target, share, 0.0, self.options.ramp))

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
