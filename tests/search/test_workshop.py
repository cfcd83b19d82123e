"""A session whose intervals are wide is repeated; the steadiest one is taken."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hwprune.core.events import Caution, Event, Note
from hwprune.search.workshop import SESSIONS, STEADY, Workshop

Intervals = dict[str, float]


def measured(sessions: Sequence[Intervals], steady: tuple[str, ...] = ()) -> tuple[int, list[Event]]:
    """Which session was taken, and the events. A session is half the relative width of each network's interval."""
    events: list[Event] = []
    seeds: list[int] = []

    def measure(models: dict[str, bytes], *, seed: int, **_: Any) -> dict[str, SimpleNamespace]:
        number = len(seeds)
        seeds.append(seed)
        return {
            name: SimpleNamespace(latency_ms=2.0, ci_ms=(2 - 2 * half, 2 + 2 * half), session=number)
            for name, half in sessions[number].items()
        }

    shop: Any = SimpleNamespace(board=SimpleNamespace(measure=measure), folder=SimpleNamespace(emit=events.append))
    timed: Any = Workshop.measure(shop, dict.fromkeys(sessions[0], b""), seed=5, steady=steady)
    assert len(set(seeds)) == len(seeds)
    assert {item.session for item in timed.values()} == {timed["pruned"].session}
    return timed["pruned"].session, events


def test_a_steady_session_is_taken() -> None:
    assert measured([{"pruned": 0.99 * STEADY}]) == (0, [])


def test_a_scattered_session_is_repeated() -> None:
    session, events = measured([{"pruned": 0.035}, {"pruned": 0.01}])
    assert session == 1
    assert events == [Note("the interval is +-3.5%: measuring again")]


@pytest.mark.parametrize(("steady", "taken"), [((), 1), (("pruned",), 0)])
def test_only_the_networks_that_matter_must_be_steady(steady: tuple[str, ...], taken: int) -> None:
    sessions = [{"dense": 0.05, "pruned": 0.01}, {"dense": 0.01, "pruned": 0.01}]
    assert measured(sessions, steady)[0] == taken


def test_the_steadiest_of_the_last_resort_is_taken_with_a_warning() -> None:
    session, events = measured([{"pruned": 0.05}, {"pruned": 0.03}, {"pruned": 0.04}])
    assert session == 1
    assert [type(event) for event in events] == [Note] * (SESSIONS - 1) + [Caution]
