"""Several methods under the same budgets at equal training cost: one run a cell, then one bench and one table.

Every cell is an ordinary run in a folder of its own, so the comparison goes on run by run and accumulates. What is
equal for all: the dense weights, the latency table, the finetuning recipe, and the images that go forward and
backward (`SearchSettings.total_epochs`: a method that trains while it searches finetunes that much less).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load as load_tensors
from torch import nn

from hwprune import methods as known_methods
from hwprune.core.errors import RunError, TrainingDiverged, UsageError, unknown_name
from hwprune.core.events import Caution, Note, OnEvent, ignore
from hwprune.core.files import read_json, write_json
from hwprune.core.measurement import Measurement, Protocol, compare
from hwprune.core.widths import Budget
from hwprune.devices import connect
from hwprune.models import save_weights
from hwprune.report.comparison import ComparedRun, Difference, MethodComparison, write_comparison
from hwprune.report.run_data import Result
from hwprune.search.outcomes import load
from hwprune.search.run import named_model, run_search
from hwprune.search.settings import SearchSettings
from hwprune.search.stages import train_if_needed
from hwprune.search.workshop import Stop, survey_of
from hwprune.training import Classification, Data, Task, evaluate, predict

Scores = dict["Cell", np.ndarray]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison; `budget` as typed, "60%" or "4ms"."""

    budget: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.budget.replace('%', 'pct')}_{self.method}_s{self.seed}"

    def settings(self, base: SearchSettings, dense_ms: float) -> SearchSettings:
        """The settings of its run, the budget in ms. Raises `UsageError` for a budget that is none."""
        budget_ms = Budget.parse(self.budget).in_ms(dense_ms)
        return replace(base, method=self.method, seed=self.seed, latency_fraction=None, latency_ms=budget_ms)


def cells_of(methods: Sequence[str], budgets: Sequence[str], seeds: int) -> tuple[Cell, ...]:
    """Every combination; all methods of a budget and seed before the next, so that a cut comparison is still fair.

    Raises `UsageError` for an unknown method, and for nothing to compare.
    """
    for method in methods:
        if method not in known_methods.names():
            raise unknown_name("method", method, known_methods.names())
    if not methods or not budgets or seeds < 1:
        raise UsageError(
            "a comparison needs methods, budgets and at least one seed",
            hint="--methods wgates,greedy,uniform --budgets 75%,60%,45% --seeds 2",
        )
    return tuple(Cell(budget, method, seed) for seed in range(seeds) for budget in budgets for method in methods)


def run_comparison(
    base: SearchSettings,
    cells: Sequence[Cell],
    folder: Path,
    *,
    baselines: Sequence[str],
    model: nn.Module | None,
    data: Data,
    task: Task | None = None,
    tables: Path = Path("latency_tables"),
    on_event: OnEvent = ignore,
    stop: Stop = lambda: False,
) -> MethodComparison:
    """Run what is missing, then measure and evaluate everything that is there; writes `comparison.json` and `.html`.

    The seed of a cell is that of its search and finetuning; the dense network is the same for all: `model` or what
    `base` names, trained once if it has no weights. A cell whose method gives up is reported and left out.
    """
    task = task or Classification()
    dense = _dense(base, folder, model, data, task, on_event, stop)
    dense_ms = _dense_ms(base, folder, dense, data, tables, on_event)
    for number, cell in enumerate(cells, start=1):
        on_event(Note(f"run {number} of {len(cells)}: {cell.method} at {cell.budget}, seed {cell.seed}"))
        try:
            run_search(
                cell.settings(base, dense_ms),
                folder / cell.name,
                model=copy.deepcopy(dense),
                data=data,
                task=task,
                tables=tables,
                on_event=on_event,
                stop=stop,
            )
        except (TrainingDiverged, RunError) as error:
            on_event(Caution(f"{cell.name} has no result: {error.message}", error.hint))
    done = [cell for cell in cells if (folder / cell.name / "result.json").exists()]
    found = judge(base, done, folder, baselines=baselines, dense=dense, data=data, task=task)
    write_json(folder / "comparison.json", found.to_json())
    write_comparison(found, folder)
    return found


