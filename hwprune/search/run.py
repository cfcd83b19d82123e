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
from hwprune.methods._base import AbstractMethod, Answer
from hwprune.models import load_model, load_weights
from hwprune.report.html import FILE as REPORT
from hwprune.report.html import write_report
from hwprune.report.run_data import SHIPPED, Candidate, Result
from hwprune.search.anchor import AnchorWidths
from hwprune.search.answers import load_settlement, save_settlement
from hwprune.search.baseline import Baseline, measure_baseline
from hwprune.search.controller import Missed, Settlement, Trial
from hwprune.search.dense import dense_network
from hwprune.search.finish import Finished, finish
from hwprune.search.layers import layer_profile
from hwprune.search.run_folder import DATA, ONNX, RunFolder
from hwprune.search.settings import SearchSettings
from hwprune.search.stages import make_method, search_answer, settle
from hwprune.search.workshop import Workshop, open_workshop
from hwprune.training import Data, Task, load_data, task_for

# What the candidates of each attempt leave free of the budget: after the finetuned network of the first missed it a
# little, and after two did, on a device that says two things of one network, enough to end the matter.
RESERVES = (0.0, 0.01, 0.04)
IN_VAIN = "in_vain.json"
# A finetuned network has the shape of its candidate: what reads slower by more than this was disturbed. That much is
# believed, for going further back would give away accuracy to a neighbour on the machine.
MOST_SLOWER = 1.06


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
    settled: list[Settlement] = []
    passes = answer.image_passes
    done: Finished | None = None
    stepping_back = True
    while stepping_back:
        attempt = len(settled)
        found = _settle(shop, method, answer, settled)
        if settled and found.chosen.answer.widths == settled[-1].chosen.answer.widths:
            break  # no other network is left to try
        settled.append(found)
        in_vain = _in_vain(shop, attempt)
        if in_vain is not None:
            passes += int(in_vain["image_passes"])
            continue
        done = _finish(shop, settled)
        passes += done.image_passes
        stepping_back = _stepping_back(shop, done, settled)
        if stepping_back:
            _keep_in_vain(shop, done, attempt)
    done = done or _finish(shop, settled)
    profile = layer_profile(shop, (shop.folder.path / ONNX).read_bytes(), done.answer)
    if profile is not None:
        write_json(shop.folder.path / "layers.json", profile.to_json())
    return _result(shop, done, settled, passes)


def _attempt(shop: Workshop, attempt: int) -> Path:
    """What an attempt left: the candidates it measured, and what it trained when that was in vain."""
    return shop.folder.path / "settled" / str(attempt)


def _in_vain(shop: Workshop, attempt: int) -> dict[str, Any] | None:
    """What an attempt trained and measured that ended over the budget before this run was interrupted, else None."""
    path = _attempt(shop, attempt) / IN_VAIN
    return dict(read_json(path)) if path.exists() else None


def _keep_in_vain(shop: Workshop, done: Finished, attempt: int) -> None:
    verified = done.verified
    shop.learn(done.answer.widths, verified.pruned)
    value, low, high = verified.pruned.statistic(verified.statistic)
    document = {
        "image_passes": done.image_passes,
        "measured_ms": value,
        "measured_ci_ms": [low, high],
        "median_ms": verified.pruned.latency_ms,
        "budget_ms": verified.budget_ms,
    }
    write_json(_attempt(shop, attempt) / IN_VAIN, document)


def _stepping_back(shop: Workshop, done: Finished, settled: Sequence[Settlement]) -> bool:
    """Whether to try a smaller network: this one measures over the budget that its candidate had met."""
    if done.verified.within or not settled[-1].chosen.within or len(settled) == len(RESERVES):
        return False
    shop.folder.emit(Note("the finetuned network measures over the budget its candidate had met: stepping back"))
    return True


def _finish(shop: Workshop, settled: Sequence[Settlement]) -> Finished:
    chosen = settled[-1].chosen
    return finish(shop, chosen.answer, len(settled) - 1, candidate_ms=chosen.measured_ms)


def _settle(shop: Workshop, method: AbstractMethod, answer: Answer, before: Sequence[Settlement]) -> Settlement:
    """Kept once decided: measured anew after a kill, another candidate could win than the one half finetuned.

    `before` are the attempts whose finetuned networks turned out over the budget: this one goes on below the last.
    """
    attempt = len(before)
    stage = f"settle-{attempt}" if attempt else "settle"
    folder = _attempt(shop, attempt)

    def work() -> Settlement:
        missed = _missed(shop, before[-1].chosen, attempt - 1) if before else None
        settled = settle(shop, method, answer, reserve=RESERVES[attempt], missed=missed)
        save_settlement(settled, folder)
        return settled

    return shop.folder.stage(stage, work, lambda: load_settlement(folder, shop.table.space, answer))


def _missed(shop: Workshop, candidate: Trial, attempt: int) -> Missed:
    """What an attempt in vain measured in the end, as far as it is believed; never within the budget."""
    found = read_json(_attempt(shop, attempt) / IN_VAIN)
    measured_ms, budget_ms = float(found["measured_ms"]), float(found["budget_ms"])
    believed = min(measured_ms, max(MOST_SLOWER * candidate.measured_ms, budget_ms)) / measured_ms
    low, high = (float(end) * believed for end in found["measured_ci_ms"])
    return Missed(
        Trial(candidate.answer, measured_ms * believed, (low, high), budget_ms),
        AnchorWidths(candidate.answer.widths, float(found["median_ms"]) * believed),
    )


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


def _fit_scores(scores: Any, label_noise: float | None) -> dict[str, float]:
    kept = {name: value for name, value in vars(scores).items() if isinstance(value, float) and math.isfinite(value)}
    return {**kept, **({} if label_noise is None else {"label_noise": label_noise})}


def _result(shop: Workshop, done: Finished, settled: list[Settlement], image_passes: int) -> Result:
    widths = done.answer.widths
    candidates = [
        Candidate(dict(t.answer.widths), t.answer.predicted_ms, t.measured_ms, t.measured_ci_ms, t.within)
        for attempt, s in enumerate(settled)
        for t in s.trials[1 if attempt else 0 :]  # a later attempt begins with what the one before was verified to be
    ]
    return Result(
        **_common(shop),
        **done.verified.fields(shop.folder.cautions),
        # The model has learned from this network since: asked now, it would only repeat the measurement.
        predicted_ms=done.answer.predicted_ms,
        score=next(done.scores[name] for name in (SHIPPED, "finetuned", "recalibrated") if name in done.scores),
        dense_score=done.scores["dense"],
        widths=dict(widths),
        seconds=round(shop.folder.elapsed_s, 1),
        params=shop.graph.params(widths),
        macs=shop.graph.macs(widths),
        stages=shop.folder.seconds,
        image_passes=image_passes,
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
