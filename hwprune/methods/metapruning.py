"""MetaPruning: a network that generates the weights of any sub-network, then an evolution over the widths.

PruningNet is trained with another random structure every step; the evolution scores structures with generated weights
and never evaluates one that is predicted over the budget. Source: Liu et al. 2019, "MetaPruning: Meta Learning for
Automatic Neural Network Channel Pruning" (arXiv 1903.10258), and the code at github.com/liuzechun/MetaPruning. Where we
differ: the budget is the predicted latency of the whole network, the widths are those of the search space, W0 starts
as the trained weights in order of importance (warm_start), PruningNet follows the dense network's outputs
(distill_alpha), half of its steps train structures near the budget (near_budget), candidates are compared by their loss
(fitness: a few hundred images give many candidates the same score), and there are fewer of them, on fewer images
where the images of the whole run are bounded.

The candidates of a run are an Optuna study in RUN/study.log: `optuna-dashboard RUN/study.log` shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from hwprune.core.events import Caution, Note
from hwprune.methods._adjust import check_feasible
from hwprune.methods._base import AbstractMethod, Answer, Problem, check_choices, check_ranges, option, top_units
from hwprune.methods._joint import train_search
from hwprune.methods._metapruning_budget import FORWARD_COST, within_image_budget
from hwprune.methods._metapruning_net import PruningNet, with_random_weights
from hwprune.methods._metapruning_training import StructureTraining, check_size
from hwprune.methods._questions import predicted
from hwprune.methods._saliency import dense_answer, taylor, weight_norm
from hwprune.training._random import mix

if TYPE_CHECKING:
    from hwprune.methods._metapruning_search import Candidate

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "encoding": ("layer", "block"),
    "channels": ("taylor", "l1", "index"),
    "sampler": ("ga", "nsga2", "tpe", "random"),
    "first": ("random", "baselines"),
    "fitness": ("score", "loss", "distance"),
    "weights": ("generated", "dense", "scratch"),
}
# The rule of thumb of the paper's authors, for training accuracy: half of the dense network's, or it is not ready.
_READY = 0.5


@dataclass(frozen=True)
class MetaPruning(AbstractMethod):
    """Generated weights and an evolution over widths, kept as an Optuna study (optuna-dashboard RUN/study.log)."""

    hidden: int = option(
        8, "hidden units of a generator (the paper: 32); PruningNet is as large as hidden + 1 networks"
    )
    encoding: Literal["layer", "block"] = option(
        "block", "which widths a generator sees: those of its layer, or of its whole block"
    )
    warm_start: bool = option(True, "start the generators' biases at the trained weights; false: at random")
    channels: Literal["taylor", "l1", "index"] = option(
        "taylor", "which units a width keeps: the best by taylor or l1, or the first ones (index)"
    )
    saliency_images: int = option(1024, "images for the Taylor scores")
    near_budget: float = option(0.5, "share of the training steps that train structures just within the budget")
    distill_alpha: float = option(0.7, "weight of the dense network's outputs in PruningNet's loss")
    sampler: Literal["ga", "nsga2", "tpe", "random"] = option(
        "ga", "what proposes candidates; ga is the paper's genetic algorithm, random the control"
    )
    evaluations: int = option(200, "candidates evaluated (the paper: 1000)")
    population: int = option(20, "candidates a generation (the paper: 50)")
    parents: int = option(10, "how many of the best candidates may have children")
    mutation: float = option(0.1, "probability that a mutant's gene changes")
    least_use: float = option(0.95, "least share of the budget that a candidate is predicted to use")
    first: Literal["random", "baselines"] = option(
        "random", "first candidates: random ones, or the uniform and the greedy widths (baselines)"
    )
    fitness: Literal["score", "loss", "distance"] = option(
        "loss", "by what candidates are compared on validation images; the paper: score"
    )
    recalibration_images: int = option(512, "training images for the batch norms of each candidate")
    measured: int = option(10, "how many of the best candidates to measure on the device; 0: none")
    weights: Literal["generated", "dense", "scratch"] = option(
        "generated", "first weights of the winner's training: generated, the dense network's, or random (scratch)"
    )
    memory_gb: float = option(0.0, "most memory for training PruningNet, in GB; 0: half of the machine's")
    storage: str = option(
        "", "an Optuna storage URL (sqlite:///FILE) in place of RUN/study.log; for one process at a time"
    )

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_ranges(
            self,
            not_negative=("memory_gb",),
            shares=("near_budget", "distill_alpha", "mutation", "least_use"),
            least={
                "evaluations": 1,
                "population": 2,
                "parents": 2,
                "hidden": 0,
                "measured": 0,
                "saliency_images": 1,
                "recalibration_images": 1,
            },
        )

    def search(self, problem: Problem) -> Iterator[Answer]:
        """Train PruningNet by `problem.plan`, evolve, measure the best, yield the one answer.

        When the dense network fits, it is the answer. With an `image_budget` the search is cut to half of it. Raises
        `MethodGaveUp` for a PruningNet that memory does not hold and for an `image_budget` without a generation in
        it, `TrainingDiverged` when outputs are not finite, in several candidates in a row or in all, `UsageError` for a
        storage that cannot be opened, `RunError` for a study of another search.
        """
        check_feasible(problem.space, problem.latency, problem.target_ms)
        dense_ms = predicted(problem.latency, problem.space.dense())
        if dense_ms <= problem.target_ms:
            saliency = taylor(problem, images=self.saliency_images)
            scores = self._ordered(problem, saliency.scores)
            yield replace(dense_answer(problem, saliency), scores=scores, predicted_ms=dense_ms)
            return
        check_size(problem, self.hidden, self.encoding, self.memory_gb)
        limited, options = within_image_budget(problem, self)
        yield options._searched(limited)

    def _searched(self, problem: Problem) -> Answer:
        from hwprune.methods._metapruning_search import Evolution, Judge

        saliency = taylor(problem, images=self.saliency_images)
        scores = self._ordered(problem, saliency.scores)
        evolution = Evolution(problem, self, scores)
        net = self.pruning_net(problem, scores)
        judge = Judge(problem, net, self.fitness, self.recalibration_images)
        training = StructureTraining(
            problem, net, evolution.genes, near_budget=self.near_budget, distill_alpha=self.distill_alpha
        )
        log = train_search(problem, training, judge.probes)
        _warn_if_not_ready(problem, log.history[-1])
        candidates = evolution.run(judge)
        winner = self._winner(problem, candidates)
        forward = round(evolution.evaluated * judge.images * FORWARD_COST)
        answer = Answer(
            winner.widths,
            top_units(scores, winner.widths),
            winner.predicted_ms,
            scores,
            self._weights(problem, net, winner),
            saliency.image_passes + log.image_passes + forward,
            log,
        )
        return answer if winner.predicted_ms <= problem.target_ms else self.refit(problem, answer, problem.target_ms)

    def pruning_net(self, problem: Problem, scores: Mapping[str, np.ndarray]) -> PruningNet:
        """PruningNet of a problem, not yet trained."""
        return PruningNet(
            problem.model,
            problem.graph,
            problem.space,
            scores,
            hidden=self.hidden,
            encoding=self.encoding,
            warm=self.warm_start,
            seed=mix(problem.seed, "generators"),
        )

    def _ordered(self, problem: Problem, saliency: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Scores whose order is that of the crops and whose values are saliencies, so that groups compare."""
        if self.channels == "taylor":
            return saliency
        order = weight_norm(problem.model, problem.graph, problem.space, "l1")
        if self.channels == "index":
            order = {name: -np.arange(len(values), dtype=np.float64) for name, values in saliency.items()}
        scores: dict[str, np.ndarray] = {}
        for name, values in saliency.items():
            scores[name] = np.empty_like(values)
            scores[name][np.argsort(-order[name], kind="stable")] = np.sort(values)[::-1]
        return scores

    def _winner(self, problem: Problem, candidates: Sequence[Candidate]) -> Candidate:
        """The best candidate that also measures within the budget; without a device, the best."""
        best = candidates[: self.measured]
        if problem.measure is None or not best:
            return candidates[0]
        use = problem.measure([candidate.widths for candidate in best])
        within = [candidate for candidate, share in zip(best, use, strict=True) if share <= 1]
        text = f"{len(within)} of the best {len(best)} candidates measure within the budget"
        problem.on_event(Note(f"{text} (predicted: all)"))
        return within[0] if within else best[0]

    def _weights(self, problem: Problem, net: PruningNet, winner: Candidate) -> dict[str, torch.Tensor] | None:
        if self.weights == "dense":
            return None
        if self.weights == "generated":
            return net.state(winner.widths)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(problem.seed, "scratch"))
            state = with_random_weights(problem.model).state_dict()
        return {name: value.clone() for name, value in state.items()}


def _warn_if_not_ready(problem: Problem, probes: Mapping[str, float]) -> None:
    reached, possible = probes["middle_score"], probes["dense_score"]
    if problem.data.classes and reached < _READY * possible:
        problem.on_event(
            Caution(
                f"PruningNet scores {reached:.3f} at middle widths and {possible:.3f} at full width: it may rank badly",
                hint="train it for longer with --epochs",
            )
        )
