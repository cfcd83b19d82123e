"""The verdict over the runs of a comparison: all networks timed beside the dense one, compared test image by image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hwprune.core.files import atomic_write_bytes, read_json
from hwprune.core.measurement import Measurement, Protocol
from hwprune.devices import Anchor, connect
from hwprune.report.comparison import ComparedRun, Difference, MethodComparison
from hwprune.report.run_data import Result
from hwprune.report.text import verdict_sentence
from hwprune.search.cell import Cell
from hwprune.search.outcomes import load
from hwprune.search.run_folder import ONNX, fp32_onnx
from hwprune.search.settings import SearchSettings
from hwprune.search.shipping import shipped_outputs
from hwprune.training import Data, Task, predict

Scores = dict[Cell, np.ndarray]
JUDGED = "judged.safetensors"  # in a run folder: what its network scored in a comparison


def judge(
    base: SearchSettings,
    cells: Sequence[Cell],
    folder: Path,
    *,
    failed: Mapping[Cell, str],
    baselines: Sequence[str],
    dense: nn.Module,
    data: Data,
    task: Task,
) -> MethodComparison:
    """Time all networks in turns in one session, evaluate them on the test split, and compare image by image.

    `failed` says why a cell has no result. What a network answers on the test split is kept beside it: only the
    timing is new when a comparison grows.
    """
    ended = [cell for cell in cells if cell not in failed]
    results = {cell: Result.from_json(read_json(folder / cell.name / "result.json")) for cell in ended}
    pruned = [cell for cell in ended if results[cell].verdict != "infeasible"]
    reference = dense_outputs(dense, data, folder)
    timed = _time_together(base, pruned, folder) if pruned else {}
    scores: Scores = {}
    shares: dict[Cell, float] = {}
    rows = []
    for cell in cells:
        if cell in failed:
            rows.append(ComparedRun(cell.budget, cell.method, cell.seed, "failed", reason=failed[cell]))
            continue
        row = ComparedRun.of(results[cell], cell.budget, cell.method)
        if row.verdict == "infeasible":
            row = replace(row, reason=verdict_sentence(results[cell]))
        if cell in timed:
            found = _judged(cell, folder, dense=dense, data=data, task=task, reference=reference)
            scores[cell] = found["scores"].numpy()
            share, low, high = timed[cell].statistic("median")
            shares[cell] = share
            score, divergence = float(found["scores"].mean()), float(found["divergence"])
            row = replace(row, share=share, share_ci=(low, high), score=score, divergence=divergence)
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
        differences=tuple(item for baseline in baselines for item in differences(scores, baseline, shares)),
        simulated=any(result.simulated for result in results.values()),
    )


def differences(scores: Scores, baseline: str, shares: Mapping[Cell, float]) -> tuple[Difference, ...]:
    """Mean score of each method minus that of `baseline`, per budget, with a paired 95 % interval.

    Paired over the test examples and averaged over the seeds that both have. The interval is that of the test set:
    it says nothing of how much another seed would change. `shares` are the latencies as shares of the dense one.
    """
    found = []
    for budget in dict.fromkeys(cell.budget for cell in scores):
        for method in dict.fromkeys(cell.method for cell in scores):
            rivals = {
                cell: rival
                for cell in scores
                if (rival := replace(cell, method=baseline)) in scores
                and (cell.budget, cell.method) == (budget, method)
                and method != baseline
            }
            if rivals:
                pairs = [scores[cell] - scores[rival] for cell, rival in rivals.items()]
                slower = [math.log(shares[cell] / shares[rival]) for cell, rival in rivals.items()]
                mean = np.asarray(np.mean(pairs, axis=0, dtype=np.float64))
                if len(mean) < 2:
                    continue  # one image has no interval, and without one a difference says nothing
                half = 1.96 * float(mean.std(ddof=1)) / math.sqrt(len(mean))
                centre = float(mean.mean())
                interval = (centre - half, centre + half)
                ratio = math.exp(sum(slower) / len(slower))
                found.append(Difference(budget, method, baseline, len(pairs), centre, interval, ratio))
    return tuple(found)


def dense_outputs(dense: nn.Module, data: Data, folder: Path) -> Tensor:
    """What the dense network of a comparison answers on the test split, `(images, ...)`; computed once."""
    return _kept(folder / "dense_outputs.safetensors", lambda: {"outputs": predict(dense, data, "test")})["outputs"]


def _judged(
    cell: Cell, folder: Path, *, dense: nn.Module, data: Data, task: Task, reference: Tensor
) -> Mapping[str, Tensor]:
    """`scores` of each test example and the mean `divergence` from the dense network."""

    def work() -> dict[str, Tensor]:
        outputs = _outputs(folder / cell.name, dense, data)
        divergence = task.distance(outputs, reference).mean().double()
        return {"scores": task.scores(outputs, data.test.targets), "divergence": divergence}

    return _kept(folder / cell.name / JUDGED, work)


def _outputs(run: Path, dense: nn.Module, data: Data) -> Tensor:
    """What a run's network answers on the test split: the file itself where it computes in another precision."""
    if fp32_onnx(run).name == ONNX:
        return predict(load(run, build=lambda: copy.deepcopy(dense)), data, "test")
    return shipped_outputs((run / ONNX).read_bytes(), data, SearchSettings.read(run / "run.toml").batch)


def _kept(path: Path, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    if not path.exists():
        atomic_write_bytes(path, save_tensors(work()))
    return load_tensors(path.read_bytes())


def _time_together(base: SearchSettings, cells: Sequence[Cell], folder: Path) -> dict[Cell, Measurement]:
    """Every exported network in turn with the dense one, lap by lap, in units of its latency."""
    models = {cell.name: (folder / cell.name / ONNX).read_bytes() for cell in cells}
    dense = Anchor((folder / cells[0].name / "dense.onnx").read_bytes(), 1.0)
    with connect(base.target) as board:
        timed = board.measure(models, protocol=Protocol.default(), seed=base.seed, anchor=dense)
    return {cell: timed[cell.name] for cell in cells}
