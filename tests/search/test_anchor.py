"""A share of the dense latency is measured as a ratio: what slows all networks of a session alike changes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from hwprune.core.events import Caution, Event
from hwprune.core.files import read_json
from hwprune.core.measurement import Fingerprint, Measurement, Protocol, Round, Target
from hwprune.core.widths import Widths
from hwprune.devices import Board, connect
from hwprune.search.anchor import NAME, Anchor
from hwprune.search.outcomes import Run

ANCHOR = Anchor(Widths((("a", 16), ("b", 8))), 0.8)
REFERENCE_MS = 0.1


def timed(subject: str, rounds_ms: Mapping[int, float], void: tuple[int, ...] = ()) -> Measurement:
    """Rounds of three laps each beside a reference kernel that takes 0.1 ms all the time."""
    rounds = [
        Round(
            index=index,
            laps_ms=(latency_ms,) * 3,
            before_ms=(REFERENCE_MS,),
            after_ms=(REFERENCE_MS,),
            burst=3,
            floor_ms=REFERENCE_MS,
            quiet_ms=1.06 * REFERENCE_MS,
            void="clock stood still" if index in void else "",
        )
        for index, latency_ms in rounds_ms.items()
    ]
    fingerprint = Fingerprint("cpu", "none", 1, "onnxruntime", "1", "fp32", 1, 1, "none")
    return Measurement(subject, tuple(rounds), REFERENCE_MS, Protocol.default(), fingerprint)


def test_what_slows_both_alike_cancels() -> None:
    slow = {0: 1.3, 1: 1.1, 2: 1.5, 3: 0.9}
    candidate = timed("candidate", {index: 0.7 * factor for index, factor in slow.items()})
    anchor = timed(NAME, {index: 0.8 * factor for index, factor in slow.items()})
    assert candidate.scatter > 0.1
    (found,) = ANCHOR.correct({NAME: anchor, "candidate": candidate}).values()
    assert found.latency_ms == pytest.approx(0.7)
    assert found.scatter == pytest.approx(0, abs=1e-9)
    assert found.slowdown == pytest.approx(1.2)
    assert found.p90_ms == pytest.approx(0.7)
    assert Measurement.from_json(found.to_json()) == found
    assert candidate.slowdown == 1


def test_what_slows_the_network_alone_stays() -> None:
    candidate = timed("candidate", {0: 0.9, 1: 0.9, 2: 0.9})
    (found,) = ANCHOR.correct({NAME: timed(NAME, {0: 0.8, 1: 0.8, 2: 0.8}), "candidate": candidate}).values()
    assert found.latency_ms == pytest.approx(0.9)


def test_the_interval_holds_the_scatter_of_the_anchor() -> None:
    candidate = timed("candidate", dict.fromkeys(range(4), 0.7))
    anchor = timed(NAME, {0: 0.78, 1: 0.82, 2: 0.78, 3: 0.82})
    (found,) = ANCHOR.correct({NAME: anchor, "candidate": candidate}).values()
    assert found.scatter == pytest.approx(anchor.scatter, rel=0.05)


def test_a_round_without_its_anchor_takes_that_of_the_session() -> None:
    """By the mean of the rounds of the anchor that count."""
    candidate = timed("candidate", {0: 0.7, 1: 0.77, 2: 0.735})
    anchor = timed(NAME, {0: 0.8, 1: 0.88, 2: 5.0}, void=(2,))
    (found,) = ANCHOR.correct({NAME: anchor, "candidate": candidate}).values()
    assert [item.slowdown for item in found.rounds] == pytest.approx([1.0, 1.1, 1.05])
    assert found.round_medians_ms == pytest.approx((0.7, 0.7, 0.7))


def test_it_is_kept_as_it_was() -> None:
    assert Anchor.from_json(ANCHOR.to_json()) == ANCHOR


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which every session has its own speed, which the reference kernel does not see: +-12 %."""
    session = itertools.count()
    measure = Board.measure

    def moodily(board: Board, models: Mapping[str, bytes], **options: Any) -> dict[str, Measurement]:
        factor = math.exp(0.12 * math.sin(2.4 * next(session)))
        return {
            name: replace(
                found,
                rounds=tuple(
                    replace(item, laps_ms=tuple(factor * lap for lap in item.laps_ms)) for item in found.rounds
                ),
            )
            for name, found in measure(board, models, **options).items()
        }

    monkeypatch.setattr(Board, "measure", moodily)


@pytest.mark.usefixtures("moody")
def test_a_run_on_a_device_whose_speed_changes_from_session_to_session(search: Callable[..., Run]) -> None:
    """The share that it means is met and used, by a comparison of its own."""
    heard: list[Event] = []
    run = search(latency="60%", method="greedy", finetune_epochs=0.0, on_event=heard.append)
    assert run.result.verdict == "pass"
    files = {name: (run.folder / f"{name}.onnx").read_bytes() for name in ("dense", "model")}
    with connect(Target("simulated", "simulated")) as board:
        found = board.measure(files, protocol=Protocol.default())
    share = found["model"].latency_ms / found["dense"].latency_ms
    assert 0.95 * 0.6 < share < 1.01 * 0.6
    baseline, verified = read_json(run.folder / "baseline.json"), run.measured
    assert verified is not None
    assert verified.slowdown != 1
    told = [event.text for event in heard if isinstance(event, Caution) and "since the budget was fixed" in event.text]
    assert bool(told) == (abs(verified.slowdown - 1) > 0.03)
    assert run.result.budget_ms == baseline["budget_ms"]


def test_a_budget_in_milliseconds_has_no_anchor(search: Callable[..., Run]) -> None:
    """It is one in those of the machine, whatever slows it."""
    run = search(latency="0.35ms", method="greedy", finetune_epochs=0.0)
    assert read_json(run.folder / "baseline.json")["anchor"] is None
    assert run.measured is not None
    assert run.measured.slowdown == 1
