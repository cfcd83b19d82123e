"""The plots draw what was measured, at the place where it lies, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from made_run import DENSE, KEPT, TILE, layer_times, ops, result

from hwprune.report.charts import accuracy_marks, accuracy_plot, cascade_plot, spread
from hwprune.report.run_data import LayerProfile
from hwprune.report.waterfall import waterfall

FOLDER = Path("runs/made-up")


@pytest.mark.parametrize("seed", range(8))
def test_the_bars_of_the_cascade_close(seed: int) -> None:
    """Each bar begins where the one before ended, from the dense sum to the pruned sum."""
    rng = Random(seed)
    slow = tuple(replace(item, latency_ms=item.latency_ms * rng.uniform(0.6, 1.4)) for item in layer_times(KEPT, 2))
    drawing = cascade_plot(waterfall(LayerProfile(TILE, layer_times(DENSE, 1), slow, ops(DENSE), ops(KEPT))))
    pattern = r'<rect class="fill-(\w+)" x="[^"]*" y="([^"]*)" width="[^"]*" height="([^"]*)"'
    bars = [(kind, float(top), float(top) + float(size)) for kind, top, size in re.findall(pattern, drawing)]
    kinds = [kind for kind, *_ in bars]
    assert kinds[:2] == ["dense", "saved"]
    assert kinds[-1] == "pruned"
    assert {"lost", "saved"} <= set(kinds[2:-1])
    level = bars[0][1]
    for kind, top, bottom in bars[1:-1]:
        assert (bottom if kind == "lost" else top) == pytest.approx(level, abs=1.5)
        level = top if kind == "lost" else bottom
    assert bars[-1][1] == pytest.approx(level, abs=1.5)
    assert bars[-1][2] == pytest.approx(bars[0][2])


def test_the_promise_ends_at_the_sum_that_the_sentence_names() -> None:
    made = waterfall(LayerProfile(TILE, layer_times(DENSE, 1), layer_times(KEPT, 2), ops(DENSE), ops(KEPT)))
    drawing = cascade_plot(made)
    saved = re.search(r"<title>MACs promise: -([\d.]+) ms</title>", drawing)
    assert saved is not None
    assert float(saved[1]) == pytest.approx(made.dense_sum_ms - made.promised_sum_ms, abs=0.006)


def test_marks_are_the_dense_network_and_the_stages_of_the_pruned_one() -> None:
    made = result(FOLDER)
    marks = accuracy_marks(made)
    assert [(mark.name, mark.kind) for mark in marks] == [
        ("dense", "dense"),
        ("cut", "stage"),
        ("recalibrated", "stage"),
        ("pruned", "pruned"),
    ]
    assert [mark.score for mark in marks] == [0.9806, 0.7911, 0.9214, 0.9721]
    assert {mark.latency_ms for mark in marks} == {made.dense_ms, made.measured_ms}
    assert all(mark.ci_ms[0] < mark.latency_ms < mark.ci_ms[1] for mark in marks)


def test_a_file_in_another_precision_stands_alone() -> None:
    """The stages before it are scores of the fp32 network, which was never timed."""
    made = result(FOLDER)
    shipped = replace(made, score=0.95, scores={**made.scores, "shipped": 0.95})
    assert [mark.name for mark in accuracy_marks(shipped)] == ["dense", "pruned"]
    assert accuracy_marks(shipped)[-1].score == 0.95


def test_no_accuracy_plot_without_a_score() -> None:
    made = result(FOLDER, verdict="infeasible")
    assert [mark.name for mark in accuracy_marks(made)] == ["dense"]
    assert accuracy_plot(replace(made, dense_score=None)) == ""


def test_labels_of_equal_scores_do_not_lie_on_one_another() -> None:
    made = result(FOLDER)
    equal = replace(made, scores={"dense": 0.9806, "cut": 0.972, "recalibrated": 0.972, "finetuned": 0.9721})
    labels = r'<text class="note"[^>]* y="([^"]*)"[^>]*>(?:cut|recalibrated|pruned) '
    heights = sorted(float(height) for height in re.findall(labels, accuracy_plot(equal)))
    assert len(heights) == 3
    assert min(high - low for low, high in pairwise(heights)) >= 14


@pytest.mark.parametrize("seed", range(20))
def test_spread_keeps_the_order_and_the_gap(seed: int) -> None:
    rng = Random(seed)
    wanted = [rng.uniform(20, 250) for _ in range(rng.randint(1, 6))]
    placed = spread(wanted, 15, 250)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    ends = [placed[index] for index in order]
    assert all(after - before >= 15 - 1e-9 for before, after in pairwise(ends))
    assert max(ends) <= 250
    if all(after - before >= 15 for before, after in pairwise(sorted(wanted))):
        assert placed == wanted
