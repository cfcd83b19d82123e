"""More training for the network of a finished run, exported and measured again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hwprune.core.errors import RunError, UsageError
from hwprune.core.events import OnEvent, Stop, ignore, never
from hwprune.core.files import read_json, write_json
from hwprune.graph import Recipe, apply_recipe
from hwprune.models import load_weights
from hwprune.report.html import write_report
from hwprune.report.run_data import SHIPPED, Result, RunData
from hwprune.search.baseline import Baseline
from hwprune.search.finish import verify
from hwprune.search.judge import JUDGED
from hwprune.search.run_folder import RunFolder
from hwprune.search.settings import SearchSettings
from hwprune.search.shipping import Shipment, export_network, shipped_score
from hwprune.search.workshop import Workbench, open_workbench, write_environment
from hwprune.training import Data, Task, TrainLog, evaluate, finetune, task_for

MORE = "finetune-more"  # the stage of all training after the search


def finetune_run(
    path: Path,
    model: nn.Module,
    data: Data,
    *,
    data_name: str,
    epochs: float,
    seed: int,
    task: Task | None = None,
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> Result:
    """Finetune a run's pruned network for `epochs` more, taught by the dense one, then export and measure it.

    `model` is the network the run began with; `data_name` is what the result calls `data`. The device is opened first
    of all, and the run's files are replaced only when everything is done. Raises `RunError` for a run without a pruned
    network, `UsageError` for data that the network is not made for.
    """
    settings = SearchSettings.read(path / "run.toml")
    before = RunData.read(path).result
    if before.verdict == "infeasible":
        raise RunError(f"{path} has no pruned network: its budget was infeasible", hint="search with a larger budget")
    facts = read_json(path / "environment.json")
    _check_data(data, data_name, facts)
    task = task or task_for(data)
    with RunFolder.open(path, settings, on_event) as folder:
        load_weights(model.eval(), path / "dense.safetensors")
        reference_ms = facts.get("reference_ms")
        with open_workbench(folder, model=model, data=data, task=task, reference_ms=reference_ms, stop=stop) as shop:
            shop.budget_ms, shop.anchor = before.budget_ms, Baseline.of_run(path).anchor
            result, shipment = _refined(shop, before, data_name, epochs, seed)
            shipment.write(shop)
            write_environment(folder, shop.board, data)
        (path / JUDGED).unlink(missing_ok=True)
        write_json(path / "result.json", result.to_json())
        write_report(path)
        return result


def epochs_of(path: Path, settings: SearchSettings, epochs: float | None) -> float:
    """How long to finetune a run: `epochs`, or its own number. Raises `UsageError` for 0 and for no number.

    A run that shared `total_epochs` between search and finetuning has no number of its own.
    """
    if epochs is None and settings.total_epochs:
        raise UsageError(
            f"{path} had {settings.total_epochs:g} epochs for search and finetuning together,"
            " and no number for finetuning alone",
            hint="say how many with --epochs",
        )
    if epochs is None and not settings.finetune_epochs:
        raise UsageError(f"{path} was searched without finetuning", hint="say how many epochs with --epochs")
    epochs = settings.finetune_epochs if epochs is None else epochs
    if not (math.isfinite(epochs) and epochs > 0):
        raise UsageError(f"cannot finetune for {epochs:g} epochs", hint="--epochs must be more than 0")
    return epochs


def _check_data(data: Data, name: str, facts: Mapping[str, Any]) -> None:
    """Raise `UsageError` unless data have the images and the classes of those the network was searched with."""
    classes, shape = facts["classes"], tuple(facts["input_shape"])
    if data.classes != classes:
        raise UsageError(
            f"the data {name} have {data.classes} classes, the network has {classes}",
            hint="finetune with data of the same classes",
        )
    if data.input_shape != shape:
        raise UsageError(
            f"the images of {name} are {data.input_shape}, the network was measured with {shape}",
            hint="finetune with images of the same shape",
        )


def _refined(shop: Workbench, before: Result, data_name: str, epochs: float, seed: int) -> tuple[Result, Shipment]:
    """The result after the training, and the files that go with it; nothing is written yet."""
    folder = shop.folder
    dense_score = evaluate(shop.model, shop.data, "test", task=shop.task).score
    recipe = Recipe.from_json(read_json(folder.path / "recipe.json"))
    small = apply_recipe(recipe, shop.model)
    load_weights(small, folder.path / "best.safetensors")
    log = folder.stage(MORE, lambda: _trained(shop, small, before, epochs, seed))
    shipment = folder.stage("export", lambda: export_network(shop, small, recipe.keep))
    measured = folder.stage("verify", lambda: verify(shop, shipment.onnx, seed=seed))
    scores = {"dense": dense_score, "finetuned": evaluate(small, shop.data, "test", task=shop.task).score}
    scores.update(shipped_score(shop, shipment))
    result = dataclasses.replace(
        before,
        **measured.fields(folder.cautions),
        score=scores.get(SHIPPED, scores["finetuned"]),
        dense_score=dense_score,
        scores={**_former_scores(before, data_name, dense_score), **scores},
        data=data_name,
        score_name=shop.task.score_name,
        run_dir=str(folder.path),
        seconds=round(folder.elapsed_s, 1),
        stages=folder.seconds,
        image_passes=before.image_passes + log.image_passes,
    )
    return result, shipment


def _trained(shop: Workbench, small: nn.Module, before: Result, epochs: float, seed: int) -> TrainLog:
    # Its own checkpoint for each training, so that one that was given up is in no other's way.
    name = f"more-{before.image_passes}-{epochs:g}-{seed}-{shop.data.fingerprint}"
    return finetune(
        small,
        shop.model,
        shop.data,
        task=shop.task,
        plan=shop.plan(epochs),
        seed=seed,
        checkpoint=shop.folder.checkpoint(name),
        on_event=shop.folder.emit,
        stop=shop.stop,
    )


def _former_scores(before: Result, data_name: str, dense_score: float) -> Mapping[str, float]:
    """The scores of the stages before, where they are of the same test images: those of others are no comparison."""
    same = before.dense_score is not None and math.isclose(dense_score, before.dense_score, rel_tol=1e-5)
    return before.scores if same and data_name == before.data else {}
