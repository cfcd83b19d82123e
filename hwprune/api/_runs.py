"""Runs: a search under a budget, a comparison of searches, and what follows one. One function a verb."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from hwprune.core.errors import UsageError, unknown_name
from hwprune.core.events import OnEvent, Stop, ignore, never
from hwprune.core.files import atomic_write_bytes, read_json
from hwprune.core.measurement import Target
from hwprune.devices import connect
from hwprune.devices.prepare import in_file
from hwprune.graph.onnx.export import check_against_torch
from hwprune.graph.onnx.template import whole_onnx
from hwprune.report.comparison import MethodComparison
from hwprune.report.html import write_report
from hwprune.report.run_data import RunData
from hwprune.report.waterfall import Waterfall, waterfall
from hwprune.runtimes._expected import expected
from hwprune.search.cell import cells_of
from hwprune.search.compare import run_comparison
from hwprune.search.outcomes import Exported, Run, builder, load
from hwprune.search.precision import in_precision
from hwprune.search.refine import epochs_of, finetune_run
from hwprune.search.run import run_search
from hwprune.search.run_folder import RUNS, find_run, fp32_onnx
from hwprune.search.settings import COMPARED_BUDGETS, COMPARED_METHODS, SearchOptions, SearchSettings
from hwprune.search.subjects import (
    check_own_weights,
    example_of,
    model_and_example,
    model_name,
    read_onnx,
    run_or_model,
)
from hwprune.training import Data, Task, load_data

if TYPE_CHECKING:
    from typing_extensions import Unpack


def search(
    model: str | nn.Module | None = None,
    data: str | Data | None = None,
    *,
    latency_ms: float | None = None,
    latency: str | None = None,
    run_dir: str | Path | None = None,
    tables: str | Path = "latency_tables",
    task: Task | None = None,
    on_event: OnEvent = ignore,
    stop: Stop = never,
    **options: Unpack[SearchOptions],
) -> Run:
    """The most accurate network found that measurably meets a latency budget.

    `latency_ms`, or `latency` as "60%" of the dense measured latency or "4ms". `model` and `data`: what the command
    line takes, or the objects themselves. The same call continues an interrupted run. `SearchOptions` lists `options`.
    """
    check_own_weights(model, options.get("weights"))
    named = {"model": model_name(model), "data": data.name if isinstance(data, Data) else data}
    settings = SearchSettings.make(latency_ms=latency_ms, latency=latency, **named, **options)
    folder = Path(run_dir) if run_dir is not None else settings.default_folder(RUNS)
    network = model if isinstance(model, nn.Module) else None
    result = run_search(
        settings,
        folder,
        model=copy.deepcopy(network),
        data=data if isinstance(data, Data) else None,
        task=task,
        tables=Path(tables),
        on_event=on_event,
        stop=stop,
    )
    return Run(folder, result, builder(folder, settings, network))


def compare(
    model: str | nn.Module | None = None,
    data: str | Data | None = None,
    *,
    methods: Sequence[str] = COMPARED_METHODS,
    budgets: Sequence[str] = COMPARED_BUDGETS,
    seeds: int = 2,
    baselines: Sequence[str] | None = None,
    run_dir: str | Path | None = None,
    tables: str | Path = "latency_tables",
    task: Task | None = None,
    on_event: OnEvent = ignore,
    stop: Stop = never,
    **options: Unpack[SearchOptions],
) -> MethodComparison:
    """Search with several methods under the same budgets at equal training cost; measure all results in one session.

    `budgets`: "60%" of the dense measured latency, or "4ms". `baselines`: the methods that differences are counted
    from ("uniform" and "greedy" where they take part, else the last one). `options` are those of `search`;
    `total_epochs` is what every method may train, by default `epochs` and `finetune_epochs` together. The same call
    goes on run by run.
    """
    check_own_weights(model, options.get("weights"))
    cells = cells_of(methods, budgets, seeds)
    given = data if isinstance(data, Data) else None
    base = SearchSettings.make(
        latency=budgets[0], model=model_name(model), data=given.name if given else data, **options
    )
    if not base.total_epochs:
        base = dataclasses.replace(base, total_epochs=base.epochs + base.finetune_epochs)
    controls = [name for name in ("uniform", "greedy") if name in methods] or [methods[-1]]
    for name in baselines or ():
        if name not in methods:
            raise unknown_name("baseline", name, methods)
    return run_comparison(
        base,
        cells,
        Path(run_dir) if run_dir is not None else comparison_folder(base.model),
        baselines=baselines or controls,
        model=model if isinstance(model, nn.Module) else None,
        data=given or load_data(base.data),
        task=task,
        tables=Path(tables),
        on_event=on_event,
        stop=stop,
    )


def finetune(
    run: str | Path,
    *,
    epochs: float | None = None,
    data: str | Data | None = None,
    build: Callable[[], nn.Module] | None = None,
    task: Task | None = None,
    seed: int = 0,
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> Run:
    """Train a run's pruned network further, taught by the dense one; export and measure it again.

    By default for as many `epochs` as the run's own finetuning, with its own `data`. On other data of the same classes
    the dense network is scored again too. No latency table is needed.
    """
    folder = find_run(run, RUNS)
    settings = SearchSettings.read(folder / "run.toml")
    epochs = epochs_of(folder, settings, epochs)
    build = build or builder(folder, settings, None)
    spec = data.name if isinstance(data, Data) else data or settings.data
    result = finetune_run(
        folder,
        build(),
        data if isinstance(data, Data) else load_data(spec),
        data_name=spec,
        epochs=epochs,
        seed=seed,
        task=task,
        on_event=on_event,
        stop=stop,
    )
    return Run(folder, result, build)


def export(
    subject: str | Path | nn.Module,
    x: Tensor | tuple[int, ...] | None = None,
    path: str | Path = "model.onnx",
    *,
    weights: str | Path | None = None,
    precision: str | None = None,
    data: str | Data | None = None,
    seed: int = 0,
) -> Exported:
    """Write a run's pruned network, or any model, as ONNX and compare its outputs with torch's.

    `precision`: fp32, fp16 (weights and activations FLOAT16) or int8 (quantise-dequantise pairs), for a runtime that
    computes in what the file says; by default what a run was measured in, else fp32. int8 takes the ranges of
    activations from images of `data`, a run's own by default. A run has its own `weights` and input shape `x`: to give
    others is refused. The file is written only if its outputs are within the tolerance.
    """
    path = Path(path)
    folder = None if isinstance(subject, nn.Module) else run_or_model(subject)
    if folder is None:
        network, example, _ = model_and_example(subject, x, None, 1, 0, weights=weights)
        written = whole_onnx(network, (example,))
        precision = precision or "fp32"
    else:
        _check_own(folder, weights=weights, input=x)
        network, written = load(folder), read_onnx(fp32_onnx(folder))
        settings = SearchSettings.read(folder / "run.toml")
        precision = precision or (settings.target.precision if in_file(settings.target) else "fp32")
        example = example_of(read_json(folder / "environment.json")["input_shape"], settings.batch)
        data, seed = data or settings.data, settings.seed
    images = load_data(data) if isinstance(data, str) and precision == "int8" else data
    with connect(Target()) as board:
        shipped = in_precision(
            written, precision, example, images if isinstance(images, Data) else None, expected, seed
        )
        difference = check_against_torch(shipped.model, network, (shipped.example,), float("inf"), board.infer)
    if difference <= shipped.tolerance:
        atomic_write_bytes(path, shipped.model)
    return Exported(path, len(shipped.model), difference, shipped.tolerance)


def explain(run: str | Path) -> Waterfall:
    """Layer by layer, dense against pruned: where pruning saved time, where it did not, and why."""
    found = RunData.read(find_run(run, RUNS))
    if found.layers is None:
        raise UsageError(
            f"{found.folder} has no layer times", hint="its budget was infeasible, or the runtime has none"
        )
    result = found.result
    return waterfall(found.layers, dense_ms=result.dense_ms, pruned_ms=result.measured_ms, simulated=result.simulated)


def report(run: str | Path) -> Path:
    """Write a run's `report.html`: one file that works offline."""
    return write_report(find_run(run, RUNS))


def comparison_folder(model: str) -> Path:
    """Where the comparison of a model lies when nobody says otherwise."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.split("?")[0]).name)
    return RUNS / f"compare_{name}"


def _check_own(folder: Path, **given: object) -> None:
    """Raise `UsageError` for what was given although a run has it: it would not be used."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{folder} is a run, with its own {name}", hint=f"leave --{name} out, or name a model")
