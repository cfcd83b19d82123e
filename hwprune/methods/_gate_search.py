"""Joint training of weights and gates under a latency budget: what the shared loop drives for `wgates`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from hwprune.core.events import SearchStep
from hwprune.core.widths import Widths
from hwprune.latency.features import widths_array
from hwprune.methods._adjust import fit_to_target
from hwprune.methods._base import Problem
from hwprune.methods._decay import decay_open, open_factors
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gates import GateNetwork, best_mask, binarise, open_mask, slope_of
from hwprune.methods._joint import distilled_loss, gated_outputs, step_count, tightened
from hwprune.methods._multiplier import ClosedForm, DualAscent, Multiplier
from hwprune.methods._questions import first_within, predicted
from hwprune.training._trainee import AbstractTrainee, below

if TYPE_CHECKING:
    from hwprune.methods.wgates import WGates

# Latency hardly depends on some groups; a price of 0 would make their scores infinite.
_LEAST_PRICE = 1e-3


@dataclass
class _Step:
    """What one forward pass leaves for `after_step`; `cost` is 1.0 for the dense network."""

    scores: list[Tensor]
    masks: list[Tensor]
    widths: Widths
    cost: float
    budget: float
    cost_slopes: Tensor
    task_gradients: list[Tensor]
    raw_gradients: list[Tensor]
    batch_size: int


class GateSearch(AbstractTrainee):
    """The model's weights and the gates of a `Problem`, trained by one loss: task + multiplier * log(cost / budget).

    Without `project` the latency term is there only above the budget. With it the hard widths are within the budget at
    every step, so the term would never be there, and nothing would weigh units by what they cost; it stays, and pushes
    gates down below the budget too. What it pushes all groups alike the projection takes back; what is left is a
    trade between cheap and dear units. The budget tightens geometrically from the dense cost to the target over the
    options' `ramp` share of the search, after a `warmup` share without any latency term.
    """

    def __init__(self, problem: Problem, options: WGates) -> None:
        self.problem, self.options = problem, options
        self.model = copy.deepcopy(problem.model).train()
        self.gates = GateNetwork(
            self.model,
            problem.graph,
            problem.space,
            sees_weights=options.gate_sees_weights,
            scale_fix=options.scale_fix,
        )
        self.efficiency = Efficiency(problem.space, problem.graph, problem.latency, options.efficiency)
        latency = Efficiency(problem.space, problem.graph, problem.latency)
        self.dense_ms = latency.dense
        self.target = min(1.0, problem.target_ms / self.dense_ms)
        self.multiplier = _make_multiplier(options)
        self.mean = [self.gates.bias.new_zeros(units) for units in self.gates.units]
        self.square = [zeros.clone() for zeros in self.mean]
        self.seen = 0
        self.steps = step_count(problem)
        self._step: _Step | None = None
        self._optimizers = self._make_optimizers()

    def modules(self) -> Sequence[nn.Module]:
        """The model and the gate network."""
        return (self.model, self.gates)

    def optimizers(self) -> Sequence[Optimizer]:
        """SGD for the weights by the plan, Adam without weight decay for the gates."""
        return self._optimizers

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Task loss of the hard-gated network plus the latency term."""
        budget = self.budget_at(progress)
        scores, gates, counts = self._gate(budget)
        cost = self.efficiency(counts)
        (slopes,) = torch.autograd.grad(cost, counts, retain_graph=True)
        step = self._step = _Step(
            [score.detach() for score in scores],
            [gate.detach() for gate in gates],
            self._snapped(counts),
            float(cost.detach()),
            budget,
            slopes,
            [torch.zeros_like(score) for score in scores],
            [torch.zeros_like(score) for score in scores],
            len(images),
        )
        for index, gate in enumerate(gates):
            gate.register_hook(partial(self._task_gradient, step, index))  # type: ignore[no-untyped-call]
        outputs = gated_outputs(self.problem, self.model, gates, images)
        loss = self._task_loss(outputs, images, targets)
        if progress < self.options.warmup:
            return loss
        excess = torch.log(cost / budget)
        return loss + self.multiplier.value * (excess if self.options.project else torch.relu(excess))

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Move the averages and the multiplier by what the step has shown; tell the listener."""
        step = self._step
        if step is None:
            raise RuntimeError("after_step was called before loss")
        decay, correction = self.options.saliency_decay, 1 - self.options.saliency_decay
        for mean, square, raw in zip(self.mean, self.square, step.raw_gradients, strict=True):
            mean.mul_(decay).add_(raw, alpha=correction)
            square.mul_(decay).add_(raw.square() * (0.5 * step.batch_size), alpha=correction)
        self.seen += 1
        violation = step.cost / step.budget - 1
        if progress >= self.options.warmup:
            self._update_multiplier(step, violation)
        opened = sum(float(mask.sum()) for mask in step.masks) / sum(len(mask) for mask in step.masks)
        figures = {"multiplier": self.multiplier.value, "open_share": opened, "cost": step.cost, "budget": step.budget}
        if self.seen % self.options.report_every == 0:
            predicted_ms = predicted(self.problem.latency, step.widths)
            self.problem.on_event(SearchStep(self.seen, self.steps, predicted_ms, figures))
        return figures

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers, gates, averages and multiplier."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state.update({f"gates.{name}": value for name, value in self.gates.state_dict().items()})
        state.update({f"mean.{index}": value for index, value in enumerate(self.mean)})
        state.update({f"square.{index}": value for index, value in enumerate(self.square)})
        numbers = [float(self.seen), *self.multiplier.state()]
        state["numbers"] = torch.tensor(numbers, dtype=torch.float64)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`."""
        for prefix, module in (("model.", self.model), ("gates.", self.gates)):
            module.load_state_dict(below(prefix, state))
        for prefix, tensors in (("mean.", self.mean), ("square.", self.square)):
            for index, tensor in enumerate(tensors):
                tensor.copy_(state[f"{prefix}{index}"])
        seen, *rest = state["numbers"].tolist()
        self.seen = int(seen)
        self.multiplier.load_state(rest)

    def budget_at(self, progress: float) -> float:
        """The cost allowed at `progress`, 1.0 = dense."""
        return tightened(self.target, progress, self.options.warmup, self.options.ramp)

    def open_by_saliency(self, saliency: Mapping[str, np.ndarray]) -> None:
        """Start with scores in the order of log(saliency per latency) over all groups, every gate open.

        Prices are those around the network that the saliency alone would choose for the target: a unit's latency
        falls with the widths of the layers it meets. The running saliency starts from the same estimate.
        """
        problem = self.problem
        prices = self._prices(fit_to_target(problem.space, problem.latency, saliency, problem.target_ms).widths)
        values = [saliency[name] for name in problem.space.names]
        least = 1e-3 * float(np.mean(np.concatenate(values)))
        ratios = [np.log((value + least) / price) for value, price in zip(values, prices, strict=True)]
        prior = [torch.from_numpy(ratio).to(self.gates.bias) for ratio in ratios]
        self.gates.open_in_order(self.model, prior, self.options.margin)
        for square, value in zip(self.square, values, strict=True):
            square.copy_(torch.from_numpy(value))

    @torch.no_grad()
    def unit_scores(self) -> dict[str, np.ndarray]:
        """What each unit is worth, `(units,)` a group, additive: running saliency, or price * exp(gate score).

        A score is the logarithm of worth per latency: a gate at its threshold, score 0, is worth what it costs. So the
        prices make scores of different groups comparable.
        """
        names = self.problem.space.names
        if self.options.channels == "taylor":
            return {name: square.double().cpu().numpy() for name, square in zip(names, self.square, strict=True)}
        scores = [score.double().cpu().numpy() for score in self._gate(self.target)[0]]
        prices = self._prices(self.widths())
        worth = [price * np.exp(np.clip(score, -30, 30)) for price, score in zip(prices, scores, strict=True)]
        return dict(zip(names, worth, strict=True))

    def _prices(self, widths: Widths) -> list[float]:
        """Cost of a unit of each group, averaged over all its allowed widths, the other groups as in `widths`."""
        space = self.problem.space
        ends = list(zip(space.names, space.widths, strict=True))
        wide = [widths.replace(name, allowed[-1]) for name, allowed in ends]
        narrow = [widths.replace(name, allowed[0]) for name, allowed in ends]
        cost = self.efficiency.predict_batch(widths_array(space, [*wide, *narrow])) / self.efficiency.dense
        spans = np.array([max(allowed[-1] - allowed[0], 1) for allowed in space.widths])
        prices = (cost[: len(wide)] - cost[len(wide) :]) / spans
        least = _LEAST_PRICE * float(np.max(np.abs(prices)))
        return [max(float(price), least, 1e-12) for price in prices]

    @torch.no_grad()
    def widths(self) -> Widths:
        """The open gates of each group now, snapped to the grid."""
        _, _, counts = self._gate(self.target)
        return self._snapped(counts)

    def _snapped(self, counts: Tensor) -> Widths:
        return self.problem.space.snap([float(count) for count in counts.detach()])

    def _gate(self, budget: float) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Scores, gates for the task and open counts `(G,)` for the cost, on branches of their own."""
        options, space = self.options, self.problem.space
        with torch.autocast(self.gates.bias.device.type, enabled=False):
            scores = self.gates(self.model)
            if options.project:
                threshold = self._threshold(scores, budget)
                scores = [score - threshold for score in scores]
            masks = [open_mask(s.detach(), allowed[0]) for s, allowed in zip(scores, space.widths, strict=True)]
            if options.align:
                aligned = space.snap([float(mask.sum()) for mask in masks]).values_tuple()
                masks = [best_mask(s.detach(), width) for s, width in zip(scores, aligned, strict=True)]
            pairs = list(zip(scores, masks, strict=True))
            gates = [binarise(s, mask, options.surrogate, options.sharpness) for s, mask in pairs]
            counts = [binarise(s, mask, options.surrogate, options.sharpness).sum() for s, mask in pairs]
        return scores, gates, torch.stack(counts)

    def _threshold(self, scores: Sequence[Tensor], budget: float) -> float:
        """The lowest score that may stay open in all groups for the snapped widths to cost at most `budget`.

        Found by bisection over all scores: about 12 predictions.
        """
        ordered = [np.sort(score.detach().double().cpu().numpy()) for score in scores]
        levels = np.sort(np.concatenate(ordered))

        def cost(place: int) -> float:
            counts = [float(len(group) - np.searchsorted(group, levels[place])) for group in ordered]
            return self.efficiency.share(self.problem.space.snap(counts))

        return float(levels[first_within(len(levels) - 1, cost, budget)])

    def _task_gradient(self, step: _Step, index: int, gradient: Tensor) -> Tensor:
        """The task's gradient by one group's gates: as autograd gives it, or over the whole step between 0 and 1."""
        step.raw_gradients[index] = gradient.detach()
        if self.options.task_gradient == "secant":
            gradient = self._secant(step, index, gradient.detach())
        step.task_gradients[index] = gradient.detach()
        return gradient

    def _secant(self, step: _Step, index: int, gradient: Tensor) -> Tensor:
        """Estimated loss(open) - loss(closed) of each unit, averaged over steps.

        From an open gate that is `mean - curvature / 2`, from a closed one `mean + curvature / 2`, the curvature of the
        loss being the Fisher information: batch size times the mean squared gradient. A trained network has mean 0 at
        open gates, so the tangent alone is noise there.
        """
        decay = self.options.saliency_decay
        unbias = 1 - decay ** (self.seen + 1)
        mean = (self.mean[index] * decay + gradient * (1 - decay)) / unbias
        halved = gradient.square() * (0.5 * step.batch_size)
        half_curvature = self.square[index] * decay + halved * (1 - decay)
        if self.options.start == "open":
            half_curvature = half_curvature / unbias
        return mean - half_curvature * (2 * step.masks[index] - 1)

    def _update_multiplier(self, step: _Step, violation: float) -> None:
        options = self.options
        slopes = [slope_of(score, options.surrogate, options.sharpness) for score in step.scores]
        task = torch.cat([slope * gradient for slope, gradient in zip(slopes, step.task_gradients, strict=True)])
        cost = torch.cat([slope * by_count for slope, by_count in zip(slopes, step.cost_slopes, strict=True)])
        self.multiplier.update(violation, task, cost / step.cost)

    def _task_loss(self, outputs: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return distilled_loss(self.problem, outputs, images, targets, self.options.distill_alpha)

    def _make_optimizers(self) -> tuple[Optimizer, ...]:
        options, plan = self.options, self.problem.plan
        groups = [
            {"params": [self.gates.bias], "lr": options.bias_travel / self.steps, "scheduled": False},
            {"params": list(self.gates.directions), "lr": options.direction_travel / self.steps, "scheduled": False},
        ]
        gates = Adam(groups, betas=(options.gate_momentum, 0.99))
        if not options.train_weights:
            self.model.requires_grad_(False)
            return (gates,)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        weights = SGD(trainable, lr=plan.lr, momentum=plan.momentum, nesterov=plan.momentum > 0)
        weights.register_step_pre_hook(self._decay_open_filters)
        return (weights, gates)

    def _decay_open_filters(self, *_: Any) -> None:
        decay = self.problem.plan.weight_decay
        if decay == 0 or self._step is None:
            return
        closed = {
            name: mask.cpu().numpy() == 0 for name, mask in zip(self.problem.space.names, self._step.masks, strict=True)
        }
        decay_open(self.model, open_factors(self.problem.graph, self.model, closed), decay)


def _make_multiplier(options: WGates) -> Multiplier:
    if options.multiplier == "dual":
        return DualAscent(options.multiplier_rate, options.multiplier_period)
    return ClosedForm(options.multiplier_decay, options.multiplier_boost)
