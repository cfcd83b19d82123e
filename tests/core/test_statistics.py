"""Statistics against closed forms, tables and slow references."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from scipy import stats

from hwprune.core import statistics


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_quantile_is_numpys(share: float, count: int) -> None:
    values = [Random(count).gauss(0, 1) for _ in range(count)]
    assert statistics.quantile(values, share) == pytest.approx(float(np.quantile(values, share)))


def test_no_values_have_no_statistics() -> None:
    for function in (statistics.median, statistics.mean, statistics.mad):
        with pytest.raises(ValueError, match="no values"):
            function([])
    with pytest.raises(ValueError, match="at least two"):
        statistics.t_interval([1.0])
    with pytest.raises(ValueError, match="at least two"):
        statistics.undisturbed_interval([1.0])


def test_spread_by_hand() -> None:
    assert statistics.standard_deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert statistics.standard_deviation([5.0]) == 0.0
    assert statistics.mad([1.0, 2.0, 3.0, 10.0]) == 1.0
    assert statistics.robust_variation([9.0, 10.0, 11.0]) == pytest.approx(0.14826)


def test_outliers_are_counted() -> None:
    values = [10.0, 10.1, 9.9, 10.05, 9.95, 30.0]
    assert statistics.outliers(values) == 1
    assert statistics.outliers([1.0, 1.0, 1.0, 5.0]) == 0  # no spread, no scale to judge by


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 19, 39, 120])
def test_t_quantile_is_scipys(degrees: int) -> None:
    for confidence in (0.5, 0.95, 0.999):
        expected = stats.t.ppf((1 + confidence) / 2, degrees)
        assert statistics.t_quantile(degrees, confidence) == pytest.approx(expected, rel=1e-9)


def test_t_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="0 degrees"):
        statistics.t_quantile(0)


def test_t_interval_by_hand() -> None:
    estimate = statistics.t_interval([1.0, 2.0, 3.0])
    half = 4.302652729696 / math.sqrt(3)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert estimate.half_width == pytest.approx(half)


def test_binomial_is_scipys() -> None:
    for successes in (-1, 0, 1, 5, 20):
        assert statistics.binomial_at_most(successes, 20, 0.3) == pytest.approx(stats.binom.cdf(successes, 20, 0.3))


def test_laps_that_bound_a_percentile() -> None:
    """The counts of MLPerf Inference's early stopping: (n - 1) p^(n-1) ... <= 5 %."""
    assert [statistics.laps_for_percentile(share) for share in (0.90, 0.95, 0.99)] == [46, 93, 473]
    assert [statistics.laps_for_percentile(share, 0.99) for share in (0.90, 0.95, 0.99)] == [64, 130, 662]


@pytest.mark.parametrize(
    ("count", "deviation", "error"),
    [(8, 0.005, 1.5e-3), (8, 0.05, 1.2e-2), (30, 0.005, 5e-4), (30, 0.02, 1.5e-3), (30, 0.05, 3e-3)],
)
def test_undisturbed_median_is_the_median_of_undisturbed_values(count: int, deviation: float, error: float) -> None:
    rng = Random(count)
    found = [statistics.undisturbed_median([rng.gauss(1, deviation) for _ in range(count)]) for _ in range(2000)]
    assert statistics.mean(found) == pytest.approx(1.0, abs=error)


@pytest.mark.parametrize(("count", "error"), [(8, 0.007), (30, 0.004)])
def test_undisturbed_median_withstands_lengthened_values(count: int, error: float) -> None:
    rng, plain, found = Random(0), [], []
    for _ in range(1000):
        values = [rng.gauss(1, 0.005) * (1 + 0.15 * rng.random() * (rng.random() < 0.4)) for _ in range(count)]
        plain.append(statistics.median(values))
        found.append(statistics.undisturbed_median(values))
    assert statistics.mean(found) < 1 + error < statistics.mean(plain)
    assert statistics.standard_deviation(found) < 0.7 * statistics.standard_deviation(plain)


@pytest.mark.parametrize(("count", "least"), [(5, 0.84), (8, 0.90), (20, 0.93)])
def test_undisturbed_interval_covers(count: int, least: float) -> None:
    rng, hits = Random(1), 0
    for _ in range(1000):
        estimate = statistics.undisturbed_interval([rng.gauss(1, 0.005) for _ in range(count)])
        hits += estimate.low <= 1 <= estimate.high
    assert least <= hits / 1000 <= 0.99


@pytest.mark.parametrize("count", [8, 30])
def test_upper_decile_interval_covers(count: int) -> None:
    rng, hits, truth = Random(2), 0, 1 + 0.01 * statistics.NORMAL_DECILE
    for _ in range(1000):
        estimate = statistics.upper_decile_interval([rng.gauss(1, 0.01) for _ in range(count)])
        hits += estimate.low <= truth <= estimate.high
    assert 0.88 <= hits / 1000 <= 0.98
    with pytest.raises(ValueError, match="at least two"):
        statistics.upper_decile_interval([1.0])


def test_trend_is_seen_and_noise_is_not() -> None:
    rng = Random(0)
    steady = statistics.trend([1 + rng.gauss(0, 0.01) for _ in range(30)])
    assert steady.low <= 0 <= steady.high
    rising = statistics.trend([1 + 0.05 * place / 30 + rng.gauss(0, 0.002) for place in range(30)])
    assert rising.low > 0
    assert rising.value == pytest.approx(0.033, abs=0.01)
    assert statistics.trend([1.0, 2.0, 3.0]).high == math.inf


def test_two_clusters() -> None:
    assert statistics.two_clusters([1.0, 1.01, 1.1, 1.11], 0.03)
    assert not statistics.two_clusters([1.0, 1.1, 1.1, 1.1], 0.03)  # one value is no cluster
    assert not statistics.two_clusters([1.0, 1.01, 1.02, 1.03], 0.03)
    rng = Random(0)
    false_alarms = sum(statistics.two_clusters([rng.gauss(1, 0.01) for _ in range(10)], 0.03) for _ in range(300))
    assert false_alarms <= 6


def test_the_faster_half_of_runs_gives_the_mean_of_every_layer() -> None:
    runs = [(1.0, 2.0), (9.0, 9.0), (3.0, 2.0), (1.0, 1.0), (5.0, 5.0)]
    assert statistics.faster_half(runs) == pytest.approx([5 / 3, 5 / 3]), "three of five: an odd run counts"
    assert statistics.faster_half(runs[:2]) == [1.0, 2.0]
    with pytest.raises(ValueError, match="no runs"):
        statistics.faster_half([])
