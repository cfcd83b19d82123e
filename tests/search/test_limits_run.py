"""A whole run under limits on parameters and MACs beside its latency budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hwprune.core.errors import RunError
from hwprune.core.events import Event, Note
from hwprune.core.files import read_json
from hwprune.core.units import percent
from hwprune.report.run_data import Result
from hwprune.report.text import search_text
from hwprune.search.outcomes import Run

Search = Callable[..., Run]


def test_a_limit_tighter_than_the_budget_is_kept_and_told(search: Search) -> None:
    heard: list[Event] = []
    result = search(latency="90%", method="greedy", max_params="400k", on_event=heard.append).result
    assert (result.verdict, result.max_params, result.max_macs) == ("pass", 400_000, None)
    assert result.params is not None
    assert 0.95 * 400_000 < result.params <= 400_000 < result.dense_params
    assert len(result.predictions) == 1, "what the limit holds down is not searched for again"
    assert result.predicted_ms == pytest.approx(result.measured_ms, rel=0.05), "the latency, not the limit"
    (told,) = [event.text for event in heard if isinstance(event, Note) and "the limit on" in event.text]
    assert f"of the budget is used: the limit on parameters is, by {percent(result.params / 400_000)}" in told
    assert not [text for text in result.cautions if "unused" in text or "is used" in text]
    assert "at most 400 k parameters, 9" in search_text(result)
    with pytest.raises(RunError, match=r"max_params: 400000 there, 500000 now"):
        search(latency="90%", method="greedy", max_params=500_000)


def test_a_budget_tighter_than_the_limits_is_used(search: Search, tmp_path: Path) -> None:
    free = search(latency="60%", method="greedy").result
    bound = search(
        latency="60%", method="greedy", max_params="1M", max_macs=free.macs, run_dir=tmp_path / "bound"
    ).result
    assert (bound.widths, bound.verdict) == (free.widths, "pass")
    assert bound.utilisation is not None
    assert bound.utilisation > 0.95


def test_a_gradient_search_closes_its_gates_for_macs(search: Search) -> None:
    result = search(latency="90%", method="gdp", max_macs="8M").result
    assert result.verdict == "pass"
    assert result.macs is not None
    assert 0.9 * 8e6 < result.macs <= 8e6


def test_a_limit_that_no_network_keeps_is_infeasible_before_any_training(search: Search) -> None:
    run = search(latency="90%", method="greedy", max_params="1k")
    result = run.result
    assert result.verdict == read_json(run.folder / "result.json")["verdict"] == "infeasible"
    assert not {"dense", "search", "finetune"} & set(result.stages)
    text = search_text(result)
    assert "infeasible: at most 1,000 parameters asked, the smallest allowed network has" in text
    assert "no: smallest allowed network" in text
    assert Result.from_json(result.to_json()) == result
    assert "parameters at most" in (run.folder / "report.html").read_text()
