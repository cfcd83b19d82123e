"""What MetaPruning may spend where the images of the whole run are bounded.

Its 200 small evaluations see more images than the training of other methods, so at equal cost both their number and
their size shrink. All numbers of the sharing are our design.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from hwprune.core.errors import MethodGaveUp
from hwprune.core.events import Note
from hwprune.methods._base import Problem
from hwprune.methods._joint import step_count
from hwprune.training._random import generator
from hwprune.training.data import ArraySet

if TYPE_CHECKING:
    from hwprune.methods.metapruning import MetaPruning

FORWARD_COST = 1 / 3  # of a forward and backward pass
RECALIBRATION_BATCH = 128
# What finetuning is left with decides the result as much as the widths do.
_SEARCH = 0.5
# Of the search's images at most; of what is left then, at most.
_SALIENCY, _TRAINING = 0.25, 0.5
_SALIENCY_BATCH = 32
# Fewer images say nothing reliable about a batch norm or a loss.
_LEAST_IMAGES = RECALIBRATION_BATCH
_NAMES = ("saliency images", "training steps", "candidates", "recalibration images", "validation images")


@dataclass(frozen=True)
class Spending:
    """Images and candidates of a search: `recalibration` and `validation` are images of each candidate."""

    saliency: int
    steps: int
    evaluations: int
    recalibration: int
    validation: int

    def images(self, batch_size: int) -> float:
        """What this costs, in images that go forward and backward."""
        forward = self.evaluations * (self.recalibration + self.validation)
        return self.saliency + self.steps * batch_size + FORWARD_COST * forward


def within_image_budget(problem: Problem, options: MetaPruning) -> tuple[Problem, MetaPruning]:
    """The problem and the options of a search that sees at most half of `problem.image_budget`; as they are without it.

    A quarter of that half is the most for the saliency, half of the rest the most for PruningNet's training. What then
    remains is for the candidates: their number and the images of each shrink by one factor, the images to no fewer
    than 128 for the batch norms and 128 for the score. The figures told after an epoch choose nothing and are not
    counted. Says what was cut; raises `MethodGaveUp` when not one generation is left.
    """
    if problem.image_budget is None:
        return problem, options
    data, batch_size = problem.data, min(problem.plan.batch_size, len(problem.data.train))
    wanted = Spending(
        min(math.ceil(options.saliency_images / _SALIENCY_BATCH) * _SALIENCY_BATCH, len(data.train)),
        step_count(problem),
        options.evaluations,
        min(options.recalibration_images, len(data.train)),
        len(data.val),
    )
    allowed = _SEARCH * problem.image_budget
    if wanted.images(batch_size) <= allowed:
        return problem, options
    spending = shared_out(wanted, allowed, batch_size)
    if spending.evaluations < min(options.population, options.evaluations):
        raise MethodGaveUp(
            f"of the {problem.image_budget} images of the run the search may see {allowed:.0f}: enough for"
            f" {max(0, spending.evaluations)} candidates, and a generation has {options.population}",
            hint="raise --total-epochs, or lower --epochs or --set population",
        )
    cuts = ", ".join(
        f"{name} {now} in place of {before}"
        for name, now, before in zip(_NAMES, vars(spending).values(), vars(wanted).values(), strict=True)
        if now != before
    )
    problem.on_event(
        Note(f"of the {problem.image_budget} images of the run the search may see {allowed:.0f}, so: {cuts}")
    )
    return _limited(problem, spending, batch_size), replace(
        options,
        saliency_images=spending.saliency,
        evaluations=spending.evaluations,
        recalibration_images=spending.recalibration,
    )


def shared_out(wanted: Spending, allowed: float, batch_size: int) -> Spending:
    """As much of `wanted` as `allowed` images pay for; possibly no candidates at all."""
    batches = max(1, int(_SALIENCY * allowed) // _SALIENCY_BATCH)
    saliency = min(wanted.saliency, batches * _SALIENCY_BATCH)
    left = allowed - saliency
    steps = min(wanted.steps, max(1, int(_TRAINING * left) // batch_size))
    forward = (left - steps * batch_size) / FORWARD_COST
    each = wanted.recalibration + wanted.validation
    factor = math.sqrt(min(1.0, max(0.0, forward) / (wanted.evaluations * each)))
    recalibration = _shrunk(wanted.recalibration, factor)
    if recalibration > RECALIBRATION_BATCH:
        recalibration -= recalibration % RECALIBRATION_BATCH  # averages are over whole batches
    validation = _shrunk(wanted.validation, factor)
    evaluations = min(wanted.evaluations, math.floor(forward / (recalibration + validation)))
    return Spending(saliency, steps, evaluations, recalibration, validation)


def _shrunk(images: int, factor: float) -> int:
    return max(min(images, _LEAST_IMAGES), int(images * factor))


def _limited(problem: Problem, spending: Spending, batch_size: int) -> Problem:
    """The problem with a shorter training and a random subset of the validation images."""
    plan, val = problem.plan, problem.data.val
    if spending.steps < step_count(problem):
        plan = replace(plan, epochs=spending.steps / (len(problem.data.train) // batch_size))
    if spending.validation < len(val):
        order = torch.randperm(len(val), generator=generator(problem.seed, "validation"))
        chosen = order[: spending.validation].sort().values
        val = ArraySet(val.images[chosen], val.targets[chosen])
    return replace(problem, plan=plan, data=replace(problem.data, val=val))
