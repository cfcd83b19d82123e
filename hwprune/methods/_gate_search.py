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
from hwprune.methods._base import Problem, top_units
from hwprune.methods._decay import decay_open, open_factors
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gates import GateNetwork, best_mask, binarise, open_mask, slope_of
from hwprune.methods._joint import distilled_loss, gated_outputs, step_count, tightened
from hwprune.methods._multiplier import ClosedForm, DualAscent, Multiplier
from hwprune.methods._questions import first_within, predicted
from hwprune.methods._sliced import SlicedNetwork
from hwprune.training._trainee import AbstractTrainee, below

if TYPE_CHECKING:
    from hwprune.methods.wgates import WGates

# Latency hardly depends on some groups; a price of 0 would make their scores infinite.
_LEAST_PRICE = 1e-3
# Of the mean saliency; a unit without any would have an infinite score.
_LEAST_WORTH = 1e-3


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


@dataclass
class _Settled:
    """The choice that stays: 1.0 where a unit is kept, and what each unit was worth then, both `(units,)` a group."""

    masks: list[Tensor]
    scores: dict[str, np.ndarray]


class GateSearch(AbstractTrainee):
    """The model's weights and the gates of a `Problem`, trained by one loss: task + multiplier * log(cost / budget).

    Without `project` the latency term is there only above the budget. With it the hard widths are within the budget at
    every step, so the term would never be there, and nothing would weigh units by what they cost; it stays, and pushes
    gates down below the budget too. What it pushes all groups alike the projection takes back; what is left is a
    trade between cheap and dear units. The budget tightens geometrically from the dense cost to the target over the
    options' `ramp` share of the choice of units, after a `warmup` share without any latency term.

    In the last `settle` share of the search the widths are fitted to the target, the units stay, and only the small
    network trains; what units are worth is kept from that moment, for another target.
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
        self.target = self.efficiency.budget(problem.target_ms)
        self.multiplier = _make_multiplier(options)
        self.square = [self.gates.bias.new_zeros(units) for units in self.gates.units]
        self.small = SlicedNetwork(self.model, problem.graph)
        self.settled: _Settled | None = None
        self._first_prices: list[float] = []
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
        """Task loss of the hard-gated network plus the latency term; of the small network once the units stay."""
        share = self._share(progress)
        if share >= 1 and self.options.settle > 0:
            return self._settled_loss(images, targets)
        budget = self.budget_at(share)
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
        if share < self.options.warmup:
            return loss
        excess = torch.log(cost / budget)
        return loss + self.multiplier.value * (excess if self.options.project else torch.relu(excess))

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Move the averages and the multiplier by what the step has shown; tell the listener."""
        self.seen += 1
        if self.settled is not None:
            widths = self.widths()
            return self._tell(self.settled.masks, widths, self.efficiency.share(widths), self.target)
        step = self._step
        if step is None:
            raise RuntimeError("after_step was called before loss")
        decay = self.options.saliency_decay
        for square, raw in zip(self.square, step.raw_gradients, strict=True):
            square.mul_(decay).add_(raw.square() * (0.5 * step.batch_size), alpha=1 - decay)
        if self.options.follow and self.options.start == "taylor":
            for prior, ratio in zip(self.gates.priors(), self._worth_for_price(), strict=True):
                prior.copy_(ratio)
        if self._share(progress) >= self.options.warmup:
            self._update_multiplier(step, step.cost / step.budget - 1)
        return self._tell(step.masks, step.widths, step.cost, step.budget)

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers, gates, averages and multiplier; the choice of units if it stays."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state.update({f"gates.{name}": value for name, value in self.gates.state_dict().items()})
        state.update({f"square.{index}": value for index, value in enumerate(self.square)})
        if self.settled is not None:
            worth = self.settled.scores.values()
            state.update({f"kept.{index}": mask for index, mask in enumerate(self.settled.masks)})
            state.update({f"worth.{index}": torch.from_numpy(scores) for index, scores in enumerate(worth)})
        numbers = [float(self.seen), *self.multiplier.state()]
        state["numbers"] = torch.tensor(numbers, dtype=torch.float64)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`."""
        for prefix, module in (("model.", self.model), ("gates.", self.gates)):
            module.load_state_dict(below(prefix, state))
        for index, square in enumerate(self.square):
            square.copy_(state[f"square.{index}"])
        if "kept.0" in state:
            masks = [state[f"kept.{index}"].to(square) for index, square in enumerate(self.square)]
            names = enumerate(self.problem.space.names)
            self.settled = _Settled(masks, {name: state[f"worth.{index}"].cpu().numpy() for index, name in names})
        seen, *rest = state["numbers"].tolist()
        self.seen = int(seen)
        self.multiplier.load_state(rest)

    def budget_at(self, share: float) -> float:
        """The cost allowed at a share of the choice of units, 1.0 = dense."""
        return tightened(self.target, share, self.options.warmup, self.options.ramp)

    def open_by_saliency(self, saliency: Mapping[str, np.ndarray]) -> None:
        """Start with scores in the order of log(saliency per latency) over all groups, every gate open.

        Prices are those around the network that the saliency alone would choose for the target: a unit's latency
        falls with the widths of the layers it meets. The running saliency starts from the same estimate; with the
        option `follow` the order follows it from then on, because what a unit is worth changes as others close.
        """
        problem = self.problem
        prices = self._prices(fit_to_target(problem.space, problem.latency, saliency, problem.target_ms).widths)
        self._first_prices = prices
        for square, name in zip(self.square, problem.space.names, strict=True):
            square.copy_(torch.from_numpy(saliency[name]))
        self.gates.open_in_order(self.model, self._worth_for_price(), self.options.margin)

    def _worth_for_price(self) -> list[Tensor]:
        """log(running saliency per latency), `(units,)` a group, less the mean over all units.

        All saliencies may grow together while the network shrinks; that says nothing of which gates should be open.
        """
        least = _LEAST_WORTH * float(torch.cat(self.square).mean())
        pairs = zip(self.square, self._first_prices, strict=True)
        ratios = [((square + least) / price).log() for square, price in pairs]
        mean = torch.cat(ratios).mean()
        return [ratio - mean for ratio in ratios]

    @torch.no_grad()
    def unit_scores(self) -> dict[str, np.ndarray]:
        """What each unit is worth, `(units,)` a group, additive: running saliency, or price * exp(gate score).

        A score is the logarithm of worth per latency: a gate at its threshold, score 0, is worth what it costs. So the
        prices make scores of different groups comparable.
        """
        if self.settled is not None:
            return self.settled.scores
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
        """The units of each group that stay, or the gates that are open now, snapped to the grid."""
        if self.settled is not None:
            return self.problem.space.snap([float(mask.sum()) for mask in self.settled.masks])
        _, _, counts = self._gate(self.target)
        return self._snapped(counts)

    def keep(self) -> dict[str, tuple[int, ...]]:
        """The highest-scoring units at the widths now."""
        return top_units(self.unit_scores(), self.widths())

    def _share(self, progress: float) -> float:
        """How much of the choice of units is done at a progress of the search."""
        return progress / (1 - self.options.settle)

    def _settled_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        if self.settled is None:
            self._settle()
        outputs = self.small(self.keep(), images, dict(self.model.named_buffers())).float()
        # With frozen weights nothing is left to learn, but the loop wants a loss it can go backward through.
        return self._task_loss(outputs, images, targets) + 0.0 * self.gates.bias.sum()

    def _settle(self) -> None:
        """Decide the kept units: from the widths now to the target along the units' worth."""
        problem, scores = self.problem, self.unit_scores()
        fit = fit_to_target(
            problem.space, problem.latency, scores, problem.target_ms, start=self.widths(), exchange=False
        )
        order = [torch.from_numpy(scores[name]).to(self.gates.bias.device) for name in problem.space.names]
        pairs = zip(order, fit.widths.values_tuple(), strict=True)
        self.settled = _Settled([best_mask(worth, width).to(self.gates.bias) for worth, width in pairs], scores)

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
        """Estimated loss(open) - loss(closed) of each unit, averaged over steps: minus half the curvature.

        The curvature of the loss is the Fisher information: batch size times the mean squared gradient. The mean
        gradient is left out. At open gates of a trained network it is 0; at a closed one it is -curvature, which would
        turn the sign of an estimate made from there, but a running mean tells the noise of the batches for longer than
        gates stay closed. A closed gate whose mean is large counts for more than its curvature, never for less.
        """
        decay = self.options.saliency_decay
        halved = gradient.square() * (0.5 * step.batch_size)
        half_curvature = self.square[index] * decay + halved * (1 - decay)
        if self.options.start == "open":
            half_curvature = half_curvature / (1 - decay ** (self.seen + 1))
        return -half_curvature

    def _tell(self, masks: Sequence[Tensor], widths: Widths, cost: float, budget: float) -> dict[str, float]:
        opened = sum(float(mask.sum()) for mask in masks) / sum(len(mask) for mask in masks)
        figures = {"multiplier": self.multiplier.value, "open_share": opened, "cost": cost, "budget": budget}
        if self.seen % self.options.report_every == 0:
            predicted_ms = predicted(self.problem.latency, widths)
            self.problem.on_event(SearchStep(self.seen, self.steps, predicted_ms, figures))
        return figures

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
        choosing = self.steps * (1 - options.settle)
        groups = [
            {"params": [self.gates.bias], "lr": options.bias_travel / choosing, "scheduled": False},
            {"params": list(self.gates.directions), "lr": options.direction_travel / choosing, "scheduled": False},
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
        holder = self.settled or self._step
        if decay == 0 or holder is None:
            return
        pairs = zip(self.problem.space.names, holder.masks, strict=True)
        closed = {name: mask.cpu().numpy() == 0 for name, mask in pairs}
        decay_open(self.model, open_factors(self.problem.graph, self.model, closed), decay)


def _make_multiplier(options: WGates) -> Multiplier:
    if options.multiplier == "dual":
        return DualAscent(options.multiplier_rate, options.multiplier_period)
    # The projected cost never exceeds the budget: a boost could only take weight from the cost.
    return ClosedForm(options.multiplier_decay, 0.0 if options.project else options.multiplier_boost)
