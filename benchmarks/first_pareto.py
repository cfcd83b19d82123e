"""Do W-Gates-style gates beat the simple rivals at equal *measured* latency and equal training cost?

    python benchmarks/_dense.py                                    # once: the two dense networks
    python benchmarks/first_pareto.py                              # everything; resumes run by run
    python benchmarks/first_pareto.py --network lite0 --budgets 45 --seeds 0
    python benchmarks/first_pareto.py --summary                    # only the table of what is there

Every run is `hwprune search` with its own folder: same dense weights, same latency table, same finetuning recipe. The
cost is counted in images that went forward and backward: a method that trains during its search finetunes that
much less. Columns: measured latency as a share of dense, all networks timed in turns in one session; top-1 on the
test images; KL to the dense network (nats, less noisy than top-1). Differences to W-Gates are paired over the same
test images and seeds, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _dense import DATA, RECIPES, load_dense

from hwprune import api
from hwprune.core.events import CandidateMeasured, EpochDone, Event, Note
from hwprune.core.files import read_json, write_json
from hwprune.core.measurement import Protocol, Target, compare
from hwprune.core.specs import cache_folder
from hwprune.devices import connect
from hwprune.report.run_data import RunData
from hwprune.training import evaluate, predict

RESULTS = Path(__file__).parent / "results"
METHODS = ("wgates", "greedy", "uniform", "magnitude", "random")
BUDGETS = (45, 60, 75)
TRAINS_IN_SEARCH = ("wgates",)


@dataclass(frozen=True)
class Setting:
    """A network of the comparison and its training budget in epochs: search and finetuning together."""

    recipe: str
    search_epochs: float
    total_epochs: float


NETWORKS = {"lite0": Setting("lite0_tiny20", 0.25, 1.5), "resnet20": Setting("resnet20x2", 0.1, 0.5)}


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    network: str
    method: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.network}_{self.budget}_{self.method}_s{self.seed}"


def run_cell(cell: Cell, runs: Path) -> None:
    """Search, finetune and verify one cell, unless its run is finished."""
    setting = NETWORKS[cell.network]
    recipe = RECIPES[setting.recipe]
    trains = cell.method in TRAINS_IN_SEARCH
    found = api.search(
        recipe.model,
        recipe.data.format(root=DATA),
        weights=cache_folder() / "dense" / f"{setting.recipe}.safetensors",
        latency=f"{cell.budget}%",
        method=cell.method,
        epochs=setting.search_epochs,
        finetune_epochs=setting.total_epochs - (setting.search_epochs if trains else 0.0),
        train_precision="auto",
        run_dir=runs / cell.name,
        tables=runs / "tables",
        seed=cell.seed,
        on_event=_tell,
    )
    result = found.result
    print(f"{cell.name}: {result.verdict} {result.measured_ms} ms of {result.budget_ms} ms, test {result.score}")


def summarise(cells: list[Cell], runs: Path, network: str) -> dict[str, object]:
    """Evaluate and time every finished run of a network together."""
    done = [cell for cell in cells if cell.network == network and (runs / cell.name / "result.json").exists()]
    model, data = load_dense(NETWORKS[network].recipe)
    reference = predict(model, data, "test")
    correct: dict[Cell, np.ndarray] = {}
    rows = []
    timed = time_together([runs / cell.name for cell in done])
    for cell in done:
        small = api.load(runs / cell.name)
        scored = evaluate(small, data, "test", reference=reference)
        correct[cell] = scored.scores.numpy()
        result = RunData.read(runs / cell.name).result
        rows.append(
            {
                "network": network,
                "method": cell.method,
                "budget": cell.budget,
                "seed": cell.seed,
                "verdict": result.verdict,
                "utilisation": result.utilisation,
                "predicted_ms": result.predicted_ms,
                "measured_ms": result.measured_ms,
                **timed[cell.name],
                "top1": scored.score,
                "kl": scored.kl,
                "image_passes": result.image_passes,
                "seconds": result.seconds,
            }
        )
    dense_top1 = evaluate(model, data, "test").score
    return {"network": network, "dense_top1": dense_top1, "runs": rows, "differences": differences(correct)}


def time_together(folders: list[Path]) -> dict[str, dict[str, object]]:
    """Share of the dense latency with its interval, every network timed in turns with the dense one."""
    shares: dict[str, dict[str, object]] = {}
    if not folders:
        return shares
    models = {folder.name: (folder / "model.onnx").read_bytes() for folder in folders}
    models["dense"] = (folders[0] / "dense.onnx").read_bytes()
    with connect(Target()) as board:
        timed = board.measure(models, protocol=Protocol.default(), seed=0)
    for folder in folders:
        ratio = compare(timed["dense"], timed[folder.name])
        shares[folder.name] = {"share": ratio.ratio, "share_ci": list(ratio.ci)}
    return shares


def differences(correct: dict[Cell, np.ndarray]) -> list[dict[str, object]]:
    """W-Gates minus each control in points of top-1, paired over images, averaged over the seeds both have."""
    found = []
    for budget in sorted({cell.budget for cell in correct}):
        for method in METHODS[1:]:
            pairs = [
                correct[cell] - correct[rival]
                for cell in correct
                for rival in correct
                if (cell.method, rival.method) == ("wgates", method)
                and cell.budget == rival.budget == budget
                and cell.seed == rival.seed
            ]
            if pairs:
                mean = np.mean(pairs, axis=0)
                half = 1.96 * float(mean.std(ddof=1)) / math.sqrt(len(mean))
                centre = float(mean.mean())
                found.append(
                    {
                        "budget": budget,
                        "rival": method,
                        "seeds": len(pairs),
                        "points": 100 * centre,
                        "ci": [100 * (centre - half), 100 * (centre + half)],
                    }
                )
    return found


def as_text(summary: dict[str, object]) -> str:
    """The Markdown table of RECORDS.md."""
    lines = [
        f"{summary['network']}: dense top-1 {100 * float(str(summary['dense_top1'])):.1f} %",
        "",
        "| budget | method | seed | verdict | share of dense, measured [95 %] | top-1 % | KL | image passes | s |",
        "|--:|---|--:|---|---|--:|--:|--:|--:|",
    ]
    runs = summary["runs"]
    assert isinstance(runs, list)
    for row in sorted(runs, key=lambda r: (r["budget"], METHODS.index(r["method"]), r["seed"])):
        low, high = row["share_ci"]
        lines.append(
            f"| {row['budget']} % | {row['method']} | {row['seed']} | {row['verdict']} "
            f"| {row['share']:.3f} [{low:.3f}, {high:.3f}] | {100 * row['top1']:.1f} | {row['kl']:.3f} "
            f"| {row['image_passes']} | {row['seconds']:.0f} |"
        )
    lines.append("")
    found = summary["differences"]
    assert isinstance(found, list)
    for row in found:
        low, high = row["ci"]
        lines.append(
            f"- {row['budget']} %: W-Gates minus {row['rival']}: {row['points']:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}] ({row['seeds']} seed(s))"
        )
    return "\n".join(lines)


def _tell(event: Event) -> None:
    if isinstance(event, EpochDone | CandidateMeasured | Note):
        print(f"  {event}", flush=True)


def main() -> None:
    """Run what is missing, then print and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), action="append")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=cache_folder() / "first_pareto")
    parser.add_argument("--summary", action="store_true", help="run nothing; summarise what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = options.network or list(NETWORKS)
    cells = [
        Cell(network, method, budget, seed)
        for seed in options.seeds
        for budget in options.budgets
        for method in options.methods
        for network in networks
    ]
    for cell in cells if not options.summary else []:
        run_cell(cell, options.runs)
    every = [Cell(n, m, b, s) for n in networks for m in METHODS for b in BUDGETS for s in range(10)]
    for network in networks:
        summary = summarise(every, options.runs, network)
        path = RESULTS / f"first_pareto_{network}.json"
        write_json(path, summary)
        print(as_text({**summary, **read_json(path)}))


if __name__ == "__main__":
    main()
