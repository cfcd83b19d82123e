"""A share of the dense latency is measured as a ratio: what slows all networks of a session alike changes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprune.core.events import Caution, Event
from hwprune.core.files import read_json
from hwprune.core.measurement import Measurement, Protocol, Target
from hwprune.core.widths import Widths
from hwprune.devices import Board, connect
from hwprune.search.anchor import AnchorWidths
from hwprune.search.outcomes import Run


def test_it_is_kept_as_it_was() -> None:
    anchor = AnchorWidths(Widths((("a", 16), ("b", 8))), 0.8)
    assert AnchorWidths.from_json(anchor.to_json()) == anchor


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
                    replace(
                        item,
                        laps_ms=tuple(factor * lap for lap in item.laps_ms),
                        before_ms=tuple((factor if found.anchored else 1) * level for level in item.before_ms),
                        after_ms=tuple((factor if found.anchored else 1) * level for level in item.after_ms),
                    )
                    for item in found.rounds
                ),
            )
            for name, found in measure(board, models, **options).items()
        }

    monkeypatch.setattr(Board, "measure", moodily)


@pytest.mark.usefixtures("moody")
def test_a_run_on_a_device_whose_speed_changes_from_session_to_session(
    search: Callable[..., Run], tmp_path: Path
) -> None:
    """The share that it means is met and used, by a comparison of its own."""
    heard: list[Event] = []
    run = search(latency="60%", method="greedy", finetune_epochs=0.0, tables=tmp_path, on_event=heard.append)
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
