"""A session whose intervals are wide is repeated; the steadiest one is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hwprune.core.events import Caution, Event, Note
from hwprune.search.workshop import SESSIONS, STEADY, Workshop, judge_fit

Intervals = dict[str, float]


def measured(sessions: Sequence[Intervals], *, worked_s: float = 0.0) -> tuple[int, list[Event]]:
    """Which session was taken, and the events. A session is half the relative width of each network's interval.

    A session takes 20 s; the run has worked for `worked_s` before.
    """
    events: list[Event] = []
    seeds: list[int] = []
    folder: Any = SimpleNamespace(emit=events.append, elapsed_s=worked_s)

    def measure(models: dict[str, bytes], *, seed: int, **_: Any) -> dict[str, SimpleNamespace]:
        number = len(seeds)
        seeds.append(seed)
        folder.elapsed_s += 20.0
        return {name: SimpleNamespace(scatter=half, session=number) for name, half in sessions[number].items()}

    shop = object.__new__(Workshop)
    board: Any = SimpleNamespace(measure=measure)
    shop.board, shop.folder, shop.waited_s, shop.anchor = board, folder, 0.0, None
    timed: Any = shop.measure(dict.fromkeys(sessions[0], b""), seed=5)
    assert len(set(seeds)) == len(seeds)
    assert {item.session for item in timed.values()} == {timed["pruned"].session}
    return timed["pruned"].session, events


def test_a_steady_session_is_taken() -> None:
    assert measured([{"pruned": 0.99 * STEADY}]) == (0, [])


def test_a_scattered_session_is_repeated() -> None:
    session, events = measured([{"pruned": 0.035}, {"pruned": 0.01}])
    assert session == 1
    assert events == [Note("the interval is +-3.5 %: measuring again")]


def test_all_networks_must_be_steady() -> None:
    assert measured([{"dense": 0.05, "pruned": 0.01}, {"dense": 0.01, "pruned": 0.01}])[0] == 1


def test_the_steadiest_of_the_last_resort_is_taken_with_a_warning() -> None:
    session, events = measured([{"pruned": 0.05}, {"pruned": 0.03}, {"pruned": 0.04}])
    assert session == 1
    assert [type(event) for event in events] == [Note] * (SESSIONS - 1) + [Caution]


def test_a_run_waits_as_long_as_it_has_worked() -> None:
    scattered = [{"pruned": 0.05}] * 6
    session, events = measured([*scattered, {"pruned": 0.01}], worked_s=110.0)
    assert session == 6, "five repetitions take 100 s of the 130 s that it has worked when the first one ended"
    assert [type(event) for event in events] == [Note] * 6
    session, events = measured([*scattered, {"pruned": 0.01}], worked_s=60.0)
    assert [type(event) for event in events] == [Note] * 4 + [Caution]


@pytest.mark.parametrize(
    ("mape", "wrong_sign", "cosine", "said"),
    [
        (0.049, 0.02, 0.9, None),
        (0.02, 0.0, math.nan, None),
        (0.13, 0.0, 0.99, "the latency model errs by 13.0 % on networks it has not seen"),
        (
            0.02,
            0.2,
            0.8,
            "the latency model has the wrong sign in 20 % of the steps of one tile; has slopes",
        ),
    ],
)
def test_a_doubtful_latency_model_is_said(mape: float, wrong_sign: float, cosine: float, said: str | None) -> None:
    events: list[Event] = []
    report: Any = SimpleNamespace(scores=SimpleNamespace(mape=mape, wrong_sign=wrong_sign, cosine=cosine))
    judge_fit(report, events.append)
    assert [event.text[: len(said or "")] for event in events if isinstance(event, Caution)] == ([said] if said else [])
