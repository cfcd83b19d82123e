"""Ticks are round and inside; marks land where the closed form says."""

from __future__ import annotations

import math
from random import Random

import pytest

from hwprune.core.events import SearchStep
from hwprune.report.charts import stage_shares, thinned
from hwprune.report.svg import Axis, Plot, number


@pytest.mark.parametrize("seed", range(50))
def test_ticks_are_round_inside_and_not_many(seed: int) -> None:
    rng = Random(seed)
    low = rng.uniform(-1, 1) * 10 ** rng.uniform(-3, 3)
    axis = Axis(low, low + 10 ** rng.uniform(-3, 3))
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(axis.low - 1e-9 <= tick <= axis.high * (1 + 1e-9) + 1e-9 for tick in ticks)
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - round_) for round_ in (1, 2, 5)) < 1e-6


def test_range_around_values_and_around_none() -> None:
    assert Axis.around([1.0, 2.0], margin=0.1) == Axis(0.9, 2.1)
    assert Axis.around([]) == Axis.around([0.0, 1.0])
    flat = Axis.around([3.0, float("nan")])
    assert flat.low < 3.0 < flat.high


def test_places_are_linear_and_held_inside() -> None:
    plot = Plot(Axis(0, 10), Axis(0, 1), width=188, height=170)
    assert plot.at((0, 0)) == (72, 126)
    assert plot.at((10, 1)) == (172, 26)
    assert plot.at((5, 0.5)) == (122, 76)
    assert plot.at((20, -1), inside=True) == (172, 126)
    assert plot.at((20, 0)) == (272, 126)


def test_text_is_escaped() -> None:
    plot = Plot(Axis(0, 1, "<x>"), Axis(0, 1), label='a"b')
    plot.dot((0.5, 0.5), "dense", "<b>&")
    plot.note((0, 0), "<i>")
    svg = plot.svg()
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "&lt;x&gt;" in svg
    assert 'aria-label="a&quot;b"' in svg


def test_numbers_without_exponents_in_everyday_ranges() -> None:
    assert [number(value) for value in (0, 0.25, 1500, 2.0, 3e-7)] == ["0", "0.25", "1500", "2", "3.0e-07"]


@pytest.mark.parametrize(("count", "most"), [(1, 10), (10, 10), (11, 10), (1000, 120)])
def test_thinning_keeps_the_last_step(count: int, most: int) -> None:
    steps = [(float(i), SearchStep(i, count, 1.0)) for i in range(count)]
    kept = thinned(steps, most)
    assert kept[-1] == steps[-1]
    assert len(kept) <= most
    assert len(kept) >= min(count, most) / 2


def test_stage_shares() -> None:
    assert stage_shares({"a": 2.0, "b": 8.0}) == (("a", 2.0, 0.25), ("b", 8.0, 1.0))
    assert stage_shares({}) == ()
