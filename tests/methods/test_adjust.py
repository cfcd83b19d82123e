"""Fitting widths to a target, and families of widths, against brute force on spaces small enough to list."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.core.errors import BudgetInfeasible
from hwprune.core.widths import ChannelGroup, SearchSpace, Widths
from hwprune.latency.features import Array, IntArray
from hwprune.latency.models._base import Fitted
from hwprune.methods._adjust import _Walk, check_feasible, fastest, fit_to_target
from hwprune.methods._families import ranked_family, uniform_family, widest_that_fits
from hwprune.testing.methods import StaircaseLatency


class Formula(StaircaseLatency):
    """Latency by a formula on width rows; stairs of 4 units, coupled neighbours, and an optional sawtooth."""

    def __init__(self, space: SearchSpace, prices: list[float], sawtooth: float = 0.0) -> None:
        self.own_space, self.prices, self.sawtooth = space, np.array(prices), sawtooth

    @property
    def space(self) -> SearchSpace:
        return self.own_space

    def predict_batch(self, values: IntArray) -> Array:
        rounded = np.ceil(values / 4) * 4
        slow = self.sawtooth * ((values % 4) != 0).sum(axis=1)
        coupled = (rounded * np.roll(rounded, 1, axis=1)).sum(axis=1)
        return np.asarray(1.0 + rounded @ self.prices + 0.01 * coupled + slow)


def make_space(units: tuple[int, ...], step: int = 2) -> SearchSpace:
    groups = tuple(ChannelGroup(f"g{index}", count) for index, count in enumerate(units))
    return SearchSpace(groups, tuple(tuple(range(step, count + 1, step)) for count in units))


def kept(scores: dict[str, np.ndarray], widths: Widths) -> float:
    return sum(float(np.sort(scores[name])[::-1][:width].sum()) for name, width in widths.items())


def everything(space: SearchSpace) -> list[Widths]:
    return [space.make(list(values)) for values in itertools.product(*space.widths)]


def random_scores(space: SearchSpace, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {group.name: rng.exponential(rng.exponential(1.0), group.units) for group in space.groups}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.floats(0.3, 1.0), sawtooth=st.sampled_from([0.0, 0.3]))
def test_fits_and_is_nearly_as_good_as_brute_force(seed: int, budget: float, sawtooth: float) -> None:
    space = make_space((8, 12, 8))
    rng = np.random.default_rng(seed)
    latency = Formula(space, list(rng.uniform(0.05, 1.0, 3)), sawtooth)
    scores = random_scores(space, seed)
    rows = everything(space)
    predicted = latency.predict_batch(np.array([row.values_tuple() for row in rows]))
    target_ms = predicted.min() + budget * (predicted.max() - predicted.min())
    fit = fit_to_target(space, latency, scores, target_ms)
    best = max(kept(scores, row) for row, ms in zip(rows, predicted, strict=True) if ms <= target_ms)
    assert fit.predicted_ms <= target_ms * (1 + 1e-12)
    assert fit.predicted_ms == pytest.approx(float(latency.predict_batch(np.array([fit.widths.values_tuple()]))[0]))
    assert kept(scores, fit.widths) >= 0.85 * best


def test_fits_are_within_half_a_percent_of_brute_force_on_average() -> None:
    shares = []
    for seed in range(60):
        space, rng = make_space((8, 12, 8)), np.random.default_rng(seed)
        latency, scores = Formula(space, list(rng.uniform(0.05, 1.0, 3)), 0.3 * (seed % 2)), random_scores(space, seed)
        rows = everything(space)
        predicted = latency.predict_batch(np.array([row.values_tuple() for row in rows]))
        target_ms = predicted.min() + rng.uniform(0.3, 1.0) * (predicted.max() - predicted.min())
        best = max(kept(scores, row) for row, ms in zip(rows, predicted, strict=True) if ms <= target_ms)
        shares.append(kept(scores, fit_to_target(space, latency, scores, target_ms).widths) / best)
    assert np.mean(shares) >= 0.995


def test_exchange_never_loses_importance_and_often_wins() -> None:
    space, wins = make_space((8, 16, 12, 8)), 0
    for seed in range(12):
        latency = Formula(space, [0.3, 0.1, 0.5, 0.2])
        scores = random_scores(space, seed)
        plain = fit_to_target(space, latency, scores, 11.0, exchange=False)
        better = fit_to_target(space, latency, scores, 11.0)
        assert kept(scores, better.widths) >= kept(scores, plain.widths) - 1e-9
        wins += kept(scores, better.widths) > kept(scores, plain.widths) + 1e-9
    assert wins >= 3


def test_shrinking_alone_is_nested() -> None:
    """From one start, a tighter target gives a network inside the looser one as long as nothing is refilled."""
    space = make_space((8, 12, 8), step=4)
    latency = Formula(space, [0.3, 0.3, 0.3])
    scores = {group.name: np.linspace(1, 2, group.units) for group in space.groups}
    previous = space.dense()
    for target_ms in (14.0, 12.0, 10.0, 8.0, 7.0):
        now = fit_to_target(space, latency, scores, target_ms, start=previous, exchange=False).widths
        assert all(now[name] <= previous[name] for name in space.names)
        previous = now


def test_a_start_within_the_target_is_widened() -> None:
    space = make_space((8, 8))
    latency = Formula(space, [0.5, 0.5])
    scores = random_scores(space, 0)
    fit = fit_to_target(space, latency, scores, 100.0, start=space.smallest())
    assert fit.widths == space.dense()


def test_steps_that_save_nothing_are_crossed() -> None:
    """Every second step of the grid lies on the same stair: single steps save no time, pairs do."""
    space = make_space((16,), step=1)
    latency = Formula(space, [1.0])
    scores = {"g0": np.ones(16)}
    target_ms = float(latency.predict_batch(np.array([[8]]))[0])
    fit = fit_to_target(space, latency, scores, target_ms)
    assert fit.widths["g0"] == 8


def test_the_floor_holds_until_the_target_needs_less() -> None:
    space = make_space((16, 16))
    latency = Formula(space, [1.0, 1.0])
    scores = {"g0": np.full(16, 1e-6), "g1": np.ones(16)}
    target_ms = float(latency.predict_batch(np.array([[8, 8]]))[0])
    assert fit_to_target(space, latency, scores, target_ms).widths["g0"] < 8
    assert fit_to_target(space, latency, scores, target_ms, floor=0.5).widths["g0"] >= 8
    tight = float(latency.predict_batch(np.array([[4, 4]]))[0])
    assert fit_to_target(space, latency, scores, tight, floor=0.5).predicted_ms <= tight


def test_the_fastest_network_need_not_be_the_smallest() -> None:
    space = make_space((8, 8), step=2)
    latency = Formula(space, [0.01, 0.01], sawtooth=3.0)
    found = fastest(space, latency)
    predicted = latency.predict_batch(np.array([row.values_tuple() for row in everything(space)]))
    assert found.widths.values_tuple() == (4, 4)
    assert found.predicted_ms == pytest.approx(predicted.min())


def test_an_infeasible_target_says_what_is_reachable() -> None:
    space = make_space((8, 8))
    latency = Formula(space, [1.0, 1.0])
    with pytest.raises(BudgetInfeasible, match=r"within 2\S* ms; the fastest needs 9\S* ms") as caught:
        check_feasible(space, latency, 2.0)
    assert caught.value.smallest_ms == pytest.approx(fastest(space, latency).predicted_ms)
    assert "raise the budget" in caught.value.hint


def test_the_uniform_family_holds_one_ratio_for_all_groups() -> None:
    space = make_space((8, 16, 32))
    family = uniform_family(space)
    assert family[0] == space.smallest()
    assert family[-1] == space.dense()
    for ratio in np.linspace(0.2, 1.0, 33):
        assert space.snap([ratio * group.units for group in space.groups]) in family
    for narrow, wide in itertools.pairwise(family):
        assert sum(narrow[name] != wide[name] for name in space.names) == 1


def test_the_ranked_family_takes_units_by_score_over_all_groups() -> None:
    space = make_space((4, 4))
    family = ranked_family(space, [np.array([9.0, 8.0, 7.0, 6.0]), np.array([5.0, 4.0, 3.0, 2.0])])
    assert list(dict.fromkeys(row.values_tuple() for row in family)) == [(2, 2), (4, 2), (4, 4)]


def test_the_widest_member_that_fits_is_taken_and_filled_up_step_by_step() -> None:
    space = make_space((8, 8))
    latency = Formula(space, [1.0, 0.1])
    family: list[Widths] = [space.make([2, 2]), space.make([4, 4]), space.make([8, 8])]
    exact = float(latency.predict_batch(np.array([[4, 4]]))[0])
    assert widest_that_fits(space, latency, family, exact).widths.values_tuple() == (4, 4)
    second = float(latency.predict_batch(np.array([[4, 8]]))[0])
    fit = widest_that_fits(space, latency, family, second)
    assert fit.widths.values_tuple() == (4, 8)
    assert fit.predicted_ms == pytest.approx(second)


def test_without_a_fitting_member_the_fastest_network_is_taken() -> None:
    space = make_space((8, 8))
    latency = Formula(space, [1.0, 1.0], sawtooth=50.0)
    fit = widest_that_fits(space, latency, [space.make([2, 2])], 12.0)
    assert fit.widths.values_tuple() == (4, 4)
    with pytest.raises(BudgetInfeasible):
        widest_that_fits(space, latency, [space.make([2, 2])], 1.0)


def test_looks_beyond_a_step_of_the_target_on_a_finer_grid() -> None:
    """Four widths of the grid cost the same: from the dense network the next cheaper one is four steps away."""
    space = make_space((32, 32), step=1)
    latency = Formula(space, [1.0, 1.0])
    latency._fitted = Fitted(space, (), 4, None, 0, space.widths, 0.0, 0.0)
    scores = {name: np.arange(32.0, 0.0, -1.0) for name in space.names}
    walk = _Walk(space, latency, scores, 0.0)
    target_ms = float(latency.predict_batch(np.array([[28, 32]]))[0])
    shrunk = walk.shrink(walk.position(space.dense()), target_ms)
    assert shrunk is not None
    assert walk.widths(shrunk) == space.make([28, 32])
