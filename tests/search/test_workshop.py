"""Sessions in which the dense network is much slower than before are repeated, a few times."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from hwprune.core.events import Caution, Event, Note
from hwprune.search.workshop import SESSIONS, Workshop


def measured(dense_ms: list[float]) -> tuple[float, list[Event], int]:
    """Latency of the dense network in the session that was taken, the events, and how many sessions there were."""
    events: list[Event] = []
    left = iter(dense_ms)
    seeds: list[int] = []

    def measure(models: dict[str, bytes], *, seed: int, **_: Any) -> dict[str, SimpleNamespace]:
        seeds.append(seed)
        return {name: SimpleNamespace(latency_ms=next(left)) for name in models}

    shop: Any = SimpleNamespace(
        board=SimpleNamespace(measure=measure), folder=SimpleNamespace(emit=events.append), least_dense_ms=math.inf
    )
    Workshop.measure(shop, {"dense": b""}, seed=0)
    timed = Workshop.measure(shop, {"dense": b""}, seed=10)
    assert len(set(seeds)) == len(seeds)
    return timed["dense"].latency_ms, events, len(seeds) - 1


@pytest.mark.parametrize("second", [1.0, 1.049, 0.8])
def test_a_session_like_the_best_one_is_taken(second: float) -> None:
    assert measured([1.0, second]) == (second, [], 1)


def test_a_slow_session_is_repeated() -> None:
    latency_ms, events, sessions = measured([1.0, 1.3, 1.02])
    assert (latency_ms, sessions) == (1.02, 2)
    (event,) = events
    assert isinstance(event, Note)
    assert "30% slower than in a better moment (1.00 ms): measuring again" in event.text


def test_a_machine_that_stays_slow_is_taken_with_a_warning() -> None:
    latency_ms, events, sessions = measured([1.0, 1.3, 1.3, 1.4])
    assert (latency_ms, sessions) == (1.4, SESSIONS)
    assert [type(event) for event in events] == [Note, Note, Caution]
