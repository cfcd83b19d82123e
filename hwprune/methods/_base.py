"""The contract of a method: a `Problem` goes in, `Answer`s come out, the last one counts.

A method decides widths *and* which units stay. It never changes the model it was given, never trains longer than
the plan it was given, and ends with a network whose predicted latency is within the target.
"""

from __future__ import annotations

import abc
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from hwprune.core.errors import UsageError, did_you_mean
from hwprune.core.events import OnEvent, Stop, ignore, never
from hwprune.core.widths import SearchSpace, Widths
from hwprune.graph import ChannelGraph
from hwprune.latency.limited import SearchLatency
from hwprune.methods._adjust import Fit, fit_to_target
from hwprune.training._plan import TrainLog, TrainPlan
from hwprune.training.data import Data
from hwprune.training.tasks import Task


@dataclass(frozen=True)
class Problem:
    """What a method needs to know: a dense network, where it may be cut, what that saves, and the bound.

    `model` is trained, in eval mode, and stays as it is. `latency` predicts for widths of `space`; predictions must
    end at or below `target_ms`. `plan` bounds the search's own training; `checkpoint` is the folder where that training
    saves, and `stop` is asked after each of its steps. `study` is the file where a search that evaluates candidates
    keeps them. `measure` times sub-networks in turns on the device and gives, for each, its latency as a share of the
    budget (the upper end of its interval; at most 1 is within); None where there is no device. `image_budget`: how
    many images the whole run may see, so that methods are comparable; None: as the method's own options say.
    """

    model: nn.Module
    graph: ChannelGraph
    space: SearchSpace
    latency: SearchLatency
    dense_ms: float
    target_ms: float
    data: Data
    task: Task
    plan: TrainPlan
    seed: int = 0
    checkpoint: Path | None = None
    on_event: OnEvent = ignore
    stop: Stop = never
    study: Path | None = None
    measure: Callable[[Sequence[Widths]], Sequence[float]] | None = None
    image_budget: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("dense_ms", self.dense_ms), ("target_ms", self.target_ms)):
            if not math.isfinite(value) or value <= 0:
                raise UsageError(
                    f"a search problem needs a positive {name}, not {value}",
                    hint="it is what the latency model predicts, or a share of that, in ms",
                )
        if not self.space.groups:
            raise UsageError(
                "the network has no channel group that can be cut", hint="see what is pinned, and why: graph.pins"
            )
        if self.latency.space.signature() != self.space.signature():
            raise UsageError(
                "the latency model was fitted for another search space than the one to be searched",
                hint="profile and fit with this tile and smallest keep ratio",
            )


@dataclass(frozen=True)
class Answer:
    """A sub-network: its widths, the units that stay, and what the search knew.

    `keep`: group name -> sorted indices of the units that stay. `scores`: group name -> `(units,)`, larger = keep;
    additive over units and comparable between groups, so that another budget can be met with the same knowledge.
    `state`: full-size weights when the search trained them, None for the dense ones. `image_passes` counts images
    that went forward and backward through the full-size network; `log` is the training of the search, if it had one.
    """

    widths: Widths
    keep: Mapping[str, tuple[int, ...]]
    predicted_ms: float
    scores: Mapping[str, np.ndarray]
    state: Mapping[str, Tensor] | None = None
    image_passes: int = 0
    log: TrainLog | None = None

    def at(self, fit: Fit) -> Answer:
        """This answer at other widths: each group keeps its highest-scoring units."""
        keep = top_units(self.scores, fit.widths)
        return replace(self, widths=fit.widths, keep=keep, predicted_ms=fit.predicted_ms)


class AbstractMethod(abc.ABC):
    """A pruning method. Called by the search (`hwprune/search`), not by library users; its fields are its options."""

    @abc.abstractmethod
    def search(self, problem: Problem) -> Iterator[Answer]:
        """Yield candidates; the last one is the answer and is predicted within `problem.target_ms`.

        Raises `BudgetInfeasible`, before any training, when no network of the space is predicted within the target.
        """

    def refit(self, problem: Problem, answer: Answer, target_ms: float) -> Answer:
        """The same knowledge at another target, without training: the measurement missed or left time unused.

        By default from this answer's widths along the scores of its units.
        """
        fit = fit_to_target(
            problem.space, problem.latency, answer.scores, target_ms, start=answer.widths, exchange=False
        )
        return answer.at(fit)


def option(default: Any, help_text: str) -> Any:
    """A field of a method that is an option of the command line."""
    return field(default=default, metadata={"help": help_text})


def check_choices(method: AbstractMethod, choices: Mapping[str, tuple[str, ...]]) -> None:
    """`check_choice` for each option of a method that has a list of choices."""
    for name, known in choices.items():
        check_choice(name, getattr(method, name), known)


def check_choice(option: str, chosen: str, choices: tuple[str, ...]) -> None:
    """Raise `UsageError` when an option's value is none of its choices."""
    if chosen not in choices:
        near = did_you_mean(str(chosen), choices)
        raise UsageError(f"{option} cannot be '{chosen}'.{near}", hint=f"choose from: {', '.join(choices)}")


def check_ranges(
    method: AbstractMethod,
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    shares: Iterable[str] = (),
    shares_below_1: Iterable[str] = (),
    least: Mapping[str, int] | None = None,
) -> None:
    """Raise `UsageError` for the first option named here that is out of its range; NaN and infinity always are.

    `shares` lie in 0..1, `shares_below_1` below 1, `least` has for each counted thing the least number that makes
    sense.
    """
    rules: list[tuple[Iterable[str], Callable[[float], bool], str]] = [
        (positive, lambda value: value > 0, "must be positive"),
        (not_negative, lambda value: value >= 0, "must be 0 or more"),
        (shares, lambda value: 0 <= value <= 1, "must be a share between 0 and 1"),
        (shares_below_1, lambda value: 0 <= value < 1, "must be a share of at least 0 and less than 1"),
    ]
    for name, number in (least or {}).items():
        rules.append(((name,), partial(operator.le, number), f"must be {number} or more"))
    for names, fits, words in rules:
        for name in names:
            value = getattr(method, name)
            if not (math.isfinite(value) and fits(value)):
                raise UsageError(f"{name} {words}, not {value}", hint=f"the default is {getattr(type(method), name)}")


def top_units(scores: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """For each group of `widths`, the sorted indices of its highest-scoring units; ties go to the lower index."""
    keep: dict[str, tuple[int, ...]] = {}
    for group, width in widths.items():
        order = np.argsort(-scores[group], kind="stable")[:width]
        keep[group] = tuple(int(unit) for unit in np.sort(order))
    return keep
