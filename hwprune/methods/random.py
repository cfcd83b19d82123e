"""The control `random`: random widths that fit; what non-uniform widths are worth without a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from hwprune.core.widths import Widths
from hwprune.latency.features import widths_array
from hwprune.methods._adjust import Fit, check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_ranges
from hwprune.methods._questions import predicted
from hwprune.methods._saliency import dense_answer, taylor


@dataclass(frozen=True)
class RandomWidths(AbstractMethod):
    """Widths drawn at random, then narrowed and widened in random groups until nothing more fits; best channels."""

    saliency_images: int = field(default=1024, metadata={"help": "images for the Taylor scores that pick channels"})

    def __post_init__(self) -> None:
        check_ranges(self, least={"saliency_images": 1})

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Yield the one answer; another seed gives another."""
        check_feasible(problem.space, problem.latency, problem.target_ms)
        saliency = taylor(problem, images=self.saliency_images)
        yield self.refit(problem, dense_answer(problem, saliency), problem.target_ms)

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """The same random draw, narrowed or widened to the other target."""
        least = check_feasible(problem.space, problem.latency, target_ms)
        rng = Random(problem.seed)
        narrowed = _narrow(problem, rng, problem.space.sample(rng), least, target_ms)
        fit = _widen(problem, rng, narrowed, target_ms)
        return answer.at(fit)


def _step(problem: Problem, widths: Widths, group: str, direction: int) -> Widths | None:
    allowed = problem.space.widths[problem.space.names.index(group)]
    place = allowed.index(widths[group]) + direction
    return widths.replace(group, allowed[place]) if 0 <= place < len(allowed) else None


def _narrow(problem: Problem, rng: Random, widths: Widths, least: Fit, target_ms: float) -> Fit:
    """Random groups one step narrower until the target is met; the fastest network if that is not enough."""
    fit = Fit(widths, predicted(problem.latency, widths))
    while fit.predicted_ms > target_ms:
        options = [step for name in problem.space.names if (step := _step(problem, fit.widths, name, -1))]
        if not options:
            return least
        chosen = rng.choice(options)
        fit = Fit(chosen, predicted(problem.latency, chosen))
    return fit


def _widen(problem: Problem, rng: Random, fit: Fit, target_ms: float) -> Fit:
    """Random groups one step wider while that fits."""
    while True:
        options = [step for name in problem.space.names if (step := _step(problem, fit.widths, name, +1))]
        if not options:
            return fit
        rows_ms = problem.latency.predict_batch(widths_array(problem.space, options))
        fitting = [Fit(o, float(ms)) for o, ms in zip(options, rows_ms, strict=True) if ms <= target_ms]
        if not fitting:
            return fit
        fit = rng.choice(fitting)
