"""Learned widths: how many units each group keeps, learned together with the weights; which ones is Taylor's order.

The strongest simple rival of the published methods: one threshold a group (`sigmoid`) or a softmax over its allowed
widths (`softmax`), annealed from soft to hard, with soft masks where the group is read and the exact expectation of
the predicted latency over each group's widths. Source: our own pilot on EfficientNet-Lite0. Softmax over the allowed
numbers of channels is also how FBNetV2 (Wan et al. 2020) and S2HPruner (Lin et al. 2024) choose widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hwprune.core.errors import UsageError
from hwprune.methods._adjust import check_feasible, fit_to_target
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choice, top_units
from hwprune.methods._saliency import taylor
from hwprune.methods._width_search import WidthSearch
from hwprune.training.loop import train

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "form": ("sigmoid", "softmax"),
    "weights": ("joint", "dense", "frozen"),
}


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class LearnedWidths(AbstractMethod):
    """Widths learned by gradient under a latency budget; channels stay in the order of Taylor saliency.

    Rates are given as the distance Adam can travel in the whole search, so that they do not depend on its length.
    """

    form: Literal["sigmoid", "softmax"] = _option("sigmoid", "one threshold a group, or a softmax over its widths")
    weights: Literal["joint", "dense", "frozen"] = _option(
        "joint", "joint: train and keep; dense: train in the search, keep the dense ones; frozen: do not train"
    )
    threshold_travel: float = _option(1.56, "sigmoid: how far Adam can move a threshold (share of units) in the search")
    threshold_start: float = _option(0.85, "sigmoid: first threshold, a share of the units")
    softness_first: float = _option(0.12, "sigmoid: width of the transition at the start, a share of the units")
    softness_last: float = _option(0.012, "sigmoid: width of the transition at the end")
    logit_travel: float = _option(7.8, "softmax: how far Adam can move a logit in the search")
    logit_start: float = _option(2.0, "softmax: first logit of the dense width; the narrowest has 0")
    temperature_first: float = _option(1.0, "softmax: temperature at the start")
    temperature_last: float = _option(0.2, "softmax: temperature at the end")
    momentum: float = _option(0.5, "Adam's first beta for thresholds and logits")
    ramp: float = _option(0.4, "share of the learning of widths over which the budget tightens to the target")
    settle: float = _option(0.2, "share of the search, at its end, in which the widths are fixed and the weights adapt")
    multiplier_boost: float = _option(15.0, "weight of the cost: how much a relative violation of 1 adds")
    multiplier_decay: float = _option(0.8, "weight of the cost: decay of the averaged products")
    distill_alpha: float = _option(0.7, "weight of the dense network's outputs in the search's loss")
    saliency_images: int = _option(1024, "images for the Taylor scores that order the units")
    report_every: int = _option(5, "steps between two search events")

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in (
            "threshold_travel",
            "threshold_start",
            "softness_first",
            "softness_last",
            "logit_travel",
            "temperature_first",
            "temperature_last",
            "report_every",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be positive, not {value}")
        for name in ("momentum", "ramp", "settle", "multiplier_decay", "distill_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share in 0..1, not {getattr(self, name)}")
        if self.settle == 1:
            raise UsageError("settle is less than 1: the widths need some of the search", hint="the default is 0.2")

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
        log = train(
            search,
            problem.data,
            plan=problem.plan,
            seed=problem.seed,
            checkpoint=problem.checkpoint,
            on_event=problem.on_event,
            stage="search",
            stop=problem.stop,
        )
        state = {name: value.detach().clone() for name, value in search.model.state_dict().items()}
        kept = state if self.weights == "joint" else None
        passes = log.image_passes + saliency.image_passes
        answer = Answer(search.widths(), {}, 0.0, saliency.scores, kept, passes, log)
        yield self.refit(problem, answer, problem.target_ms)

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """From the learned widths to the other target by Taylor saliency per predicted ms; no training."""
        fit = fit_to_target(
            problem.space, problem.latency, answer.scores, target_ms, start=answer.widths, exchange=False
        )
        keep = top_units(answer.scores, fit.widths)
        return replace(answer, widths=fit.widths, keep=keep, predicted_ms=fit.predicted_ms)
