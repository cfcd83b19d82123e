"""One run of a comparison of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprune import methods as known_methods
from hwprune.core.errors import UsageError, unknown_name
from hwprune.core.widths import Budget
from hwprune.search.settings import SearchSettings


@dataclass(frozen=True)
class Cell:
    """A method under a budget with a seed; `budget` as typed, "60%" or "4ms"."""

    budget: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.budget.replace('%', 'pct')}_{self.method}_s{self.seed}"

    def settings(self, base: SearchSettings, dense_ms: float) -> SearchSettings:
        """The settings of its run, the budget in ms. Raises `UsageError` for a budget that is none."""
        budget_ms = Budget.parse(self.budget).in_ms(dense_ms)
        return replace(base, method=self.method, seed=self.seed, latency_fraction=None, latency_ms=budget_ms)


def cells_of(methods: Sequence[str], budgets: Sequence[str], seeds: int) -> tuple[Cell, ...]:
    """Every combination; all methods of a budget and seed before the next, so that a cut comparison is still fair.

    Raises `UsageError` for an unknown method, and for nothing to compare.
    """
    for method in methods:
        if method not in known_methods.names():
            raise unknown_name("method", method, known_methods.names())
    if not methods or not budgets or seeds < 1:
        raise UsageError(
            "a comparison needs methods, budgets and at least one seed",
            hint="--methods wgates,greedy,uniform --budgets 75%,60%,45% --seeds 2",
        )
    return tuple(Cell(budget, method, seed) for seed in range(seeds) for budget in budgets for method in methods)
