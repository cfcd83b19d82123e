"""What a run remembers, and what it must not know: earlier attempts, its own rows, its cautions, predictions."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from hwprune import api
from hwprune.core.errors import RunError, UsageError
from hwprune.core.events import ignore
from hwprune.core.files import Journal, read_json
from hwprune.search import finish, workshop
from hwprune.search.finish import Verified
from hwprune.search.outcomes import Run
from hwprune.search.run_folder import RunFolder, find_run
from hwprune.search.settings import SearchSettings
from hwprune.training import ArraySet, Data

Search = Callable[..., Run]


def test_a_prediction_is_from_before_the_measurement(search: Search) -> None:
    result = search().result
    (chosen,) = {item.predicted_ms for item in result.predictions if item.widths == result.widths}
    assert result.predicted_ms == chosen


def test_the_result_holds_what_the_run_cautioned_against(search: Search) -> None:
    run = search(latency="2%")
    records = Journal(run.folder / "journal.jsonl").read()[0]
    told = [record["text"] for record in records if record["event"] == "Caution"]
    assert told
    assert run.result.warnings == tuple(dict.fromkeys(told))


def test_a_run_has_an_id_of_its_own_that_lasts(tmp_path: Path) -> None:
    """Rows in a latency table belong to a run, not to a folder of its name."""
    settings = SearchSettings.make(latency="60%")
    ids = []
    for parent in ("one", "one", "two"):
        with RunFolder.open(tmp_path / parent / "run", settings, ignore) as folder:
            ids.append(folder.run_id)
    assert ids[0] == ids[1] != ids[2]


def test_a_run_knows_the_table_as_it_was(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SearchSettings.make(latency="60%"), ignore) as folder:
        rows = [SimpleNamespace(kind=kind) for kind in ("dense", "uniform", "search", "ratio")]
        found = [workshop._profiled_rows(folder, SimpleNamespace(rows=rows * count)) for count in (10, 20)]
    assert found == [30, 30]


def test_a_lost_report_is_written_again(search: Search) -> None:
    report = search().folder / "report.html"
    report.unlink()
    search()
    assert report.exists()


def test_the_last_run_is_none_that_was_refused(search: Search, tmp_path: Path) -> None:
    run = search(run_dir=tmp_path / "runs" / "good")
    refused = tmp_path / "runs" / "refused"
    refused.mkdir()
    shutil.copy(run.folder / "run.toml", refused)
    assert find_run("last", tmp_path / "runs") == run.folder
    shutil.rmtree(run.folder)
    with pytest.raises(UsageError, match="there is no run in"):
        find_run("last", tmp_path / "runs")


def interrupted(*given: Any, **options: Any) -> Verified:
    raise KeyboardInterrupt


def other_labels(data: Data) -> Data:
    """Data of the same name with all labels moved on by one."""
    splits = {name: replace_targets(getattr(data, name), data.classes) for name in ("train", "val", "test")}
    return dataclasses.replace(data, **splits)


def replace_targets(split: ArraySet, classes: int) -> ArraySet:
    return ArraySet(split.images, (split.targets + 1) % classes)


def test_a_run_stays_with_the_data_it_began_with(
    search: Search, few_digits: Data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Finished or half done: the name of the data is the same, their content is not."""
    other = other_labels(few_digits)
    assert (other.name, other.classes) == (few_digits.name, few_digits.classes)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search()
    with pytest.raises(RunError, match="began with other data than these, though they are called digits too"):
        search(data=other)
    assert search().result.verdict == "pass"
    with pytest.raises(RunError, match="began with other data"):
        search(data=other)
    assert search().result.verdict == "pass"


def test_a_run_that_began_nothing_may_begin_with_other_data(search: Search, few_digits: Data, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no channel group"):
        search(tile=1024)
    assert not (tmp_path / "run" / "data.json").exists()
    assert search(data=other_labels(few_digits), finetune_epochs=0.0).result.verdict == "pass"


def test_weights_beside_a_network_object_are_refused(search: Search) -> None:
    with pytest.raises(UsageError, match="a model object has weights of its own"):
        search(weights="no_such.safetensors")
    with pytest.raises(UsageError, match="a model object has weights of its own"):
        api.compare(nn.Linear(2, 2), "digits", weights="no_such.safetensors")


def test_runs_with_other_seeds_use_the_same_table(search: Search, tmp_path: Path) -> None:
    for seed in (0, 1):
        search(seed=seed, run_dir=tmp_path / str(seed), tables=tmp_path / "tables", finetune_epochs=0.0)
    rows = [read_json(tmp_path / str(seed) / "profiled.json")["rows"] for seed in (0, 1)]
    searched = [len(row["trials"]) for row in [read_json(tmp_path / "0" / "settled" / "0" / "trials.json")]]
    assert rows[1] <= rows[0] + 2 * sum(searched), "nothing was profiled again"
