"""`hwprune search`: the most accurate network that measurably meets a latency budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._config import parse_options
from hwprune.cli._console import Outcome
from hwprune.cli._method_help import MethodHelp, check_method
from hwprune.cli._verb import Call, register
from hwprune.core.errors import UsageError
from hwprune.core.units import parse_latency_ms
from hwprune.report.run_data import RunData
from hwprune.report.text import search_text

EXAMPLE = "hwprune search resnet20 --data cifar10:data/cifar10 --latency 60%"


def search(
    call: Call,
    model: flags.Model = None,
    latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="Budget in ms.")] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="60%|4ms", help="Budget: a share of the dense measured latency, or a latency.")
    ] = None,
    statistic: Annotated[str, typer.Option(metavar="NAME", help="What must be in budget: median or p90.")] = "median",
    method: Annotated[str, typer.Option(metavar="NAME", help="Pruning method.")] = "wgates",
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method; repeatable.")
    ] = None,
    data: flags.Data = None,
    weights: flags.Weights = None,
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", min=0, help="Epochs of the search.", rich_help_panel=flags.TRAINING),
    ] = None,
    finetune_epochs: Annotated[
        float | None,
        typer.Option(metavar="N", min=0, help="Epochs of finetuning afterwards.", rich_help_panel=flags.TRAINING),
    ] = None,
    device: flags.Device = "cpu",
    runtime: flags.Runtime = None,
    threads: flags.Threads = 1,
    batch: flags.Batch = 1,
    samples: flags.Samples = 100,
    tables: flags.Tables = Path("latency_tables"),
    min_keep: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Least share of a group kept.", rich_help_panel=flags.SPACE),
    ] = None,
    tile: Annotated[
        str,
        typer.Option(metavar="N", help="Step of the widths; auto: found by a probe.", rich_help_panel=flags.SPACE),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the search space and stop.", rich_help_panel=flags.SPACE)
    ] = False,
) -> Outcome:
    """Find, train and measure the most accurate network within a latency budget.

    Trains the dense network and profiles the device first where that has not been done. The verdict is a
    measurement of the exported network on the device. The same command continues an interrupted run.
    """
    check_method(method)
    if latency_ms is None and latency is None:
        raise UsageError("a search needs a budget", hint="add --latency 60%, or --latency-ms 4")
    if latency is not None and not latency.strip().endswith("%"):
        parse_latency_ms(latency)
    if tile != "auto" and not tile.isdigit():
        raise UsageError(f"--tile {tile} is neither a whole number nor auto", hint="--tile 16")
    from hwprune import api

    with call.job() as (on_event, stop):
        run = api.search(
            model,
            data,
            latency_ms=latency_ms,
            latency=latency,
            statistic=statistic,
            method=method,
            options=parse_options(options or ()),
            weights=weights,
            epochs=epochs,
            finetune_epochs=finetune_epochs,
            device=device,
            runtime=runtime,
            threads=threads,
            batch=batch,
            samples=samples,
            tables=tables,
            min_keep=min_keep,
            tile=tile if tile == "auto" else int(tile),
            run_dir=call.common.run_dir,
            seed=call.common.seed,
            dry_run=dry_run,
            on_event=on_event,
            stop=stop,
        )
    return outcome_of(run.folder)


def outcome_of(folder: Path) -> Outcome:
    """What a finished run folder says, with the exit code of its verdict."""
    result = RunData.read(folder).result
    name = folder.name
    following = (f"hwprune explain {name}", f"hwprune report {name}", f"hwprune export {name}")
    passed = result.verdict == "pass"
    return Outcome(search_text(result), result.to_json(), 0 if passed else 1, following if passed else ())


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, search, example=EXAMPLE, cls=MethodHelp)
