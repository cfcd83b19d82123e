"""Joint training of weights and smoothed-L0 gates under a latency budget: what the shared loop drives for `gdp`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hwprune.core.errors import MethodGaveUp
from hwprune.core.events import Caution, SearchStep
from hwprune.core.units import percent
from hwprune.core.widths import Widths
from hwprune.methods._adjust import fit_to_target
from hwprune.methods._base import Problem, top_units
from hwprune.methods._decay import decay_open, open_factors
from hwprune.methods._efficiency import Efficiency
from hwprune.methods._gdp_gates import START, GateVectors, absorbed
from hwprune.methods._gdp_prices import Prices, critical_pressure, shortened
from hwprune.methods._joint import distilled_loss, gated_outputs, step_count
from hwprune.methods._proximal import soft_threshold
from hwprune.methods._questions import predicted
from hwprune.training._trainee import AbstractTrainee, below

if TYPE_CHECKING:
    from hwprune.methods.gdp import GDP

# At the end eps is this share of the smallest surviving theta squared, so that every surviving gate is above 0.999.
_POLARISED = 1e-3
# Of a surviving gate; anything below means that eps was not annealed far enough.
_LEAST_GATE = 0.99
# Gates in between are neither closed nor open while units are being chosen.
_BETWEEN = (0.05, 0.95)
_NEVER = -1
_SMALL = 1e-12  # what tells a closed unit from an open one without any benefit


class NotPolarised(MethodGaveUp):
    """A search with gates ended without a clear choice of units; its checkpoint stays."""


@dataclass
class _Step:
    """What one forward pass leaves for `after_step`; `cost` is 1.0 for the dense network."""

    theta: list[Tensor]
    gates: list[Tensor]
    cost: float
    raw_gradients: list[Tensor]
    batch_size: int


class PolarisingSearch(AbstractTrainee):
    """The model's weights and one theta a unit, in three phases of the search.

    Warm-up: theta is frozen. Hold: eps is constant, a proximal step after each gradient step takes theta down by
    speed * pressure * (latency of a unit), and units close for good until the hard widths meet the target; the kept
    units are then fixed on the grid. Anneal: no pressure, eps falls geometrically until every surviving gate is 1.
    """

    def __init__(self, problem: Problem, options: GDP) -> None:
        self.problem, self.options = problem, options
        self.model = copy.deepcopy(problem.model).train()
        like = next(self.model.parameters())
        self.gates = GateVectors(problem.space, like, options.eps)
        self.efficiency = Efficiency(problem.space, problem.graph, problem.latency, options.efficiency)
        self.target = self.efficiency.budget(problem.target_ms)
        self.prices = Prices(self.efficiency, problem.space)
        self.square = [torch.zeros_like(theta) for theta in self._thetas()]
        self.has_prior = False
        self.closed_at = [torch.full_like(theta, _NEVER, dtype=torch.float64) for theta in self._thetas()]
        self.seen, self.settled_at, self.forced = 0, _NEVER, 0.0
        self.pressure, self.critical = 0.0, 0.0
        self.steps = step_count(problem)
        self._step: _Step | None = None
        self._factors: dict[str, list[Tensor]] | None = None
        self._optimizers = self._make_optimizers()

    def modules(self) -> Sequence[nn.Module]:
        """The model; the gates' eps is no batch statistic and is left alone by the loop."""
        return (self.model,)

    def optimizers(self) -> Sequence[Optimizer]:
        """SGD for the weights by the plan, plain SGD without decay for theta at this search's own step length."""
        return self._optimizers

    def start_from(self, saliency: Mapping[str, np.ndarray]) -> None:
        """Known benefits, `(units,)` a group, as the first running estimate."""
        self.has_prior = True
        for square, name in zip(self.square, self.problem.space.names, strict=True):
            square.copy_(torch.from_numpy(saliency[name]))

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """The task's loss of the gated network."""
        with torch.autocast(images.device.type, enabled=False):
            gates = self.gates()
        thetas = [theta.detach().clone() for theta in self._thetas()]
        zeros = [torch.zeros_like(theta) for theta in thetas]
        step = _Step(thetas, [gate.detach() for gate in gates], self.cost(), zeros, len(images))
        self._step = step
        for index, gate in enumerate(gates):
            gate.register_hook(partial(self._gate_gradient, step, index))
        self._set_gate_rate(progress)
        outputs = gated_outputs(self.problem, self.model, gates, images)
        return distilled_loss(self.problem, outputs, images, targets, self.options.distill_alpha)

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Averages, then by phase: proximal step and end of the hold, or the next eps; tell the listener."""
        step = self._step
        if step is None:
            raise RuntimeError("after_step was called before loss")
        self._average(step)
        self.seen += 1
        self._limit_moves(step.theta)
        share = self.seen / self.steps
        if progress >= self.options.warmup and not self.is_settled:
            self._press(share)
            if self.cost() <= self.target:
                self._settle()
            elif share >= self.options.hold:
                self._settle_late(share)
        if self.is_settled:
            self._anneal()
        return self._tell()

    @property
    def is_settled(self) -> bool:
        """Whether the kept units are decided."""
        return self.settled_at != _NEVER

    def cost(self) -> float:
        """Of the hard widths, the exact zeros counted: 1.0 is the dense network."""
        return self.efficiency.share(self.widths())

    def widths(self) -> Widths:
        """The gates of each group that are not zero, at the nearest allowed widths."""
        return self.problem.space.snap([float(count) for count in self.gates.counts()])

    def keep(self) -> dict[str, tuple[int, ...]]:
        """The units whose gates are not zero."""
        pairs = zip(self.problem.space.names, self._thetas(), strict=True)
        return {name: tuple(torch.nonzero(theta.detach()).flatten().tolist()) for name, theta in pairs}

    def benefits(self) -> list[Tensor]:
        """Estimated loss without a unit minus loss with it, `(units,)` a group.

        Half the Fisher information of the gate: in a trained network its mean gradient is noise, because an open gate
        only rescales trained weights, and the loss is a parabola whose curvature is the Fisher information.
        """
        return [self._benefit(index) for index in range(len(self.square))]

    def _benefit(self, index: int) -> Tensor:
        seen = max(1, self.seen)
        return self.square[index] if self.has_prior else self.square[index] / (1 - self.options.saliency_decay**seen)

    def unit_scores(self) -> dict[str, np.ndarray]:
        """What each unit is worth, `(units,)` a group, additive: its benefit.

        Closed units rank below every open one of their group, the last one closed first.
        """
        scores = {}
        for name, benefit, at in zip(self.problem.space.names, self.benefits(), self.closed_at, strict=True):
            scores[name] = _ranked(benefit.double().cpu().numpy(), at.cpu().numpy())
        return scores

    def final_state(self) -> dict[str, Tensor]:
        """The full-size state with the surviving gates absorbed. Raises `NotPolarised` when they are not open."""
        self.check_polarised()
        gates = [gate.detach() for gate in self.gates()]
        return absorbed(self.model.state_dict(), self.problem.graph, self.problem.space.names, gates)

    def check_polarised(self) -> None:
        """Raise `NotPolarised` unless every gate is exactly 0 or above 0.99 and the kept units were decided."""
        low = [float(g[g > 0].min()) if bool((g > 0).any()) else 1.0 for g in self.gates.occupancy()]
        if not self.is_settled or min(low) < _LEAST_GATE:
            number = sum(int(((g > 0) & (g < _LEAST_GATE)).sum()) for g in self.gates.occupancy())
            raise NotPolarised(
                f"the gates are not polarised: {number} of {sum(len(t) for t in self._thetas())} lie between 0 and"
                f" {_LEAST_GATE} after {self.seen} steps",
                hint="search for more epochs, or shorten the hold (option hold) so that eps can be annealed",
            )

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers, theta, eps, running averages, prices, the log of extinctions and the counters."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state.update({f"gates.{name}": value for name, value in self.gates.state_dict().items()})
        for name, parts in (("square", self.square), ("closed_at", self.closed_at)):
            state.update({f"{name}.{index}": value for index, value in enumerate(parts)})
        numbers = (self.seen, self.settled_at, self.forced, self.pressure, self.critical, self.has_prior)
        state["numbers"] = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
        state["prices"] = torch.from_numpy(self.prices.values.copy())
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`."""
        self.model.load_state_dict(below("model.", state))
        self.gates.load_state_dict(below("gates.", state))
        for name, parts in (("square", self.square), ("closed_at", self.closed_at)):
            for index, value in enumerate(parts):
                value.copy_(state[f"{name}.{index}"])
        numbers = state["numbers"].tolist()
        self.seen, self.settled_at, self.has_prior = int(numbers[0]), int(numbers[1]), bool(numbers[5])
        self.forced, self.pressure, self.critical = numbers[2:5]
        self.prices.values = state["prices"].numpy().copy()
        self._factors = None

    def _thetas(self) -> list[Tensor]:
        return list(self.gates.theta)

    @property
    def _speed(self) -> float:
        """How far pressure 1 takes theta in one step: `travel` in the whole hold."""
        return self.options.travel * START / max(1.0, (self.options.hold - self.options.warmup) * self.steps)

    def _set_gate_rate(self, progress: float) -> None:
        """The step length at which a gate of critical benefit and steepest slope stands still at pressure 1.

        It is inverse to the group's price, so that undefended gates of all groups fall at one speed.
        """
        rates = np.zeros(len(self.gates.theta))
        if progress >= self.options.warmup:
            if not self.is_settled:
                self._look()
            rates = self._speed / np.maximum(self.critical * self.prices.weights(), 1e-30)
        for group, rate in zip(self._optimizers[-1].param_groups, rates, strict=True):
            group["lr"] = float(rate)

    def _look(self) -> None:
        """The prices now, and the pressure that the units the target has no room for cannot resist."""
        values = np.array(self.widths().values_tuple(), dtype=np.int64)
        weights = self.prices.update(values)
        benefits = [benefit.double().cpu().numpy() for benefit in self.benefits()]
        live = [(theta.detach() != 0).cpu().numpy() for theta in self._thetas()]
        level = critical_pressure(self.efficiency, self.problem.space, benefits, live, weights, self.target)
        self.critical = self.gates.slope_scale() * level

    def _gate_gradient(self, step: _Step, index: int, gradient: Tensor) -> Tensor:
        """Minus the estimated benefit in place of the gradient by one group's gates."""
        step.raw_gradients[index] = gradient.detach()
        return gradient if self.options.task_gradient == "tangent" else -self._benefit(index)

    def _average(self, step: _Step) -> None:
        decay = self.options.saliency_decay
        for square, raw in zip(self.square, step.raw_gradients, strict=True):
            square.mul_(decay).add_(raw.square() * (0.5 * step.batch_size), alpha=1 - decay)

    @torch.no_grad()
    def _limit_moves(self, before: Sequence[Tensor]) -> None:
        """A gradient step may halve theta at most, and not take it beyond the start: only the prox makes zeros."""
        for theta, old in zip(self._thetas(), before, strict=True):
            theta.copy_(torch.minimum(torch.maximum(theta, 0.5 * old), torch.full_like(old, START)))

    @torch.no_grad()
    def _press(self, share: float) -> None:
        """One proximal step of every gate that may close, no further than the target asks."""
        options, space = self.options, self.problem.space
        passed = (share - options.warmup) / (options.hold - options.warmup)
        self.pressure = 1 + options.boost * min(1.0, max(0.0, passed))
        benefits = [benefit.double().cpu().numpy() for benefit in self.benefits()]
        thetas = [theta.double().cpu().numpy() for theta in self._thetas()]
        least = [allowed[0] for allowed in space.widths]
        free = [~_largest(theta, benefit, width) for theta, benefit, width in zip(thetas, benefits, least, strict=True)]
        amount = shortened(self.efficiency, space, thetas, free, self._speed * self.pressure, self.target)
        for theta, may_close, at in zip(self._thetas(), free, self.closed_at, strict=True):
            moved = torch.where(torch.from_numpy(may_close).to(theta.device), soft_threshold(theta, amount), theta)
            at[(moved == 0) & (theta != 0)] = float(self.seen)
            theta.copy_(moved)
        self._factors = None

    def _settle_late(self, share: float) -> None:
        """The hold ended above the target: the rest is closed at once, or it is an error, as the options say."""
        text = (
            f"the gates reached {percent(self.cost(), 0)} of the dense cost when the hold ended at"
            f" {percent(share, 0)} of the search; the target is {percent(self.target, 0)}"
        )
        if self.options.late == "error":
            raise NotPolarised(text, hint="search for more epochs, raise travel, or allow late=close")
        before = sum(self.gates.counts())
        self._settle()
        self.forced = 1 - sum(self.gates.counts()) / before
        advice = "more search epochs or a larger travel let the gates decide"
        self.problem.on_event(
            Caution(f"{text}: {percent(self.forced, 0)} of the open units were closed at once", hint=advice)
        )

    @torch.no_grad()
    def _settle(self) -> None:
        """Decide the kept units: widths of the grid predicted within the target, best benefits and latest closed first.

        Reopened units start again at the least theta of their group.
        """
        problem, scores = self.problem, self.unit_scores()
        if not any(float(score.max()) > 0 for score in scores.values()):
            raise NotPolarised(
                "the search collapsed: no unit has any influence on the loss", hint="check the weights of the network"
            )
        fit = fit_to_target(
            problem.space,
            problem.latency,
            scores,
            problem.target_ms,
            start=self.widths(),
            exchange=self.options.exchange,
        )
        keep = top_units(scores, fit.widths)
        for name, theta, at in zip(problem.space.names, self._thetas(), self.closed_at, strict=True):
            stays = torch.zeros_like(theta, dtype=torch.bool)
            stays[list(keep[name])] = True
            least = theta[theta != 0].min() if bool(theta.any()) else self.options.eps**0.5
            theta.copy_(torch.where(stays, torch.where(theta == 0, least, theta), torch.zeros_like(theta)))
            at[stays] = _NEVER
            at[~stays & (at == _NEVER)] = float(self.seen)
        self.settled_at, self.pressure, self._factors = self.seen, 0.0, None

    def _anneal(self) -> None:
        """eps falls geometrically, by the share of the steps since the hold that are done, to its last value."""
        last = self.options.anneal * self.steps
        passed = (self.seen - self.settled_at) / max(last - self.settled_at, 1.0)
        passed = 1.0 if self.seen >= self.steps else min(1.0, passed)
        thetas = torch.cat([theta.detach() for theta in self._thetas()])
        live = thetas[thetas != 0]
        if not live.numel():
            return  # with --depth every group may vanish: no gate is left to polarise
        smallest = float(live.min())
        final = min(self.options.eps, _POLARISED * smallest**2)
        self.gates.eps.fill_(math.exp((1 - passed) * math.log(self.options.eps) + passed * math.log(final)))

    def _tell(self) -> dict[str, float]:
        low, high = _BETWEEN
        occupancy = torch.cat(self.gates.occupancy())
        cost = self.cost()
        figures = {
            "pressure": self.pressure,
            "eps": float(self.gates.eps),
            "open_share": float((occupancy > 0).double().mean()),
            "between_share": float(((occupancy > low) & (occupancy < high)).double().mean()),
            "cost": cost,
        }
        if self.seen % self.options.report_every == 0:
            predicted_ms = predicted(self.problem.latency, self.widths())
            self.problem.on_event(SearchStep(self.seen, self.steps, predicted_ms, figures))
        return figures

    def _make_optimizers(self) -> tuple[Optimizer, ...]:
        plan = self.problem.plan
        gates = SGD([{"params": [theta], "lr": 0.0, "scheduled": False} for theta in self.gates.theta], lr=0.0)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        weights = SGD(trainable, lr=plan.lr, momentum=plan.momentum, nesterov=plan.momentum > 0)
        weights.register_step_pre_hook(self._decay)
        return (weights, gates)

    def _decay(self, *_: Any) -> None:
        if self._factors is None:
            pairs = zip(self.problem.space.names, self._thetas(), strict=True)
            closed = {name: (theta.detach() == 0).cpu().numpy() for name, theta in pairs}
            self._factors = open_factors(self.problem.graph, self.model, closed)
        decay_open(self.model, self._factors, self.problem.plan.weight_decay)


def _largest(theta: np.ndarray, benefit: np.ndarray, count: int) -> np.ndarray:
    """True for the `count` units of largest theta; equal ones by benefit, then by index."""
    order = np.lexsort((np.arange(len(theta)), -benefit, -theta))
    chosen = np.zeros(len(theta), dtype=bool)
    chosen[order[:count]] = True
    return chosen


def _ranked(benefit: np.ndarray, closed_at: np.ndarray) -> np.ndarray:
    """Benefits in which a closed unit never reaches an open one, nor one that closed later."""
    scores = benefit.copy()
    closed = np.nonzero(closed_at != _NEVER)[0]
    bound = float(scores[closed_at == _NEVER].min()) if len(closed) < len(scores) else float(scores.max())
    for unit in closed[np.lexsort((-benefit[closed], -closed_at[closed]))]:
        bound = scores[unit] = min(scores[unit], bound - max(1e-6 * abs(bound), _SMALL))
    return scores
