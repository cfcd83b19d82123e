"""More training for a finished run: what it scores, what it measures on, and when it is refused."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwprune import api
from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.files import read_json, write_json
from hwprune.report.run_data import RunData
from hwprune.search import refine, workshop
from hwprune.search.outcomes import Run
from hwprune.search.refine import epochs_of
from hwprune.search.settings import SearchSettings
from hwprune.training import Data, evaluate

STEPS = 3  # of 0.5 epochs with 384 images, 64 a step


@pytest.fixture(scope="module")
def finished(dense: nn.Module, few_digits: Data, tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that no test changes."""
    return api.search(
        dense,
        few_digits,
        latency="60%",
        device="simulated",
        method="uniform",
        samples=40,
        tile=16,
        epochs=0.5,
        finetune_epochs=0.5,
        run_dir=tmp_path_factory.mktemp("finished") / "run",
        tables=tables,
    )


@pytest.fixture
def run(finished: Run, dense: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run, moved to another place where there is no latency table."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.folder, tmp_path / "moved")
    return Run(tmp_path / "moved", finished.result, lambda: copy.deepcopy(dense))


def other_digits(data: Data) -> Data:
    """The same training images, other test images: noise."""
    images = torch.randint(0, 17, data.test.images.shape, generator=torch.Generator().manual_seed(0))
    return replace(data, test=replace(data.test, images=images.to(data.test.images.dtype)))


def more(run: Run, data: Data | str, **options: Any) -> Run:
    return api.finetune(run.folder, data=data, build=run.build, **{"epochs": 0.5, **options})


def test_finetune_more(run: Run, few_digits: Data, tmp_path: Path) -> None:
    weights = (run.folder / "best.safetensors").read_bytes()
    done = more(run, few_digits)
    before, after = run.result, done.result
    assert done.verdict == "pass"
    assert after.image_passes == before.image_passes + 64 * STEPS
    assert after.widths == before.widths
    assert (run.folder / "best.safetensors").read_bytes() != weights
    assert after.score == after.scores["finetuned"] == evaluate(done.model, few_digits, "test").score
    assert {**after.scores, "finetuned": 0.0} == {**before.scores, "finetuned": 0.0}
    assert after.dense_score == before.dense_score
    assert (after.data, after.run_dir) == ("digits", str(run.folder))
    assert after.budget_ms == before.budget_ms
    assert after.measurements["pruned"].samples_ms != before.measurements["pruned"].samples_ms
    assert after.stages["finetune-more"] > 0
    assert after.stages["verify"] > before.stages["verify"]
    assert RunData.read(run.folder).result == after
    assert (run.folder / "report.html").stat().st_mtime >= (run.folder / "result.json").stat().st_mtime
    assert not (tmp_path / "latency_tables").exists()


def test_other_data_are_scored_with_both_networks(run: Run, dense: nn.Module, few_digits: Data) -> None:
    """Scores of two test sets are no comparison, even where both are called the same."""
    other = other_digits(few_digits)
    done = more(run, other)
    assert done.result.dense_score == done.result.scores["dense"] == evaluate(dense, other, "test").score
    assert done.result.dense_score != run.result.dense_score
    assert done.result.score == evaluate(done.model, other, "test").score
    assert set(done.result.scores) == {"dense", "finetuned"}


def test_the_result_names_the_data_as_they_were_given(run: Run, few_digits: Data, tmp_path: Path) -> None:
    arrays = {}
    for part, key in ((few_digits.train, "train"), (few_digits.test, "test")):
        arrays |= {f"x_{key}": part.images.numpy(), f"y_{key}": part.targets.numpy()}
    np.savez(tmp_path / "mine.npz", **arrays)
    assert more(run, f"npz:{tmp_path}/mine.npz").result.data == f"npz:{tmp_path}/mine.npz"


def test_data_for_another_network_are_refused(run: Run, few_digits: Data) -> None:
    with pytest.raises(UsageError, match="the data digits have 9 classes, the network has 10"):
        more(run, replace(few_digits, classes=9))
    splits = {name: few_digits.split(name) for name in ("train", "val", "test")}
    wider = {name: replace(part, images=torch.zeros(len(part), 1, 12, 12)) for name, part in splits.items()}
    with pytest.raises(UsageError, match=r"images of digits are \(1, 12, 12\), the network was measured with \(1, 8"):
        more(run, replace(few_digits, **wider))


def test_an_unreachable_device_is_said_before_the_training(
    run: Run, few_digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise DeviceError("the device does not answer")

    def trained(*args: Any, **options: Any) -> None:
        raise AssertionError("it was trained first")

    monkeypatch.setattr(workshop, "connect", unreachable)
    monkeypatch.setattr(refine, "finetune", trained)
    with pytest.raises(DeviceError, match="does not answer"):
        more(run, few_digits)


def test_the_milliseconds_are_those_of_the_run(run: Run, few_digits: Data) -> None:
    """Its budget is in them: the reference kernel is not calibrated anew, and neither is the anchor."""
    facts, baseline = read_json(run.folder / "environment.json"), read_json(run.folder / "baseline.json")
    write_json(run.folder / "environment.json", {**facts, "reference_ms": 2 * facts["reference_ms"]})
    assert run.result.measured_ms is not None
    assert more(run, few_digits).result.measured_ms == pytest.approx(run.result.measured_ms, rel=0.02)
    write_json(run.folder / "baseline.json", {**baseline, "anchor": None})
    assert more(run, few_digits).result.measured_ms == pytest.approx(2 * run.result.measured_ms, rel=0.02)


@pytest.mark.parametrize(
    ("options", "epochs", "message"),
    [
        ({}, 0.0, "cannot finetune for 0 epochs"),
        ({}, float("nan"), "cannot finetune for nan epochs"),
        ({"finetune_epochs": 0.0}, None, "somewhere was searched without finetuning"),
        ({"total_epochs": 3.0}, None, "somewhere had 3 epochs for search and finetuning together"),
    ],
)
def test_a_training_of_no_length_is_refused(options: dict[str, Any], epochs: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        epochs_of(Path("somewhere"), SearchSettings.make(latency="60%", **options), epochs)
    assert "--epochs" in caught.value.hint


def test_how_long_is_the_run_s_own_number_or_the_given_one() -> None:
    settings = SearchSettings.make(latency="60%", finetune_epochs=3.0)
    assert epochs_of(Path("somewhere"), settings, None) == 3
    assert epochs_of(Path("somewhere"), replace(settings, finetune_epochs=0.0, total_epochs=4.0), 0.5) == 0.5
