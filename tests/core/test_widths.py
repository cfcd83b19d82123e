"""Widths, search spaces and budgets validate themselves and survive JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import pytest

from hwprune.core.errors import UsageError
from hwprune.core.ops import ChannelCount, OpKey, OpTemplate, ParameterTemplate
from hwprune.core.widths import Budget, ChannelGroup, Limits, SearchSpace, Widths

SPACE = SearchSpace((ChannelGroup("a", 32), ChannelGroup("b", 40)), ((8, 16, 32), (16, 32, 40)))


def test_space_is_the_grid() -> None:
    assert SPACE.size == 9
    assert SPACE.dense().values_tuple() == (32, 40)
    assert SPACE.smallest().values_tuple() == (8, 16)
    assert {SPACE.sample(Random(seed)) for seed in range(200)} == {
        SPACE.make([a, b]) for a in (8, 16, 32) for b in (16, 32, 40)
    }


@pytest.mark.parametrize("rounded", [SPACE.snap, SPACE.nearest])
def test_the_nearest_width_and_ties_go_wide(rounded: Callable[[list[float]], Widths]) -> None:
    assert rounded([12.0, 36.0]).values_tuple() == (16, 40)
    assert rounded([-5.0, 33.0]).values_tuple() == (8, 32)


def test_a_branch_with_a_unit_alive_is_not_rounded_away() -> None:
    space = SearchSpace((ChannelGroup("a", 64, skippable=True),), ((0, 32, 64),))
    assert [space.snap([count])["a"] for count in (0.0, 1.0, 15.0, 47.0, 48.0)] == [0, 32, 32, 32, 64]
    assert [space.nearest([count])["a"] for count in (0.0, 1.0, 15.0, 16.0, 48.0)] == [0, 0, 0, 32, 64]


def test_widths_are_a_hashable_mapping() -> None:
    widths = Widths.of({"a": 8, "b": 16})
    assert dict(widths) == {"a": 8, "b": 16}
    assert widths.replace("a", 16) == SPACE.make([16, 16])
    assert len({widths, Widths.of({"a": 8, "b": 16})}) == 1
    with pytest.raises(KeyError):
        widths["c"]


def test_check_names_what_is_wrong() -> None:
    SPACE.check({"a": 8, "b": 16})
    for widths, message in (
        ({"a": 8}, "lack the channel group 'b'"),
        ({"a": 9, "b": 16}, "group 'a' cannot have width 9"),
        ({"a": 8, "b": 16, "bb": 1}, r"no channel group 'bb'\. Did you mean 'b'\?"),
    ):
        with pytest.raises(UsageError, match=message):
            SPACE.check(widths)


def test_space_json_round_trip_keeps_the_signature() -> None:
    again = SearchSpace.from_json(json.loads(json.dumps(SPACE.to_json())))
    assert again == SPACE
    assert again.signature() == SPACE.signature()
    other = SearchSpace(SPACE.groups, ((8, 32), (16, 32, 40)))
    assert other.signature() != SPACE.signature()


@pytest.mark.parametrize("allowed", [(), (16, 8, 32), (0, 32), (8, 16), (8, 8, 32)])
def test_space_refuses_bad_widths(allowed: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="group 'a' must ascend"):
        SearchSpace((ChannelGroup("a", 32),), (allowed,))


def test_budget() -> None:
    assert Budget(latency_ms=4).in_ms(10) == 4
    assert Budget(fraction=0.6).in_ms(10) == pytest.approx(6)
    for values in ({}, {"latency_ms": 1.0, "fraction": 0.5}, {"latency_ms": -1.0}, {"fraction": 1.2}):
        with pytest.raises(UsageError, match="budget"):
            Budget(**values)


@pytest.mark.parametrize("limits", [{"params": 0}, {"macs": -1}])
def test_a_limit_of_nothing_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"at most {next(iter(limits.values()))} (parameters|MACs)"):
        Limits(**limits)
    assert not Limits()
    assert Limits(params=1)


def test_op_template_is_linear_in_the_widths() -> None:
    template = OpTemplate(
        "conv", "conv", ChannelCount(3, (("a", 2),)), ChannelCount(0, (("b", 1),)), (3, 3), (1, 1), out_size=(8, 8)
    )
    key = template.at({"a": 8, "b": 16})
    assert key == OpKey("conv", 19, 16, (3, 3), (1, 1), 1, (1, 1), (8, 8))
    assert key.macs == 19 * 16 * 9 * 64
    assert OpTemplate.from_json(json.loads(json.dumps(template.to_json()))) == template
    parameter = ParameterTemplate("w", (ChannelCount(0, (("b", 1),)), ChannelCount(3, (("a", 2),)), ChannelCount(9)))
    assert parameter.count({"a": 8, "b": 16}) == 16 * 19 * 9


@pytest.mark.parametrize("text", ["60", " 4.5 "])
def test_a_budget_without_a_unit_is_refused_since_it_may_mean_either(text: str) -> None:
    with pytest.raises(UsageError, match="has no unit") as caught:
        Budget.parse(text)
    assert caught.value.hint == f"{text.strip()}% of dense, or {text.strip()}ms"
