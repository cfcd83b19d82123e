"""Whose a run folder is, and what a damaged file in one says."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune.core.errors import RunError, UsageError
from hwprune.core.events import ignore
from hwprune.core.files import write_json
from hwprune.graph import Recipe, cut, trace
from hwprune.models import save_weights
from hwprune.search import run_folder
from hwprune.search.outcomes import load
from hwprune.search.run_folder import RunFolder
from hwprune.search.settings import SearchSettings
from hwprune.search.subjects import read_onnx


def settings(latency: str) -> SearchSettings:
    return SearchSettings.make(latency=latency)


def test_a_refused_command_does_not_claim_the_folder(tmp_path: Path) -> None:
    for latency in ("60%", "50%"):
        with RunFolder.open(tmp_path, settings(latency), ignore) as folder:
            assert folder.settings.latency_fraction == SearchSettings.read(tmp_path / "run.toml").latency_fraction
    with RunFolder.open(tmp_path, settings("40%"), ignore) as folder:
        folder.stage("profile", lambda: None)
    with (
        pytest.raises(RunError, match=r"latency_fraction: 0\.4 there, 0\.5 now"),
        RunFolder.open(tmp_path, settings("50%"), ignore),
    ):
        pass
    with RunFolder.open(tmp_path, settings("40%"), ignore) as folder:
        assert folder.is_done("profile")


@pytest.mark.parametrize("content", [b"", b"\x08\x08\x12", b"no model at all"])
def test_a_damaged_onnx_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.onnx is damaged: not an ONNX model") as caught:
        read_onnx(path)
    assert "another --run-dir" in caught.value.hint


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    keep = {"0": range(4)}
    settings("60%").write(tmp_path / "run.toml")
    write_json(tmp_path / "recipe.json", Recipe.of(model, graph, keep).to_json())
    save_weights(cut(model, graph, keep), tmp_path / "best.safetensors")
    assert load(tmp_path, build=lambda: copy.deepcopy(model))[0].out_channels == 4
    with open(tmp_path / "best.safetensors", "rb+") as file:
        file.truncate(40)
    with pytest.raises(UsageError, match=r"best\.safetensors is not a safetensors file"):
        load(tmp_path, build=lambda: copy.deepcopy(model))


def test_the_seconds_of_an_interrupted_stage_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now)

    def work(seconds: float, *, fails: bool = False) -> None:
        nonlocal now
        now += seconds
        if fails:
            raise KeyboardInterrupt

    for seconds in (5.0, 7.0):
        with pytest.raises(KeyboardInterrupt), RunFolder.open(tmp_path, settings("40%"), ignore) as folder:
            folder.stage("search", lambda taken=seconds: work(taken, fails=True))  # type: ignore[misc]
    with RunFolder.open(tmp_path, settings("40%"), ignore) as folder:
        assert folder.elapsed_s == 12.0
        folder.stage("search", lambda: work(1.0))
        assert folder.seconds == {"search": 13.0}
    with RunFolder.open(tmp_path, settings("40%"), ignore) as folder:
        folder.stage("search", lambda: work(2.0))
        assert (folder.seconds, folder.elapsed_s) == ({"search": 15.0}, 15.0)
