"""Joint training of weights and latents with proximal steps, until the latents' zeros meet the budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hwprune.core.events import Caution, Note, SearchStep
from hwprune.core.units import percent
from hwprune.core.widths import Widths
from hwprune.graph.stateless import called_with
from hwprune.methods._adjust import Fit
from hwprune.methods._base import Problem, top_units
from hwprune.methods._dhp_budget import exchange_fit, needed_travel, threshold_fit, tile_prices
from hwprune.methods._dhp_hyper import Collapsed, Factored
from hwprune.methods._dhp_latents import Latents, Wiring, kept_mask, soft_width, wire
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._joint import distilled_loss, step_count
from hwprune.methods._questions import predicted
from hwprune.training._trainee import AbstractTrainee, below

if TYPE_CHECKING:
    from hwprune.methods.dhp import DHP

# However short the search, prices and penalty are looked at so many times before the latents must have arrived.
_LEAST_REFRESHES = 10
# The last proximal steps aim at the budget itself; what they miss by less than this says nothing about the search.
_NEARLY = 1.01
_REOPENED = 0.2  # more of the units that stay than a step too many takes


class DhpSearch(AbstractTrainee):
    """The model, its hypernetworks and the latents of a `Problem`.

    Until the budget is met, every optimiser step is followed by a soft-thresholding of the latents by
    `lr * penalty * price of the group * metric of the unit`, lr being the latents' current learning rate. Then the
    removed units stay removed, and the rest of the search trains the network that is left.
    """

    def __init__(self, problem: Problem, options: DHP) -> None:
        self.problem, self.options = problem, options
        self.model = copy.deepcopy(problem.model).train()
        like = next(self.model.parameters()).detach()
        self.latents = Latents(problem.space, like, normalise=options.normalise)
        wiring = wire(self.model, problem.graph, problem.space)
        self.hyper = _backend(self.model, wiring, options)
        self.efficiency = Efficiency(problem.space, problem.graph, problem.latency, options.efficiency)
        self.macs = Efficiency(problem.space, problem.graph, problem.latency, "macs")
        self.target = self.efficiency.budget(problem.target_ms)
        self.steps = step_count(problem)
        self.refresh_every = max(1, min(options.refresh_every, int(options.arrival * self.steps) // _LEAST_REFRESHES))
        self.least = tuple(_least_live(allowed, options.floor) for allowed in problem.space.widths)
        self.seen, self.penalty, self.cost, self.frozen = 0, options.penalty, 1.0, False
        self.prices = np.zeros(len(problem.space.groups))
        self._batch_size = 1
        self._reader_gradient: Tensor | None = None
        self._optimizers = self._make_optimizers()
        self.latent_lr = float(self._latent_group["lr"])

    def modules(self) -> Sequence[nn.Module]:
        """The model, the hypernetworks, the latents."""
        return (self.model, self.hyper, self.latents)

    def optimizers(self) -> Sequence[Optimizer]:
        """SGD for weights, for un-decayed vectors and for the latents, a parameter group each."""
        return self._optimizers

    @property
    def _latent_group(self) -> dict[str, Any]:
        """The latents' parameter group; an optimiser that loads a state makes new ones."""
        return self._optimizers[0].param_groups[-1]

    def start(self, saliency: Mapping[str, np.ndarray] | None) -> None:
        """Latents and hypernetworks as the options say; `saliency` of the dense network's units if it is known."""
        options = self.options
        if options.start == "hyper_fan_in":
            generator = torch.Generator().manual_seed(self.problem.seed)
            self.latents.draw(generator)
            self.hyper.draw(self.model, self.latents, generator)
        elif isinstance(self.hyper, Factored):
            self.hyper.draw(self.model, self.latents, torch.Generator().manual_seed(self.problem.seed))
            self.hyper.fit(self.model)
        if isinstance(self.hyper, Factored):
            self.problem.on_event(Note(f"search: {self.hyper.describe()}"))
        if saliency is not None:
            flat = np.concatenate([saliency[name] for name in self.problem.space.names])
            self.latents.saliency.copy_(torch.from_numpy(flat))
            if options.latent_lr == 0:
                self._latent_group["lr"] = self._travelling_lr(float(flat.mean()))
        self.latent_lr = float(self._latent_group["lr"])
        self.refresh(0)

    def weights(self, made: Tensor | None = None, read: Tensor | None = None) -> dict[str, Tensor]:
        """The parameters that latents scale; by default from the latents in force, on both sides."""
        flat = self.latents.flat()
        return self.hyper.weights(self.model, flat if made is None else made, flat if read is None else read)

    def outputs(self, images: Tensor) -> Tensor:
        """What the generated, masked network says to images `(N, C, H, W)`."""
        return called_with(self.model, self.weights(), images).float()

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Task loss, with distillation, of the generated network; plus the latency loss if it has a weight."""
        with torch.autocast(images.device.type, enabled=False):
            made = self.latents.flat()
            read = made * 1.0  # its own node: the gradient that reaches it is that of the consumers alone
            read.register_hook(self._keep_reader_gradient)  # type: ignore[no-untyped-call]
            weights = self.weights(made, read)
        self._batch_size = len(images)
        outputs = called_with(self.model, weights, images).float()
        loss = distilled_loss(self.problem, outputs, images, targets, self.options.distill_alpha)
        if self.options.latency_weight == 0 or self.frozen:
            return loss
        ramp = min(1.0, progress / max(self.options.arrival, 1e-9))
        return loss + self.options.latency_weight * ramp * self.latency_loss()

    def latency_loss(self) -> Tensor:
        """`relu(cost / target - 1)` at the hard widths, with the gradient of the soft ones: `()`."""
        counts = []
        for latents, mask in zip(self.latents.split(self.latents.values()), self._masks(), strict=True):
            typical = latents.detach().abs()[mask].median() if bool(mask.any()) else latents.new_ones(())
            soft = soft_width(latents, typical.clamp_min(self.options.threshold))
            counts.append(soft + (float(mask.sum()) - soft).detach())
        return torch.relu(self.efficiency(torch.stack(counts)) / self.target - 1)

    def after_step(self, progress: float) -> Mapping[str, float]:
        """The proximal step; then, when it is time, a look at the budget."""
        if self._reader_gradient is None:
            raise RuntimeError("after_step was called before loss")
        self.latents.learn(self._reader_gradient[:-1], self._batch_size, self.options.saliency_decay)
        if not self.frozen:
            self.latents.shrink(self.thresholds(), self.least)
        self.seen += 1
        step = round(progress * self.steps) + 1
        arrived = self.options.penalty == 0 and step >= self.options.arrival * self.steps
        if not self.frozen and (arrived or step % self.refresh_every == 0):
            self.refresh(step)
            if arrived or self.cost <= self.target:
                self.freeze()
        figures = self._figures()
        if self.seen % self.options.report_every == 0:
            predicted_ms = predicted(self.problem.latency, self.widths())
            self.problem.on_event(SearchStep(self.seen, self.steps, predicted_ms, figures))
        return figures

    def thresholds(self) -> Tensor:
        """What the next proximal step takes off each latent, `(units of all groups,)`: 0 in groups at their floor."""
        return self._unit_weights() * (float(self._latent_group["lr"]) * self.penalty)

    def refresh(self, step: int) -> None:
        """Prices and cost at the current widths, and the penalty that brings the latents to the budget on time."""
        prices = tile_prices(self.efficiency, self.problem.space, self.widths())
        self.prices, self.cost = prices.weights, prices.cost
        if self.options.penalty > 0:
            return
        split = [part.double().cpu().numpy() for part in self.latents.split(self._lifetimes())]
        travel = needed_travel(self.efficiency, self.problem.space, split, self.target)
        self.penalty = travel / max(self._rates_until_arrival(step), 1e-30)

    def freeze(self) -> None:
        """Remove for good what the fit to the budget leaves out, and end the proximal steps.

        Says whether the proximal steps had met the budget by themselves; `refresh` comes first.
        """
        live = torch.cat(self._masks()).cpu().numpy()
        scores = self.latents.worth() if self.options.exchange else self.latents.ranks()
        keep = top_units(self._named(scores), self._fit().widths)
        masks = [np.isin(np.arange(units), keep[n]) for n, units in zip(keep, self.latents.units, strict=True)]
        stays = np.concatenate(masks)
        self.latents.remove(torch.from_numpy(stays), scores, debias=self.options.debias)
        self.frozen, self.penalty = True, 0.0
        cost = float(self.efficiency(torch.tensor([float(mask.sum()) for mask in masks])))
        again = float((stays & ~live).sum() / max(stays.sum(), 1))
        self._tell_arrival(float((live & ~stays).sum() / max(live.sum(), 1)), again, cost)

    def _fit(self) -> Fit:
        """The widths for the target by the latents as they are."""
        problem, ranks = self.problem, self._named(self.latents.ranks())
        if not self.options.exchange:
            return threshold_fit(problem.space, problem.latency, ranks, problem.target_ms)
        worth = self._named(self.latents.worth())
        return exchange_fit(problem.space, problem.latency, ranks, worth, problem.target_ms)

    def _tell_arrival(self, cut_share: float, reopened: float, cost: float) -> None:
        """A note when the live units met the budget, a caution when many were cut or reopened; `cost` is now."""
        steps = f"{self.seen} of {self.steps} steps"
        was = f"what was live cost {percent(self.cost)} of dense, the target is {percent(self.target)}"
        if reopened > _REOPENED:
            told = f"overshot the budget after {steps}: {was}. {percent(reopened)} of the units that stay were reopened"
            advice = "a lower penalty or more epochs let the proximal steps decide"
        elif self.cost > _NEARLY * self.target:
            told = f"did not meet the budget in {steps}: {was}. {percent(cut_share)} of the live units were cut"
            advice = "with more epochs the proximal steps decide"
        else:
            self.problem.on_event(
                Note(f"search: the latents met the budget after {steps}: cost {percent(cost)} of dense")
            )
            return
        self.problem.on_event(
            Caution(
                f"search: the latents {told} at once, to {percent(cost)}",
                hint=f"that choice is a ranking, not a search: {advice}",
            )
        )

    def scores(self) -> dict[str, np.ndarray]:
        """What the kept units were chosen by, group -> `(units,)`, larger = keep: additive with `exchange`."""
        return self._named(self.latents.final)

    def _named(self, values: Tensor) -> dict[str, np.ndarray]:
        parts = self.latents.split(values)
        return {n: part.double().cpu().numpy() for n, part in zip(self.problem.space.names, parts, strict=True)}

    def widths(self) -> Widths:
        """The live units of each group now, snapped to the grid."""
        return self.problem.space.snap([float(mask.sum()) for mask in self._masks()])

    @torch.no_grad()
    def plain_state(self) -> dict[str, Tensor]:
        """A full-size state dict with the latents multiplied in: no latent and no hypernetwork is left.

        Units that are removed are alive in it, for other widths.
        """
        flat = self.latents.flat(self.latents.revived())
        return self.problem.graph.changed_state(self.model.state_dict(), self.weights(flat, flat))

    def state(self) -> dict[str, Tensor]:
        """Weights, hypernetworks, latents, prices and counters."""
        parts = (("model.", self.model), ("hyper.", self.hyper), ("latents.", self.latents))
        state = {f"{prefix}{name}": value for prefix, part in parts for name, value in part.state_dict().items()}
        numbers = [float(self.seen), self.penalty, self.cost, float(self.frozen), *self.prices.tolist()]
        return {**state, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`."""
        for prefix, part in (("model.", self.model), ("hyper.", self.hyper), ("latents.", self.latents)):
            part.load_state_dict(below(prefix, state))
        seen, self.penalty, self.cost, frozen, *prices = state["numbers"].tolist()
        self.seen, self.frozen, self.prices = int(seen), bool(frozen), np.array(prices)

    def _unit_weights(self) -> Tensor:
        """Price of the group times metric of the unit; 0 where a group is at its floor."""
        plain = self.options.metric == "plain"
        metric = torch.ones_like(self.latents.open) if plain else self.latents.inverse_saliency()
        prices = [
            0.0 if int((part != 0).sum()) <= least else float(price)
            for part, least, price in zip(self.latents.split(self.latents.vector), self.least, self.prices, strict=True)
        ]
        return torch.cat([part * price for part, price in zip(self.latents.split(metric), prices, strict=True)])

    def _lifetimes(self) -> Tensor:
        """The travel at which each unit no longer counts as live: 0 for one that does not now, whatever its group."""
        weights = self._unit_weights()
        left = torch.relu(self.latents.vector.detach().abs() - self.options.threshold)
        return torch.where((weights > 0) | (left == 0), left / weights.clamp_min(1e-30), torch.inf)

    def _rates_until_arrival(self, step: int) -> float:
        """The sum of the latents' learning rates over the steps from `step` to the arrival, at least one of them."""
        last = max(step + 1, int(np.ceil(self.options.arrival * self.steps)))
        return self.latent_lr * self._factors(step, last)

    def _travelling_lr(self, mean_saliency: float) -> float:
        """The rate at which a batch gradient of root mean square size moves a latent `latent_travel` in the search.

        The mean square follows from the saliency, which is half the Fisher information.
        """
        size = math.sqrt(max(2 * mean_saliency / self.problem.plan.batch_size, 1e-30))
        return self.options.latent_travel / (self._factors(0, self.steps) * size)

    def _factors(self, first: int, last: int) -> float:
        return sum(self.problem.plan.lr_factor(step / self.steps) for step in range(first, last))

    def _masks(self) -> list[Tensor]:
        values = self.latents.values().detach()
        if self.frozen:
            return [part > 0 for part in self.latents.split(self.latents.open)]
        parts = zip(self.latents.split(values), self.least, strict=True)
        return [kept_mask(part, self.options.threshold, least) for part, least in parts]

    def _figures(self) -> dict[str, float]:
        masks = self._masks()
        widths = self.widths()
        return {
            "penalty": self.penalty,
            "open_share": sum(float(mask.sum()) for mask in masks) / len(self.latents.open),
            "narrowest": min(float(mask.float().mean()) for mask in masks),
            "cost": self.efficiency.share(widths),
            "macs": self.macs.share(widths),
            "budget": self.target,
        }

    def _keep_reader_gradient(self, gradient: Tensor) -> None:
        self._reader_gradient = gradient.detach()

    def _make_optimizers(self) -> tuple[Optimizer, ...]:
        plan, options = self.problem.plan, self.options
        replaced = set(self.hyper.wiring.generated) if isinstance(self.hyper, Factored) else set()
        own = [p for name, p in self.model.named_parameters() if p.requires_grad and name not in replaced]
        for name in replaced:
            self.model.get_parameter(name).requires_grad_(False)
        generators = list(self.hyper.parameters())
        groups = [
            {"params": [p for p in own if p.ndim > 1] + generators, "weight_decay": plan.weight_decay},
            {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0},
        ]
        latents = {
            "params": [self.latents.vector],
            "lr": options.latent_lr or plan.lr,
            "momentum": options.latent_momentum,
            "nesterov": False,
            "weight_decay": options.latent_decay,
        }
        filled = [group for group in groups if group["params"]]
        return (SGD([*filled, latents], lr=plan.lr, momentum=plan.momentum, nesterov=plan.momentum > 0),)


def _least_live(allowed: Sequence[int], floor: int) -> int:
    """How many latents of a group with these allowed widths proximal steps leave.

    0 in a group that may vanish: its branch goes when the last latent is dead, so when even its best unit is worth
    less than what else the time could buy; some latents that live keep the least width that is not 0.
    """
    return max(allowed[0], min(floor, allowed[-1])) if allowed[0] > 0 else 0


def _backend(model: nn.Module, wiring: Wiring, options: DHP) -> Collapsed:
    if options.backend == "factored":
        return Factored(model, wiring, options.embedding, options.biases)
    return Collapsed(model, wiring)
