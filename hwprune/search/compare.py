"""Several methods under the same budgets at equal training cost: one run a cell, then one bench and one table.

Every cell is an ordinary run in a folder of its own, so the comparison goes on run by run and accumulates. What is
equal for all: the dense weights, the latency table, the finetuning recipe, and the images that go forward and
backward (`SearchSettings.total_epochs`: a method that trains while it searches finetunes that much less).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from hwprune.core.errors import MethodGaveUp, RunError, TrainingDiverged
from hwprune.core.events import Caution, Note, OnEvent, Stop, ignore, never
from hwprune.core.files import read_json, write_json
from hwprune.devices import check
from hwprune.models import load_weights, save_weights
from hwprune.report.comparison import MethodComparison
from hwprune.report.comparison_plot import write_comparison
from hwprune.report.run_data import Result
from hwprune.search.cell import Cell
from hwprune.search.dense import is_trained, tell_chance, train
from hwprune.search.judge import dense_outputs, judge
from hwprune.search.run import named_model, run_search
from hwprune.search.settings import DEFAULTS, SearchSettings
from hwprune.search.stages import make_method
from hwprune.training import Data, Task, task_for


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
    stop: Stop = never,
) -> MethodComparison:
    """Run what is missing, then measure and evaluate all; writes `comparison.json` and `.html`.

    The seed of a cell is that of its search and finetuning; the dense network is the same for all: `model` or what
    `base` names, trained once if it has no weights. A cell whose method gives up is reported as failed. Raises
    `RunError` for a folder that was begun with other settings or data.
    """
    task = task or task_for(data)
    for cell in cells:
        chosen = cell.settings(base)
        make_method(chosen.method, dict(chosen.options))
    check(base.target)
    network = copy.deepcopy(model) if model is not None else named_model(base, data)
    _check_same(base, data, folder)  # writes: what can be refused has been by now
    dense = _dense(base, folder, network, data, task, on_event, stop)
    dense_score = float(task.scores(dense_outputs(dense, data, folder), data.test.targets).mean())
    _tell_left_out(cells, folder, on_event)
    failed: dict[Cell, str] = {}
    for number, cell in enumerate(cells, start=1):
        on_event(Note(f"run {number} of {len(cells)}: {cell.method} at {cell.budget}, seed {cell.seed}"))
        try:
            result = run_search(
                cell.settings(base),
                folder / cell.name,
                model=copy.deepcopy(dense),
                data=data,
                task=task,
                tables=tables,
                on_event=on_event,
                stop=stop,
                dense_score=dense_score,
                common=folder,
            )
        except (MethodGaveUp, TrainingDiverged) as error:
            on_event(Caution(f"{cell.name} has no result: {error.message}", error.hint))
            failed[cell] = error.message
        else:
            _tell_excess(cell, result, base, data, on_event)
    found = judge(base, cells, folder, failed=failed, baselines=baselines, dense=dense, data=data, task=task)
    write_json(folder / "comparison.json", found.to_json())
    write_comparison(found, folder)
    return found


def _tell_left_out(cells: Sequence[Cell], folder: Path, on_event: OnEvent) -> None:
    """Say which finished runs of the folder are not asked for now: the table is of this call's runs alone."""
    asked = {cell.name for cell in cells}
    others = sorted(path.parent.name for path in folder.glob("*/result.json") if path.parent.name not in asked)
    if others:
        text = f"{len(others)} finished runs in {folder} are left out of the table: {', '.join(others[:6])}"
        more = " and others" if len(others) > 6 else ""
        on_event(Note(f"{text}{more}; ask for their methods, budgets and seeds too to have them in it"))


def _tell_excess(cell: Cell, result: Result, base: SearchSettings, data: Data, on_event: OnEvent) -> None:
    """Say that a run trained for longer than all were given; less than a batch is rounding."""
    images = len(data.train)
    if result.image_passes >= base.total_epochs * images + base.batch_size:
        took = f"{cell.name} took {result.image_passes / images:.2f} epochs of the {base.total_epochs:g} for all"
        on_event(Caution(took, hint="raise --total-epochs, or read its score with that in mind"))


def _check_same(base: SearchSettings, data: Data, folder: Path) -> None:
    """Keep what is equal for all runs of a folder, or raise `RunError` when it was begun with something else."""
    common = replace(base, method=DEFAULTS.method, latency_ms=None, latency_fraction=1.0)
    document = {"settings": common.to_json(), "data": data.fingerprint}
    kept = folder / "comparison_settings.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(kept, document)
        return
    found = read_json(kept)
    common.check_same(replace(SearchSettings.from_json(found["settings"]), method=common.method), folder)
    if found["data"] != data.fingerprint:
        raise RunError(f"{folder} holds a comparison on other data", hint="choose another --run-dir")


def _dense(
    base: SearchSettings,
    folder: Path,
    dense: nn.Module,
    data: Data,
    task: Task,
    on_event: OnEvent,
    stop: Stop,
) -> nn.Module:
    """The one dense network of the comparison, its weights kept in `dense.safetensors`."""
    path = folder / "dense.safetensors"
    if path.exists():
        load_weights(dense, path)
        return dense.eval()
    folder.mkdir(parents=True, exist_ok=True)
    if not is_trained(dense, data, task, base, on_event):
        score = train(dense, data, task, base, folder / "checkpoints", on_event, stop)
        tell_chance(score, data, task, on_event)
    save_weights(dense, path)
    return dense.eval()
