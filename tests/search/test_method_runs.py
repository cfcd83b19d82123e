"""Every method that has no other whole run goes from a network to a verdict; so does a budget of the p90."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hwprune import methods
from hwprune.core.events import CandidateMeasured, Event
from hwprune.core.files import read_json
from hwprune.core.measurement import Measurement
from hwprune.graph import Recipe, cut, trace
from hwprune.search import survey
from hwprune.search.outcomes import Run
from hwprune.training import Data

Search = Callable[..., Run]
ELSEWHERE = {  # a method, and the file that takes it through a whole run
    "wgates": "search/test_run.py",
    "uniform": "search/test_run.py",
    "greedy": "search/test_run.py",
    "metapruning": "search/test_metapruning_run.py",
    "dhp": "report/test_real_run.py",
}
TRAINS = {"gdp", "s2hpruner", "widths"}


@pytest.fixture(scope="module", autouse=True)
def _exported_once() -> Iterator[None]:
    """All runs here begin with the same network: tracing and exporting it costs more than the rest of a run."""
    real, done = survey.traced_and_exported, []

    def exported(*given: Any, **options: Any) -> Any:
        assert not any(options.values()), "kept whole: it would be another graph"
        done.append(done[0] if done else real(*given, **options))
        return done[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "traced_and_exported", exported)
        yield


def test_the_other_methods_have_their_runs() -> None:
    for name, path in ELSEWHERE.items():
        assert f'"{name}"' in (Path(__file__).parents[1] / path).read_text(), name


@pytest.mark.parametrize("name", sorted(set(methods.names()) - set(ELSEWHERE)))
def test_a_method_from_network_to_verdict(search: Search, dense: nn.Module, few_digits: Data, name: str) -> None:
    """It passes, and what ships is the cut of what the search left: no finetuning covers a state that got lost."""
    run = search(method=name, epochs=1.0, finetune_epochs=0.0, samples=20)
    result = run.result
    assert result.verdict == "pass"
    assert result.measured_ci_ms is not None
    assert result.measured_ci_ms[1] <= result.budget_ms
    assert (result.utilisation or 0) >= 0.9
    keep = Recipe.from_json(read_json(run.folder / "recipe.json")).keep
    assert {group: len(kept) for group, kept in keep.items()} == dict(result.widths)
    searched, state = copy.deepcopy(dense), run.folder / "answer" / "state.safetensors"
    assert state.exists() == (name in TRAINS)
    if name in TRAINS:
        searched.load_state_dict(load_file(state))
    graph = trace(dense, few_digits.batch("test", torch.arange(2))[0])
    expected = dict(cut(searched, graph, keep).named_parameters())
    for parameter, found in run.model.named_parameters():
        assert torch.equal(found, expected[parameter]), parameter


NOISY = """
schema = 1
name = "noisy"
[connection]
kind = "local"
[runtimes.simulated]
precisions = ["fp32"]
[runtimes.simulated.options]
jitter = 0.02
"""


def test_a_budget_of_the_p90(search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose p90 lies 2.6 % above its median everything that decides reads the p90."""
    (tmp_path / "hwprune" / "devices").mkdir(parents=True)
    (tmp_path / "hwprune" / "devices" / "noisy.toml").write_text(NOISY)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    heard: list[Event] = []
    run = search(device="noisy", statistic="p90", samples=20, finetune_epochs=0.0, on_event=heard.append)
    result, baseline = run.result, read_json(run.folder / "baseline.json")
    dense_ms = Measurement.from_json(baseline["dense"]).statistic("p90")[0]
    assert result.statistic == "p90"
    assert result.budget_ms == baseline["budget_ms"] == pytest.approx(0.6 * dense_ms)
    assert run.measured is not None
    value, low, high = run.measured.statistic("p90")
    assert (result.measured_ms, result.measured_ci_ms) == (value, (low, high))
    assert result.utilisation == value / result.budget_ms
    assert value > 1.015 * run.measured.latency_ms
    assert result.verdict == "pass"
    assert high <= result.budget_ms
    candidates = [event for event in heard if isinstance(event, CandidateMeasured)]
    chosen = next(event for event in candidates if event.widths == dict(result.widths) and event.within_budget)
    assert chosen.measured_ms == pytest.approx(value, rel=0.01)
