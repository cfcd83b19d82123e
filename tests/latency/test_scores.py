"""Scores against closed forms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hwprune.latency.scores import label_noise, one_group_pairs, score

VALUES = np.array([[32, 64], [16, 64], [16, 32], [32, 16]])
MEASURED = np.array([4.0, 3.0, 2.0, 1.0])


def test_perfect_predictions() -> None:
    found = score(MEASURED, MEASURED, VALUES, error_ms=np.full(4, 0.1))
    assert (found.mape, found.within_5, found.within_10, found.bias) == (0.0, 1.0, 1.0, 0.0)
    assert found.spearman == pytest.approx(1.0)
    assert found.kendall == pytest.approx(1.0)
    assert (found.wrong_sign, found.pairs, found.within_sigma) == (0.0, 3, 1.0)
    assert found.cosine == pytest.approx(1.0)


def test_errors_by_hand() -> None:
    predicted = MEASURED * np.array([1.04, 0.92, 1.0, 1.2])
    found = score(predicted, MEASURED, VALUES)
    assert found.mape == pytest.approx((0.04 + 0.08 + 0.2) / 4)
    assert found.bias == pytest.approx((0.04 - 0.08 + 0.2) / 4)
    assert found.within_5 == 0.5
    assert found.within_10 == 0.75
    assert math.isnan(found.within_sigma)


def test_pairs_differ_in_one_group() -> None:
    assert set(one_group_pairs(VALUES)) == {(0, 1), (1, 2), (0, 3)}


def test_wrong_signs_are_counted() -> None:
    predicted = np.array([4.0, 4.5, 2.0, 1.0])  # says that the wider first group is faster
    found = score(predicted, MEASURED, VALUES)
    assert found.wrong_sign == pytest.approx(1 / 3)
    measured, said = np.array([1.0, 1.0, 3.0]), np.array([-0.5, 2.5, 3.0])
    assert found.cosine == pytest.approx(float(measured @ said / np.linalg.norm(measured) / np.linalg.norm(said)))


def test_changes_within_the_noise_do_not_count() -> None:
    found = score(MEASURED, MEASURED, VALUES, noise=0.15)  # 2 * 0.15 * 4 ms = 1.2 ms: 4 -> 3 ms is not resolved
    assert found.pairs == 2
    assert math.isnan(score(MEASURED, MEASURED, VALUES, noise=0.9).wrong_sign)


def test_unknown_figures_are_null_in_json() -> None:
    document = score(MEASURED[:1], MEASURED[:1], VALUES[:1]).to_json()
    assert json.loads(json.dumps(document, allow_nan=False))["spearman"] is None
    assert document["pairs"] == 0


def test_label_noise_is_the_error_of_a_perfect_model() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 10, 4000)
    first, second = (truth * np.exp(0.02 * rng.standard_normal(4000)) for _ in range(2))
    rows = [((place,), float(value), "a") for place, value in enumerate(first)]
    rows += [((place,), float(value), "b") for place, value in enumerate(second)]
    perfect = float(np.mean(np.abs(truth / first - 1)))
    assert label_noise(rows) == pytest.approx(perfect, rel=0.05)


def test_label_noise_needs_two_sessions() -> None:
    assert label_noise([((1,), 1.0, "a"), ((1,), 2.0, "a"), ((2,), 2.0, "b")]) is None
