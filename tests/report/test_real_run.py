"""The page of a run that really ran, on the simulated device: it shows what the run made and promises no more."""

from __future__ import annotations

import re
from html import escape

import pytest
import torch
from torch import nn

from hwprune import api
from hwprune.report.html import render
from hwprune.report.run_data import RunData
from hwprune.report.text import search_text
from hwprune.training import load_data


def block(into: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Three convolutions, a few images, a search with a penalty and no multiplier."""
    torch.manual_seed(0)
    convolutions = (*block(1, 32), *block(32, 64), *block(64, 64))
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    folder = tmp_path_factory.mktemp("real")
    found = api.search(
        model,
        load_data("digits?train=64&val=64&test=64"),
        latency="60%",
        device="simulated",
        method="dhp",
        samples=24,
        tile=8,
        batch_size=16,
        dense_epochs=0.5,
        epochs=3.0,
        finetune_epochs=0.5,
        run_dir=folder / "run",
        tables=folder / "tables",
    )
    return RunData.read(found.folder)


@pytest.fixture(scope="module")
def html(run: RunData) -> str:
    return render(run)


def section(html: str, heading: str) -> str:
    (found,) = [part for part in html.split("<section") if f"<h2>{heading}</h2>" in part]
    return found


def test_every_mark_of_the_key_is_drawn(run: RunData, html: str) -> None:
    assert run.result.predictions
    accuracy = section(html, "Accuracy against latency")
    drawn = re.findall(r'<circle class="(\w+)"', accuracy)
    assert sorted(drawn) == ["dense", "pruned", "stage", "stage"]
    key = re.findall(r"</i>([^<]+)</span>", accuracy)
    way = ["the same widths on the way there", "the path of its score"]
    assert key == ["dense, measured", "pruned, measured", *way, "95 % interval of a latency", "budget"]
    timed = section(html, "Predicted against measured")
    assert set(re.findall(r'<circle class="(\w+)"', timed)) == {
        "pruned" if item.within_budget else "over" for item in run.result.predictions
    }


def test_the_search_is_described_by_what_the_method_reports(run: RunData, html: str) -> None:
    assert len(run.search_steps()) > 1
    over_time = section(html, "The search over time")
    assert re.findall(r"<h3>(.*?)</h3>", over_time) == [
        "Predicted latency",
        "Penalty",
        "Open channels",
        "Narrowest group",
    ]
    assert "multiplier" not in over_time


def test_the_cautions_of_the_run_are_told_with_their_hints(run: RunData, html: str) -> None:
    """So few networks do not make a good latency model, which the run says."""
    assert run.cautions()
    told = section(html, "Cautions")
    for caution in run.cautions():
        assert told.count(escape(caution.text)) == 1
        assert told.index(escape(caution.text)) < told.index(escape(caution.hint))
        assert f"warning: {caution.text}" in search_text(run.result)
