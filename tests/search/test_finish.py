"""Layer times at the end of a run, where the runtime has some and where it has none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from hwprune.core.events import Caution, Event, Note
from hwprune.search.finish import verify
from hwprune.search.workshop import Workshop


@pytest.mark.parametrize(
    ("sessions_ms", "patience_s", "taken_ms", "told"),
    [
        ((0.98,), 0.0, 0.98, 0),  # within the budget of 1 ms
        ((0.953,), 0.0, 0.953, 0),  # faster than the candidate, which leaves little unused all the same
        ((0.90, 0.97), 0.0, 0.97, 1),  # a part of the budget unused that the candidate did not: the third decides
        ((0.90, 0.91), 99.0, 0.91, 1),  # fast twice: so it is
        ((0.90, 1.01, 0.99), 0.0, 0.99, 2),  # fast once and over it once, undisturbed
        ((1.01, 0.99), 0.0, 0.99, 1),  # undisturbed and over it, the candidate within it: the third session decides
        ((1.01, 1.005), 99.0, 1.005, 1),  # over it twice, undisturbed: no patience changes that
        ((1.4, 0.985), 0.0, 0.985, 1),  # a disturbed session
        ((1.4, 1.3), 0.0, 1.3, 1),  # slow twice: so it is
        ((1.4, 1.3, 1.4, 0.98), 35.0, 0.98, 3),  # a session takes 10 s: there was patience for three more
        ((1.4, 1.3, 1.4, 1.35), 35.0, 1.35, 3),  # slow all along
    ],
)
def test_a_verdict_that_contradicts_the_candidate_is_measured_again(
    sessions_ms: tuple[float, ...],
    patience_s: float,
    taken_ms: float,
    told: int,
) -> None:
    heard: list[Event] = []
    left = list(sessions_ms)
    seeds = []

    def timed(latency_ms: float) -> SimpleNamespace:
        return SimpleNamespace(statistic=lambda _: (latency_ms, latency_ms, latency_ms), scatter=0.001, slowdown=1.0)

    def measure(models: dict[str, bytes], *, seed: int, **_: object) -> dict[str, SimpleNamespace]:
        seeds.append(seed)
        folder.elapsed_s += 10
        return {"pruned": timed(left.pop(0))}

    folder = SimpleNamespace(emit=heard.append, elapsed_s=100.0)
    shop = cast(
        Workshop,
        SimpleNamespace(
            measure=measure,
            in_turns=lambda models, *_, **__: dict.fromkeys(models, timed(2.0)),
            board=SimpleNamespace(compare=lambda models, **_: [tuple(models)]),
            template=SimpleNamespace(dense=b""),
            settings=SimpleNamespace(statistic="median"),
            folder=folder,
            budget_ms=1.0,
        ),
    )
    found = verify(shop, b"small", seed=1, candidate_ms=0.985, patience_s=patience_s)
    assert found.pruned.statistic("median")[0] == taken_ms
    assert found.within == (taken_ms <= 1.0)
    assert found.dense.statistic("median")[0] == 2.0
    assert found.comparison == ("dense", "pruned")
    assert not left
    assert len(set(seeds)) == len(sessions_ms)
    divided = sessions_ms[-2:] == (1.01, 0.99)
    assert [type(event) for event in heard] == [Note] * told + [Caution] * divided
