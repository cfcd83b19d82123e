"""Soft and hard network trained together under a latency budget: what the shared loop drives for `s2hpruner`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hwprune.core.events import SearchStep
from hwprune.core.widths import Widths
from hwprune.graph import cut, gate_parameters
from hwprune.methods._base import Problem, top_units
from hwprune.methods._joint import distilled_loss, gated_outputs, tightened
from hwprune.methods._multiplier import ClosedForm
from hwprune.methods._questions import predicted
from hwprune.methods._s2h_gap import Gap
from hwprune.methods._width_choice import SoftmaxChoice
from hwprune.methods._width_trainee import AbstractWidthTrainee, LearningStep
from hwprune.training._trainee import below, sgd
from hwprune.training.bn import recalibrate_bn
from hwprune.training.tasks import evaluate, predict

if TYPE_CHECKING:
    from hwprune.methods.s2hpruner import S2HPruner

# Thirds of an image pass: one for a forward pass, two for a backward pass.
_FORWARD, _BACKWARD = 1, 2


class Buffers(nn.Module):
    """A second set of a model's buffers: the hard network's batch-norm statistics."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = tuple(name for name, _ in model.named_buffers())
        for index, (_, buffer) in enumerate(model.named_buffers()):
            self.register_buffer(f"buffer{index}", buffer.detach().clone())

    def by_name(self) -> dict[str, Tensor]:
        """Name in the model -> the tensor of this set."""
        return {name: self.get_buffer(f"buffer{index}") for index, name in enumerate(self.names)}


