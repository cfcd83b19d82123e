"""The control `uniform`: one keep ratio for every group, the largest that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choice, check_ranges
from hwprune.methods._families import uniform_family, widest_that_fits
from hwprune.methods._saliency import dense_answer, saliency_by


@dataclass(frozen=True)
class Uniform(AbstractMethod):
    """Width scaling: what a method must beat to have learned anything about the widths."""

    channels: Literal["taylor", "l1"] = field(
        default="taylor", metadata={"help": "which channels stay: taylor (gate gradients) or l1 (largest weights)"}
    )
    saliency_images: int = field(default=1024, metadata={"help": "images for the Taylor scores"})

    def __post_init__(self) -> None:
        check_choice("channels", self.channels, ("taylor", "l1"))
        check_ranges(self, least={"saliency_images": 1})

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Yield the one answer."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        saliency = saliency_by(problem, self.channels, images=self.saliency_images)
        yield self.refit(problem, dense_answer(problem, saliency), problem.target_ms)

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """The largest keep ratio that fits the other target."""
        fit = widest_that_fits(problem.space, problem.latency, uniform_family(problem.space), target_ms)
        return answer.at(fit)
