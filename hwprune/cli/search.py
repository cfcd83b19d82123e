"""`hwprune search`: the most accurate network that measurably meets a latency budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._config import parse_options
from hwprune.cli._console import Outcome
from hwprune.cli._method_help import MethodHelp, check_method
from hwprune.cli._verb import Call, register
from hwprune.core.errors import UsageError
from hwprune.core.widths import Statistic
from hwprune.report.run_data import Result
from hwprune.report.text import search_text
from hwprune.search.settings import DEFAULTS, check_data, parse_budget

EXAMPLE = "hwprune search resnet20 --data cifar10:data/cifar10 --latency 60%"


def search(
    call: Call,
    model: flags.Model = None,
    latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="Budget in ms.")] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="60%|4ms", help="Budget: a share of the dense measured latency, or a latency.")
    ] = None,
    statistic: Annotated[
        Statistic, typer.Option(metavar="NAME", help="What must be within the budget: median or p90.")
    ] = DEFAULTS.statistic,
    method: Annotated[str, typer.Option(metavar="NAME", help="Pruning method.")] = DEFAULTS.method,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", envvar="HWPRUNE_SET", metavar="KEY=VALUE", help="An option of the method; repeatable."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="metapruning: ga, nsga2, tpe or random; short for --set sampler="),
    ] = None,
    data: flags.DataToTrainOn = None,
    finetune_epochs: Annotated[float, flags.epochs_flag("finetuning afterwards", none=True)] = DEFAULTS.finetune_epochs,
    total_epochs: Annotated[
        float,
        flags.epochs_flag(
            "search and finetuning together, instead of --finetune-epochs", none=True, show_default=False
        ),
    ] = DEFAULTS.total_epochs,
    **shared: Any,
) -> Outcome:
    """Find, train and measure the most accurate network within a latency budget.

    Trains the dense network and profiles the device first where that has not been done. The verdict is a
    measurement of the exported network on the device. The same command continues an interrupted run.
    """
    check_method(method)
    if latency_ms is None and latency is None:
        raise UsageError("a search needs a budget", hint="add --latency 60%, or --latency-ms 4")
    if latency is not None:
        parse_budget(latency)
    check_data(model, data)
    from hwprune import api

    with call.job() as (on_event, stop):
        run = api.search(
            model,
            data,
            latency_ms=latency_ms,
            latency=latency,
            statistic=statistic,
            method=method,
            options=parse_options((*(options or ()), *([f"sampler={sampler}"] if sampler else ()))),
            finetune_epochs=finetune_epochs,
            total_epochs=total_epochs,
            **shared,
            run_dir=call.common.run_dir,
            seed=call.common.seed,
            on_event=on_event,
            stop=stop,
        )
    return outcome_of(run.folder, run.result)


def outcome_of(folder: Path, result: Result) -> Outcome:
    """What a finished run says, with the exit code of its verdict."""
    following = tuple(shlex.join(("hwprune", verb, str(folder))) for verb in ("explain", "report", "export"))
    passed = result.verdict == "pass"
    return Outcome(search_text(result), result.to_json(), 0 if passed else 1, following if passed else ())


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(
        app,
        search,
        example=EXAMPLE,
        shared=(*flags.LIMIT_FLAGS, *flags.TRAINING_FLAGS, *flags.SPACE_FLAGS),
        cls=MethodHelp,
    )
