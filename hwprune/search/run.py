"""One run from settings to verdict. Run again with the same settings, it goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hwprune.core.errors import BudgetInfeasible, RunError
from hwprune.core.events import Caution, Note, OnEvent, Stop, ignore, never
from hwprune.core.files import read_json, write_json
from hwprune.latency.limited import check_limits
from hwprune.latency.scores import Scores
from hwprune.methods._base import AbstractMethod
from hwprune.models import load_model, load_weights
from hwprune.report.html import FILE as REPORT
from hwprune.report.html import write_report
from hwprune.report.run_data import SHIPPED, Candidate, Result
from hwprune.search.attempts import Attempt, verified_network
from hwprune.search.baseline import Baseline, measure_baseline
from hwprune.search.dense import dense_network
from hwprune.search.finish import Finished
from hwprune.search.layers import layer_profile
from hwprune.search.run_folder import DATA, ONNX, RunFolder
from hwprune.search.settings import SearchSettings
from hwprune.search.stages import make_method, search_answer
from hwprune.search.workshop import Workshop, open_workshop
from hwprune.training import Data, Task, load_data, task_for


def run_search(
    settings: SearchSettings,
    run_dir: Path,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    task: Task | None = None,
    tables: Path = Path("latency_tables"),
    on_event: OnEvent = ignore,
    stop: Stop = never,
    dense_score: float | None = None,
    common: Path | None = None,
) -> Result:
    """Search under a budget and write the run folder; the result's verdict is a measurement.

    `model` and `data` replace what the settings name; `dense_score` is the test score of a trained `model` where the
    caller knows it, which many runs of one network then need not find out; `common` is a folder in which runs keep
    what their budgets are in ms, in the units of the latency table, so that they are the same for all. Raises
    `RunError` for a folder of another run or one in use, `Interrupted` after saving when `stop` says so, and the
    errors of every stage; an infeasible budget is a result.
    """
    method = make_method(settings.method, dict(settings.options))
    with RunFolder.open(run_dir, settings, on_event) as folder:
        finished = folder.path / "result.json"
        if finished.exists():
            if data is not None:
                check_same_data(folder, data)
            folder.emit(Note(f"{run_dir} is finished; this is its result (another --run-dir starts anew)"))
            if not (folder.path / REPORT).exists():
                write_report(folder.path)
            return Result.from_json(read_json(finished))
        data = data or load_data(settings.data)
        model = model or named_model(settings, data)
        check_same_data(folder, data)
        with open_workshop(
            folder,
            model=model,
            data=data,
            task=task or task_for(data),
            tables=tables,
            stop=stop,
            table_ms=common is not None,
        ) as shop:
            shop.dense_score = dense_score
            baseline = measure_baseline(shop, common)
            try:
                baseline.check(settings.statistic)
                check_limits(shop.graph, shop.table.space, settings.budget.limits)
                result = _search(shop, baseline, method)
            except BudgetInfeasible as error:  # by the baseline's measurement, or as the method predicts
                folder.emit(Caution(error.message, error.hint))
                result = _infeasible(shop, baseline)
        write_json(finished, result.to_json())
        write_report(folder.path)
        return result


def check_same_data(folder: RunFolder, data: Data) -> None:
    """Raise `RunError` for a run that began with other data of the same name; remember what it begins with."""
    path = folder.path / DATA
    if not (folder.seconds and path.exists()):
        write_json(path, {"fingerprint": data.fingerprint})
    elif read_json(path).get("fingerprint") != data.fingerprint:
        raise RunError(
            f"{folder.path} began with other data than these, though they are called {data.name} too",
            hint="choose another --run-dir",
        )


def named_model(settings: SearchSettings, data: Data) -> nn.Module:
    """The network that the settings name, with their weights."""
    model = load_model(settings.model, classes=data.classes, input_shape=data.input_shape, seed=settings.seed)
    if settings.weights:
        load_weights(model, Path(settings.weights))
    return model


def _search(shop: Workshop, baseline: Baseline, method: AbstractMethod) -> Result:
    dense_network(shop)
    answer = search_answer(shop, method, baseline.budget_ms)
    if any(row.session == shop.session for row in shop.table.rows):
        shop.refit()
    done, attempts = verified_network(shop, method, answer)
    profile = layer_profile(shop, (shop.folder.path / ONNX).read_bytes(), done.answer)
    if profile is not None:
        write_json(shop.folder.path / "layers.json", profile.to_json())
    return _result(shop, done, attempts, answer.image_passes)


def _common(shop: Workshop) -> dict[str, Any]:
    """The fields of a result that do not depend on how the run ended."""
    settings, space = shop.settings, shop.table.space
    scores = {item.kind: item.scores for item in shop.report.comparison if item.scores is not None}
    return {
        "dense_widths": dict(space.dense()),
        "run_dir": str(shop.folder.path),
        "target": settings.target,
        "statistic": settings.statistic,
        "max_params": settings.budget.limits.params,
        "max_macs": settings.budget.limits.macs,
        "method": settings.method,
        "seed": settings.seed,
        "dense_params": shop.graph.params(space.dense()),
        "dense_macs": shop.graph.macs(space.dense()),
        "model": settings.model,
        "data": settings.data,
        "score_name": shop.task.score_name,
        "tile": shop.table.tile,
        "fit": {kind: _fit_scores(score, shop.report.label_noise) for kind, score in scores.items()},
        "latency_model": shop.report.chosen,
    }


def _fit_scores(scores: Scores, label_noise: float | None) -> dict[str, float]:
    kept = {name: value for name, value in vars(scores).items() if isinstance(value, float) and math.isfinite(value)}
    return {**kept, **({} if label_noise is None else {"label_noise": label_noise})}


def _result(shop: Workshop, done: Finished, attempts: Sequence[Attempt], search_passes: int) -> Result:
    widths = done.answer.widths
    candidates = [
        Candidate(dict(t.answer.widths), t.answer.predicted_ms, t.measured_ms, t.measured_ci_ms, t.within)
        for number, attempt in enumerate(attempts)
        for t in attempt.settled.trials[number:]  # each begins with what those before were verified to be
    ]
    return Result(
        **_common(shop),
        **done.outcome.verified.fields(shop.folder.cautions),
        # The model has learned from this network since: asked now, it would only repeat the measurement.
        predicted_ms=done.answer.predicted_ms,
        score=next(done.scores[name] for name in (SHIPPED, "finetuned", "recalibrated") if name in done.scores),
        dense_score=done.scores["dense"],
        widths=dict(widths),
        seconds=round(shop.folder.elapsed_s, 1),
        params=shop.graph.params(widths),
        macs=shop.graph.macs(widths),
        stages=shop.folder.seconds,
        image_passes=search_passes + sum(attempt.outcome.image_passes for attempt in attempts),
        predictions=tuple(candidates),
        scores=dict(done.scores),
    )


def _infeasible(shop: Workshop, baseline: Baseline) -> Result:
    return Result(
        verdict="infeasible",
        budget_ms=baseline.budget_ms,
        dense_ms=baseline.dense.statistic(shop.settings.statistic)[0],
        measured_ms=None,
        measured_ci_ms=None,
        predicted_ms=None,
        score=None,
        dense_score=None,
        widths=dict(shop.table.space.smallest()),
        seconds=round(shop.folder.elapsed_s, 1),
        simulated=baseline.dense.simulated,
        utilisation=None,
        params=shop.graph.params(shop.table.space.smallest()),
        macs=shop.graph.macs(shop.table.space.smallest()),
        smallest_ms=baseline.smallest.statistic(shop.settings.statistic)[0],
        stages=shop.folder.seconds,
        measurements={"dense": baseline.dense, "smallest": baseline.smallest},
        warnings=tuple(shop.folder.cautions),
        **_common(shop),
    )
