"""MetaPruning in a whole run: the study in the run folder, and the best candidates timed on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from hwprune.core.errors import Interrupted
from hwprune.core.events import Event, Note, Progress
from hwprune.core.files import Journal
from hwprune.search.outcomes import Run

OPTIONS = {"hidden": 2, "evaluations": 6, "population": 3, "measured": 3, "recalibration_images": 64}


def test_a_run_keeps_its_study_and_measures_the_best(search: Callable[..., Run]) -> None:
    seen: list[Event] = []
    told = 0

    def stop() -> bool:
        nonlocal told
        told = sum(isinstance(event, Progress) and event.detail == "candidates" for event in seen)
        return told == 4

    given: dict[str, Any] = {"method": "metapruning", "options": OPTIONS, "latency": "50%"}
    with pytest.raises(Interrupted, match="stopped after 4 of 6 candidates"):
        search(**given, stop=stop, on_event=seen.append)
    run = search(**given, on_event=seen.append)
    assert run.verdict == "pass"
    storage = JournalStorage(JournalFileBackend(str(run.folder / "study.log")))
    study = optuna.load_study(study_name=None, storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 6
    records, _ = Journal(run.folder / "journal.jsonl").read()
    names = [record["event"] for record in records]
    settled = next(i for i, record in enumerate(records) if record.get("stage") == "settle")
    assert names[:settled].count("CandidateMeasured") == 3
    assert any(isinstance(event, Note) and "of the best 3 candidates measure" in event.text for event in seen)
