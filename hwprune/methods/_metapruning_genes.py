"""Genes, one index into the allowed widths a channel group, and the ways MetaPruning makes new ones. Numpy only.

Every proposal is predicted before anything is evaluated: one that does not fit the budget does not exist. The operators
and their numbers are those of the paper's code (liuzechun/MetaPruning, searching/search.py); what a random gene does
when hardly any fits the budget is our design.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.limited import SearchLatency
from hwprune.methods._adjust import check_feasible

Gene = tuple[int, ...]
Genes = npt.NDArray[np.int64]
Operator = Literal["mutation", "crossover", "random", "baseline", "model"]

_TRIES = 250
_UNIFORM_DRAWS = 256
_FAMILIES = 32
# u**k of a uniform u, for these k: the whole way from the dense network to the smallest one.
_POWERS = np.exp(np.linspace(-5.0, 5.0, 64))
_WALKS = 1024
_ENUMERABLE = 20_000


@dataclass(frozen=True)
class Proposal:
    """A gene, how it was made, and the positions of its parents in the list of parents."""

    gene: Gene
    operator: Operator
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class GeneSpace:
    """The genes of a search space whose predicted latency lies within `low_ms`..`high_ms`."""

    space: SearchSpace
    latency: SearchLatency
    low_ms: float
    high_ms: float

    @classmethod
    def within(cls, space: SearchSpace, latency: SearchLatency, target_ms: float, least_use: float) -> GeneSpace:
        """Genes that need at least the share `least_use` of the target, or the most that the grid has below it.

        Raises `BudgetInfeasible`.
        """
        fastest = check_feasible(space, latency, target_ms)
        genes = cls(space, latency, 0.0, target_ms)
        tried = [genes.gene(fastest.widths), *genes.near_budget(np.random.default_rng(0), _FAMILIES)]
        fullest = float(genes.cost_ms(np.array(tried)).max())
        return replace(genes, low_ms=min(least_use * target_ms, fullest))

    @property
    def sizes(self) -> Genes:
        """How many widths each group has, `(G,)`."""
        return np.array([len(allowed) for allowed in self.space.widths], dtype=np.int64)

    def values(self, genes: Genes) -> Genes:
        """Genes `[B, G]` -> widths `[B, G]`."""
        return np.stack([np.asarray(allowed)[genes[:, i]] for i, allowed in enumerate(self.space.widths)], axis=1)

    def widths(self, gene: Gene) -> Widths:
        """The widths of one gene."""
        return self.space.make([allowed[place] for allowed, place in zip(self.space.widths, gene, strict=True)])

    def gene(self, widths: Widths) -> Gene:
        """The gene of widths of the space."""
        return tuple(a.index(w) for a, w in zip(self.space.widths, widths.values_tuple(), strict=True))

    def cost_ms(self, genes: Genes) -> npt.NDArray[np.float64]:
        """Predicted ms `[B]` of genes `[B, G]`."""
        return np.asarray(self.latency.predict_batch(self.values(genes)), dtype=np.float64)

    def fits(self, genes: Genes) -> npt.NDArray[np.bool_]:
        """Which of the genes `[B, G]` keep the bounds, `[B]`."""
        cost_ms = self.cost_ms(genes)
        return np.asarray((self.low_ms <= cost_ms) & (cost_ms <= self.high_ms))

    def uniform(self, rng: np.random.Generator, count: int) -> Genes:
        """Genes `[count, G]`, every group drawn on its own, whatever they cost."""
        return rng.integers(0, self.sizes, size=(count, len(self.sizes)))

    def near_budget(self, rng: np.random.Generator, count: int) -> list[Gene]:
        """Up to `count` random genes, each the slowest within the bound on its own way from dense to smallest.

        A way is `floor(n * u**k)` for random `u` `(G,)` and growing `k`: it never fails at a tight budget, where
        uniform draws are all too slow.
        """
        return self._slowest_within(rng.random((count, len(self.sizes))))

    def repaired(self, gene: Gene) -> Gene | None:
        """The gene at the bound on the way on which `gene` lies; None when nothing on it fits."""
        found = self._slowest_within((np.array([gene]) + 0.5) / self.sizes)
        return found[0] if found and self.fits(np.array(found))[0] else None

    def _slowest_within(self, shares: npt.NDArray[np.float64]) -> list[Gene]:
        """For each row of shares `[B, G]` in 0..1 the slowest gene of its way that keeps the upper bound, if any."""
        ways = (shares[:, None] ** _POWERS[:, None] * self.sizes).astype(np.int64).clip(0, self.sizes - 1)
        cost_ms = self.cost_ms(ways.reshape(-1, len(self.sizes))).reshape(ways.shape[:2])
        allowed = np.where(cost_ms <= self.high_ms, cost_ms, -np.inf)
        best = allowed.argmax(axis=1)
        return [_gene(ways[way, place]) for way, place in enumerate(best) if np.isfinite(allowed[way, place])]

    def propose(
        self,
        rng: np.random.Generator,
        operator: Operator,
        parents: Sequence[Gene],
        seen: Collection[Gene],
        rate: float,
    ) -> Proposal | None:
        """A gene that fits and was not seen, by the operator or else at random; None when none was found.

        At most 250 tries an operator, as in the paper's code.
        """
        made: Iterator[Proposal] = iter(())
        if operator == "mutation" and parents:
            made = mutants(rng, parents, self.sizes, rate, _TRIES)
        elif operator == "crossover" and len(parents) > 1:
            made = children(rng, parents, _TRIES)
        found = self._first_new(list(made), seen)
        return found or self._random(rng, seen)

    def beside(self, rng: np.random.Generator, gene: Gene, seen: Collection[Gene], rate: float) -> Proposal | None:
        """A mutant of `gene` that fits and was not seen, as it is or else repaired; None when none was found."""
        made = list(mutants(rng, [gene], self.sizes, rate, _TRIES))
        found = self._first_new(made, seen)
        if found is None:
            ways = self._slowest_within((np.array([item.gene for item in made[:_FAMILIES]]) + 0.5) / self.sizes)
            found = self._first_new([Proposal(way, "mutation") for way in ways], seen)
        return found and replace(found, parents=())

    def _random(self, rng: np.random.Generator, seen: Collection[Gene]) -> Proposal | None:
        """At random: uniform; then on the way to the smallest; then beside what was seen; then whatever is left."""
        drawn = self.uniform(rng, _UNIFORM_DRAWS)
        found = self._first_new([Proposal(_gene(row), "random") for row in drawn], seen)
        if found is None:
            near = self.near_budget(rng, _FAMILIES)
            found = self._first_new([Proposal(gene, "random") for gene in near], seen)
        if found is None and seen:
            known, rate = sorted(seen), min(1.0, 2 / len(self.sizes))
            beside = mutants(rng, known, self.sizes, rate, _WALKS)
            found = self._first_new([Proposal(item.gene, "random") for item in beside], seen)
        if found is None and self.space.size <= _ENUMERABLE:
            every = rng.permutation(np.array(list(itertools.product(*(range(size) for size in self.sizes)))))
            found = self._first_new([Proposal(_gene(row), "random") for row in every], seen)
        return found

    def _first_new(self, proposals: Sequence[Proposal], seen: Collection[Gene]) -> Proposal | None:
        new = [proposal for proposal in proposals if proposal.gene not in seen]
        if not new:
            return None
        fits = np.flatnonzero(self.fits(np.array([proposal.gene for proposal in new], dtype=np.int64)))
        return new[int(fits[0])] if len(fits) else None


def mutants(
    rng: np.random.Generator, parents: Sequence[Gene], sizes: Genes, rate: float, count: int
) -> Iterator[Proposal]:
    """Copies of random parents; each index changes with probability `rate`, never to itself, cyclically.

    Cyclic as in the paper's code: the next after the widest is the narrowest.
    """
    chosen = rng.integers(0, len(parents), size=count)
    old = np.array(parents, dtype=np.int64)[chosen]
    changes = rng.random(old.shape) < rate
    offsets = 1 + (rng.random(old.shape) * (sizes - 1)).astype(np.int64)
    new = np.where(changes & (sizes > 1), (old + offsets) % sizes, old)
    for row, parent in zip(new, chosen, strict=True):
        yield Proposal(_gene(row), "mutation", (int(parent),))


def children(rng: np.random.Generator, parents: Sequence[Gene], count: int) -> Iterator[Proposal]:
    """Every index from either of two distinct parents with probability 1/2."""
    first = rng.integers(0, len(parents), size=count)
    second = (first + rng.integers(1, len(parents), size=count)) % len(parents)
    genes = np.array(parents, dtype=np.int64)
    new = np.where(rng.random((count, genes.shape[1])) < 0.5, genes[first], genes[second])
    for row, one, other in zip(new, first, second, strict=True):
        yield Proposal(_gene(row), "crossover", (int(one), int(other)))


def _gene(row: npt.NDArray[np.int64]) -> Gene:
    return tuple(int(place) for place in row)
