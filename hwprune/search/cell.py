"""One run of a comparison of methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprune import methods as known_methods
from hwprune.core.errors import UsageError, unknown_name
from hwprune.core.widths import Budget
from hwprune.search.settings import SearchSettings


@dataclass(frozen=True)
class Cell:
    """A method under a budget with a seed, as typed: "60%" or "4ms", `greedy` or `metapruning:sampler=random`."""

    budget: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        method = re.sub(r"[^A-Za-z0-9.-]+", "-", self.method)
        return f"{self.budget.replace('%', 'pct')}_{method}_s{self.seed}"

    def settings(self, base: SearchSettings) -> SearchSettings:
        """The settings of its run. Raises `UsageError` for a budget that is none."""
        budget = Budget.parse(self.budget)
        method, options = parse_method(self.method)
        return replace(
            base,
            method=method,
            options={**base.options, **options},
            seed=self.seed,
            latency_fraction=budget.fraction,
            latency_ms=budget.latency_ms,
        )


def parse_method(text: str) -> tuple[str, dict[str, str]]:
    """(name, options) of `NAME` or `NAME:KEY=VALUE:KEY=VALUE`. Raises `UsageError` for anything else."""
    name, *pairs = text.split(":")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise UsageError(
                f"'{pair}' in the method '{text}' is not KEY=VALUE", hint="write it as metapruning:sampler=random"
            )
        options[key] = value
    return name, options


def cells_of(methods: Sequence[str], budgets: Sequence[str], seeds: int) -> tuple[Cell, ...]:
    """Every combination; all methods of a budget and seed before the next, so that a cut comparison is still fair.

    Raises `UsageError` for an unknown method, and for nothing to compare.
    """
    for method in methods:
        name, _ = parse_method(method)
        if name not in known_methods.names():
            raise unknown_name("method", name, known_methods.names())
    if not methods or not budgets or seeds < 1:
        raise UsageError(
            "a comparison needs methods, budgets and at least one seed",
            hint="--methods gdp,greedy,uniform --budgets 75%,60%,45% --seeds 2",
        )
    return tuple(Cell(budget, method, seed) for seed in range(seeds) for budget in budgets for method in methods)
