"""What a name means to `bench` and `export`: a run, a model, or neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hwprune import api
from hwprune.api import _runs
from hwprune.core.errors import UsageError
from hwprune.graph.onnx.template import whole_onnx
from hwprune.search.settings import SearchSettings
from hwprune.search.subjects import onnx_subjects, run_or_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has only begun, as seen from where it was started."""
    monkeypatch.chdir(tmp_path)
    SearchSettings.make(latency="60%").write(Path("runs/first/run.toml"))
    Path("runs/first/journal.jsonl").touch()
    return Path("runs/first")


def test_a_name_is_a_run_or_a_model(folder: Path) -> None:
    assert run_or_model("first") == run_or_model("runs/first") == folder
    for model in ("digits_resnet", "resnet20?width=2", "timm:resnet18", "nets/own.py:make"):
        assert run_or_model(model) is None


def test_a_name_that_is_neither_is_refused_with_what_there_is(folder: Path) -> None:
    with pytest.raises(UsageError, match="'runs/frist' is neither a run nor a model") as caught:
        api.export("runs/frist")
    assert "runs in runs: first; models: digits_resnet" in caught.value.hint
    with pytest.raises(UsageError, match=r"'digits_rsnet' is neither .* Did you mean 'digits_resnet'"):
        onnx_subjects(("digits_rsnet",), batch=1)


def test_a_run_without_a_network_is_not_timed(folder: Path) -> None:
    with pytest.raises(UsageError, match="runs/first has no pruned network") as caught:
        onnx_subjects(("first",), batch=1)
    assert "infeasible" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "named"), [({"weights": "none.safetensors"}, "weights"), ({"x": (1, 3, 9, 9)}, "input")]
)
def test_what_a_run_would_not_use_is_refused(folder: Path, given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"runs/first is a run, with its own {named}") as caught:
        api.export("first", **given)
    assert f"--{named}" in caught.value.hint


def test_weights_beside_a_model_object_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has weights of its own"):
        api.export(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "m.onnx", weights="none.safetensors")


def test_a_file_that_fails_its_check_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    good = api.export(nn.Linear(2, 2), torch.zeros(1, 2), path)
    assert good.max_difference <= good.tolerance
    kept = path.read_bytes()
    monkeypatch.setattr(_runs, "check_against_torch", lambda *_: 0.5)
    bad = api.export(nn.Linear(2, 3), torch.zeros(1, 2), path)
    assert bad.max_difference == 0.5
    assert path.read_bytes() == kept


def test_runs_of_one_name_are_all_timed(tmp_path: Path) -> None:
    network = whole_onnx(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (torch.zeros(1, 1, 2, 2),))
    for parent in ("a", "b"):
        folder = tmp_path / parent / "run"
        folder.mkdir(parents=True)
        SearchSettings.make(latency="60%").write(folder / "run.toml")
        for name in ("dense.onnx", "model.onnx"):
            (folder / name).write_bytes(network)
    first, second = str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")
    found = onnx_subjects((first, second), batch=1)
    assert list(found) == ["run/dense", "run/pruned", f"{second}/dense", f"{second}/pruned"]
    for twice in ((first, first), (first, second, f"{first}/")):
        with pytest.raises(UsageError, match="is named twice"):
            onnx_subjects(twice, batch=1)
