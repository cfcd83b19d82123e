"""Two networks compared: in turns by rounds, and lap by lap where one is the other's anchor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hwprune.core.comparison import Comparison, compare, compare_anchored
from hwprune.core.errors import UsageError
from tests.helpers.made_rounds import FINGERPRINT, make


def test_ratio_by_hand() -> None:
    found = compare(make([2.0, 2.0, 2.0], subject="a"), make([1.0, 1.02, 0.98], subject="b"))
    assert found.ratio == pytest.approx(0.49993, abs=1e-4)
    assert found.ci[0] < 0.5 < found.ci[1] < 1
    assert (found.baseline, found.subject, found.pairs, found.verdict) == ("a", "b", 3, "faster")
    assert found.to_json()["verdict"] == "faster"


def test_verdicts() -> None:
    assert Comparison("a", "b", 1.1, (1.05, 1.2), 9).verdict == "slower"
    assert Comparison("a", "b", 1.0, (0.99, 1.01), 9).verdict == "no difference shown"


def test_a_common_drift_of_the_rounds_cancels() -> None:
    found = compare(make([2.0, 2.5, 3.0, 3.5]), make([1.0, 1.25, 1.5, 1.75]))
    assert found.ci == pytest.approx((0.5, 0.5))


def test_pairs_only_rounds_that_count_in_both() -> None:
    before, after = make([2.0] * 4), make([1.0] * 4)
    voided = replace(after.rounds[1], void="disturbed")
    found = compare(before, replace(after, rounds=(after.rounds[0], voided, *after.rounds[2:])))
    assert (found.pairs, found.disturbed) == (3, False)


def test_what_an_engine_says_of_itself_may_differ() -> None:
    before, after = make([2.0] * 3), make([1.0] * 3)
    enqueued = replace(FINGERPRINT, flags=(("graph", "enqueued"),))
    captured = replace(FINGERPRINT, flags=(("graph", "captured"),))
    with pytest.raises(UsageError, match="flag graph: captured != enqueued"):
        compare(replace(before, fingerprint=captured), replace(after, fingerprint=enqueued))
    told = replace(after, fingerprint=enqueued, facts=(("graph", "enqueued"),))
    assert compare(replace(before, fingerprint=captured), told).ratio == pytest.approx(0.5)


def test_takes_disturbed_rounds_where_too_few_others_are_left() -> None:
    before, after = make([2.0] * 3), make([1.0] * 3)
    voided = replace(after.rounds[1], void="disturbed")
    found = compare(before, replace(after, rounds=(after.rounds[0], voided, after.rounds[2])))
    assert (found.pairs, found.disturbed) == (3, True)


@pytest.mark.parametrize(("void", "ratio"), [("over-current oc3 changed", 4.0), ("clock stood still", 0.0)])
def test_throttled_and_dead_rounds_never_count(void: str, ratio: float) -> None:
    before, after = make([2.0] * 4), make([1.0, 1.0, ratio, ratio])
    unfit = tuple(replace(item, void=void) for item in after.rounds[2:])
    found = compare(before, replace(after, rounds=(*after.rounds[:2], *unfit)))
    assert (found.ratio, found.pairs, found.disturbed) == (pytest.approx(0.5), 2, False)


def test_refuses_different_targets_and_too_few_rounds() -> None:
    foreign = replace(make([2.0, 2.0]), fingerprint=replace(FINGERPRINT, threads=2))
    with pytest.raises(UsageError, match="threads: 1 != 2"):
        compare(make([2.0, 2.0]), foreign)
    with pytest.raises(UsageError, match="share 1 rounds"):
        compare(make([2.0]), make([2.0]))


class TestAnchored:
    def test_the_ratio_is_that_of_the_rounds_whatever_the_anchor_counts_as(self) -> None:
        beside = replace(make([0.5, 0.51, 0.49], subject="b"), anchored=True)
        found = compare_anchored("a", beside)
        assert found.ratio == pytest.approx((0.5 * 0.51 * 0.49) ** (1 / 3))
        half = math.log(found.ci[1] / found.ratio)
        logs = [math.log(ratio) for ratio in (0.5, 0.51, 0.49)]
        centre = sum(logs) / 3
        deviation = math.sqrt(sum((item - centre) ** 2 for item in logs) / 2)
        assert half == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6), "t of two degrees of freedom"
        assert (found.baseline, found.subject, found.pairs, found.verdict) == ("a", "b", 3, "faster")
        assert compare_anchored("a", replace(beside, reference_ms=7.0)) == found

    @pytest.mark.parametrize(("void", "ratio"), [("over-current oc3 changed", 4.0), ("clock stood still", 0.0)])
    def test_throttled_and_dead_rounds_never_count(self, void: str, ratio: float) -> None:
        made = replace(make([0.5, 0.5, ratio, ratio]), anchored=True)
        unfit = tuple(replace(item, void=void) for item in made.rounds[2:])
        found = compare_anchored("a", replace(made, rounds=(*made.rounds[:2], *unfit)))
        assert (found.ratio, found.pairs, found.disturbed) == (pytest.approx(0.5), 2, False)

    def test_refuses_another_gauge_and_a_single_round(self) -> None:
        with pytest.raises(UsageError, match="'net' has 3 rounds and no anchor"):
            compare_anchored("a", make([1.0] * 3))
        with pytest.raises(UsageError, match="'net' has 1 rounds and an anchor"):
            compare_anchored("a", replace(make([1.0]), anchored=True))
