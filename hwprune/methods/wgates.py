"""W-Gates-style pruning: binary gates computed from the filters' own weights, trained jointly under a budget.

Weights and gates are trained together; the latency model is frozen, reads hard widths and gives its gradient by
differences over one step of the grid. Afterwards the widths are fitted exactly to the target and the network is cut;
the jointly trained weights are kept. Source: Li et al. 2022, "Weight-dependent Gates for Network Pruning"
(doi 10.1109/TCSVT.2022.3175762). The paper's text was not available: what its abstract leaves open (score scale,
initialisation, where the gate multiplies, multiplier, snapping) is our design, and each choice is an option. Knowing
deviations: `project` lets the latency's gradient reach the gates below the budget as well (see `GateSearch`); the
scores' constant term is a saliency that `follow` keeps up to date; with `settle` the small network trains once the
units are chosen.

Left out: measuring the current architecture on the device every few steps and fitting the latency model again where it
errs. The search takes minutes and each measurement a quiet machine for seconds, in which the training would wait. The
controller measures and fits again after the search, and `refit` gives the widths at the corrected target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choices, check_ranges, option
from hwprune.methods._efficiency import COSTS
from hwprune.methods._gate_search import GateSearch
from hwprune.methods._joint import train_search
from hwprune.methods._saliency import taylor

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "start": ("open", "taylor"),
    "gate_sees_weights": ("detach", "attach"),
    "surrogate": ("arctan", "clipped"),
    "task_gradient": ("tangent", "secant"),
    "efficiency": COSTS,
    "multiplier": ("closed_form", "dual"),
    "channels": ("gates", "taylor"),
}


@dataclass(frozen=True)
class WGates(AbstractMethod):
    """Weight-dependent binary gates under a latency budget.

    The plan's learning rate, momentum and weight decay are those of the weights; the gates have their own Adam.
    """

    bias_travel: float = option(0.5, "how far Adam can move a group's scores while units are chosen")
    direction_travel: float = option(0.05, "how far Adam can move a weight of the map from filters to scores meanwhile")
    gate_momentum: float = option(0.9, "Adam's first beta for the gate network")
    start: Literal["open", "taylor"] = option(
        "taylor", "order of the first scores: random (open), or by saliency per ms (taylor)"
    )
    follow: bool = option(True, "start=taylor: the order follows the running saliency; false: it stays the first one")
    margin: float = option(0.5, "the lowest score at the start; above 0, so that every gate is open")
    spread: float = option(0.1, "start=open: standard deviation of the first scores")
    saliency_images: int = option(1024, "images for the Taylor scores of start=taylor")
    gate_sees_weights: Literal["detach", "attach"] = option(
        "detach", "attach: the gates' gradients reach the filters too"
    )
    scale_fix: bool = option(
        True, "scale filters by their batch norm before the gates see them; false: raw, as in the paper"
    )
    surrogate: Literal["arctan", "clipped"] = option("arctan", "what stands for the derivative of the gates' step")
    sharpness: float = option(2.0, "steepness of the arctan surrogate")
    task_gradient: Literal["tangent", "secant"] = option(
        "secant", "how the task values a gate: autograd's gradient, or the estimated effect of opening it (secant)"
    )
    saliency_decay: float = option(0.97, "decay of the running gate gradients")
    project: bool = option(True, "shift all scores together so that the hard widths keep the budget at every step")
    align: bool = option(True, "open exactly as many gates as the nearest allowed widths have units")
    efficiency: Literal["latency", "macs", "flops"] = option(
        "latency", "what the search counts as cost; flops means the same as macs"
    )
    multiplier: Literal["closed_form", "dual"] = option(
        "closed_form", "how the cost is weighted: closed_form, or dual ascent"
    )
    multiplier_boost: float = option(
        15.0, "closed form without project: how strongly the weight of the cost rises while the budget is exceeded"
    )
    multiplier_decay: float = option(
        0.8, "closed form: decay of the running averages from which the weight of the cost follows"
    )
    multiplier_rate: float = option(10.0, "dual ascent: step of the weight when the cost is twice the budget")
    multiplier_period: int = option(1, "dual ascent: optimiser steps between updates")
    warmup: float = option(0.1, "share of the choice of units without a latency term")
    ramp: float = option(0.6, "share of the choice of units in which the budget tightens to the target")
    settle: float = option(
        0.0, "share of the search, at its end, in which the units stay and only the small network trains"
    )
    train_weights: bool = option(True, "train the weights jointly and keep them")
    distill_alpha: float = option(0.7, "weight of the dense network's outputs in the search's loss")
    channels: Literal["gates", "taylor"] = option("gates", "which units stay: by gate score or by running saliency")
    report_every: int = option(5, "steps between two reports on the search")

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_ranges(
            self,
            positive=("bias_travel", "direction_travel", "margin", "sharpness"),
            not_negative=("spread", "multiplier_boost", "multiplier_rate"),
            shares=("warmup", "ramp", "distill_alpha"),
            shares_below_1=("gate_momentum", "saliency_decay", "multiplier_decay", "settle"),
            least={"saliency_images": 1, "report_every": 1, "multiplier_period": 1},
        )

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Train gates and weights by `problem.plan`, fit the widths to the target, yield the one answer."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        search = GateSearch(problem, self)
        passes = self._start(problem, search)
        log = train_search(problem, search)
        scores = search.unit_scores()
        state = {name: value.detach().clone() for name, value in search.model.state_dict().items()}
        answer = Answer(
            search.widths(),
            {},
            0.0,
            scores,
            state if self.train_weights else None,
            log.image_passes + passes,
            log,
        )
        yield self.refit(problem, answer, problem.target_ms)

    def _start(self, problem: Problem, search: GateSearch) -> int:
        """Open every gate; the number of images that the first order of the units took."""
        if self.start == "open":
            generator = torch.Generator().manual_seed(problem.seed)
            search.gates.open_all(search.model, self.margin, self.spread, generator)
            return 0
        saliency = taylor(problem, images=self.saliency_images)
        search.open_by_saliency(saliency.scores)
        return saliency.image_passes
