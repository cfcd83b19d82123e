"""GDP-style pruning: smoothed-L0 gates before the consumers, closed by a latency-weighted proximal step, then absorbed.

Weights and gates are trained together. While eps is large, gates whose benefit does not resist the pressure slide to
exact zero; when the hard widths meet the target, eps is annealed and the surviving gates become 1 and are multiplied
into the next layer. Source: Guo et al. 2021, "GDP: Stabilized Neural Network Pruning via Gates with Differentiable
Polarization" (arXiv 2109.02220). The paper's text was not available, only its abstract and one figure; what they leave
open (losses, pressure, schedules) is our design. Knowing deviations: latency differences weight the proximal step
instead of FLOPs; the gate's gradient can be an estimate over its whole range; the survivors are fixed on the
hardware's grid when the hold ends. Nothing is measured while the search runs; `wgates` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hwprune.core.errors import UsageError
from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choices, check_ranges, option
from hwprune.methods._efficiency import COSTS
from hwprune.methods._gdp_search import PolarisingSearch
from hwprune.methods._joint import train_search
from hwprune.methods._questions import predicted
from hwprune.methods._saliency import taylor

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "task_gradient": ("tangent", "secant"),
    "efficiency": COSTS,
    "late": ("close", "error"),
}


@dataclass(frozen=True)
class GDP(AbstractMethod):
    """Differentiable gates that polarise to exact zeros under a latency budget.

    The plan's learning rate, momentum and weight decay are those of the weights; theta starts at 1, and eps and every
    step of theta are relative to that. Raises `NotPolarised` when gates stay between closed and open.
    """

    eps: float = option(0.1, "gate = theta^2 / (theta^2 + eps) while units are chosen; theta starts at 1")
    warmup: float = option(0.05, "share of the search with frozen gates")
    hold: float = option(0.5, "share of the search after which eps begins to fall at the latest")
    anneal: float = option(0.9, "share of the search after which eps has reached its last value")
    travel: float = option(
        3.0, "how far a pressure of 1 moves theta, which starts at 1, in the hold if nothing defends it"
    )
    boost: float = option(1.0, "how much the pressure, 1 at first, rises during the hold")
    task_gradient: Literal["tangent", "secant"] = option(
        "secant", "what defends a gate: autograd's gradient, or the estimated rise of the loss without the unit"
    )
    saliency_images: int = option(1024, "images for the first estimate of what each unit is worth; 0: none")
    saliency_decay: float = option(0.97, "decay of the running gate gradients")
    efficiency: Literal["latency", "macs", "flops"] = option(
        "latency", "what the search counts as cost; flops means the same as macs"
    )
    late: Literal["close", "error"] = option(
        "close", "if the hold ends above the target: close what is too much at once, or end with an error"
    )
    exchange: bool = option(True, "improve the widths by trading between groups when the units are fixed")
    distill_alpha: float = option(0.7, "weight of the dense network's outputs in the search's loss")
    report_every: int = option(5, "steps between two reports on the search")

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_ranges(
            self,
            positive=("eps", "travel"),
            not_negative=("boost",),
            shares=("distill_alpha",),
            shares_below_1=("saliency_decay",),
            least={"saliency_images": 0, "report_every": 1},
        )
        if not 0 <= self.warmup < self.hold < self.anneal <= 1:
            raise UsageError(
                f"warmup={self.warmup}, hold={self.hold} and anneal={self.anneal} must rise within 0..1",
                hint="they are shares of the search: first frozen gates, then the choice of units, then falling eps",
            )

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Train gates and weights by `problem.plan`; yield the one answer, its gates absorbed into the weights."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        search, passes = PolarisingSearch(problem, self), 0
        if self.saliency_images:
            saliency = taylor(problem, images=self.saliency_images)
            search.start_from(saliency.scores)
            passes = saliency.image_passes
        log = train_search(problem, search)
        state, widths = search.final_state(), search.widths()
        yield Answer(
            widths,
            search.keep(),
            predicted(problem.latency, widths),
            search.unit_scores(),
            state,
            log.image_passes + passes,
            log,
        )
