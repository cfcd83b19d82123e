"""The plan: its shares, its order, and that a table can grow."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.core.errors import UsageError
from hwprune.core.widths import ChannelGroup, SearchSpace
from hwprune.latency.plan import plan_widths
from hwprune.testing.staircase import staircase_space

SPACE = staircase_space()
WIDE = SearchSpace(tuple(ChannelGroup(f"g{n}", 128) for n in range(40)), (tuple(range(16, 129, 16)),) * 40)
SMALL = SearchSpace((ChannelGroup("a", 32), ChannelGroup("b", 16)), ((8, 16, 32), (8, 16)))


def test_dense_and_smallest_come_first() -> None:
    plan = plan_widths(SPACE, 20)
    assert plan[0] == (SPACE.dense(), "dense")
    assert plan[1] == (SPACE.smallest(), "corner")


@given(seed=st.integers(0, 2**32), n=st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_unique_on_the_grid_and_prefix_stable(seed: int, n: int) -> None:
    plan = plan_widths(SPACE, 80, seed)
    assert len({widths for widths, _ in plan}) == 80
    for widths, _ in plan:
        SPACE.check(widths)
    assert plan_widths(SPACE, n, seed) == plan[:n]


def test_kinds_have_their_shares() -> None:
    kinds = Counter(kind for _, kind in plan_widths(WIDE, 402, 3)[2:])
    shares = {kind: count / 400 for kind, count in kinds.items()}
    assert shares == pytest.approx({"uniform": 0.50, "ratio": 0.25, "sweep": 0.15, "corner": 0.10}, abs=0.03)


def test_a_sweep_changes_one_group() -> None:
    plan = plan_widths(WIDE, 100)
    sweeps = [widths for widths, kind in plan if kind == "sweep"]
    first = sweeps[:3]
    changed = [name for name in WIDE.names if len({widths[name] for widths in first}) > 1]
    assert len(changed) == 1
    assert [widths[changed[0]] for widths in first] == [128, 80, 16]


def test_a_corner_is_one_group_away_from_an_end() -> None:
    corners = [widths for widths, kind in plan_widths(SPACE, 100)[2:] if kind == "corner"]
    assert len(corners) >= 5
    for widths in corners:
        ends = (SPACE.dense(), SPACE.smallest())
        assert min(sum(widths[name] != end[name] for name in SPACE.names) for end in ends) == 1


def test_seeds_differ() -> None:
    assert plan_widths(SPACE, 30, 0) != plan_widths(SPACE, 30, 1)


def test_a_small_space_is_used_up() -> None:
    plan = plan_widths(SMALL, 100)
    assert {widths for widths, _ in plan} == {SMALL.make([a, b]) for a in (8, 16, 32) for b in (8, 16)}


def test_too_short_a_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2 networks, not 1"):
        plan_widths(SPACE, 1)
