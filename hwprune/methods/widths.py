"""Learned widths: how many units each group keeps, learned together with the weights; which ones is Taylor's order.

The strongest simple rival of the published methods: one threshold a group (`sigmoid`) or a softmax over its allowed
widths (`softmax`), annealed from soft to hard, with soft masks where the group is read and the exact expectation of
the predicted latency over each group's widths. Source: our own pilot on EfficientNet-Lite0. Softmax over the allowed
numbers of channels is also how FBNetV2 (Wan et al. 2020) and S2HPruner (Lin et al. 2024) choose widths. Nothing is
measured while the search runs; `wgates` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choices, check_ranges, option
from hwprune.methods._joint import train_search
from hwprune.methods._saliency import taylor
from hwprune.methods._width_search import WidthSearch

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "form": ("sigmoid", "softmax"),
    "weights": ("joint", "dense", "frozen"),
}


@dataclass(frozen=True)
class LearnedWidths(AbstractMethod):
    """Widths learned by gradient under a latency budget; channels stay in the order of Taylor saliency.

    Rates are given as the distance Adam can travel in the whole search, so that they do not depend on its length.
    """

    form: Literal["sigmoid", "softmax"] = option(
        "sigmoid", "what is learned for each group: a threshold, or a softmax over its widths"
    )
    weights: Literal["joint", "dense", "frozen"] = option(
        "joint", "joint: train and keep; dense: train in the search, keep the dense ones; frozen: do not train"
    )
    threshold_travel: float = option(1.56, "sigmoid: how far Adam can move a threshold (share of units) in the search")
    threshold_start: float = option(0.85, "sigmoid: first threshold, a share of the units")
    softness_first: float = option(0.12, "sigmoid: width of the transition at the start, a share of the units")
    softness_last: float = option(0.012, "sigmoid: width of the transition at the end")
    logit_travel: float = option(7.8, "softmax: how far Adam can move a logit in the search")
    logit_start: float = option(2.0, "softmax: first logit of the dense width; the narrowest has 0")
    temperature_first: float = option(1.0, "softmax: temperature at the start")
    temperature_last: float = option(0.2, "softmax: temperature at the end")
    momentum: float = option(0.5, "Adam's first beta for thresholds and logits")
    ramp: float = option(0.4, "share of the time in which widths learn until the budget has tightened to the target")
    settle: float = option(0.2, "share of the search, at its end, in which the widths are fixed and the weights adapt")
    multiplier_boost: float = option(15.0, "how strongly the weight of the cost rises while the budget is exceeded")
    multiplier_decay: float = option(0.8, "decay of the running averages from which the weight of the cost follows")
    distill_alpha: float = option(0.7, "weight of the dense network's outputs in the search's loss")
    saliency_images: int = option(1024, "images for the Taylor scores that order the units")
    report_every: int = option(5, "steps between two reports on the search")

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_ranges(
            self,
            positive=(
                "threshold_travel",
                "threshold_start",
                "softness_first",
                "softness_last",
                "logit_travel",
                "temperature_first",
                "temperature_last",
            ),
            not_negative=("logit_start", "multiplier_boost"),
            shares=("ramp", "distill_alpha"),
            shares_below_1=("momentum", "settle", "multiplier_decay"),
            least={"saliency_images": 1, "report_every": 1},
        )

    @property
    def softness(self) -> tuple[float, float]:
        """The sigmoid's transition at start and end."""
        return self.softness_first, self.softness_last

    @property
    def temperatures(self) -> tuple[float, float]:
        """The softmax's temperature at start and end."""
        return self.temperature_first, self.temperature_last

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Train widths and weights by `problem.plan`, fit the widths to the target, yield the one answer."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        saliency = taylor(problem, images=self.saliency_images)
        search = WidthSearch(problem, self, saliency.scores)
        log = train_search(problem, search)
        state = {name: value.detach().clone() for name, value in search.model.state_dict().items()}
        kept = state if self.weights == "joint" else None
        passes = log.image_passes + saliency.image_passes
        answer = Answer(search.widths(), {}, 0.0, saliency.scores, kept, passes, log)
        yield self.refit(problem, answer, problem.target_ms)
