"""MetaPruning's evolution as an Optuna sampler, and Optuna's own samplers kept to the budget. Import it late.

Stateless: what a trial samples follows from the seed, its generation, its place in the generation, and the finished
trials in the storage, so a search goes on after a kill as if nothing had happened. Source: Liu et al. 2019,
"MetaPruning" (arXiv 1903.10258), as its released search does it: parents are the best 10 of everything evaluated, half
of a generation are mutants, half are children. One worker evaluates generation after generation; several workers on one
storage are a steady-state variant, and two that ask in the same instant may get one gene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hwprune.methods._metapruning_genes import Gene, GeneSpace, Operator, Proposal
from hwprune.training._random import mix

_PENDING = (TrialState.COMPLETE, TrialState.RUNNING)
# The attribute of a failed trial whose gene was evaluated and has no fitness.
DIVERGED = "diverged"


class SpaceExhausted(Exception):
    """Every gene that fits the budget and could be found has been evaluated."""


class MetaPruningSampler(BaseGASampler):
    """`population` trials a generation; the first of generation 0 are `first`, the others fit the budget at random.

    With `evolve=False` every generation is random: the control. Only complete trials count; failed ones are made
    again, but for those that diverged: another gene takes their place. The class name is part of the storage format.
    """

    def __init__(
        self,
        genes: GeneSpace,
        *,
        population: int,
        parents: int = 10,
        mutation: float = 0.1,
        seed: int = 0,
        evolve: bool = True,
        first: Sequence[Gene] = (),
    ) -> None:
        super().__init__(population)
        self.genes = genes
        self.population = population
        self.parents = parents
        self.mutation = mutation
        self.seed = seed
        self.evolve = evolve
        self.first = tuple(first)
        self.distributions = gene_distributions(genes)
        self.names = tuple(self.distributions)
        self.made: dict[int, Proposal] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The declared space, so that generation 0 keeps the budget too."""
        return dict(self.distributions)

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The best of all complete trials; ties go to the earlier one."""
        return ranked(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))[: self.parents]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The gene of this trial. Raises `SpaceExhausted` when there is no other one within the budget."""
        generation = self.get_trial_generation(study, trial)
        # A cached parent population comes back in order of number, a new one in order of value.
        parents = ranked(self.get_parent_population(study, generation)) if self.evolve else []
        others = _others(study, trial)
        slot = self._slot(others, trial, generation)
        seen = _seen(self.names, study, others)
        proposal = self._propose(generation, slot, parents, seen)
        if proposal is None:
            raise SpaceExhausted(f"{len(seen)} genes were evaluated")
        numbers = tuple(parents[place].number for place in proposal.parents)
        self.made[trial.number] = Proposal(proposal.gene, proposal.operator, numbers)
        return dict(zip(self.distributions, proposal.gene, strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never right: a parameter outside the declared space has no gene."""
        raise ValueError(f"the parameter '{param_name}' is not one of the {len(self.distributions)} declared genes")

    def _slot(self, others: Sequence[FrozenTrial], trial: FrozenTrial, generation: int) -> int:
        key = self._get_generation_key()
        return sum(t.system_attrs.get(key) == generation and t.number < trial.number for t in others)

    def _propose(self, generation: int, slot: int, parents: Sequence[FrozenTrial], seen: set[Gene]) -> Proposal | None:
        if generation == 0 and slot < len(self.first) and self.first[slot] not in seen:
            return Proposal(self.first[slot], "baseline")
        rng = np.random.default_rng(mix(self.seed, "gene", generation, slot))
        genes = [gene for parent in parents if (gene := gene_of(self.names, parent.params)) is not None]
        wanted: Operator = "mutation" if slot < self.population // 2 else "crossover"
        return self.genes.propose(rng, wanted if genes else "random", genes, seen, self.mutation)


class WithinBudget(BaseSampler):
    """One of Optuna's own samplers, kept to the budget: what does not fit is narrowed along its own way.

    In place of a gene that it repeats, or that cannot be made to fit, a mutant of that gene is taken; where it has no
    opinion (its start), a random one that fits. Optuna does not keep its samplers' random state, so a search that was
    killed goes on well, but not bit for bit.
    """

    def __init__(self, inner: BaseSampler, genes: GeneSpace, seed: int, mutation: float = 0.1) -> None:
        self.inner, self.genes, self.seed, self.mutation = inner, genes, seed, mutation
        self.distributions = gene_distributions(genes)
        self.names = tuple(self.distributions)
        self.made: dict[int, Proposal] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The declared space."""
        return dict(self.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The inner sampler's gene or the nearest that fits. Raises `SpaceExhausted` when there is no other one."""
        wanted = self._wanted(study, trial, search_space)
        seen = _seen(self.names, study, _others(study, trial))
        rng = np.random.default_rng(mix(self.seed, "gene", trial.number))
        proposal = self._fitting(rng, wanted, seen) or self.genes.propose(rng, "random", (), seen, 0.0)
        if proposal is None:
            raise SpaceExhausted(f"{len(seen)} genes were evaluated")
        self.made[trial.number] = proposal
        return dict(zip(self.names, proposal.gene, strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never right: a parameter outside the declared space has no gene."""
        raise ValueError(f"the parameter '{param_name}' is not one of the {len(self.names)} declared genes")

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on."""
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass on."""
        self.inner.after_trial(study, trial, state, values)

    def _wanted(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Gene | None:
        """The inner sampler's gene; None at its start. The parameters that NSGA-II mutates it leaves out of a child."""
        found = self.inner.sample_relative(study, trial, search_space)
        if not found:
            return None
        for name, distribution in self.distributions.items():
            if name not in found:
                found[name] = self.inner.sample_independent(study, trial, name, distribution)
        return gene_of(self.names, found)

    def _fitting(self, rng: np.random.Generator, wanted: Gene | None, seen: set[Gene]) -> Proposal | None:
        if wanted is None:
            return None
        fits = bool(self.genes.fits(np.array([wanted]))[0])
        gene = wanted if fits else self.genes.repaired(wanted)
        if gene is None or gene in seen:
            return self.genes.beside(rng, gene or wanted, seen, self.mutation)
        return Proposal(gene, "model")


def _others(study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False, states=_PENDING) if t.number != trial.number]


def _seen(names: Sequence[str], study: Study, others: Sequence[FrozenTrial]) -> set[Gene]:
    """The genes of the other trials and of those that diverged: none of them is proposed again."""
    trials = [*others, *diverged(study)]
    return {gene for trial in trials if (gene := gene_of(names, trial.params)) is not None}


def diverged(study: Study) -> list[FrozenTrial]:
    """The trials whose networks gave outputs that are not finite."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in failed if trial.user_attrs.get(DIVERGED)]


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, the best value first; ties go to the earlier one."""
    return sorted((t for t in trials if t.value is not None), key=lambda t: (-float(t.value or 0.0), t.number))


def gene_distributions(genes: GeneSpace) -> dict[str, BaseDistribution]:
    """Parameter name -> indices of a group's widths; the number in front keeps them in the order of the network."""
    names = [f"{index:03d} {name}" for index, name in enumerate(genes.space.names)]
    return {name: IntDistribution(0, int(size) - 1) for name, size in zip(names, genes.sizes, strict=True)}


def gene_of(names: Sequence[str], params: Mapping[str, Any]) -> Gene | None:
    """The gene in a trial's parameters; None when some are missing."""
    return tuple(int(params[name]) for name in names) if all(name in params for name in names) else None
