"""What a comparison of methods found, as data, as text, as a plot, and as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from hwprune.core.errors import RunError
from hwprune.core.files import atomic_write_text
from hwprune.core.measurement import Target
from hwprune.core.units import format_duration
from hwprune.report.run_data import Result
from hwprune.report.score_text import above_text, interval_text, is_share, score_text
from hwprune.report.svg import Axis, Plot
from hwprune.report.text import percent, table

SCHEMA = "hwprune.compare/1"
EQUAL_LATENCY = 0.05  # what two networks may differ by, relative, where their scores are compared
PAGE_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1a2230}"
    "svg{max-width:760px}pre{overflow-x:auto}"
)
COLOURS = ("#1f7a6d", "#c2541b", "#5b5fc7", "#b3261e", "#8a6d1f", "#2f7fb8", "#8b3fa0", "#4d7c0f", "#6b7280", "#be185d")


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison. `share` of the dense latency and its interval come from the bench that timed all runs
    in turns; `verdict` and `utilisation` from the run's own final measurement. `divergence`: KL to the dense network's
    outputs (nats). None where the budget was infeasible, or the method gave up for a `reason` (verdict `failed`).
    `image_passes`: forward and backward, search included.
    """

    budget: str
    method: str
    seed: int
    verdict: str
    utilisation: float | None = None
    image_passes: int = 0
    seconds: float = 0.0
    share: float | None = None
    share_ci: tuple[float, float] | None = None
    score: float | None = None
    divergence: float | None = None
    reason: str = ""

    @classmethod
    def of(cls, result: Result, budget: str, method: str) -> ComparedRun:
        """What the run itself says; `budget` and `method` as the comparison names them."""
        return cls(
            budget,
            method,
            result.seed,
            result.verdict,
            result.utilisation,
            result.image_passes,
            result.seconds,
        )


@dataclass(frozen=True)
class Difference:
    """Score of a method minus that of a baseline at a budget, averaged over `seeds`, with a paired 95 % interval.

    `latency_ratio`: how long the method's networks take against the baseline's, by the bench of all (the geometric
    mean over the seeds). Far from 1 the two did not use the budget alike, and the score is not the method's alone.
    """

    budget: str
    method: str
    baseline: str
    seeds: int
    score: float
    ci: tuple[float, float]
    latency_ratio: float

    @property
    def unequal(self) -> bool:
        """Whether the two latencies are too far apart for a comparison of scores."""
        return abs(self.latency_ratio - 1) > EQUAL_LATENCY


