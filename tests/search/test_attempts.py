"""What follows when a finetuned network measures otherwise than its candidate: a step down, a step up, or none."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from slower_laps import times

from hwprune.core.errors import RunError
from hwprune.core.events import Event, Note
from hwprune.core.files import read_json
from hwprune.core.measurement import Measurement
from hwprune.devices import Board
from hwprune.search import attempts, finish
from hwprune.search.finish import Outcome, Verified
from hwprune.search.outcomes import Run

Search = Callable[..., Run]


def verified(run_dir: str, attempt: int) -> Measurement:
    """What the finetuned network of an attempt measured."""
    document = read_json(Path(run_dir) / "settled" / str(attempt) / "outcome.json")
    return Measurement.from_json(document["verified"]["pruned"])


def missed(verified: Verified) -> Verified:
    """The same measurement against a budget just below it."""
    return dataclasses.replace(verified, budget_ms=0.999 * verified.pruned.latency_ms)


def test_an_attempt_in_vain_is_not_tried_again(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stepped back and was killed goes on below: measured often enough, anything passes once."""
    honest, asked = finish.verify, []

    def verify(*given: Any, **options: Any) -> Verified:
        asked.append(options["seed"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return missed(honest(*given, **options)) if len(asked) == 1 else honest(*given, **options)

    monkeypatch.setattr(finish, "verify", verify)
    with pytest.raises(KeyboardInterrupt):
        search()
    heard: list[Event] = []
    resumed = search(on_event=heard.append).result
    assert asked == [1000, 1001, 1001]
    assert not any(isinstance(event, Note) and "stepping back" in event.text for event in heard)
    assert resumed.verdict == "pass"
    folder = Path(resumed.run_dir)
    searched, trained = (
        read_json(folder / name)["image_passes"] for name in ("answer/answer.json", "settled/0/outcome.json")
    )
    assert trained > 0
    assert resumed.image_passes == searched + 2 * trained, "both finetunings count"


def test_stepping_back_goes_to_another_network(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships always reads 3 % more than its candidate did: the same network again would miss again."""
    honest = finish.verify

    def verify(*given: Any, **options: Any) -> Verified:
        found = honest(*given, **options)
        return dataclasses.replace(found, budget_ms=0.97 * found.budget_ms)

    monkeypatch.setattr(finish, "verify", verify)
    result = search(method="greedy", tile=4).result
    settled = [read_json(path / "trials.json") for path in sorted((Path(result.run_dir) / "settled").iterdir())]
    chosen = [attempt["trials"][attempt["chosen"]] for attempt in settled]
    assert len(chosen) > 1
    assert all(later["measured_ms"] < before["measured_ms"] for before, later in itertools.pairwise(chosen))
    assert result.verdict == "pass"
    assert result.utilisation is not None
    assert result.utilisation > 0.9
    again = settled[1]["trials"][0]
    assert (again["widths"], again["measured_ms"]) == (chosen[0]["widths"], verified(result.run_dir, 0).latency_ms)


def test_a_verdict_from_a_disturbed_minute_does_not_halve_the_network(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on EfficientNet-Lite0: 0.756 ms settled, 1.32 ms in the verdict; the run ended at 56 % of its budget.

    One step back by as much as is believed, and since that was too far, one up from there.
    """
    honest, asked = finish.verify, []

    def verify(*given: Any, **options: Any) -> Verified:
        found = honest(*given, **options)
        asked.append(found if asked else dataclasses.replace(found, pruned=times(found.pruned, 1.75)))
        return asked[-1]

    monkeypatch.setattr(finish, "verify", verify)
    result = search(method="greedy", tile=4).result
    assert [found.within for found in asked] == [False, True, True]
    assert verified(result.run_dir, 0).latency_ms > 1.5 * result.budget_ms
    assert result.verdict == "pass"
    assert result.utilisation is not None
    assert result.utilisation > 0.95 > asked[1].utilisation


def test_where_no_other_network_is_left_none_is_trained_again(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, asked = finish.verify, []

    def verify(*given: Any, **options: Any) -> Verified:
        asked.append(options["seed"])
        return missed(honest(*given, **options))

    monkeypatch.setattr(finish, "verify", verify)
    result = search(tile=64, latency="75%").result  # met by the smallest network of this grid alone
    assert (result.verdict, asked) == ("miss", [1000])


def paced(monkeypatch: pytest.MonkeyPatch, *, candidates: float, outcomes: tuple[float, ...]) -> list[bytes]:
    """Let pruned networks read so many times too slow until the first verdict, and the verdicts themselves.

    The dense network, anchors and all later candidates read as they are. Gives what was verified, as it goes on.
    """
    measure, honest, shipped = Board.measure, finish.verify, list[bytes]()
    factors = [candidates]

    def paced_measure(board: Board, models: Mapping[str, bytes], **options: Any) -> dict[str, Measurement]:
        timed = measure(board, models, **options)
        return {name: times(found, factors[-1]) if name != "dense" else found for name, found in timed.items()}

    def verify(shop: Any, onnx: bytes, **options: Any) -> Verified:
        shipped.append(onnx)
        factors.append(outcomes[len(shipped) - 1])
        found = honest(shop, onnx, **options)
        factors.append(1.0)
        return found

    monkeypatch.setattr(Board, "measure", paced_measure)
    monkeypatch.setattr(finish, "verify", verify)
    return shipped


FINE_GRID: dict[str, Any] = {"method": "greedy", "tile": 4}


def test_stepping_up_uses_what_a_disturbed_session_left(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All candidates read 10 % too slow: the finetuned network takes 0.89 of the budget, a wider one fills it."""
    shipped = paced(monkeypatch, candidates=1.1, outcomes=(1.0, 1.0))
    run = search(**FINE_GRID, tables=tmp_path)
    first, second = (verified(run.result.run_dir, attempt).latency_ms for attempt in (0, 1))
    assert first < 0.92 * run.result.budget_ms < second
    assert run.verdict == "pass"
    assert run.result.utilisation is not None
    assert run.result.utilisation > 0.95
    assert (run.folder / "model.onnx").read_bytes() == shipped[1]
    assert not [text for text in run.result.cautions if "of the budget is used" in text]


def test_a_verdict_that_one_session_read_too_fast_asks_for_no_second_finetuning(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first session of the verdict reads 10 % too fast, the next as the candidate did."""
    measure = Board.measure

    def fast_once(board: Board, models: Mapping[str, bytes], **options: Any) -> dict[str, Measurement]:
        timed = measure(board, models, **options)
        fast = options.get("seed") == 1000 and set(models) == {"pruned"}
        return {name: times(found, 0.9) for name, found in timed.items()} if fast else timed

    monkeypatch.setattr(Board, "measure", fast_once)
    heard: list[Event] = []
    run = search(**FINE_GRID, tables=tmp_path, on_event=heard.append)
    assert [event for event in heard if isinstance(event, Note) and "is unused, with" in event.text]
    assert run.verdict == "pass"
    assert run.result.utilisation is not None
    assert run.result.utilisation > 0.95
    assert len(list((run.folder / "settled").iterdir())) == 1


def test_a_wider_network_over_the_budget_does_not_take_the_place_of_the_first(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wider network's verdict reads 8 % too slow: the run ends with the network before it, as it was."""
    shipped = paced(monkeypatch, candidates=1.1, outcomes=(1.0, 1.08, 1.0))
    run = search(**FINE_GRID, tables=tmp_path)
    first = verified(run.result.run_dir, 0)
    assert len(shipped) == 2
    assert (run.folder / "model.onnx").read_bytes() == shipped[0] != shipped[1]
    assert run.verdict == "pass"
    assert run.measured == first
    (told,) = [text for text in run.result.cautions if "of the budget is used" in text]
    assert "the next wider network, once finetuned, is over it" in told
    names = ("answer/answer.json", "settled/0/outcome.json", "settled/1/outcome.json")
    searched, *trained = (read_json(run.folder / name)["image_passes"] for name in names)
    assert min(trained) > 0
    assert run.result.image_passes == searched + sum(trained), "both finetunings count"


@pytest.mark.parametrize("killed_at", ["settle", "finetune", "verify"])
def test_a_run_killed_on_the_way_up_goes_on_there(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """The first network keeps the verdict it had; of two steps up the one that had begun is gone on with."""
    shipped = paced(monkeypatch, candidates=1.1, outcomes=(1.0, 1.08, 1.08))
    module, name = {"settle": (attempts, "settle"), "finetune": (finish, "finetune"), "verify": (finish, "verify")}[
        killed_at
    ]
    honest, calls = getattr(module, name), itertools.count()

    def killed(*given: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return honest(*given, **options)

    monkeypatch.setattr(module, name, killed)
    with pytest.raises(KeyboardInterrupt):
        search(**FINE_GRID, tables=tmp_path)
    outcome = (tmp_path / "run" / "settled" / "0" / "outcome.json").read_bytes()
    run = search(**FINE_GRID, tables=tmp_path)
    assert (run.folder / "settled" / "0" / "outcome.json").read_bytes() == outcome
    assert (run.verdict, len(shipped)) == ("pass", 2)
    assert (run.folder / "model.onnx").read_bytes() == shipped[0] != shipped[1]
    assert run.measured == verified(run.result.run_dir, 0)


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    assert Outcome.read(tmp_path / "outcome.json") is None
    (tmp_path / "outcome.json").write_text('{"image_passes": 3}')
    with pytest.raises(RunError, match=r"outcome\.json cannot be read: KeyError"):
        Outcome.read(tmp_path / "outcome.json")
