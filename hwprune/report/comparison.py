"""What a comparison of methods found, as data, as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hwprune.core.errors import RunError
from hwprune.core.measurement import Target
from hwprune.core.units import format_duration, percent
from hwprune.report.run_data import Result
from hwprune.report.score_text import above_text, interval_text, score_text
from hwprune.report.text import table

SCHEMA = "hwprune.compare/1"
EQUAL_LATENCY = 0.05  # what two networks may differ by, relative, where their scores are compared


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
                f"{percent(item.latency_ratio - 1, signed=True)}",
                "unequal" if item.unequal else "",
            )
            for item in found.differences
            if item.baseline == baseline
        ]
        header = ("budget", "method", above, "seeds", "latency above it", "")
        lines.append(table(header, points, left=(0, 1, 5)))
    if any(item.unequal for item in found.differences):
        lines.append(
            f"unequal: more than {percent(EQUAL_LATENCY, 0)} apart in latency, so the score is not the method's alone"
        )
    return "\n\n".join(lines)


def _order(found: MethodComparison, run: ComparedRun) -> tuple[int, int, int]:
    budgets = list(dict.fromkeys(item.budget for item in found.runs))
    methods = list(dict.fromkeys(item.method for item in found.runs))
    return budgets.index(run.budget), methods.index(run.method), run.seed


def _pair(value: Any) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))
