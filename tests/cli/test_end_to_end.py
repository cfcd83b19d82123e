"""The verbs one after the other on the simulated device, as a user would type them: real parts, no stand-in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_fakes import Done

from hwprune.cli import main
from hwprune.report.run_data import Result

pytestmark = pytest.mark.slow

SEARCH = "search --latency 60% --device simulated --method greedy --samples 30"
BRIEF = "--dense-epochs 2 --epochs 0.2 --finetune-epochs 0.2"
Hw = Callable[..., Done]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with one finished search in it."""
    place = tmp_path_factory.mktemp("end-to-end")
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main([*SEARCH.split(), *BRIEF.split()]) == 0
        yield place
    finally:
        os.chdir(before)


@pytest.fixture
def there(folder: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_the_same_command_gives_the_same_answer_at_once(hw: Hw, there: Path) -> None:
    done = hw(*SEARCH.split(), *BRIEF.split(), "--json")
    assert done.code == 0
    result = Result.from_json(done.json)
    assert result.verdict == "pass"
    assert result.simulated
    assert result.measured_ms is not None
    assert 0.95 * result.budget_ms <= result.measured_ms <= result.budget_ms
    assert done.json == json.loads((there / result.run_dir / "result.json").read_text())


def test_explain_and_report(hw: Hw, there: Path) -> None:
    done = hw("explain", "last")
    assert done.code == 0
    assert done.out.startswith("SIMULATED")
    assert "layer3.1.conv1" in done.out
    path = Path(hw("report", "last", "--json").json["path"])
    assert 'class="stamp">SIMULATED' in path.read_text()


def test_fit_and_predict(hw: Hw, there: Path) -> None:
    document = hw("fit", "digits_resnet", "--kinds", "lpnet,linear", "--json").json
    assert document["scores"]["lpnet"]["mape"] < 0.05
    dense = hw("predict", "--device", "simulated", "--json").json
    small = hw("predict", "--device", "simulated", "--widths", "layer3.1.conv1=32", "--json").json
    assert dense["simulated"]
    assert small["predicted_ms"] < dense["predicted_ms"]


def test_export_and_bench(hw: Hw, there: Path) -> None:
    assert hw("export", "last", "--output", "small.onnx").code == 0
    assert hw("export", "digits_resnet", "--output", "dense.onnx").code == 0
    words = ("bench", "dense.onnx", "small.onnx", "--device", "simulated", "--protocol", "quick")
    document = hw(*words, "--json").json
    assert document["simulated"]
    assert document["comparisons"][0]["verdict"] == "faster"
    assert hw(*words, "--fail-above", "0.001ms").code == 1


def test_an_infeasible_budget_is_refused_before_training(hw: Hw, there: Path) -> None:
    done = hw("search", "--latency", "1%", "--device", "simulated", "--method", "greedy", "--samples", "30", "--json")
    assert done.code == 1
    assert done.json["verdict"] == "infeasible"
    assert done.json["smallest_ms"] > 0


def test_devices_and_doctor(hw: Hw, there: Path) -> None:
    assert {item["name"] for item in hw("devices", "--json").json["devices"]} >= {"cpu", "simulated"}
    done = hw("doctor", "--device", "simulated", "--json")
    assert done.code == 0
    assert "SIMULATED" in done.out
