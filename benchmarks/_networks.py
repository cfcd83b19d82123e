"""The two comparisons of methods that the benchmarks make, and how they are told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _dense import DATA, RECIPES

from hwprune import api
from hwprune.core.events import CandidateMeasured, EpochDone, Event, Note
from hwprune.core.files import atomic_write_text, write_json
from hwprune.core.specs import cache_folder
from hwprune.core.units import percent
from hwprune.report.comparison import MethodComparison, comparison_text
from hwprune.report.comparison_plot import comparison_plot
from hwprune.training import load_data

RESULTS = Path(__file__).parent / "results"
BUDGETS = ("45%", "60%", "75%")


@dataclass(frozen=True)
class Setting:
    """A dense network of `_dense.py` and what each method may train: epochs of the search, and all in all."""

    recipe: str
    epochs: float
    total_epochs: float


SETTINGS = {"lite0": Setting("lite0_tiny20", 0.25, 1.5), "resnet20": Setting("resnet20x2", 0.1, 0.5)}


def compare(
    name: str, methods: Sequence[str], budgets: Sequence[str], seeds: int, runs: Path, *, times: float = 1.0
) -> MethodComparison:
    """Run what is missing of a comparison; its folder keeps every run. `times`: that many times the training."""
    setting = SETTINGS[name]
    recipe = RECIPES[setting.recipe]
    return api.compare(
        recipe.model,
        load_data(recipe.data.format(root=DATA), seed=recipe.seed),
        weights=cache_folder() / "dense" / f"{setting.recipe}.safetensors",
        methods=methods,
        budgets=budgets,
        seeds=seeds,
        epochs=setting.epochs * times,
        total_epochs=setting.total_epochs * times,
        train_precision="auto",
        run_dir=runs / name,
        tables=runs / "tables",
        on_event=_tell,
    )


def main(description: str, methods: Sequence[str], record: str) -> None:
    """The command line of a benchmark: run what is missing, print the tables, write them and a plot to `results/`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(SETTINGS), action="append")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=list(methods))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--times", type=float, default=1.0, help="this many times the training; needs --runs of its own"
    )
    parser.add_argument("--runs", type=Path, default=cache_folder() / "methods")
    parser.add_argument("--record", default=record, help="name of the files in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for network in options.network or list(SETTINGS):
        found = compare(network, options.methods, options.budgets, options.seeds, options.runs, times=options.times)
        print(comparison_text(found), as_markdown(found), sep="\n\n", flush=True)
        write_json(RESULTS / f"{options.record}_{network}.json", found.to_json())
        plot = comparison_plot(found)
        if plot:
            atomic_write_text(RESULTS / f"{options.record}_{network}.svg", plot)


def as_markdown(found: MethodComparison) -> str:
    """The table of RECORDS.md: a line a run, the seeds' mean differences behind it."""
    baselines = list(dict.fromkeys(item.baseline for item in found.differences))
    points = {(item.budget, item.method, item.baseline): item for item in found.differences}
    columns = ["budget", "method", "seed", "share of dense [95 %]", "used", "top-1 %", "KL", "epochs"]
    columns += [f"points above {baseline} [95 %]" for baseline in baselines]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for run in found.runs:
        cells = [run.budget, run.method, str(run.seed)]
        if run.share is None or run.share_ci is None or run.score is None or run.utilisation is None:
            cells += [run.verdict] + [""] * (len(columns) - len(cells) - 1)
        else:
            cells.append(f"{run.share:.3f} [{run.share_ci[0]:.3f}, {run.share_ci[1]:.3f}]")
            cells += [percent(run.utilisation) + ("" if run.verdict == "pass" else " (miss)"), f"{100 * run.score:.1f}"]
            cells += [f"{run.divergence:.3f}", f"{run.image_passes / found.train_images:.2f}"]
            for baseline in baselines:
                item = points.get((run.budget, run.method, baseline))
                text = f"{100 * item.score:+.1f} [{100 * item.ci[0]:+.1f}, {100 * item.ci[1]:+.1f}]" if item else ""
                cells.append(
                    f"{text} at {percent(item.latency_ratio - 1, 0, signed=True)} latency"
                    if item and item.unequal
                    else text
                )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tell(event: Event) -> None:
    if isinstance(event, EpochDone | CandidateMeasured | Note):
        print(f"  {event}"[:200], flush=True)
