"""A comparison of methods: equal training, one bench, paired differences; it goes on run by run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from hwprune import api
from hwprune.core.errors import MethodGaveUp, RunError, UsageError
from hwprune.core.events import Caution, Event, Note
from hwprune.core.files import read_json, write_json
from hwprune.core.units import percent
from hwprune.methods._saliency import taylor
from hwprune.models import load_model
from hwprune.report.comparison import MethodComparison, comparison_text
from hwprune.search import compare as comparing
from hwprune.search.cell import Cell
from hwprune.search.judge import differences
from hwprune.search.run import run_search
from hwprune.search.settings import SearchSettings
from hwprune.testing.methods import tiny_problem
from hwprune.training import Data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


def compare(dense: nn.Module, data: Data, folder: Path, **options: Any) -> MethodComparison:
    given: dict[str, Any] = {
        "methods": ("wgates", "uniform"),
        "budgets": ("60%", "1%"),
        "seeds": 1,
        "device": "simulated",
        "samples": 40,
        "tile": 16,
        "epochs": 0.5,
        "total_epochs": 1.5,
        "tables": folder / "tables",
        "run_dir": folder / "runs",
    }
    return api.compare(dense, data, **{**given, **options})


@pytest.fixture(scope="module")
def found(dense: nn.Module, few_digits: Data, folder: Path) -> MethodComparison:
    return compare(dense, few_digits, folder)


def test_equal_training_for_all(found: MethodComparison, few_digits: Data) -> None:
    feasible = [run for run in found.runs if run.budget == "60%"]
    assert {run.method for run in feasible} == {"wgates", "uniform"}
    for run in feasible:
        assert run.image_passes / len(few_digits.train) == pytest.approx(1.5, abs=64 / 384), "up to one batch"
        assert run.verdict == "pass"
        assert run.share is not None
        assert 0.5 < run.share < 0.61
    assert [run.verdict for run in found.runs if run.budget == "1%"] == ["infeasible"] * 2
    assert all(run.share is None for run in found.runs if run.budget == "1%")
    assert found.verdict == "fail"
    assert found.simulated


def test_all_runs_of_a_budget_share_what_it_is(found: MethodComparison, folder: Path) -> None:
    for budget, shared, methods in (("60pct", "0.6", ("wgates", "uniform")), ("1pct", "0.01", ("wgates", "uniform"))):
        common = read_json(folder / "runs" / f"baseline_{shared}.json")
        for method in methods:
            assert read_json(folder / "runs" / f"{budget}_{method}_s0" / "baseline.json") == common
    assert read_json(folder / "runs" / "baseline_0.6.json")["anchor"] is not None
    assert read_json(folder / "runs" / "baseline_0.01.json")["anchor"] is None, "infeasible"


def test_files_and_text(found: MethodComparison, folder: Path) -> None:
    runs = folder / "runs"
    assert MethodComparison.from_json(read_json(runs / "comparison.json")) == found
    assert {"60pct_wgates_s0", "60pct_uniform_s0", "dense.safetensors"} <= {path.name for path in runs.iterdir()}
    text = comparison_text(found)
    assert "SIMULATED" in text
    assert "points of top-1 above uniform" in text
    (difference,) = found.differences
    share = {run.method: run.share for run in found.runs if run.budget == "60%"}
    assert difference.latency_ratio == pytest.approx(share["wgates"] / share["uniform"])
    assert f"  {percent(difference.latency_ratio - 1, signed=True)}" in text
    assert ("unequal: more than 5 % apart" in text) == difference.unequal
    apart = replace(found, differences=(replace(difference, latency_ratio=0.9),))
    assert "-10.0 %  unequal" in comparison_text(apart)
    assert "unequal: more than 5 % apart in latency" in comparison_text(apart)
    page, plot = (runs / "comparison.html").read_text(), (runs / "comparison.svg").read_text()
    assert plot in page
    assert plot.count("<circle") == 3, "two runs and the dense network"
    assert "SIMULATED: no hardware was timed</text>" in plot


def test_goes_on_run_by_run(found: MethodComparison, dense: nn.Module, few_digits: Data, folder: Path) -> None:
    heard: list[Event] = []
    more = compare(dense, few_digits, folder, methods=("uniform", "magnitude"), budgets=("60%",), on_event=heard.append)
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert sum("is finished" in text for text in notes) == 1
    old = next(run for run in found.runs if (run.budget, run.method) == ("60%", "uniform"))
    again = next(run for run in more.runs if run.method == "uniform")
    assert (again.score, again.seconds) == (old.score, old.seconds)
    assert [(item.method, item.baseline) for item in more.differences] == [("magnitude", "uniform")]


def test_a_refused_comparison_leaves_nothing(few_digits: Data, folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown model"):
        api.compare(
            "resnet2", few_digits, methods=("uniform",), budgets=("60%",), device="simulated", run_dir=folder / "no"
        )
    assert not (folder / "no").exists()


def test_a_folder_from_another_default_method_goes_on(
    found: MethodComparison, dense: nn.Module, few_digits: Data, folder: Path
) -> None:
    kept = folder / "runs" / "comparison_settings.json"
    document = read_json(kept)
    document["settings"]["method"] = "greedy"  # what `--method` was when the comparison began says nothing about it
    write_json(kept, document)
    again = compare(dense, few_digits, folder)
    assert [run.score for run in again.runs] == [run.score for run in found.runs]


def test_other_settings_or_data_are_another_comparison(
    found: MethodComparison, dense: nn.Module, few_digits: Data, folder: Path
) -> None:
    with pytest.raises(RunError, match=r"other settings \(epochs: 0\.5 there, 0\.25 now\)"):
        compare(dense, few_digits, folder, epochs=0.25)
    part = few_digits.train
    fewer = replace(few_digits, train=replace(part, images=part.images[:99], targets=part.targets[:99]))
    with pytest.raises(RunError, match="holds a comparison on other data"):
        compare(dense, fewer, folder)


def test_a_method_that_gives_up_fails_alone(
    found: MethodComparison, dense: nn.Module, few_digits: Data, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(settings: SearchSettings, *args: Any, **options: Any) -> Any:
        if settings.method == "magnitude":
            raise MethodGaveUp(f"norms of {settings.options['score']} say nothing", hint="look elsewhere")
        return run_search(settings, *args, **options)

    monkeypatch.setattr(comparing, "run_search", give_up)
    heard: list[Event] = []
    more = compare(
        dense, few_digits, folder, methods=("magnitude:score=l2", "uniform"), budgets=("60%",), on_event=heard.append
    )
    lost = next(run for run in more.runs if run.method == "magnitude:score=l2")
    assert (lost.verdict, lost.score, lost.reason) == ("failed", None, "norms of l2 say nothing")
    assert more.verdict == "fail"
    assert "magnitude:score=l2 at 60%, seed 0: norms of l2 say nothing" in comparison_text(more)
    assert any(isinstance(event, Caution) and event.hint == "look elsewhere" for event in heard)
    assert MethodComparison.from_json(read_json(folder / "runs" / "comparison.json")) == more


def test_a_run_that_took_more_than_all_were_given_is_told(
    found: MethodComparison, dense: nn.Module, few_digits: Data, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def longer(settings: SearchSettings, *args: Any, **options: Any) -> Any:
        return replace(run_search(settings, *args, **options), image_passes=passes[-1])

    monkeypatch.setattr(comparing, "run_search", longer)
    for more, told in ((63, []), (64, ["60pct_uniform_s0 took 1.67 epochs of the 1.5 for all"])):
        passes.append(int(1.5 * 384) + more)
        heard: list[Event] = []
        compare(dense, few_digits, folder, methods=("uniform",), budgets=("60%",), on_event=heard.append)
        assert [event.text for event in heard if isinstance(event, Caution)] == told


def test_the_scores_of_units_take_at_most_half_of_the_images() -> None:
    problem = tiny_problem("chain")
    for budget, images in ((None, 48), (200, 48), (64, 32), (20, 16)):
        limited = replace(problem, image_budget=budget)
        assert taylor(limited, images=1000, batch_size=8).image_passes == images


def test_a_method_with_options() -> None:
    cell = Cell("60%", "metapruning:sampler=random:evaluations=50", 1)
    assert cell.name == "60pct_metapruning-sampler-random-evaluations-50_s1"
    settings = cell.settings(SearchSettings(latency_fraction=1.0, options={"parents": "5"}))
    assert (settings.method, settings.latency_fraction, settings.seed) == ("metapruning", 0.6, 1)
    assert settings.options == {"parents": "5", "sampler": "random", "evaluations": "50"}


def test_differences_are_paired_over_images_and_averaged_over_seeds() -> None:
    rng = np.random.default_rng(0)
    scores = {Cell("60%", method, seed): (rng.random(500) < 0.7).astype(float) for method in "ab" for seed in (0, 1)}
    scores[Cell("60%", "a", 2)] = np.ones(500)
    shares = {cell: 0.6 if cell.method == "b" else (0.54, 0.6, 0.1)[cell.seed] for cell in scores}
    (only,) = differences(scores, "b", shares)
    left = (scores[Cell("60%", "a", 0)] + scores[Cell("60%", "a", 1)]) / 2
    right = (scores[Cell("60%", "b", 0)] + scores[Cell("60%", "b", 1)]) / 2
    assert (only.budget, only.method, only.baseline, only.seeds) == ("60%", "a", "b", 2)
    assert only.score == pytest.approx(left.mean() - right.mean())
    assert only.latency_ratio == pytest.approx(math.sqrt(0.9))
    assert only.unequal
    half = 1.96 * math.sqrt(np.var(left - right, ddof=1) / 500)
    assert only.ci == pytest.approx((only.score - half, only.score + half))


def test_all_runs_have_the_dense_network_of_the_comparison(few_digits: Data, folder: Path) -> None:
    """Also where its training taught it so little that a single run would train it first."""
    fresh = load_model("digits_resnet", classes=10, input_shape=(1, 8, 8))
    compare(fresh, few_digits, folder, dense_epochs=0.05, budgets=("60%",), run_dir=folder / "untaught")
    weights = [(folder / "untaught" / place / "dense.safetensors").read_bytes() for place in ("", "60pct_uniform_s0")]
    assert weights[0] == weights[1]


def test_where_a_comparison_lies() -> None:
    assert api.comparison_folder("resnet20?width=2") == Path("runs/compare_resnet20")
    assert api.comparison_folder("nets/mine.py:build") == Path("runs/compare_mine.py-build")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("wgatse",)}, "unknown method 'wgatse'.*wgates"),
        ({"methods": ("uniform:channels",)}, "'channels' in the method 'uniform:channels' is not KEY=VALUE"),
        ({"methods": ("uniform:chanels=l1",)}, "unknown key 'chanels'. Did you mean 'channels'"),
        ({"methods": ()}, "needs methods, budgets"),
        ({"seeds": 0}, "at least one seed"),
        ({"baselines": ("greedy",)}, "unknown baseline 'greedy'"),
        ({"budgets": ("60 %%",)}, "60 %%"),
        ({"total_epochs": 0.1}, "total_epochs is 0.1, less than the 0.5 epochs"),
    ],
)
def test_bad_input(dense: nn.Module, few_digits: Data, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(dense, few_digits, tmp_path, **change)


def test_one_image_separates_nothing() -> None:
    cells = {Cell("60%", method, 0): np.array([score]) for method, score in (("a", 1.0), ("b", 0.0))}
    assert differences(cells, "b", dict.fromkeys(cells, 0.5)) == ()


def test_a_comparison_in_which_nothing_is_feasible_says_what_would_be(
    dense: nn.Module, few_digits: Data, folder: Path
) -> None:
    nothing = compare(dense, few_digits, folder, budgets=("1%",), run_dir=folder / "infeasible")
    assert {run.verdict for run in nothing.runs} == {"infeasible"}
    assert nothing.verdict == "fail"
    assert all(" ms asked, smallest reachable 0." in run.reason for run in nothing.runs)
    assert "wgates at 1%, seed 0: infeasible: 0.00" in comparison_text(nothing)
    assert (folder / "infeasible" / "comparison.html").exists()
    assert MethodComparison.from_json(read_json(folder / "infeasible" / "comparison.json")) == nothing


def test_finished_runs_that_are_not_asked_for_are_named(
    found: MethodComparison, dense: nn.Module, few_digits: Data, folder: Path
) -> None:
    heard: list[Event] = []
    fewer = compare(dense, few_digits, folder, methods=("uniform",), on_event=heard.append)
    assert {run.method for run in fewer.runs} == {"uniform"}
    (told,) = [event.text for event in heard if isinstance(event, Note) and "left out of the table" in event.text]
    assert f" finished runs in {folder / 'runs'} are left out of the table: 1pct_wgates_s0, " in told
    assert {(run.method, run.budget) for run in compare(dense, few_digits, folder).runs} == {
        (run.method, run.budget) for run in found.runs
    }