@dataclass(frozen=True)
class MethodComparison:
    """All runs of a comparison and what separates them."""

    model: str
    data: str
    target: Target
    score_name: str
    dense_score: float
    total_epochs: float
    train_images: int
    runs: tuple[ComparedRun, ...]
    differences: tuple[Difference, ...]
    simulated: bool

    @property
    def verdict(self) -> str:
        """`pass` when every run met its budget, else `fail`."""
        return "pass" if all(run.verdict == "pass" for run in self.runs) else "fail"

    def to_json(self) -> dict[str, Any]:
        """The document of `comparison.json` and of `hwprune compare --json`."""
        return {"schema": SCHEMA, "verdict": self.verdict, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> MethodComparison:
        """The comparison that `to_json` wrote. Raises `RunError` for anything else."""
        try:
            values = {key: value for key, value in document.items() if key not in ("schema", "verdict")}
            runs = tuple(ComparedRun(**{**run, "share_ci": _pair(run["share_ci"])}) for run in values.pop("runs"))
            found = tuple(Difference(**{**item, "ci": _pair(item["ci"])}) for item in values.pop("differences"))
            return cls(**{**values, "target": Target(**values["target"]), "runs": runs, "differences": found})
        except (KeyError, TypeError) as error:
            raise RunError(f"this is no comparison: {error!r}", hint="make it again with: hwprune compare") from error


def comparison_text(found: MethodComparison) -> str:
    """A table of all runs, budgets together, and the differences to each baseline."""
    columns = (
        "budget",
        "method",
        "seed",
        "verdict",
        "share of dense [95 %]",
        "used",
        found.score_name,
        "KL",
        "epochs",
        "time",
    )
    rows = []
    for run in sorted(found.runs, key=lambda run: _order(found, run)):
        low, high = run.share_ci or (0.0, 0.0)
        share = "-" if run.share is None else f"{run.share:.3f} [{low:.3f}, {high:.3f}]"
        kl = "-" if run.divergence is None else f"{run.divergence:.3f}"
        epochs = f"{run.image_passes / found.train_images:.2f}"
        own = (run.budget, run.method, str(run.seed), run.verdict, share, percent(run.utilisation))
        rows.append((*own, score_text(found.score_name, run.score, 1), kl, epochs, format_duration(run.seconds)))
    reasons = [f"{run.method} at {run.budget}, seed {run.seed}: {run.reason}" for run in found.runs if run.reason]
    stamp = "SIMULATED: no hardware was timed\n" if found.simulated else ""
    dense = f"dense {found.score_name} {score_text(found.score_name, found.dense_score, 1)}"
    head = f"{stamp}{found.model} on {found.data}, {found.target.label()}; {dense}"
    lines = [head, table(columns, rows, left=(0, 1, 3, 4)), *reasons]
    for baseline in dict.fromkeys(item.baseline for item in found.differences):
        above = f"{above_text(found.score_name, baseline)} [95 %, paired]"
        points = [
            (
                item.budget,
                item.method,
                interval_text(found.score_name, item.score, *item.ci),
                str(item.seeds),
                f"{item.latency_ratio - 1:+.1%}",
                "unequal" if item.unequal else "",
            )
            for item in found.differences
            if item.baseline == baseline
        ]
        header = ("budget", "method", above, "seeds", "latency above it", "")
        lines.append(table(header, points, left=(0, 1, 5)))
    if any(item.unequal for item in found.differences):
        lines.append(f"unequal: more than {EQUAL_LATENCY:.0%} apart in latency, so the score is not the method's alone")
    return "\n\n".join(lines)


def comparison_plot(found: MethodComparison) -> str:
    """Score against the measured share of the dense latency with its interval, a colour a method; an SVG file."""
    timed = [(run, run.share, run.score) for run in found.runs if run.share is not None and run.score is not None]
    if not timed:
        return ""
    methods = list(dict.fromkeys(run.method for run in found.runs))
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
    drawn = [method for method in methods if any(run.method == method for run, _, _ in timed)]
    for method in drawn:
        place = methods.index(method)
        own = [(run, share, score) for run, share, score in timed if run.method == method]
        means = _means(own)
        plot.line(means, f"method{place % len(COLOURS)}")
        for run, share, score in own:
            reached = score_text(found.score_name, score, 1)
            text = f"{method}, {run.budget}, seed {run.seed}: {share:.3f} of dense measured, {reached}"
            if run.share_ci:
                plot.line([(end, score) for end in run.share_ci], f"method{place % len(COLOURS)}")
            plot.dot((share, score), f"method{place % len(COLOURS)}", text, radius=4)
        line = -10 - 15 * (len(drawn) - 1 - drawn.index(method))
        plot.note((x.high, y.low), method, anchor="end", dx=-8, dy=line, kind=f"method{place % len(COLOURS)}")
    return plot.svg().replace(">", f' xmlns="http://www.w3.org/2000/svg"><style>{_style()}</style>', 1)


def write_comparison(found: MethodComparison, folder: Path) -> None:
    """Write `comparison.svg` and `comparison.html` (plot and table, offline) into a folder."""
    plot = comparison_plot(found)
    if plot:
        atomic_write_text(folder / "comparison.svg", plot)
    title = f"{found.model} on {found.data}: methods compared"
    body = f"<h1>{escape(title)}</h1>{plot}<pre>{escape(comparison_text(found))}</pre>"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{PAGE_STYLE}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    atomic_write_text(folder / "comparison.html", page)


def _means(own: list[tuple[ComparedRun, float, float]]) -> list[tuple[float, float]]:
    """The mean point of each budget, by latency."""
    budgets: dict[str, list[tuple[float, float]]] = {}
    for run, share, score in own:
        budgets.setdefault(run.budget, []).append((share, score))
    return sorted(
        (sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points))
        for points in budgets.values()
    )


def _style() -> str:
    """The drawing's own CSS: it stands alone in a README as well."""
    text = "text{font:12px system-ui,sans-serif;fill:#5d6879}polyline{fill:none;stroke-width:1.5;opacity:.55}"
    frame = ".grid{stroke:#e3e7ed}.axis{stroke:#9aa6b6}circle.dense{fill:#9aa6b6}"
    marks = "".join(
        f"circle.method{place},text.method{place}{{fill:{colour}}}polyline.method{place}{{stroke:{colour}}}"
        for place, colour in enumerate(COLOURS)
    )
    return text + frame + marks


def _order(found: MethodComparison, run: ComparedRun) -> tuple[int, int, int]:
    budgets = list(dict.fromkeys(item.budget for item in found.runs))
    methods = list(dict.fromkeys(item.method for item in found.runs))
    return budgets.index(run.budget), methods.index(run.method), run.seed


def _pair(value: Any) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))
