"""The printed summaries, against golden text and closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_run import measurement, result

from hwprune.core.comparison import Comparison, compare
from hwprune.core.measurement import explain
from hwprune.report.text import (
    MOST_WARNINGS,
    bench_text,
    device_sentence,
    interval,
    percent,
    scores_text,
    search_text,
    short_names,
    speed_sentence,
    table,
    verdict_sentence,
    warnings_of,
    widths_table,
)

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("runs/made-up")


@pytest.mark.parametrize("verdict", ["pass", "miss", "infeasible"])
def test_search_text_is_golden(verdict: str) -> None:
    text = search_text(result(FOLDER, verdict=verdict))
    assert text + "\n" == (GOLDEN / f"search_{verdict}.txt").read_text()


def test_bench_text_is_golden() -> None:
    timed = {
        "runs/a/dense.onnx": measurement("runs/a/dense.onnx", 3.04, seed=3, simulated=False),
        "runs/a/model.onnx": measurement("runs/a/model.onnx", 1.84, seed=4, simulated=False),
    }
    first, second = timed.values()
    assert bench_text(timed, (compare(first, second),), 2.0) + "\n" == (GOLDEN / "bench.txt").read_text()


def test_bench_text_of_a_gpu_tells_both_times_and_what_its_engine_warns_of() -> None:
    timed = measurement("model.onnx", 1.84, seed=4, simulated=False)
    rounds = tuple(replace(item, wall_ms=2.1) for item in timed.rounds)
    on_gpu = replace(timed, rounds=rounds, clock="device", notes=("mixed_precision: conv1, conv2", "no_cuda_graph"))
    text = bench_text({"model.onnx": on_gpu}, ())
    assert "note: model.onnx: the latency is the device's; one request alone takes 2.10 ms" in text
    assert "warning: model.onnx: TensorRT kept layers in fp32 (conv1, conv2); set typing = strong" in text
    assert "could not be captured as a CUDA graph" in text
    assert "one request alone" not in bench_text({"model.onnx": timed}, ())


def test_scores_text_is_golden() -> None:
    figures = {"mape": 0.0132, "within_5": 0.98, "within_10": 1.0, "spearman": 0.998, "kendall": 0.96, "cosine": None}
    rows = [("lpnet", figures, ""), ("forest", {}, "too few networks")]
    assert scores_text(rows, "lpnet") + "\n" == (GOLDEN / "scores.txt").read_text()


def test_table_aligns_text_left_and_numbers_right() -> None:
    assert table(("NAME", "N"), [("a", "1"), ("long", "1000")]) == "NAME     N\na        1\nlong  1000"


@pytest.mark.parametrize(
    ("value", "ci", "text"),
    [
        (0.30521, (0.3031, 0.3073), "0.305 ms [0.303, 0.307]"),
        (0.30521, (0.3049, 0.3055), "0.3052 ms [0.3049, 0.3055]"),
        (3.0423, (3.0333, 3.0513), "3.042 ms [3.033, 3.051]"),
        (41.2, (40.0, 42.4), "41.2 ms [40.0, 42.4]"),
        (1240.0, (1200.0, 1280.0), "1240 ms [1200, 1280]"),
        (2.0, (float("nan"), float("nan")), "2.00 ms"),
    ],
)
def test_interval_has_as_many_decimals_as_it_bears(value: float, ci: tuple[float, float], text: str) -> None:
    assert interval(value, ci) == text


def test_percent() -> None:
    assert (percent(0.983), percent(None), percent(float("nan")), percent(1.0, 0)) == ("98.3 %", "-", "-", "100 %")


def test_speed_is_never_without_its_interval() -> None:
    faster = Comparison("dense", "pruned", 0.5, (0.4, 0.625), 7)
    assert speed_sentence(faster) == "2.00 times faster than dense [1.60, 2.50]"
    assert speed_sentence(replace(faster, ratio=1.5, ci=(1.4, 1.6))) == "1.50 times slower than dense [1.40, 1.60]"
    hardly = speed_sentence(replace(faster, ratio=1.003, ci=(1.001, 1.005)))
    assert hardly == "1.003 times slower than dense [1.001, 1.005]"
    unclear = speed_sentence(replace(faster, ratio=0.99, ci=(0.97, 1.01)))
    assert unclear == "no difference to dense shown: ratio 0.990 [0.970, 1.010]"


def test_milliseconds_that_say_something_else_than_the_ratio_are_told() -> None:
    timed = Comparison("dense", "pruned", 0.71, (0.70, 0.72), 7)
    agreeing = "1.41 times faster than dense [1.39, 1.43]"
    assert speed_sentence(timed, 1.0, 0.735) == agreeing
    assert speed_sentence(timed, 1.0, 0.685) == agreeing
    told = speed_sentence(timed, 1.11, 0.643)
    assert told == f"{agreeing}; by the milliseconds, which are of other moments, the ratio is 0.579, not 0.710"


def test_what_belongs_to_no_stage_is_told() -> None:
    made = replace(result(FOLDER), stages={"profile": 20.0, "fit": 3.0}, seconds=32.5)
    assert "took      32 s: profile 20 s, fit 3.0 s, the rest 9.5 s" in search_text(made)
    assert "the rest" not in search_text(replace(made, seconds=23.9))


def test_the_verdict_says_measured_and_never_calls_a_prediction_so() -> None:
    assert "measured <=" in verdict_sentence(result(FOLDER))
    assert "measured >" in verdict_sentence(result(FOLDER, verdict="miss"))
    assert verdict_sentence(result(FOLDER, verdict="infeasible")).endswith("measured")


def test_a_miss_by_the_interval_alone_is_not_called_a_larger_latency() -> None:
    answer = result(FOLDER, simulated=False)
    close = replace(answer, verdict="miss", budget_ms=1.8354, measured_ms=1.835, measured_ci_ms=(1.831, 1.84))
    assert "measured (upper end of the interval) > 1.84 ms" in verdict_sentence(close)


def test_a_simulated_answer_is_stamped_and_a_real_one_is_not() -> None:
    assert search_text(result(FOLDER)).startswith("SIMULATED")
    assert "SIMULATED" not in search_text(result(FOLDER, simulated=False))


def test_device_sentence_counts_threads() -> None:
    fingerprint = measurement("x", 1.0, seed=1, simulated=False).fingerprint
    assert device_sentence(fingerprint).endswith("batch 1, 1 thread")
    assert device_sentence(replace(fingerprint, threads=2)).endswith("2 threads")


def test_widths_table_shows_the_keep_ratio() -> None:
    lines = widths_table({"a": 64, "b": 32}, {"a": 16}).splitlines()
    assert lines[1] == "a                 64    16   25 %  #####..............."
    assert lines[2].endswith("32    32  100 %  ####################")


def test_widths_table_of_a_removed_branch_shows_nothing_kept() -> None:
    lines = widths_table({"a": 64, "b": 640}, {"a": 0, "b": 1}).splitlines()
    assert lines[1] == "a                 64     0   0 %  ....................  branch removed"
    assert lines[2] == "b                640     1   0 %  #..................."


def test_warnings_of_measurements_become_sentences() -> None:
    answer = result(FOLDER, simulated=False)
    wide = replace(answer.measurements["dense"], rounds=answer.measurements["dense"].rounds[:1])
    said = explain("single_round")
    answer = replace(answer, warnings=("single_round", "a note", said, "a note"), measurements={"dense": wide})
    found = warnings_of(answer)
    assert found[0].startswith("dense: the interval comes from one burst of runs")
    assert found[-1] == "a note"
    assert found.count("a note") == 1
    assert "single_round" not in found
    assert said not in found


def test_the_summary_lists_few_cautions_and_says_where_the_others_are() -> None:
    texts = tuple(f"caution {number}" for number in range(MOST_WARNINGS + 2))
    lines = search_text(replace(result(FOLDER), warnings=texts)).splitlines()
    shown = [line for line in lines if line.startswith("warning: ")]
    assert shown == [*(f"warning: {text}" for text in texts[:MOST_WARNINGS]), "warning: 2 more, in the report"]
    assert "more, in the report" not in search_text(replace(result(FOLDER), warnings=texts[:MOST_WARNINGS]))


def test_short_names_drop_what_is_shared() -> None:
    assert short_names(["/a/b/x.onnx", "/a/b/y.onnx"]) == {"/a/b/x.onnx": "x.onnx", "/a/b/y.onnx": "y.onnx"}
    assert short_names(["/a/b/x.onnx"]) == {"/a/b/x.onnx": "/a/b/x.onnx"}
    assert short_names(["/a/b/x.onnx", "/a/c/x.onnx"])["/a/c/x.onnx"] == "c/x.onnx"
    assert short_names(["resnet20", "resnet32"]) == {"resnet20": "resnet20", "resnet32": "resnet32"}
