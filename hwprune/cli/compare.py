"""`hwprune compare`: several methods under the same budgets at equal training cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._method_help import check_method
from hwprune.cli._verb import Call, register
from hwprune.core.errors import UsageError
from hwprune.report.comparison import comparison_text
from hwprune.search.settings import COMPARED_BUDGETS, COMPARED_METHODS, DEFAULTS, check_data, parse_budget

EXAMPLE = "hwprune compare resnet20 --data cifar10:data/cifar10 --methods gdp,greedy,uniform --budgets 75%,60%,45%"


def compare(
    call: Call,
    model: flags.Model = None,
    methods: Annotated[
        str, typer.Option(metavar="A,B", help="Methods, separated by commas; options as NAME:KEY=VALUE.")
    ] = ",".join(COMPARED_METHODS),
    budgets: Annotated[
        str, typer.Option(metavar="75%,60%", help="Budgets: shares of the dense measured latency, or latencies (4ms).")
    ] = ",".join(COMPARED_BUDGETS),
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds 0 to N-1 for search and finetuning.")] = 2,
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Methods that differences are counted from: uniform and greedy where they run."
        ),
    ] = None,
    data: flags.DataToTrainOn = None,
    finetune_epochs: Annotated[float, flags.epochs_flag("finetuning afterwards", none=True)] = DEFAULTS.finetune_epochs,
    total_epochs: Annotated[
        float,
        flags.epochs_flag(
            "search and finetuning together, equal for all methods",
            none=True,
            show_default="--epochs + --finetune-epochs",
        ),
    ] = DEFAULTS.total_epochs,
    **shared: Any,
) -> Outcome:
    """Compare methods on your model, data and device: one run each, one bench of all results, one table and plot.

    All start from the same dense weights and may train on equally many images, the search included. The same command
    goes on run by run. Exit code 1 when a run missed its budget.
    """
    chosen, bounds = words(methods, "--methods"), words(budgets, "--budgets")
    for method in chosen:
        check_method(method.partition(":")[0])
    for budget in bounds:
        parse_budget(budget)
    check_data(model, data)
    from hwprune import api

    folder = call.common.run_dir or api.comparison_folder(model or DEFAULTS.model)
    with call.job() as (on_event, stop):
        found = api.compare(
            model,
            data,
            methods=chosen,
            budgets=bounds,
            seeds=seeds,
            baselines=words(baselines, "--baselines") if baselines else None,
            finetune_epochs=finetune_epochs,
            total_epochs=total_epochs,
            seed=call.common.seed,
            **shared,
            run_dir=folder,
            on_event=on_event,
            stop=stop,
        )
    text = f"{comparison_text(found)}\n\n{folder / 'comparison.html'}"
    return Outcome(text, found.to_json(), 0 if found.verdict == "pass" else 1, ())


def words(text: str, flag: str) -> tuple[str, ...]:
    """The parts of a list separated by commas, each once. Raises `UsageError` when there are none."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UsageError(f"{flag} {text!r} names nothing", hint=f"write it as {flag} one,two")
    return found


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, compare, example=EXAMPLE, shared=(*flags.LIMIT_FLAGS, *flags.TRAINING_FLAGS, *flags.SPACE_FLAGS))