class S2HSearch(AbstractWidthTrainee):
    """One set of weights, a distribution over each group's widths, and two networks in every step.

    Soft: all units, masked by P(unit stays) where they are read. Hard: really cut at the allowed widths that are not
    below the expected ones, with batch-norm statistics of its own. The order of the units is frozen. Both see the same
    augmented images; dropout, where a model has it, draws for each of them.
    """

    def __init__(self, problem: Problem, options: S2HPruner, scores: Mapping[str, np.ndarray]) -> None:
        super().__init__(problem, scores, ClosedForm(options.multiplier_decay, options.multiplier_boost))
        self.options = options
        self.hard_buffers = Buffers(self.model)
        self.choice = SoftmaxChoice.dense(self.grid, options.temperature)
        self.gap = Gap(problem.task, options.gap_weight, options.gap_temperature, options.routing)
        self.pass_thirds = 0
        widths = self._width_optimizer(options.logit_travel, options.momentum)
        widths.register_step_pre_hook(self._balance)
        self._optimizers = (sgd(self.model, problem.plan), widths)

    def modules(self) -> Sequence[nn.Module]:
        """The model, the choice of widths and the hard network's statistics."""
        return (self.model, self.choice, self.hard_buffers)

    def optimizers(self) -> Sequence[Optimizer]:
        """SGD for the weights by the plan; for the logits Adam without weight decay, which would pull to half width."""
        return self._optimizers

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Soft loss, gap and latency term while widths learn; later without the latency term; at last the hard loss."""
        options = self.options
        if progress >= 1 - options.frozen:
            self.choice.fix(self.widths())
        if progress >= 1 - options.hard_only:
            self._step = None
            self.pass_thirds += (_FORWARD + _BACKWARD) * len(images)
            return self._task_loss(self.hard(images), images, targets)
        learning = options.warmup <= progress < 1 - options.frozen
        values = [value.clone() if learning else value.detach() for value in self.choice.values]
        self._step = self._latency_step(progress) if learning else None
        masks = self.grid.soft_masks(self.choice.probabilities(values, options.temperature))
        soft = self.soft(images, masks)
        if self._step is not None:
            for index, value in enumerate(values):
                value.register_hook(partial(self._step.keep_task_gradient, index))
        with torch.set_grad_enabled(self.gap.moves_weights):
            hard = self.hard(images)
        self._count(len(images), learning)
        return self._task_loss(soft, images, targets) + self.gap.loss(soft, hard, masks) + self._latency_pull()

    def soft(self, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Outputs of the full-size network with soft masks where each group is read."""
        return gated_outputs(self.problem, self.model, masks, images)

    def hard(self, images: Tensor) -> Tensor:
        """Outputs of the network cut at the hard widths; no gradient reaches the learned logits."""
        keep = top_units(self.scores, self.hard_widths())
        return self.small(keep, images, self.hard_buffers.by_name()).float()

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Move the multiplier by what the step has shown; tell the listener."""
        self.seen += 1
        self.choice.tidy()
        predicted_ms = predicted(self.problem.latency, self.hard_widths())
        cost = predicted_ms / self.cost.efficiency.dense
        figures = {"multiplier": self.multiplier.value, "cost": cost}
        step = self._step
        if step is not None:
            task = torch.cat(step.task_gradients)
            self.multiplier.update(step.cost / step.budget - 1, task, torch.cat(step.cost_gradients))
            figures["budget"] = step.budget
        if self.seen % self.options.report_every == 0:
            self.problem.on_event(SearchStep(self.seen, self.steps, predicted_ms, figures))
        return figures

    def state(self) -> dict[str, Tensor]:
        """Weights, both sets of buffers, logits and multiplier."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state.update({f"choice.{name}": value for name, value in self.choice.state_dict().items()})
        state.update({f"hard.{name}": value for name, value in self.hard_buffers.state_dict().items()})
        numbers = [float(self.seen), float(self.pass_thirds), *self.multiplier.state()]
        state["numbers"] = torch.tensor(numbers, dtype=torch.float64)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`."""
        for prefix, module in (("model.", self.model), ("choice.", self.choice), ("hard.", self.hard_buffers)):
            module.load_state_dict(below(prefix, state))
        seen, thirds, *rest = state["numbers"].tolist()
        self.seen, self.pass_thirds = int(seen), int(thirds)
        self.multiplier.load_state(rest)

    def hard_widths(self) -> Widths:
        """The widths decided on, or the least allowed ones not below the expected ones."""
        fixed = self.choice.fixed(self.problem.space)
        return fixed if fixed is not None else self.grid.above(self.choice.now(self.options.temperature))

    def widths(self) -> Widths:
        """The hard widths, fitted to the target."""
        fixed = self.choice.fixed(self.problem.space)
        return fixed if fixed is not None else self._fitted(self.hard_widths())

    def hard_state(self) -> dict[str, Tensor]:
        """The full-size state dict whose cut is the hard network: shared weights, the hard network's statistics."""
        whole, own = copy.deepcopy(self.model), self.hard_buffers.by_name()
        with torch.no_grad():
            for name, buffer in whole.named_buffers():
                buffer.copy_(own[name])
        return {name: value.detach().clone() for name, value in whole.state_dict().items()}

    @torch.no_grad()
    def compare(self, images: int) -> dict[str, float]:
        """Scores of both networks on the validation split and the gap between their outputs; the search is not touched.

        Both have their batch-norm statistics recalibrated on `images` training images first: running averages lag
        behind weights and masks that move, and would be blamed on the gap.
        """
        problem = self.problem
        hard = cut(self.model, problem.graph, top_units(self.scores, self.hard_widths()))
        soft = copy.deepcopy(self.model)
        masks = self.grid.soft_masks(self.choice.now(self.options.temperature))
        parameters = dict(soft.named_parameters())
        gates = dict(zip(problem.space.names, masks, strict=True))
        for name, value in gate_parameters(parameters, problem.graph, gates).items():
            parameters[name].copy_(value)
        for network in (soft, hard):
            recalibrate_bn(network, problem.data, images, seed=problem.seed)
        reference = predict(soft, problem.data, "val")
        soft_score = problem.task.score(reference, problem.data.val.targets)
        found = evaluate(hard, problem.data, "val", task=problem.task, reference=reference)
        return {"soft_score": soft_score, "hard_score": found.score, "gap": float(found.kl or 0.0)}

    def _latency_step(self, progress: float) -> LearningStep:
        """The hard network's cost and the gradient of log(expected cost) by the logits."""
        options = self.options
        logits = [value.detach().requires_grad_() for value in self.choice.values]
        cost = self.cost(self.choice.probabilities(logits, options.temperature), self.hard_widths())
        learned = 1 - options.frozen
        budget = tightened(self.target, progress / learned, options.warmup / learned, options.ramp)
        return LearningStep.at(cost, logits, budget)

    def _latency_pull(self) -> Tensor:
        """A value of 0 with the gradient of multiplier * relu(log(cost / budget)), which is 0 within the budget."""
        step = self._step
        if step is None or step.cost <= step.budget or self.options.balance == "norm":
            return torch.zeros(())
        pulls = [(value * g).sum() for value, g in zip(self.choice.values, step.cost_gradients, strict=True)]
        pull = self.multiplier.value * torch.stack(pulls).sum()
        return pull - pull.detach()

    def _balance(self, *_: Any) -> None:
        """balance=norm: the logits' task and latency gradients at a fixed ratio of lengths while over budget."""
        step = self._step
        if step is None or self.options.balance != "norm":
            return
        over = self.options.norm_ratio if step.cost > step.budget else 0.0
        task = unit(step.task_gradients)
        latency = unit(step.cost_gradients)
        for value, by_task, by_latency in zip(self.choice.values, task, latency, strict=True):
            value.grad = by_task + over * by_latency

    def _task_loss(self, outputs: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return distilled_loss(self.problem, outputs, images, targets, self.options.distill_alpha)

    def _count(self, images: int, learning: bool) -> None:
        """The soft network's passes and the hard one's, which counts as full-size though it is smaller."""
        backward = 2 if learning and self.gap.moves_widths else 1
        hard_backward = _BACKWARD if self.gap.moves_weights else 0
        self.pass_thirds += images * (_FORWARD + backward * _BACKWARD + _FORWARD + hard_backward)


def unit(gradients: Sequence[Tensor]) -> list[Tensor]:
    """All gradients divided by their common length; zeros stay zeros."""
    length = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    return [gradient / length if length > 0 else torch.zeros_like(gradient) for gradient in gradients]
