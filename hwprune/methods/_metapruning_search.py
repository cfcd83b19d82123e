"""The evolution: ask for a candidate within the budget, recalibrate it, score it on held-out images, tell."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

from hwprune.core.errors import Interrupted, TrainingDiverged
from hwprune.core.events import Caution, Note, Progress, SearchStep
from hwprune.core.units import format_ms, percent
from hwprune.core.widths import Widths
from hwprune.graph import cut
from hwprune.latency.limited import LimitedLatency
from hwprune.methods._adjust import fit_to_target
from hwprune.methods._base import Problem
from hwprune.methods._families import uniform_family, widest_that_fits
from hwprune.methods._metapruning_budget import RECALIBRATION_BATCH
from hwprune.methods._metapruning_genes import Gene, GeneSpace
from hwprune.methods._metapruning_net import PruningNet
from hwprune.methods._metapruning_sampler import (
    DIVERGED,
    MetaPruningSampler,
    SpaceExhausted,
    WithinBudget,
    diverged,
    gene_of,
)
from hwprune.methods._metapruning_study import (
    STUDY_NAME,
    open_storage,
    open_study,
    quiet,
    same_network,
    without_password,
)
from hwprune.training import evaluate, recalibrate_bn
from hwprune.training._random import mix
from hwprune.training.tasks import predict

if TYPE_CHECKING:
    from hwprune.methods.metapruning import MetaPruning

_FLOOR = 0.25
_SURVEYED = 1000
# A structure with rare widths may diverge alone; when this many do, one after the other, it is PruningNet that did.
_DIVERGED_IN_A_ROW = 5
_CALMER = "lower --lr or train PruningNet for longer, in another run folder"
# Options that change neither which candidates come nor what they score.
_SAME_SCORES = ("evaluations", "measured", "weights", "memory_gb", "storage")


@dataclass(frozen=True)
class Candidate:
    """An evaluated structure; a larger fitness is better."""

    gene: Gene
    widths: Widths
    predicted_ms: float
    fitness: float


class Judge:
    """Scores a structure with generated weights: batch norms recalibrated on training images, fitness on `val`.

    The test split is never touched. What came before does not matter: every candidate starts from the same state.
    """

    def __init__(self, problem: Problem, net: PruningNet, fitness: str, recalibration_images: int) -> None:
        self.problem, self.net, self.fitness = problem, net, fitness
        self.recalibration_images = min(recalibration_images, len(problem.data.train))
        self._batch_size = min(RECALIBRATION_BATCH, self.recalibration_images)
        self._full = copy.deepcopy(problem.model)
        self._reference = predict(problem.model, problem.data, "val") if fitness == "distance" else None

    @property
    def images(self) -> int:
        """The images that pass forward for one candidate."""
        batches = self.recalibration_images // self._batch_size
        return batches * self._batch_size + len(self.problem.data.val)

    def network(self, widths: Widths) -> nn.Module:
        """The real, smaller network of a structure, with generated weights and recalibrated batch norms."""
        problem = self.problem
        self._full.load_state_dict(self.net.state(widths))
        small = cut(self._full, problem.graph, self.net.crop(widths).keep).eval()
        count, batch_size = self.recalibration_images, self._batch_size
        return recalibrate_bn(small, problem.data, count, batch_size=batch_size, seed=problem.seed)

    def __call__(self, widths: Widths) -> float:
        """The fitness. Raises `TrainingDiverged` when the network's outputs are not finite."""
        problem = self.problem
        found = evaluate(self.network(widths), problem.data, "val", task=problem.task, reference=self._reference)
        fitness = found.score if self.fitness == "score" else -found.loss if found.kl is None else -found.kl
        if not (math.isfinite(found.loss) and math.isfinite(fitness)):
            raise TrainingDiverged(
                f"the generated weights give outputs that are not finite, at widths {dict(widths)}",
                hint=_CALMER,
            )
        return fitness

    def probes(self) -> dict[str, float]:
        """The validation score of three fixed structures: the smallest, the middle and the dense one."""
        space = self.problem.space
        middle = space.make([allowed[len(allowed) // 2] for allowed in space.widths])
        named = {"smallest": space.smallest(), "middle": middle, "dense": space.dense()}
        data, task = self.problem.data, self.problem.task
        return {f"{name}_score": evaluate(self.network(w), data, "val", task=task).score for name, w in named.items()}


class Evolution:
    """The candidates of one search, in the order of their evaluation, kept in an Optuna study.

    The study is opened here, so that one of another search is refused before anything is trained. In a storage of the
    user's, which may hold several, its name says what is searched. Raises `RunError`, `UsageError` and
    `BudgetInfeasible`.
    """

    def __init__(self, problem: Problem, options: MetaPruning, scores: Mapping[str, np.ndarray]) -> None:
        self.problem, self.options = problem, options
        where = without_password(options.storage) or str(problem.study or "")
        storage = open_storage(problem.study, options.storage)
        self.genes = GeneSpace.within(problem.space, problem.latency, problem.target_ms, options.least_use)
        self.first = first_genes(problem, self.genes, scores) if options.first == "baselines" else ()
        self.sampler = self._sampler(0)
        name = self._shared_name() if options.storage else STUDY_NAME
        self.study = open_study(storage, self._spec(), self.sampler, where, name)
        if where:
            problem.on_event(Note(f"watch the candidates: optuna-dashboard {where}"))
        asked = len(self.study.get_trials(deepcopy=False))
        if asked and isinstance(self.sampler, WithinBudget):
            # The state of Optuna's own samplers is not kept: with the old seed they would repeat themselves.
            self.study.sampler = self.sampler = self._sampler(asked)
        self.fitness = {gene: float(trial.value or 0.0) for gene, trial in self._complete()}
        self.diverged = len(diverged(self.study))
        self._tell_how_many_fit()

    @property
    def evaluated(self) -> int:
        """The candidates evaluated so far, those without a fitness too."""
        return len(self.fitness) + self.diverged

    def run(self, judge: Judge) -> tuple[Candidate, ...]:
        """Evaluate until the number of candidates is reached or no other one fits; the best first.

        A candidate whose outputs are not finite is passed over. Raises `TrainingDiverged` when several in a row or all
        of them are, `Interrupted` when `stop` says so, everything told being kept, and `RunError` when the candidates
        so far were scored with other weights.
        """
        wanted = self.options.evaluations
        with quiet():
            same_network(self.study, digest(judge.net))
            while self.evaluated < wanted and self._one(judge):
                self._report()
                if self.evaluated < wanted and self.problem.stop():
                    raise Interrupted(
                        f"the search was stopped after {self.evaluated} of {wanted} candidates",
                        hint="the same command goes on from there"
                        if self.problem.study or self.options.storage
                        else "",
                    )
        if not self.fitness:
            raise TrainingDiverged(
                f"PruningNet's outputs are not finite for any of {self.diverged} candidates", hint=_CALMER
            )
        return self.candidates()

    def candidates(self) -> tuple[Candidate, ...]:
        """All evaluated candidates, the best first; ties go to the earlier one."""
        best_first = sorted(self.fitness, key=lambda gene: -self.fitness[gene])
        cost_ms = self.genes.cost_ms(np.array(best_first, dtype=np.int64))
        return tuple(
            Candidate(gene, self.genes.widths(gene), float(ms), self.fitness[gene])
            for gene, ms in zip(best_first, cost_ms, strict=True)
        )

    def _one(self, judge: Judge) -> bool:
        """Ask for one candidate, evaluate and tell it; False when there is no other one."""
        trial = self.study.ask()
        sizes = zip(self.sampler.names, self.genes.sizes, strict=True)
        try:
            gene = tuple(trial.suggest_int(name, 0, int(size) - 1) for name, size in sizes)
        except SpaceExhausted:
            self.study.tell(trial, state=TrialState.FAIL)
            self.problem.on_event(Note(f"all {self.evaluated} candidates that fit the budget were evaluated"))
            return False
        widths = self.genes.widths(gene)
        predicted_ms = float(self.genes.cost_ms(np.array([gene]))[0])
        made = self.sampler.made.pop(trial.number)
        trial.set_constraint("latency_ms", predicted_ms - self.genes.high_ms)
        trial.set_user_attr("latency_ms", predicted_ms)
        trial.set_user_attr("macs", self.problem.graph.macs(widths))
        trial.set_user_attr("origin", {"operator": made.operator, "parents": list(made.parents)})
        try:
            self.fitness[gene] = judge(widths)
        except TrainingDiverged as error:
            self._pass_over(trial, error)
        else:
            self.study.tell(trial, self.fitness[gene])
        return True

    def _pass_over(self, trial: Trial, error: TrainingDiverged) -> None:
        """Fail a trial so that its gene does not come again; raise when the trials before it diverged too."""
        # The mark goes first: killed in between, the trial is failed when the study is opened again, and is marked.
        trial.set_user_attr(DIVERGED, True)
        self.study.tell(trial, state=TrialState.FAIL)
        self.diverged += 1
        newest = max((complete.number for _, complete in self._complete()), default=-1)
        in_a_row = sum(failed.number > newest for failed in diverged(self.study))
        if in_a_row >= _DIVERGED_IN_A_ROW:
            text = f"{in_a_row} candidates in a row had no finite outputs; the last: {error.message}"
            raise TrainingDiverged(text, hint=error.hint) from error
        self.problem.on_event(Caution(f"a candidate was passed over: {error.message}", hint=error.hint))

    def _tell_how_many_fit(self) -> None:
        genes, rng = self.genes, np.random.default_rng(0)
        drawn = genes.uniform(rng, _SURVEYED)
        cost_ms, share = genes.cost_ms(drawn), float(genes.fits(drawn).mean())
        band = f"{format_ms(genes.low_ms)} to {format_ms(genes.high_ms)}"
        found = f"{format_ms(float(cost_ms.min()))} to {format_ms(float(cost_ms.max()))}"
        text = f"candidates are predicted at {band}; random structures need {found}, {percent(share)} of them fit"
        self.problem.on_event(Note(text))

    def _report(self) -> None:
        done, wanted, problem = self.evaluated, self.options.evaluations, self.problem
        problem.on_event(Progress("search", done, wanted, detail="candidates"))
        if self.fitness and done % self.options.population == 0:
            best, *_ = self.candidates()
            latest = list(self.fitness.values())[-self.options.population :]
            figures = {"best_fitness": best.fitness, "mean_fitness": float(np.mean(latest))}
            problem.on_event(SearchStep(done, wanted, best.predicted_ms, figures))

    def _sampler(self, asked: int) -> MetaPruningSampler | WithinBudget:
        options, seed = self.options, self.problem.seed
        if options.sampler in ("ga", "random"):
            return MetaPruningSampler(
                self.genes,
                population=options.population,
                parents=options.parents,
                mutation=options.mutation,
                seed=seed,
                evolve=options.sampler == "ga",
                first=self.first,
            )
        stock_seed = mix(seed, "sampler", asked) % 2**32
        if options.sampler == "nsga2":
            inner = NSGAIISampler(population_size=options.population, seed=stock_seed)
            return WithinBudget(inner, self.genes, seed, options.mutation)
        with quiet():
            return WithinBudget(TPESampler(seed=stock_seed), self.genes, seed, options.mutation)

    def _spec(self) -> Mapping[str, object]:
        """What must be the same for the candidates of a study to be comparable."""
        options, space, latency = self.options, self.problem.space, self.problem.latency
        same = ("sampler", "population", "parents", "mutation", "least_use", "first", "fitness")
        return {
            "space": space.signature(),
            "target_ms": self.genes.high_ms,
            "seed": self.problem.seed,
            **{name: getattr(options, name) for name in (*same, "recalibration_images")},
            "data": self.problem.data.fingerprint,
            "widths": {name: list(allowed) for name, allowed in zip(space.names, space.widths, strict=True)},
            **({"limits": vars(latency.limits)} if isinstance(latency, LimitedLatency) else {}),
        }

    def _shared_name(self) -> str:
        """A name that no other search has: it depends on all that its candidates and their scores depend on."""
        options = {name: value for name, value in vars(self.options).items() if name not in _SAME_SCORES}
        whole = [self._spec(), options, vars(self.problem.plan), digest(self.problem.model)]
        text = json.dumps(whole, sort_keys=True)
        return f"{STUDY_NAME}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _complete(self) -> Iterator[tuple[Gene, FrozenTrial]]:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            gene = gene_of(self.sampler.names, trial.params)
            if gene is not None:
                yield gene, trial


def first_genes(problem: Problem, genes: GeneSpace, scores: Mapping[str, np.ndarray]) -> tuple[Gene, ...]:
    """The uniform and the greedy network within the target, as far as they use enough of it."""
    space, latency, target_ms = problem.space, problem.latency, genes.high_ms
    uniform = widest_that_fits(space, latency, uniform_family(space), target_ms)
    greedy = fit_to_target(space, latency, scores, target_ms, floor=_FLOOR)
    found = [genes.gene(fit.widths) for fit in (uniform, greedy)]
    return tuple(gene for gene, fits in zip(found, genes.fits(np.array(found)), strict=True) if fits)


def digest(net: nn.Module) -> str:
    """A hash of a network's weights."""
    whole = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]
