"""The plots of the report: each a function from the run's data to an SVG drawing, "" when there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hwprune.core.events import SearchStep
from hwprune.core.measurement import Measurement
from hwprune.core.units import format_ms
from hwprune.report.run_data import Result, RunData
from hwprune.report.score_text import is_share
from hwprune.report.svg import Axis, Plot, Point
from hwprune.report.text import interval
from hwprune.report.waterfall import Waterfall

MOST_STEPS = 400
PANEL_METRICS = 3
PREFERRED_METRICS = ("multiplier", "lambda", "score", "loss")


def accuracy_plot(run: RunData) -> str:
    """Score against latency: measured filled, predicted hollow, the budget as a line."""
    result = run.result
    hollow = [
        (step.predicted_ms, step.metrics["score"], f"step {step.step}")
        for _, step in thinned(run.search_steps(), 120)
        if "score" in step.metrics
    ]
    timed = [(item.measured_ms, item.score) for item in result.predictions if item.score is not None]
    points = [(x, y) for x, y, _ in hollow] + [(x, float(y)) for x, y in timed]
    if result.dense_score is not None:
        points.append((result.dense_ms, result.dense_score))
    if result.measured_ms is not None and result.score is not None:
        points.append((result.measured_ms, result.score))
    if not points:
        return ""
    x = Axis.around([result.budget_ms, *(p[0] for p in points)], "latency in ms")
    plot = Plot(
        x,
        Axis.around([p[1] for p in points], result.score_name),
        label="score against latency",
        percent_y=is_share(result.score_name),
    )
    _budget_line(plot, result)
    for latency, score, name in hollow:
        plot.dot((latency, score), "hollow", f"{name}: {format_ms(latency)} predicted, {score:.4f}", radius=3)
    for latency, timed_score in timed:
        text = f"candidate before finetuning: {format_ms(latency)} measured, {timed_score:.4f}"
        plot.dot((latency, float(timed_score)), "candidate", text, radius=4)
    if result.dense_score is not None:
        _named_dot(plot, (result.dense_ms, result.dense_score), "dense", "dense")
    if result.measured_ms is not None and result.score is not None:
        _named_dot(plot, (result.measured_ms, result.score), "pruned", "pruned")
    return plot.svg()


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
        plot.dot(pair, "pruned" if item.within_budget else "over", f"{text} ({error * 100:+.1f} %)")
    plot.note((high, high * 1.1), "±10 %", anchor="end", dx=-6, dy=14)
    return plot.svg()


def search_plots(run: RunData) -> tuple[tuple[str, str], ...]:
    """(title, drawing) of the search over its steps: the predicted latency, then what the method reports."""
    steps = [step for _, step in thinned(run.search_steps(), MOST_STEPS)]
    if len(steps) < 2:
        return ()
    x = Axis(steps[0].step, steps[-1].step, "step")
    latency = Axis.around([run.result.budget_ms, *(step.predicted_ms for step in steps)], "predicted ms")
    plot = Plot(x, latency, height=220, label="predicted latency over the search")
    plot.across(run.result.budget_ms, "budget")
    plot.note((x.high, run.result.budget_ms), "budget", anchor="end", dx=-4, dy=-6)
    plot.line([(step.step, step.predicted_ms) for step in steps], "trace")
    found = [("Predicted latency", plot.svg())]
    for name in _metric_names(steps):
        points = [(float(step.step), step.metrics[name]) for step in steps if name in step.metrics]
        panel = Plot(x, Axis.around([p[1] for p in points], name), height=220, label=f"{name} over the search")
        panel.line(points, "trace")
        found.append((name.replace("_", " ").capitalize(), panel.svg()))
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
    """From the dense layers' sum over the promise of the MACs and what was lost to the pruned layers' sum."""
    steps: list[tuple[str, float, float, str]] = [("dense", 0.0, waterfall.dense_sum_ms, "dense")]
    lost = _visible_causes(waterfall)
    level = waterfall.pruned_sum_ms - sum(lost.values())
    steps.append(("MACs promise", level, waterfall.dense_sum_ms, "saved"))
    for name, cost in lost.items():
        steps.append((name, level, level + cost, "lost"))
        level += cost
    steps.append(("pruned", 0.0, waterfall.pruned_sum_ms, "pruned"))
    plot = Plot(
        Axis(0, len(steps)),
        Axis(0, 1.12 * max(waterfall.dense_sum_ms, level), "ms in layers"),
        width=1060,
        height=280,
        label="where the time went",
    )
    for position, (name, low, high, kind) in enumerate(steps):
        sign = {"saved": "-", "lost": "+"}.get(kind, "")
        text = f"{sign}{format_ms(high - low)}"
        plot.bar((position + 0.18, low), (position + 0.82, high), f"fill-{kind}", f"{name}: {text}")
        plot.note((position + 0.5, high), text, anchor="middle", dy=-6)
        plot.note((position + 0.5, 0), name, anchor="middle", dy=20)
    return plot.svg(x_ticks=False)


def thinned(steps: Sequence[tuple[float, SearchStep]], most: int) -> Sequence[tuple[float, SearchStep]]:
    """At most about `most` of the steps, evenly, the last one among them."""
    stride = max(1, -(-len(steps) // most))
    return list(reversed(list(reversed(steps))[::stride]))


def stage_shares(stages: Mapping[str, float]) -> tuple[tuple[str, float, float], ...]:
    """(stage, seconds, share of the longest)."""
    longest = max(stages.values(), default=0.0) or 1.0
    return tuple((name, seconds, seconds / longest) for name, seconds in stages.items())


def _visible_causes(waterfall: Waterfall) -> dict[str, float]:
    """What was lost by cause; causes too small to see are added to `other`."""
    causes = waterfall.lost_by_cause()
    shown = {name: cost for name, cost in causes.items() if cost >= 0.002 * waterfall.dense_sum_ms}
    rest = sum(causes.values()) - sum(shown.values())
    return {**shown, "other": shown.get("other", 0.0) + rest} if rest > 0 else shown


def _metric_names(steps: Sequence[SearchStep]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for step in steps:
        for name in step.metrics:
            counts[name] = counts.get(name, 0) + 1
    often = [name for name, count in counts.items() if count >= 2]
    known = [name for name in PREFERRED_METRICS if name in often]
    return tuple([*known, *(name for name in often if name not in known)][:PANEL_METRICS])


def _budget_line(plot: Plot, result: Result) -> None:
    plot.upright(result.budget_ms, "budget")
    plot.note((result.budget_ms, plot.y.low), f"budget {format_ms(result.budget_ms)}", dx=5, dy=-6)


def _named_dot(plot: Plot, point: Point, kind: str, name: str) -> None:
    plot.dot(point, kind, f"{name}: {format_ms(point[0])} measured, {point[1]:.4f}", radius=7)
    plot.note(point, name, anchor="middle", dy=-12)
