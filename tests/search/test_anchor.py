"""A share of the dense latency is measured as a ratio: what slows all networks of a session alike changes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from slower_laps import times

from hwprune.core.events import Caution, Event
from hwprune.core.files import read_json
from hwprune.core.measurement import Measurement, Protocol, Target
from hwprune.core.widths import Widths
from hwprune.devices import Board, connect
from hwprune.search import baseline, finish
from hwprune.search.anchor import AnchorWidths
from hwprune.search.baseline import ANCHORING, NEAR, Baseline
from hwprune.search.finish import Verified
from hwprune.search.outcomes import Run


def test_it_is_kept_as_it_was() -> None:
    anchor = AnchorWidths(Widths((("a", 16), ("b", 8))), 0.8)
    assert AnchorWidths.from_json(anchor.to_json()) == anchor


def pace_of_networks(monkeypatch: pytest.MonkeyPatch, factor: Callable[[], float]) -> None:
    """Let every session from now on have its own speed, which the reference kernel does not see."""
    measure = Board.measure

    def paced(board: Board, models: Mapping[str, bytes], **options: Any) -> dict[str, Measurement]:
        slower = factor()
        timed = measure(board, models, **options)
        return {name: times(found, slower, gauge=slower if found.anchored else 1.0) for name, found in timed.items()}

    monkeypatch.setattr(Board, "measure", paced)


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose networks are up to 12 % faster or slower, session by session."""
    session = itertools.count()
    pace_of_networks(monkeypatch, lambda: math.exp(0.12 * math.sin(2.4 * next(session))))


def test_a_profile_of_a_faster_hour_is_scaled(
    search: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are in the milliseconds of the run: the first candidate is near, and few are needed."""
    search(method="greedy", finetune_epochs=0.0, tables=tmp_path, run_dir=tmp_path / "before")
    pace_of_networks(monkeypatch, lambda: 1.4)
    run = search(method="greedy", finetune_epochs=0.0, tables=tmp_path)
    assert run.result.verdict == "pass"
    assert run.result.utilisation is not None
    assert run.result.utilisation > 0.95
    assert len(run.result.predictions) <= 3
    for candidate in run.result.predictions:
        assert candidate.predicted_ms == pytest.approx(candidate.measured_ms, rel=0.06)


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
    told = [
        event.text for event in heard if isinstance(event, Caution) and "than when the budget was fixed" in event.text
    ]
    assert bool(told) == (abs(verified.slowdown - 1) > 0.03)
    assert run.result.budget_ms == baseline["budget_ms"]


def test_a_budget_in_milliseconds_has_no_anchor(search: Callable[..., Run]) -> None:
    """It is one in those of the machine, whatever slows it."""
    run = search(latency="0.35ms", method="greedy", finetune_epochs=0.0)
    assert read_json(run.folder / "baseline.json")["anchor"] is None
    assert run.measured is not None
    assert run.measured.slowdown == 1


def test_stepping_back_is_measured_beside_the_network_that_missed(
    search: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its verdict on the machine slows pruned networks by 4 % more than the anchor: counted once, not twice."""
    measure, honest, anchors, slower = Board.measure, finish.verify, list[bytes](), [1.0]

    def partial_to(board: Board, models: Mapping[str, bytes], **options: Any) -> dict[str, Measurement]:
        found = measure(board, models, **options)
        anchor = options.get("anchor")
        if anchor is None:
            return found
        if slower == [1.0] and anchor.latency_ms != 1.0:
            anchors.append(anchor.model)
        return {name: times(timed, slower[0]) if anchor.model in anchors else timed for name, timed in found.items()}

    def verify(*given: Any, **options: Any) -> Verified:
        slower[0] = 1.04
        return honest(*given, **options)

    monkeypatch.setattr(Board, "measure", partial_to)
    monkeypatch.setattr(finish, "verify", verify)
    run = search(latency="60%", method="greedy", tile=4, finetune_epochs=0.0, tables=tmp_path)
    assert (run.folder / "settled" / "1").exists()
    assert run.verdict == "pass"
    assert run.result.utilisation is not None
    assert run.result.utilisation > 0.965


def test_the_anchor_is_of_the_budgets_size_in_an_hour_that_favours_large_networks(
    search: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since the profile the dense network has become a quarter faster, and the others have not."""
    options: dict[str, Any] = {"latency": "60%", "method": "greedy", "tile": 4, "finetune_epochs": 0.0}
    search(**options, tables=tmp_path, run_dir=tmp_path / "before")
    measure = Board.measure

    def favoured(board: Board, models: Mapping[str, bytes], **given: Any) -> dict[str, Measurement]:
        timed = measure(board, models, **given)
        return {name: times(found, 0.75) if name == "dense" else found for name, found in timed.items()}

    monkeypatch.setattr(Board, "measure", favoured)
    run = search(**options, tables=tmp_path)
    found = read_json(run.folder / "baseline.json")
    assert found["anchor"]["latency_ms"] == pytest.approx(found["budget_ms"], rel=0.06)
    assert run.verdict == "pass"


def test_no_session_goes_into_an_anchor_that_the_grid_cannot_better(
    search: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked for, the grid has the smallest network only, which is far from the budget."""
    sessions: list[int] = []
    measure = Board.measure

    def counted(board: Board, models: Mapping[str, bytes], **given: Any) -> dict[str, Measurement]:
        if set(models) == {"dense"} and given.get("anchor"):
            sessions.append(given["seed"])
        return measure(board, models, **given)

    monkeypatch.setattr(Board, "measure", counted)
    monkeypatch.setattr(baseline, "_near", lambda shop, predicted_ms: shop.table.space.smallest())
    run = search(latency="60%", method="uniform", finetune_epochs=0.0)
    found = Baseline.of_run(run.folder)
    assert found.anchor is not None
    assert found.anchor.latency_ms < (1 - NEAR) * found.budget_ms
    before_the_verdict = [seed for seed in sessions if seed < 1000]
    assert before_the_verdict == [100 + ANCHORING, *range(100, 100 + ANCHORING)]
