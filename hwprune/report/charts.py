"""The plots of the report: each a function from the run's data to an SVG drawing, "" when there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwprune.core.events import SearchStep
from hwprune.core.measurement import Measurement
from hwprune.core.units import format_ms, percent
from hwprune.report.figures import figure
from hwprune.report.run_data import SHIPPED, Result, RunData
from hwprune.report.score_text import is_share, score_text
from hwprune.report.svg import Axis, Plot
from hwprune.report.text import interval
from hwprune.report.waterfall import Waterfall

MOST_STEPS = 400
PANEL_METRICS = 3
PREFERRED_METRICS = ("multiplier", "penalty", "pressure", "best_fitness", "open_share")
SAME_AS_LATENCY = ("cost", "budget")  # as shares of the dense latency, what the first panel draws in ms
LABEL_GAP = 15


@dataclass(frozen=True)
class Mark:
    """A network in the plot of accuracy against latency: both figures are measured, `kind` is its colour."""

    name: str
    kind: str
    latency_ms: float
    ci_ms: tuple[float, float]
    score: float


def accuracy_marks(result: Result) -> tuple[Mark, ...]:
    """Dense, pruned, and the pruned network's scores on its way: only what this run has measured."""
    found = []
    dense = result.measurements.get("dense")
    ci = dense.statistic(result.statistic)[1:] if dense is not None else (result.dense_ms, result.dense_ms)
    if result.dense_score is not None:
        found.append(Mark("dense", "dense", result.dense_ms, ci, result.dense_score))
    if result.measured_ms is None or result.score is None:
        return tuple(found)
    at = result.measured_ms, result.measured_ci_ms or (result.measured_ms, result.measured_ms)
    # A file in another precision is not the network of the stages before it: those were never timed.
    stages = () if SHIPPED in result.scores else result.scores.items()
    before = [(name, score) for name, score in stages if name != "dense"]
    if before and before[-1][1] == result.score:
        del before[-1]
    found += [Mark(name, "stage", *at, score) for name, score in before]
    return (*found, Mark("pruned", "pruned", *at, result.score))


def accuracy_plot(result: Result) -> str:
    """Score against latency: where the network began, where it ended and what it went through; the budget as a line."""
    marks = accuracy_marks(result)
    if not marks:
        return ""
    ends = [end for mark in marks for end in (*mark.ci_ms, mark.latency_ms)]
    x = Axis.around([result.budget_ms, *ends], "latency in ms", margin=0.16)
    y = Axis.around([mark.score for mark in marks], result.score_name)
    plot = Plot(x, y, label="score against latency", percent_y=is_share(result.score_name))
    plot.upright(result.budget_ms, "budget")
    plot.note((result.budget_ms, y.high), f"budget {format_ms(result.budget_ms)}", anchor="middle", dy=-9)
    way = [mark for mark in marks if mark.kind != "dense"]
    if len(way) > 1:
        plot.line([(mark.latency_ms, mark.score) for mark in way], "way")
    for mark in marks:
        score = score_text(result.score_name, mark.score)
        plot.line([(mark.ci_ms[0], mark.score), (mark.ci_ms[1], mark.score)], f"ci {mark.kind}")
        title = f"{mark.name}: {interval(mark.latency_ms, mark.ci_ms)} measured, {score}"
        plot.dot((mark.latency_ms, mark.score), mark.kind, title, radius=4 if mark.kind == "stage" else 7)
    for mark, shift in zip(marks, _label_shifts(plot, marks), strict=True):
        text = f"{mark.name} {score_text(result.score_name, mark.score)}"
        if mark.kind == "dense":
            plot.note((mark.latency_ms, mark.score), text, anchor="middle", dy=-14)
        else:
            plot.note((mark.latency_ms, mark.score), text, dx=_label_offset(plot, mark, result.budget_ms), dy=4 + shift)
    return plot.svg()