def judge(
    base: SearchSettings,
    cells: Sequence[Cell],
    folder: Path,
    *,
    baselines: Sequence[str],
    dense: nn.Module,
    data: Data,
    task: Task,
) -> MethodComparison:
    """Time all networks in turns in one session, evaluate them on the test split, and compare image by image."""
    results = {cell: Result.from_json(read_json(folder / cell.name / "result.json")) for cell in cells}
    pruned = [cell for cell in cells if results[cell].verdict != "infeasible"]
    if not pruned:
        raise RunError(f"no run in {folder} has ended with a network", hint="raise the budgets, see the runs' log.txt")
    reference = predict(dense, data, "test")
    timed = _time_together(base, pruned, folder)
    scores: Scores = {}
    rows = []
    for cell in cells:
        row = ComparedRun.of(results[cell], cell.budget)
        if cell in timed:
            small = load(folder / cell.name, build=lambda: copy.deepcopy(dense))
            found = evaluate(small, data, "test", task=task, reference=reference)
            scores[cell] = found.scores.numpy()
            ratio = compare(timed["dense"], timed[cell])
            row = replace(row, share=ratio.ratio, share_ci=ratio.ci, score=found.score, divergence=found.kl)
        rows.append(row)
    return MethodComparison(
        model=base.model,
        data=data.name,
        target=base.target,
        score_name=task.score_name,
        dense_score=float(task.scores(reference, data.test.targets).mean()),
        total_epochs=base.total_epochs,
        train_images=len(data.train),
        runs=tuple(rows),
        differences=tuple(item for baseline in baselines for item in differences(scores, baseline)),
        simulated=timed["dense"].simulated,
    )


def differences(scores: Scores, baseline: str) -> tuple[Difference, ...]:
    """Mean score of each method minus that of `baseline`, per budget, with a paired 95 % interval.

    Paired over the test examples and averaged over the seeds that both have. The interval is that of the test set:
    it says nothing of how much another seed would change.
    """
    found = []
    for budget in dict.fromkeys(cell.budget for cell in scores):
        for method in dict.fromkeys(cell.method for cell in scores):
            pairs = [
                scores[cell] - scores[rival]
                for cell in scores
                if (rival := replace(cell, method=baseline)) in scores
                and (cell.budget, cell.method) == (budget, method)
                and method != baseline
            ]
            if pairs:
                mean = np.asarray(np.mean(pairs, axis=0, dtype=np.float64))
                half = 1.96 * float(mean.std(ddof=1)) / math.sqrt(len(mean))
                centre = float(mean.mean())
                interval = (centre - half, centre + half)
                found.append(Difference(budget, method, baseline, len(pairs), centre, interval))
    return tuple(found)


def _dense(
    base: SearchSettings,
    folder: Path,
    model: nn.Module | None,
    data: Data,
    task: Task,
    on_event: OnEvent,
    stop: Stop,
) -> nn.Module:
    """The one dense network of the comparison, kept in `dense.safetensors`."""
    dense = copy.deepcopy(model) if model is not None else named_model(base, data)
    path = folder / "dense.safetensors"
    if path.exists():
        dense.load_state_dict(load_tensors(path.read_bytes()))
        return dense.eval()
    folder.mkdir(parents=True, exist_ok=True)
    train_if_needed(dense, data, task, base, checkpoint=folder / "checkpoints", on_event=on_event, stop=stop)
    save_weights(dense, path)
    return dense.eval()


def _dense_ms(
    base: SearchSettings, folder: Path, dense: nn.Module, data: Data, tables: Path, on_event: OnEvent
) -> float:
    """The dense latency that all fractions are of, measured once and kept in `dense.json`: one budget for all."""
    path = folder / "dense.json"
    if not path.exists():
        with survey_of(base, dense, data, tables, on_event) as found:
            models = {"dense": found.template.dense}
            timed = found.board.measure(models, protocol=Protocol.verdict(), seed=base.seed, on_event=on_event)
        write_json(path, timed["dense"].to_json())
    return Measurement.from_json(read_json(path)).statistic(base.statistic)[0]


def _time_together(base: SearchSettings, cells: Sequence[Cell], folder: Path) -> dict[Cell | str, Measurement]:
    """A measurement of every exported network and of the dense one, interleaved in one session."""
    names: dict[Cell | str, str] = {"dense": "dense", **{cell: cell.name for cell in cells}}
    models = {cell.name: (folder / cell.name / "model.onnx").read_bytes() for cell in cells}
    models["dense"] = (folder / cells[0].name / "dense.onnx").read_bytes()
    with connect(base.target) as board:
        timed = board.measure(models, protocol=Protocol.default(), seed=base.seed)
    return {key: timed[name] for key, name in names.items()}
