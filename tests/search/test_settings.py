"""Settings name a run: equal settings, equal folder; another meaning is refused field by field."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from hwprune.core.errors import RunError, UsageError
from hwprune.core.events import Caution, Event, Note, Progress, StageDone
from hwprune.search.run_folder import RunFolder, find_run
from hwprune.search.settings import SearchSettings

SETTINGS = SearchSettings(latency_fraction=0.6, options={"floor": 0.2})


def test_round_trip_through_toml(tmp_path: Path) -> None:
    SETTINGS.write(tmp_path / "run.toml")
    assert SearchSettings.read(tmp_path / "run.toml") == SETTINGS


def test_the_folder_is_readable_and_depends_on_everything(tmp_path: Path) -> None:
    folder = SETTINGS.default_folder(tmp_path)
    assert folder.name.startswith("digits-resnet_cpu_60pct_greedy_")
    assert folder == SearchSettings(latency_fraction=0.6, options={"floor": 0.2}).default_folder(tmp_path)
    assert dataclasses.replace(SETTINGS, seed=1).default_folder(tmp_path) != folder
    hostile = dataclasses.replace(SETTINGS, model="../../x y;$(z).py:f").default_folder(tmp_path)
    assert hostile.parent == tmp_path
    assert not set(hostile.name) & set(" ;$()/:")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_fraction": None}, "a budget is either"),
        ({"latency_ms": 1.0}, "a budget is either"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"samples": 3}, "samples is 3; it must be at least 16"),
        ({"epochs": 0.0}, "epochs is 0.0; it must be more than 0"),
        ({"finetune_epochs": float("nan")}, "finetune_epochs is nan"),
        ({"min_keep": 1.5}, "min_keep is 1.5"),
    ],
)
def test_bad_values_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_two_spellings_of_the_budget_are_refused() -> None:
    for latency in ("4ms", "60%"):
        with pytest.raises(UsageError, match=f"latency_ms 5 and latency {latency} are two budgets"):
            SearchSettings.make(latency_ms=5, latency=latency)
    assert SearchSettings.make(latency="4ms") == SearchSettings.make(latency_ms=4)


def test_other_settings_are_refused_with_the_fields(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", SETTINGS, lambda event: None) as folder:
        folder.stage("profile", lambda: None)
    other = dataclasses.replace(SETTINGS, latency_fraction=0.5, seed=3)
    expected = r"latency_fraction: 0.6 there, 0.5 now; seed: 0 there, 3 now"
    with pytest.raises(RunError, match=expected), RunFolder.open(tmp_path / "run", other, lambda event: None):
        pass


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        RunFolder.open(tmp_path, SETTINGS, lambda event: None),
        pytest.raises(RunError, match="in use by process"),
        RunFolder.open(tmp_path, SETTINGS, lambda event: None),
    ):
        pass


def test_a_finished_stage_is_loaded_not_repeated(tmp_path: Path) -> None:
    heard: list[Event] = []
    made: list[int] = []
    with RunFolder.open(tmp_path, SETTINGS, heard.append) as folder:
        folder.emit(Progress("search", 1, 2))
        folder.emit(Caution("careful"))
        assert folder.stage("search", lambda: made.append(1) or 7, lambda: 8) == 7
        assert folder.stage("search", lambda: made.append(1) or 7, lambda: 8) == 8
    with RunFolder.open(tmp_path, SETTINGS, heard.append) as folder:
        assert folder.is_done("search")
        assert folder.stage("search", lambda: made.append(1) or 7, lambda: 9) == 9
    assert len(made) == 1
    assert [type(event).__name__ for event in heard] == ["Progress", "Caution", "StageStarted", "StageDone"]
    records, _ = folder.journal.read()
    assert [record["event"] for record in records] == ["Caution", "StageStarted", "StageDone"]
    assert "careful" in (tmp_path / "log.txt").read_text()


def test_a_failed_stage_is_not_done(tmp_path: Path) -> None:
    def fail() -> int:
        raise UsageError("no")

    with RunFolder.open(tmp_path, SETTINGS, lambda event: None) as folder:
        with pytest.raises(UsageError):
            folder.stage("search", fail, lambda: 1)
        assert not folder.is_done("search")


def test_damaged_journal_lines_are_reported(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS, lambda event: None) as folder:
        folder.emit(StageDone("dense", 1.0))
    with open(tmp_path / "journal.jsonl", "a") as journal:
        journal.write("garbage\n")
    heard: list[Event] = []
    with RunFolder.open(tmp_path, SETTINGS, heard.append) as folder:
        assert folder.is_done("dense")
    assert any(isinstance(event, Note) and "1 damaged line(s)" in event.text for event in heard)


def test_find_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run in"):
        find_run("last", tmp_path)
    for number, name in enumerate(("first", "second")):
        with RunFolder.open(tmp_path / name, SETTINGS, lambda event: None) as folder:
            folder.emit(Note(str(number)))
    assert find_run("last", tmp_path).name == "second"
    assert find_run("first", tmp_path) == tmp_path / "first"
    assert find_run(tmp_path / "first", tmp_path) == tmp_path / "first"
    with pytest.raises(UsageError, match="'third' is not a run folder") as caught:
        find_run("third", tmp_path)
    assert caught.value.hint.endswith("first, second")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", -1, "seed is -1; it must be at least 0"),
        ("total_epochs", math.inf, "total_epochs is inf; it must be a finite number"),
        ("epochs", math.inf, "epochs is inf; it must be a finite number"),
        ("lr", math.nan, "lr is nan; it must be a finite number"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(option: str, value: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchSettings.make(latency="60%", **{option: value})
