"""DHP: weights generated from one latent vector a channel group, made sparse by proximal steps under a budget.

Source: Li, Gu, Zhang, Van Gool and Timofte 2020, "DHP: Differentiable Meta Pruning via HyperNetworks" (ECCV;
arXiv 2003.13683) and its code. What is ours: the latency in the proximal step and in the stopping rule (the paper
counts FLOPs), the penalty that follows from the budget instead of being tuned for it, the metric of the proximal
step, gates on consumers without a hypernetwork, the start from trained weights, and the trade between groups at the
end: the paper keeps what one threshold on all latents leaves, but latents have fallen at prices of the way, not at
those of the target. Nothing is measured while the search runs; `wgates` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hwprune.core.errors import MethodGaveUp
from hwprune.core.units import percent
from hwprune.methods._adjust import check_feasible, fit_to_target
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choices, check_ranges, option
from hwprune.methods._dhp_budget import threshold_fit
from hwprune.methods._dhp_search import DhpSearch
from hwprune.methods._efficiency import COSTS
from hwprune.methods._joint import train_search
from hwprune.methods._saliency import taylor

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "backend": ("collapsed", "factored"),
    "start": ("dense", "hyper_fan_in"),
    "biases": ("off", "gated"),
    "metric": ("saliency", "plain"),
    "efficiency": COSTS,
}


@dataclass(frozen=True)
class DHP(AbstractMethod):
    """Differentiable meta pruning: latents scale rows and columns of weights and are soft-thresholded to exact zeros.

    A search from trained weights is far shorter than the paper's, whose penalties take more than 10 000 proximal steps
    to bring a typical latent to 0. So the penalty follows from the budget and the steps there are, and the proximal
    step is taken in the metric of the loss's curvature by each latent, by which units differ from the first step on.
    `penalty`, `metric=plain`, `normalise=false`, `debias=false`, `exchange=false`, `latent_lr`, `latent_momentum`,
    `latent_decay`, `backend=factored` and `start=hyper_fan_in` give the paper's form. Its hypernetworks' biases are
    ungated, which makes the cut inexact; that is not offered.
    """

    backend: Literal["collapsed", "factored"] = option(
        "collapsed",
        "collapsed: a weight and its latents; factored: the paper's three layers, 10 times the memory or more",
    )
    start: Literal["dense", "hyper_fan_in"] = option(
        "dense", "first weights: the trained network's (dense), or random ones (hyper_fan_in)"
    )
    embedding: int = option(8, "factored: values that stand for a pair of latents, from which its kernel is generated")
    biases: Literal["off", "gated"] = option(
        "off", "factored: biases in the generating layers: none, or only between live units (gated)"
    )
    penalty: float = option(0.0, "weight of the latents' L1 norm; 0: the one that meets the budget at `arrival`")
    metric: Literal["saliency", "plain"] = option(
        "saliency",
        "what a proximal step takes off a unit: less the larger its saliency, or the same in a group (plain)",
    )
    efficiency: Literal["latency", "macs", "flops"] = option(
        "latency", "what a unit costs in the proximal step; flops means the same as macs"
    )
    arrival: float = option(0.6, "share of the search until the budget is met; the rest trains what is left")
    refresh_every: int = option(100, "steps between two updates of prices and penalty; fewer in a short search")
    normalise: bool = option(True, "divide the latents of a group by their scale where they multiply weights")
    debias: bool = option(True, "once the budget is met, give the latents back what proximal steps took off")
    exchange: bool = option(
        True, "once the budget is met, trade widths between groups by saliency; false: as one threshold leaves them"
    )
    latent_lr: float = option(
        0.0,
        "learning rate of the latents; 0: follows from latent_travel; with random first weights, their learning rate",
    )
    latent_travel: float = option(
        0.05, "how far a latent would move in the whole search if every gradient had the mean size and the same sign"
    )
    latent_momentum: float = option(0.0, "momentum of the latents")
    latent_decay: float = option(0.0, "L2 decay of the latents")
    latency_weight: float = option(0.0, "weight of the differentiable latency loss beside the proximal steps")
    threshold: float = option(5e-3, "a unit counts as live while its latent is at least this large")
    floor: int = option(
        4, "how many units of each group proximal steps leave at least; with --depth a block whose units all die goes"
    )
    saliency_images: int = option(1024, "images for the first saliency of metric=saliency")
    saliency_decay: float = option(0.97, "decay of the running saliency")
    distill_alpha: float = option(0.7, "weight of the dense network's outputs in the search's loss")
    report_every: int = option(5, "steps between two reports on the search")

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_ranges(
            self,
            not_negative=("penalty", "latent_lr", "latent_travel", "latent_decay", "latency_weight"),
            positive=("threshold",),
            shares=("arrival", "distill_alpha"),
            shares_below_1=("latent_momentum", "saliency_decay"),
            least=dict.fromkeys(("embedding", "refresh_every", "report_every", "floor", "saliency_images"), 1),
        )

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Train by `problem.plan` until the latents meet the target, then what is left; yield the one answer.

        Raises `MethodGaveUp` when a `penalty` of the user's does not get there.
        """
        check_feasible(problem.space, problem.latency, problem.target_ms)
        search = DhpSearch(problem, self)
        passes = self._start(problem, search)
        log = train_search(problem, search)
        if not search.frozen:
            search.refresh(search.steps)
            if self.penalty > 0:
                self._check_arrived(search)
            search.freeze()
        passes += log.image_passes
        answer = Answer(search.widths(), {}, 0.0, search.scores(), search.plain_state(), passes, log)
        yield self.refit(problem, answer, problem.target_ms)

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """Widths for the other target by what the latents have left; no training."""
        space, latency = problem.space, problem.latency
        if not self.exchange:
            return answer.at(threshold_fit(space, latency, answer.scores, target_ms))
        return answer.at(fit_to_target(space, latency, answer.scores, target_ms, start=answer.widths))

    def _start(self, problem: Problem, search: DhpSearch) -> int:
        if self.start != "dense":
            search.start(None)
            return 0
        saliency = taylor(problem, images=self.saliency_images)
        search.start(saliency.scores)
        return saliency.image_passes

    def _check_arrived(self, search: DhpSearch) -> None:
        if search.cost > search.target:
            raise MethodGaveUp(
                f"{search.steps} steps with penalty={self.penalty:g} did not shrink the latents to the budget: what is"
                f" live costs {percent(search.cost)} of dense ({self.efficiency}),"
                f" the target is {percent(search.target)}",
                hint="penalty=0 follows from the budget; else raise it, or search for more epochs",
            )
