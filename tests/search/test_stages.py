"""The stages of a run where a whole run is not needed: settling while the latency model learns."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwprune.core.events import ignore
from hwprune.core.widths import Widths
from hwprune.latency.features import Array, IntArray, widths_array
from hwprune.methods._base import AbstractMethod, Answer, Problem
from hwprune.search import stages
from hwprune.search.settings import SearchSettings
from hwprune.search.stages import settle
from hwprune.testing.staircase import staircase_layers_ms, staircase_space

SPACE = staircase_space()


def true_ms(values: IntArray) -> Array:
    return np.asarray(staircase_layers_ms(values).sum(axis=1))


class Rising:
    """A latency model that predicts 2 % more after each measurement."""

    space = SPACE
    step = 16
    factor = 1.0

    def predict_batch(self, values: IntArray) -> Array:
        return self.factor * true_ms(values)

    def predict(self, widths: Widths) -> Any:
        return SimpleNamespace(latency_ms=float(self.predict_batch(widths_array(SPACE, [widths]))[0]))


class Method(AbstractMethod):
    """Answers along the scores, as most do."""

    def search(self, problem: Problem) -> Iterator[Answer]:
        raise NotImplementedError


class Shop:
    """Stands in for `Workshop`: each network measures at its exact latency."""

    settings = SearchSettings(latency_fraction=0.5)
    table = SimpleNamespace(space=SPACE)
    folder = SimpleNamespace(emit=ignore)
    template = SimpleNamespace(at=lambda keep: keep)

    def __init__(self, budget_ms: float) -> None:
        self.budget_ms = budget_ms
        self.latency = Rising()

    def measure(
        self, models: dict[str, Any], *, seed: int, decides: bool = False, beside: None = None
    ) -> dict[str, Any]:
        widths = [len(models["candidate"][group.name]) for group in SPACE.groups]
        ms = float(true_ms(np.array([widths]))[0])
        return {"candidate": SimpleNamespace(statistic=lambda name: (ms, 0.998 * ms, 1.002 * ms))}

    def learn(self, widths: Widths, measured: Any) -> None:
        self.latency.factor *= 1.02


def test_a_model_that_learns_the_smallest_network_is_slower_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is 1 % above what the smallest network takes, and only that one meets it."""
    problem = lambda shop, target_ms: SimpleNamespace(space=SPACE, latency=shop.latency)  # noqa: E731
    monkeypatch.setattr(stages, "make_problem", problem)
    smallest = SPACE.smallest()
    shop: Any = Shop(1.01 * float(true_ms(widths_array(SPACE, [smallest]))[0]))
    scores = {group.name: np.arange(group.units, 0.0, -1.0) for group in SPACE.groups}
    wider = smallest.replace("head", 256)
    keep = {name: tuple(range(width)) for name, width in wider.items()}
    settled = settle(shop, Method(), Answer(wider, keep, 0.0, scores))
    assert settled.chosen.answer.widths == smallest
    assert settled.chosen.within
    assert shop.latency.factor > 1.02