def spread(wanted: Sequence[float], gap: float, lowest: float) -> list[float]:
    """The places in the order given, moved apart to `gap` at least and not beyond `lowest` (pixels grow downwards)."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(wanted[index], placed[-1] + gap) if placed else wanted[index])
    last = len(placed) - 1
    moved = {
        index: min(place, lowest - gap * (last - rank))
        for rank, (index, place) in enumerate(zip(order, placed, strict=True))
    }
    return [moved[index] for index in range(len(wanted))]


def prediction_plot(result: Result) -> str:
    """Predicted against measured latency of every candidate that was timed, with the ±10 % band."""
    if not result.predictions:
        return ""
    pairs = [(item.measured_ms, item.predicted_ms) for item in result.predictions]
    values = [value for pair in pairs for value in pair]
    axis = Axis(0.86 * min(values), 1.14 * max(values), "measured ms")
    plot = Plot(axis, Axis(axis.low, axis.high, "predicted ms"), label="predicted against measured latency")
    low, high = axis.low, axis.high
    plot.area([(low, low * 0.9), (high, high * 0.9), (high, high * 1.1), (low, low * 1.1)], "band")
    plot.line([(low, low), (high, high)], "diagonal")
    for item, pair in zip(result.predictions, pairs, strict=True):
        error = item.predicted_ms / item.measured_ms - 1
        text = f"{format_ms(item.predicted_ms)} predicted, {interval(item.measured_ms, item.measured_ci_ms)} measured"
        plot.dot(pair, "pruned" if item.within_budget else "over", f"{text} ({percent(error, signed=True)})")
    plot.note((low, low * 1.1), "±10 %", dx=8, dy=-14)
    return plot.svg()


def search_plots(run: RunData) -> tuple[tuple[str, str, str], ...]:
    """(title, meaning, drawing) of the search over its steps: the predicted latency, then what the method reports."""
    steps = [step for _, step in thinned(run.search_steps(), MOST_STEPS)]
    if len(steps) < 2:
        return ()
    x = Axis(steps[0].step, steps[-1].step, "step")
    latency = Axis.around([run.result.budget_ms, *(step.predicted_ms for step in steps)], "predicted ms")
    plot = Plot(x, latency, height=220, label="predicted latency over the search")
    plot.across(run.result.budget_ms, "budget")
    plot.note((x.high, run.result.budget_ms), "budget", anchor="end", dx=-4, dy=-6)
    plot.line([(step.step, step.predicted_ms) for step in steps], "trace")
    found = [("Predicted latency", "Of the network as it is at each step.", plot.svg())]
    for name in _metric_names(steps):
        points = [(float(step.step), step.metrics[name]) for step in steps if name in step.metrics]
        title, meaning, unit = figure(name)
        y = Axis.around([p[1] for p in points], title)
        panel = Plot(x, y, height=220, label=f"{title} over the search", percent_y=bool(unit))
        panel.line(points, "trace")
        found.append((title[0].upper() + title[1:], meaning, panel.svg()))
    return tuple(found)


def sample_plot(measurement: Measurement, *, budget_ms: float | None, kind: str) -> str:
    """Every lap that counts in the order of measuring, rounds apart, with the interval of the median as a band."""
    rounds = [[ratio * measurement.reference_ms for ratio in item.ratios] for item in measurement.valid_rounds]
    values = sorted(measurement.samples_ms)
    shown = values[: max(1, int(0.9 * len(values)))] + ([budget_ms] if budget_ms else [])
    x = Axis(0, len(values), f"{measurement.lap_count} laps in {measurement.round_count} rounds")
    plot = Plot(x, Axis.around(shown, "ms"), height=220, label=f"laps of {measurement.subject}")
    low, high = measurement.ci_ms
    plot.area([(0, low), (x.high, low), (x.high, high), (0, high)], "band")
    if budget_ms:
        plot.across(budget_ms, "budget")
        plot.note((x.high, budget_ms), "budget", anchor="end", dx=-4, dy=-6)
    position = 0
    for number, laps in enumerate(rounds):
        for lap in laps:
            plot.dot(
                (position + 0.5, lap), f"{kind} lap{number % 2}", f"round {number + 1}: {format_ms(lap)}", radius=1.8
            )
            position += 1
    return plot.svg(x_ticks=False)


def cascade_plot(waterfall: Waterfall) -> str:
    """From the dense layers' sum to the pruned layers' sum: what the MACs promise, what was lost, what else differs."""
    level = waterfall.promised_sum_ms
    steps = [("dense", 0.0, waterfall.dense_sum_ms, "dense")]
    steps.append(("MACs promise", waterfall.dense_sum_ms, level, "saved"))
    for name, cost in {**waterfall.lost_by_cause(), **waterfall.further()}.items():
        if waterfall.is_visible(cost):
            steps.append((name, level, level + cost, "lost" if cost > 0 else "saved"))
        level += cost
    steps.append(("pruned", 0.0, waterfall.pruned_sum_ms, "pruned"))
    plot = Plot(
        Axis(0, len(steps)),
        Axis(0, 1.12 * max(max(end, start) for _, start, end, _ in steps), "ms in layers"),
        width=1060,
        height=280,
        label="where the time went",
    )
    for position, (name, start, end, kind) in enumerate(steps):
        sign = "" if kind in ("dense", "pruned") else "+" if end > start else "-"
        text = f"{sign}{format_ms(abs(end - start))}"
        low, high = min(start, end), max(start, end)
        plot.bar((position + 0.18, low), (position + 0.82, high), f"fill-{kind}", f"{name}: {text}")
        plot.note((position + 0.5, high), text, anchor="middle", dy=-6)
        plot.note((position + 0.5, 0), name, anchor="middle", dy=20)
        if position:
            joint = start if sign else end
            plot.line([(position - 0.18, joint), (position + 0.18, joint)], "level")
    return plot.svg(x_ticks=False)


def thinned(steps: Sequence[tuple[float, SearchStep]], most: int) -> Sequence[tuple[float, SearchStep]]:
    """At most about `most` of the steps, evenly, the last one among them."""
    stride = max(1, -(-len(steps) // most))
    return list(reversed(list(reversed(steps))[::stride]))


def stage_shares(stages: Mapping[str, float]) -> tuple[tuple[str, float, float], ...]:
    """(stage, seconds, share of the longest)."""
    longest = max(stages.values(), default=0.0) or 1.0
    return tuple((name, seconds, seconds / longest) for name, seconds in stages.items())


def _metric_names(steps: Sequence[SearchStep]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for step in steps:
        for name in step.metrics:
            counts[name] = counts.get(name, 0) + 1
    often = [name for name, count in counts.items() if count >= 2]
    known = [name for name in PREFERRED_METRICS if name in often]
    return tuple([*known, *(name for name in often if name not in (*known, *SAME_AS_LATENCY))][:PANEL_METRICS])


def _label_offset(plot: Plot, mark: Mark, budget_ms: float) -> float:
    """How far right of its mark a label begins: beyond the line of the budget where that would cut the text."""
    beyond = plot.at((budget_ms, mark.score))[0] - plot.at((mark.latency_ms, mark.score))[0]
    return beyond + 8 if 4 < beyond < 60 else 12


def _label_shifts(plot: Plot, marks: Sequence[Mark]) -> list[float]:
    """How far down the label of each mark moves, so that those of one column do not lie on one another."""
    heights = [plot.at((mark.latency_ms, mark.score))[1] for mark in marks]
    column = [index for index, mark in enumerate(marks) if mark.kind != "dense"]
    placed = spread([heights[index] for index in column], LABEL_GAP, plot.height - plot.BOTTOM - 6)
    moved = dict(zip(column, placed, strict=True))
    return [moved.get(index, height) - height for index, height in enumerate(heights)]
