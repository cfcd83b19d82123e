"""More training for the network of a finished run, exported and measured again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from hwprune.core.errors import RunError
from hwprune.core.events import OnEvent, Stop, ignore, never
from hwprune.core.files import read_json, write_json
from hwprune.graph import Recipe, apply_recipe
from hwprune.models import load_weights
from hwprune.report.html import write_report
from hwprune.report.run_data import Result, RunData
from hwprune.search.finish import verify
from hwprune.search.judge import JUDGED
from hwprune.search.run_folder import RunFolder
from hwprune.search.settings import SearchSettings
from hwprune.search.shipping import SHIPPED, export_network, shipped_score
from hwprune.search.workshop import open_workshop, training_plan
from hwprune.training import Data, Task, evaluate, finetune, task_for


def finetune_run(
    path: Path,
    model: nn.Module,
    data: Data,
    *,
    epochs: float,
    seed: int,
    task: Task | None = None,
    tables: Path = Path("latency_tables"),
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> Result:
    """Finetune a run's pruned network for `epochs` more, taught by the dense one, then export and measure it.

    `model` is the network the run began with. The run's files are replaced only when all of it is done. Raises
    `RunError` for a run without a pruned network.
    """
    settings = SearchSettings.read(path / "run.toml")
    before = RunData.read(path).result
    if before.verdict == "infeasible":
        raise RunError(f"{path} has no pruned network: its budget was infeasible", hint="search with a larger budget")
    task = task or task_for(data)
    with RunFolder.open(path, settings, on_event) as folder:
        load_weights(model, path / "dense.safetensors")
        recipe = Recipe.from_json(read_json(path / "recipe.json"))
        small = apply_recipe(recipe, model)
        load_weights(small, path / "best.safetensors")
        log = finetune(
            small,
            model.eval(),
            data,
            task=task,
            plan=training_plan(settings, epochs),
            seed=seed,
            checkpoint=folder.checkpoint(f"more-{before.image_passes}-{epochs:g}"),
            on_event=folder.emit,
            stop=stop,
        )
        with open_workshop(folder, model=model, data=data, task=task, tables=tables, stop=stop) as shop:
            shop.budget_ms = before.budget_ms
            shipment = export_network(shop, small, recipe.keep)
            measured = verify(shop, shipment.onnx, seed=seed)
            scores = {"finetuned": evaluate(small, data, "test", task=shop.task).score}
            scores.update(shipped_score(shop, shipment))
            result = dataclasses.replace(
                before,
                **measured.fields(),
                score=scores.get(SHIPPED, scores["finetuned"]),
                scores={**before.scores, **scores},
                seconds=round(folder.elapsed_s, 1),
                image_passes=before.image_passes + log.image_passes,
            )
            shipment.write(shop)
        (path / JUDGED).unlink(missing_ok=True)
        write_json(path / "result.json", result.to_json())
        write_report(path)
        return result
