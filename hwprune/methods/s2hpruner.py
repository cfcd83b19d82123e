"""S2HPruner-style pruning: a soft network learns the widths, the hard network is trained beside it in every step.

A softmax over each group's allowed widths gives soft masks by importance rank; the hard network is the really cut one.
Distillation between the two is decoupled: the gap trains the weights through the hard network and the widths through
the soft one, never the soft network's weights. Source: Lin et al. 2024, "S2HPruner: Soft-to-Hard Distillation Bridges
the Discretization Gap in Pruning" (arXiv 2410.07046), and the authors' demonstration code, read but not copied.

Where this differs, and why: masks multiply where a group is read, since in front of a batch norm they have no effect;
soft and hard network have batch-norm statistics of their own; latency in place of FLOPs, as the exact expectation over
the allowed widths, one-sided; widths are fitted to the target when they freeze, so that the hard network trains at the
budget; units are in Taylor order unless told otherwise; the dense network is a second teacher (`distill_alpha` 0: not).

Left out: training on several devices, whose logits would have to agree after every step. One process trains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hwprune.core.errors import UsageError
from hwprune.core.events import Note
from hwprune.core.units import format_ms, percent
from hwprune.core.widths import Widths
from hwprune.graph import cut
from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choices, check_ranges, option
from hwprune.methods._joint import train_search
from hwprune.methods._questions import predicted
from hwprune.methods._s2h_search import S2HSearch
from hwprune.methods._saliency import saliency_by
from hwprune.training.bn import recalibrate_bn
from hwprune.training.tasks import evaluate

# Enough for batch-norm statistics that are only to be reported.
_REPORT_IMAGES = 512

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "order": ("taylor", "l1", "bn"),
    "routing": ("decoupled", "to_weights", "to_widths", "coupled"),
    "balance": ("closed_form", "norm"),
}


@dataclass(frozen=True)
class S2HPruner(AbstractMethod):
    """Soft-to-hard distillation under a latency budget; one search step costs two to three dense steps."""

    gap_weight: float = option(1.0, "weight of the distance between soft and hard outputs; 0: plain soft masks")
    gap_temperature: float = option(1.0, "temperature of that distance")
    routing: Literal["decoupled", "to_weights", "to_widths", "coupled"] = option(
        "decoupled", "what the gap trains: decoupled, to_weights, to_widths or coupled"
    )
    temperature: float = option(1.0, "temperature of the softmax over widths")
    logit_travel: float = option(8.0, "how far Adam can move a logit in the whole search")
    momentum: float = option(0.5, "Adam's first beta for the logits")
    order: Literal["taylor", "l1", "bn"] = option("taylor", "rank of the units: taylor saliency, l1 norm or bn scale")
    saliency_images: int = option(1024, "order=taylor: images for the scores")
    distill_alpha: float = option(0.7, "weight of the dense network's outputs in the loss of the soft network")
    balance: Literal["closed_form", "norm"] = option(
        "closed_form", "how the latency is weighted: in closed form, or by the lengths of the gradients (norm)"
    )
    norm_ratio: float = option(1.0, "balance=norm: length of the latency's gradient as a share of the task's")
    multiplier_boost: float = option(
        15.0, "closed form: how strongly the weight of the cost rises while the budget is exceeded"
    )
    multiplier_decay: float = option(
        0.8, "closed form: decay of the running averages from which the weight of the cost follows"
    )
    warmup: float = option(0.05, "share of the search, at its start, in which the widths do not learn")
    frozen: float = option(0.4, "share of the search, at its end, in which the widths stay as fitted to the target")
    hard_only: float = option(0.2, "share of the search, at its end, in which only the hard network trains")
    ramp: float = option(0.4, "share of the time in which widths learn until the budget has tightened to the target")
    report_every: int = option(5, "steps between two reports on the search")

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_ranges(
            self,
            positive=("gap_temperature", "temperature", "logit_travel", "norm_ratio"),
            not_negative=("gap_weight", "multiplier_boost"),
            shares=("distill_alpha", "warmup", "frozen", "hard_only", "ramp"),
            shares_below_1=("momentum", "multiplier_decay"),
            least={"saliency_images": 1, "report_every": 1},
        )
        if self.hard_only > self.frozen:
            raise UsageError(
                f"hard_only={self.hard_only} is longer than frozen={self.frozen}",
                hint="the hard network trains alone only after the widths are fixed",
            )
        if self.warmup + self.frozen >= 1:
            raise UsageError(
                f"warmup={self.warmup} and frozen={self.frozen} leave nothing of the search for the widths",
                hint="together they must be less than 1",
            )

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Train soft and hard network by `problem.plan`, yield the hard one.

        After every epoch the listener hears the scores of both, their gap and the hard network's latency: predicted,
        and as measured where the problem has a device.
        """
        check_feasible(problem.space, problem.latency, problem.target_ms)
        saliency = saliency_by(problem, self.order, images=self.saliency_images)
        search = S2HSearch(problem, self, saliency.scores)
        log = train_search(problem, search, _EpochReport(search))
        passes = saliency.image_passes + math.ceil(search.pass_thirds / 3)
        answer = Answer(search.widths(), {}, 0.0, saliency.scores, search.hard_state(), passes, log)
        answer = self.refit(problem, answer, problem.target_ms)
        _tell_scores(problem, answer)
        yield answer


def _tell_scores(problem: Problem, answer: Answer) -> None:
    """Say what the hard network scores on validation data as the search left it, and after recalibration only."""
    full = copy.deepcopy(problem.model)
    full.load_state_dict(dict(answer.state or {}))
    small = cut(full, problem.graph, answer.keep).eval()
    before = evaluate(small, problem.data, "val", task=problem.task).score
    after = evaluate(
        recalibrate_bn(small, problem.data, seed=problem.seed), problem.data, "val", task=problem.task
    ).score
    text = f"the hard network scores {before:.4f} without further training, {after:.4f} with recalibrated batch norms"
    problem.on_event(Note(text))


class _EpochReport:
    """The figures of an epoch; each set of hard widths is measured once."""

    def __init__(self, search: S2HSearch) -> None:
        self.search = search
        self.measured: dict[Widths, float] = {}

    def __call__(self) -> dict[str, float]:
        """Scores, gap, predicted ms, and the measured latency as a share of the budget where there is a device."""
        search, problem = self.search, self.search.problem
        widths = search.hard_widths()
        predicted_ms = predicted(problem.latency, widths)
        figures = {**search.compare(_REPORT_IMAGES), "hard_predicted_ms": predicted_ms}
        text = f"hard network: predicted {format_ms(predicted_ms)}"
        if problem.measure is not None:
            if widths not in self.measured:
                (self.measured[widths],) = problem.measure([widths])
            figures["hard_measured_use"] = self.measured[widths]
            text += f", measured {percent(self.measured[widths])} of the budget"
        problem.on_event(Note(f"{text}; score {figures['hard_score']:.4f} (soft: {figures['soft_score']:.4f})"))
        return figures
