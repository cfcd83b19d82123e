"""A comparison of methods as a plot, and as one HTML file with its table."""

from __future__ import annotations

from html import escape
from pathlib import Path

from hwprune.core import plugins
from hwprune.core.files import atomic_write_text
from hwprune.report.comparison import ComparedRun, MethodComparison, comparison_text
from hwprune.report.score_text import is_share, score_text
from hwprune.report.svg import Axis, Plot, standalone

PAGE_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1a2230}"
    "svg{max-width:760px}pre{overflow-x:auto}"
    "@media (prefers-color-scheme: dark){body{background:#12161c;color:#e8ecf2}}"
)
# On a light ground and on a dark one. Methods take them by their place in the list of all methods, so that one has the
# same colour in every plot.
COLOURS = (
    ("#1f7a6d", "#4fc3b0"),
    ("#c2541b", "#f0854a"),
    ("#5b5fc7", "#a5a8ff"),
    ("#b3261e", "#f28b82"),
    ("#8a6d1f", "#d6b656"),
    ("#2f7fb8", "#7cc0f0"),
    ("#8b3fa0", "#d494e6"),
    ("#4d7c0f", "#a3cf5c"),
    ("#6b7280", "#aab2bf"),
    ("#be185d", "#f582b4"),
    ("#7c4a21", "#cf9a6b"),
    ("#0e7490", "#5fcfe8"),
)
STYLE = (
    "polyline{stroke-width:1.5;opacity:.55}circle.dense{fill:var(--soft)}"
    "polyline.variant{stroke-dasharray:5 3}circle.variant{fill-opacity:.5}"
)


def comparison_plot(found: MethodComparison) -> str:
    """Score against the measured share of the dense latency with its interval, a colour a method; an SVG file.

    The key names the methods by their mean score, the best on top.
    """
    timed = [(run, run.share, run.score) for run in found.runs if run.share is not None and run.score is not None]
    if not timed:
        return ""
    ends = [end for run, _, _ in timed for end in run.share_ci or ()]
    x = Axis.around([1.0, *(share for _, share, _ in timed), *ends], "measured share of the dense latency")
    y = Axis.around([found.dense_score, *(score for _, _, score in timed)], found.score_name)
    plot = Plot(
        x, y, width=640, height=400, label="score against measured latency", percent_y=is_share(found.score_name)
    )
    plot.dot((1.0, found.dense_score), "dense", f"dense: {score_text(found.score_name, found.dense_score, 1)}")
    plot.note((1.0, found.dense_score), "dense", anchor="end", dx=-8, dy=4)
    if found.simulated:
        plot.note((x.low, y.high), "SIMULATED: no hardware was timed", dx=8, dy=14)
    methods = dict.fromkeys(run.method for run, _, _ in timed)
    drawn = {method: [item for item in timed if item[0].method == method] for method in methods}
    ranked = sorted(drawn, key=lambda method: -sum(score for _, _, score in drawn[method]) / len(drawn[method]))
    for method, own in drawn.items():
        kind = colour_class(method)
        plot.line(_means(own), kind)
        for run, share, score in own:
            reached = score_text(found.score_name, score, 1)
            text = f"{method}, {run.budget}, seed {run.seed}: {share:.3f} of dense measured, {reached}"
            if run.share_ci:
                plot.line([(end, score) for end in run.share_ci], kind)
            plot.dot((share, score), kind, text, radius=4)
        line = -10 - 15 * (len(ranked) - 1 - ranked.index(method))
        plot.note((x.high, y.low), method, anchor="end", dx=-8, dy=line, kind=kind)
    return standalone(plot.svg(), STYLE + _colours())


def colour_class(method: str) -> str:
    """The CSS class of a method's marks: its own colour; dashed for a variant with options, `name:option=value`."""
    name, _, options = method.partition(":")
    known = plugins.names("hwprune.methods")
    place = known.index(name) if name in known else len(known)
    return f"method{place % len(COLOURS)}{' variant' if options else ''}"


def write_comparison(found: MethodComparison, folder: Path) -> None:
    """Write `comparison.svg` and `comparison.html` (plot and table, offline) into a folder."""
    plot = comparison_plot(found)
    if plot:
        atomic_write_text(folder / "comparison.svg", plot)
    title = f"{found.model} on {found.data}: methods compared"
    body = f"<h1>{escape(title)}</h1>{plot}<pre>{escape(comparison_text(found))}</pre>"
    style = f'<meta name="color-scheme" content="light dark"><style>{PAGE_STYLE}</style>'
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>{style}'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    atomic_write_text(folder / "comparison.html", page)


def _colours() -> str:
    light, dark = (
        "".join(f".method{place}{{--own:{pair[ground]}}}" for place, pair in enumerate(COLOURS)) for ground in (0, 1)
    )
    marks = "circle[class^=method],text.note[class*=method]{fill:var(--own)}polyline[class^=method]{stroke:var(--own)}"
    return f"{light}@media (prefers-color-scheme: dark){{{dark}}}{marks}"


def _means(own: list[tuple[ComparedRun, float, float]]) -> list[tuple[float, float]]:
    """The mean point of each budget, by latency."""
    budgets: dict[str, list[tuple[float, float]]] = {}
    for run, share, score in own:
        budgets.setdefault(run.budget, []).append((share, score))
    return sorted(
        (sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points))
        for points in budgets.values()
    )
