"""The control `greedy`: remove the step that loses the least Taylor saliency a predicted millisecond saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hwprune.methods._adjust import check_feasible, fit_to_target
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_ranges
from hwprune.methods._saliency import dense_answer, taylor

_SMALL = 1e-30  # far below any saliency, and no denormal in either precision


def _updated(answer: Answer, again: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """New scores for units that stayed; removed ones keep their old score, but below every unit that stayed."""
    scores: dict[str, np.ndarray] = {}
    for group, kept in answer.keep.items():
        stayed = np.isin(np.arange(len(again[group])), kept)
        # Below, not at most: of two equal scores the lower index wins, and a removed unit would come back. The next
        # number below 0 would not do: it is a denormal, and runtimes switch those off for the whole thread.
        least = again[group][stayed].min()
        removed = np.minimum(answer.scores[group], least - max(1e-6 * abs(least), _SMALL))
        scores[group] = np.where(stayed, again[group], removed)
    return scores


@dataclass(frozen=True)
class Greedy(AbstractMethod):
    """Taylor saliency per predicted ms, not normalised per group, with a floor: the control to beat.

    With `stages` > 1 the saliency is estimated again in the network reached so far, at targets that fall geometrically
    from the dense latency to the budget; what one stage removes, the next ones do not bring back.
    """

    floor: float = field(default=0.25, metadata={"help": "least fraction of each group to keep, if possible"})
    stages: int = field(
        default=1, metadata={"help": "how many times the saliency is estimated on the way to the budget"}
    )
    exchange: bool = field(default=True, metadata={"help": "improve the widths by trading between groups at the end"})
    saliency_images: int = field(default=1024, metadata={"help": "images for the Taylor scores of each stage"})

    def __post_init__(self) -> None:
        check_ranges(self, shares_below_1=("floor",), least={"stages": 1, "saliency_images": 1})

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Yield the network after each stage; the last meets the target."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        answer = dense_answer(problem, taylor(problem, images=self.saliency_images))
        for stage in range(1, self.stages + 1):
            share = stage / self.stages
            target_ms = problem.dense_ms ** (1 - share) * problem.target_ms**share
            # The last one exactly: a power may round.
            exact_ms = target_ms if stage < self.stages else problem.target_ms
            answer = self._fitted(problem, answer, exact_ms, nested=stage > 1)
            yield answer
            if stage < self.stages:
                again = taylor(problem, images=self.saliency_images, keep=answer.keep)
                passes = answer.image_passes + again.image_passes
                answer = replace(answer, scores=_updated(answer, again.scores), image_passes=passes)

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """From this answer's widths to the other target by the same scores; a looser one widens it again."""
        return self._fitted(problem, answer, target_ms, nested=False)

    def _fitted(self, problem: Problem, answer: Answer, target_ms: float, *, nested: bool) -> Answer:
        fit = fit_to_target(
            problem.space,
            problem.latency,
            answer.scores,
            target_ms,
            start=answer.widths,
            floor=self.floor,
            exchange=self.exchange,
            nested=nested,
        )
        return answer.at(fit)
