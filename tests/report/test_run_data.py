"""A run folder is read back as it was written, and says what is wrong when it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_run import DENSE, KEPT, TILE, layer_times, ops, result, write_run

from hwprune.core.errors import RunError, UsageError
from hwprune.core.events import CandidateMeasured, Caution, EpochDone, Note, Progress, SearchStep, StageStarted
from hwprune.core.files import read_json
from hwprune.report.run_data import RESULT_SCHEMA, LayerProfile, NamedOp, Result, RunData, TimedEvent


@pytest.mark.parametrize("verdict", ["pass", "miss", "infeasible"])
def test_result_round_trip(tmp_path: Path, verdict: str) -> None:
    before = result(tmp_path, verdict=verdict)
    document = json.loads(json.dumps(before.to_json()))
    assert list(document)[:2] == ["schema", "verdict"]
    assert document["schema"] == RESULT_SCHEMA
    assert Result.from_json(document) == before


def test_result_json_has_the_promised_keys(tmp_path: Path) -> None:
    promised = {"verdict", "budget_ms", "dense_ms", "measured_ms", "measured_ci_ms", "predicted_ms", "score"}
    promised |= {"dense_score", "widths", "run_dir", "seconds"}
    assert promised <= set(result(tmp_path).to_json())


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    document = result(tmp_path).to_json()
    del document["budget_ms"]
    with pytest.raises(RunError, match=r"result\.json lacks the key 'budget_ms'"):
        Result.from_json(document)


def test_unknown_keys_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    document = {**result(tmp_path).to_json(), "novelty": 1}
    assert Result.from_json(document) == result(tmp_path)


def test_layer_profile_round_trip() -> None:
    profile = LayerProfile(TILE, layer_times(DENSE, 1), layer_times(KEPT, 2), ops(DENSE), ops(KEPT))
    assert LayerProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_named_op_round_trip_is_flat() -> None:
    named = ops(KEPT)[3]
    document = named.to_json()
    assert document["name"] == "layer1.1.conv1"
    assert document["out_channels"] == 25
    assert NamedOp.from_json(json.loads(json.dumps(document))) == named


@pytest.mark.parametrize(
    "event",
    [
        StageStarted("dense", "8 epochs"),
        Progress("profile", 3, 10, 1.5, "0.4 ms"),
        EpochDone("dense", 1, 2, {"loss": 0.5}),
        SearchStep(4, 9, 1.25, {"multiplier": 0.1}),
        CandidateMeasured({"a": 16}, 1.0, 1.1, (1.05, 1.15), False),
        Note("a sentence"),
        Caution("another", "a way out"),
    ],
)
def test_events_round_trip_through_the_journal(event: Note) -> None:
    timed = TimedEvent(12.5, event)
    record = json.loads(json.dumps(timed.to_json()))
    assert record["event"] == type(event).__name__
    assert TimedEvent.from_json(record) == timed


def test_records_of_other_kinds_are_no_events() -> None:
    assert TimedEvent.from_json({"kind": "row", "time_s": 1.0}) is None


def test_steps_that_a_resumed_run_did_again_count_once(tmp_path: Path) -> None:
    run = RunData.read(write_run(tmp_path / "run"))
    told = [TimedEvent(float(place), SearchStep(step, 9, 1.0)) for place, step in enumerate((3, 6, 9, 6, 9))]
    again = replace(run, events=tuple(told)).search_steps()
    assert [(time_s, event.step) for time_s, event in again] == [(0.0, 3), (3.0, 6), (4.0, 9)]


def test_read_a_whole_folder(tmp_path: Path) -> None:
    run = RunData.read(write_run(tmp_path / "run"))
    assert run.result.verdict == "pass"
    assert run.layers is not None
    assert run.layers.tile == TILE
    assert len(run.search_steps()) == 60
    kinds = [type(item.event) for item in run.events]
    assert (kinds.count(EpochDone), kinds.count(CandidateMeasured), kinds.count(StageStarted)) == (8, 3, 3)
    assert run.config["options"] == {"floor": 0.25}
    assert run.environment["torch"] == "2.13.0"
    assert run.damaged_records == 0


def test_cautions_of_the_journal_and_the_result_once_each(tmp_path: Path) -> None:
    """A continued run cautions again; a run of before has its cautions in the journal alone."""
    run = RunData.read(write_run(tmp_path / "run"))
    assert run.cautions() == (Caution(run.result.warnings[0], "measure on a quiet machine"),)
    twice = replace(run, events=(*run.events, *run.events), result=replace(run.result, warnings=("wide_interval",)))
    assert twice.cautions() == run.cautions()
    assert replace(run, events=()).cautions() == (Caution(run.result.warnings[0]),)


def test_damaged_journal_lines_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")
    lines[5] = lines[5][:-4]
    (folder / "journal.jsonl").write_bytes(b"\n".join(lines))
    assert RunData.read(folder).damaged_records == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder") as caught:
        RunData.read(tmp_path / "absent")
    assert "`last`" in caught.value.hint


def test_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no result\.json") as caught:
        RunData.read(tmp_path)
    assert "continues it" in caught.value.hint


def test_a_damaged_run_is_an_error_of_ours_to_say(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    document = read_json(folder / "layers.json")
    del document["dense"][0]["name"]
    (folder / "layers.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match="is damaged: KeyError 'name'"):
        RunData.read(folder)


def test_environment_must_be_an_object(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "environment.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"environment\.json is not a JSON object"):
        RunData.read(folder)
