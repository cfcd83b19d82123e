"""The control `knapsack`: the widths that keep the most saliency within the target, by dynamic programming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choice, check_ranges
from hwprune.methods._knapsack import Knapsack
from hwprune.methods._saliency import Score, dense_answer, saliency_by


@dataclass(frozen=True)
class KnapsackWidths(AbstractMethod):
    """Exact where the latency is a sum over groups; elsewhere linearised around its own answer until that settles.

    Needs no training. HALP (NeurIPS 2022) poses the same problem over channels in the order of their saliency with a
    table of layer times; this one does over the allowed widths of coupled groups with a model of the whole network.
    """

    score: Score = field(
        default="taylor",
        metadata={"help": "what makes a unit worth keeping: taylor saliency, mean weight size (l1, l2) or bn scale"},
    )
    bins: int = field(default=2000, metadata={"help": "parts into which the target latency is divided"})
    floor: float = field(default=0.25, metadata={"help": "least fraction of each group to keep, if possible"})
    saliency_images: int = field(default=1024, metadata={"help": "score=taylor: images for the scores"})

    def __post_init__(self) -> None:
        check_choice("score", self.score, ("taylor", "l1", "l2", "bn"))
        check_ranges(self, shares_below_1=("floor",), least={"bins": 100, "saliency_images": 1})

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Yield the one answer."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        saliency = saliency_by(problem, self.score, images=self.saliency_images)
        yield self.refit(problem, dense_answer(problem, saliency), problem.target_ms)

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """The same saliency within the other target."""
        fit = Knapsack(problem.space, problem.latency, answer.scores, self.bins, self.floor).fit(target_ms)
        return answer.at(fit)
