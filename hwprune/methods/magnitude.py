"""The control `magnitude`: one ranking of all units by weight size, cut where the budget fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choice
from hwprune.methods._families import ranked_family, widest_that_fits
from hwprune.methods._saliency import dense_answer, saliency_by


@dataclass(frozen=True)
class Magnitude(AbstractMethod):
    """Global magnitude pruning: needs no data; knows nothing of latency but when to stop."""

    score: Literal["l1", "l2", "bn"] = field(
        default="l1",
        metadata={"help": "mean absolute weight (l1), root mean square weight (l2) or batch-norm weight (bn)"},
    )

    def __post_init__(self) -> None:
        check_choice("score", self.score, ("l1", "l2", "bn"))

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Yield the one answer."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        yield self.refit(problem, dense_answer(problem, saliency_by(problem, self.score)), problem.target_ms)

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """The same ranking cut at the other target."""
        family = ranked_family(problem.space, [answer.scores[name] for name in problem.space.names])
        fit = widest_that_fits(problem.space, problem.latency, family, target_ms)
        return answer.at(fit)
